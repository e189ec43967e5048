# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vllm_server refuses before it meets an engine; tests/engine/test_server.py has the rest, on a real one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions, build_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import caches
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Step, groups_of
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_server
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, write_below


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options of a host whose engine does not run."""
    return {
        "image": "vllm/vllm-openai:deploy",
        "model_source": {"kind": "hub", "location": "m", "argument": "m"},
        "replicas": [{"name": "vllm-0"}],
        "config_dir": str(tmp_path / "etc"),
        "docker_host": f"unix://{tmp_path}/no.sock",
    }


@pytest.mark.parametrize(
    ("state", "missing"), [("present", "image"), ("present", "model_source"), ("restarted", "model_source")]
)
def test_image_and_model_are_needed_to_run_servers(
    run_module: RunModule, options: dict[str, Any], state: str, missing: str
) -> None:
    del options[missing]
    result = run_module(vllm_server.main, {**options, "state": state})
    assert result["failed"]
    assert missing in result["msg"]


@pytest.mark.parametrize("state", ["present", "absent"])
def test_an_engine_that_does_not_run_is_told(run_module: RunModule, options: dict[str, Any], state: str) -> None:
    result = run_module(vllm_server.main, {**options, "state": state})
    assert (result["failed"], result["error"]["name"]) == (True, "engine-not-running")
    assert "vllm_docker_host" in result["error"]["remedy"]


def test_secrets_are_not_in_the_result(run_module: RunModule, options: dict[str, Any]) -> None:
    result = run_module(vllm_server.main, {**options, "secrets": {"VLLM_API_KEY": "sk-secret-4711"}})
    assert "sk-secret-4711" not in str(result)


def test_a_second_run_on_the_host_is_refused(run_module: RunModule, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    with host_lock(str(tmp_path / "etc" / ".lock"), "vllm_server, state present"):
        result = run_module(vllm_server.main, options)
        assert (result["failed"], result["error"]["name"]) == (True, "busy")
        # Only telling what would be done needs no lock.
        assert run_module(vllm_server.main, options, check=True)["error"]["name"] == "engine-not-running"


def test_check_mode_makes_no_folder(run_module: RunModule, options: dict[str, Any], tmp_path: Path) -> None:
    run_module(vllm_server.main, options, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/", "/data", "~", "/data/.."])
def test_a_folder_high_in_the_file_system_is_not_purged(path: str) -> None:
    import os

    with pytest.raises(GpufleetError) as caught:
        caches.check_removable(os.path.expanduser(path))
    assert caught.value.name == "cache-not-removable"


def test_a_cache_folder_is_purged() -> None:
    assert caches.check_removable("/var/lib/gpufleet/cache") == "/var/lib/gpufleet/cache"


MOUNTS = """20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:17 / /srv rw - ext4 /dev/sdb1 rw
22 21 8:33 / /srv/models rw - xfs /dev/sdc1 rw
23 20 0:50 / /mnt/shared\\040files rw - nfs4 10.0.0.1:/export rw
24 20 0:51 / /mnt/ceph rw - ceph mds@.fs=/ rw
"""


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/srv/cache", ""),
        ("/var/lib/gpufleet/huggingface", ""),
        ("/srv/models", "/srv/models is a file system of its own (xfs)"),
        ("/srv/models/huggingface", ""),
        ("/mnt/shared files/huggingface", "/mnt/shared files is nfs4, which other hosts may share"),
        ("/mnt/ceph/huggingface", "/mnt/ceph is ceph"),
        ("/mnt/other", ""),
        ("/opt/one", "vllm-small-0 of another deployment mounts /opt/one/cache"),
        ("/opt/one/cache/vllm", "vllm-small-0 of another deployment mounts /opt/one/cache"),
        ("/opt/one/cache2", ""),
    ],
)
def test_what_others_use_is_not_purged(path: str, why: str, tmp_path: Path) -> None:
    write_below(tmp_path, "proc/self/mountinfo", MOUNTS)
    others = {"vllm-small-0": ["/opt/one/cache"]}
    if not why:
        assert caches.check_removable(path, others, str(tmp_path)) == path
        return
    with pytest.raises(GpufleetError, match=re.escape(why)) as caught:
        caches.check_removable(path, others, str(tmp_path))
    assert (caught.value.name, path in caught.value.message) == ("cache-not-removable", True)
    assert "vllm_hf_home and vllm_cache_dir" in caught.value.remedy


def test_a_folder_with_a_file_system_mounted_inside_is_not_purged(tmp_path: Path) -> None:
    write_below(tmp_path, "proc/self/mountinfo", "20 1 8:33 / /opt/cache/hub rw - ext4 /dev/sdc1 rw\n")
    with pytest.raises(GpufleetError, match="/opt/cache/hub is a file system of its own"):
        caches.check_removable("/opt/cache", root=str(tmp_path))


class TestGroups:
    """Which servers are replaced together."""

    @staticmethod
    def spec(name: str, port: int, gpus: list[int]) -> Spec:
        source = {"argument": "m"}
        wishes = ServerOptions("i", "sha256:1", source, "cuda", "gpus", "bridge", "/h", "/c", "/etc")
        replica: Any = {"name": name, "host": "127.0.0.1", "port": port, "gpus": gpus, "config": {"port": 8000}}
        return build_spec(replica, wishes, (), lambda _path: False)

    class Box:
        """An old container with a spec on its label."""

        def __init__(self, spec: Spec) -> None:
            from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import labels

            self.labels = labels(spec)

    def step(self, name: str, new: tuple[int, list[int]] | None, old: tuple[int, list[int]] | None) -> Step:
        spec = self.spec(name, *new) if new else None
        box: Any = self.Box(self.spec(name, *old)) if old else None
        action = "removed" if new is None else "replaced" if old else "created"
        return Step(name, spec, box, action=action)

    def groups(self, *steps: Step) -> list[list[str]]:
        return [[step.name for step in group] for group in groups_of(steps)]

    def test_new_servers_start_together_and_replacements_one_after_another(self) -> None:
        steps = [
            self.step("a", (8000, [0]), None),
            self.step("b", (8001, [1]), (8001, [1])),
            self.step("c", (8002, [2]), (8002, [2])),
            self.step("d", (8003, [3]), None),
        ]
        assert self.groups(*steps) == [["a", "d"], ["b"], ["c"]]

    def test_a_server_that_takes_over_the_gpus_of_others_is_replaced_with_them(self) -> None:
        steps = [
            self.step("a", (8000, [0, 1]), (8000, [0])),
            self.step("b", None, (8001, [1])),
            self.step("c", (8002, [2]), (8002, [2])),
        ]
        assert self.groups(*steps) == [["b", "a"], ["c"]] or self.groups(*steps) == [["a", "b"], ["c"]]

    def test_ports_that_move_on_make_one_group(self) -> None:
        steps = [self.step(name, (port + 1, [0]), (port, [9])) for name, port in (("a", 1), ("b", 2), ("c", 3))]
        assert sorted(self.groups(*steps)[0]) == ["a", "b", "c"]

    def test_one_new_server_that_takes_what_an_unwanted_one_holds_joins_it(self) -> None:
        assert sorted(self.groups(self.step("a", (1, [0]), None), self.step("b", None, (2, [0])))[0]) == ["a", "b"]
