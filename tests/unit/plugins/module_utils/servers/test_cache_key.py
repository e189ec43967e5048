# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that compile the same have the same key, and no others."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import nvml
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.cache_key import cache_key
from ansible_collections.gpufleet.vllm.tests.unit.conftest import write_below

CPUINFO = "processor : 0\nmodel name : Xeon\nflags : fpu avx512f\ncpu MHz : {}\n\nprocessor : 1\n"
GPU = {"index": 0, "uuid": "GPU-1", "name": "H200", "compute_capability": "9.0", "mig_mode": False, "error": None}
PROBED = {"driver_version": "580.1", "gpus": [GPU, {**GPU, "index": 1, "uuid": "GPU-2", "name": "another"}]}
REPLICA: dict[str, Any] = {
    "name": "vllm-0",
    "gpus": [0],
    "gpu_uuids": ["GPU-1"],
    "tensor_parallel_size": 1,
    "config": {"host": "0.0.0.0", "port": 8000, "max-num-seqs": 100},
    "environment": {"VLLM_X": "1", "https_proxy": "http://a"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's root folder with a model."""
    write_below(tmp_path, "proc/cpuinfo", CPUINFO.format(2000))
    write_below(tmp_path, "models/scout/config.json", "{}")
    return tmp_path


@pytest.fixture
def wishes(root: Path) -> ServerOptions:
    """What the replicas share."""
    source = {"kind": "path", "mount": str(root / "models/scout"), "argument": "/models/scout"}
    return ServerOptions("r:1", "sha256:1", source, "cuda", "auto", "bridge", str(root / "hf"), "/c", "/e")


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What NVML tells."""
    told = copy.deepcopy(PROBED)
    monkeypatch.setattr(nvml, "probe", lambda _root: told)
    return told


def key(root: Path, wishes: ServerOptions, **replica: Any) -> str:
    """Return the key of one replica."""
    return cache_key([{**REPLICA, **replica}], wishes, str(root))  # type: ignore[typeddict-item]


def test_what_is_of_the_host_alone_does_not_matter(root: Path, wishes: ServerOptions, probed: dict[str, Any]) -> None:
    before = key(root, wishes)
    assert len(before) == 64
    config = {**REPLICA["config"], "host": "127.0.0.1", "port": 8001}
    environment = {"VLLM_X": "1", "https_proxy": "http://b", "NVIDIA_VISIBLE_DEVICES": "GPU-3"}
    probed["gpus"][1]["error"] = "lost"
    write_below(root, "proc/cpuinfo", CPUINFO.format(3000))
    other = key(root, wishes, name="x-7", config=config, environment=environment)
    assert other == before
    # Of two replicas that are equal, one counts.
    both: list[Any] = [REPLICA, {**REPLICA, "name": "vllm-1", "config": config}]
    assert cache_key(both, wishes, str(root)) == before
    probed["gpus"][0].update(uuid="GPU-9", index=3)
    assert key(root, wishes, gpus=[3], gpu_uuids=["GPU-9"]) == before


def test_what_compilers_see_matters(root: Path, wishes: ServerOptions, probed: dict[str, Any]) -> None:
    found = [
        key(root, wishes),
        key(root, wishes, config={**REPLICA["config"], "max-num-seqs": 101}),
        key(root, wishes, environment={"VLLM_X": "2"}),
        key(root, wishes, tensor_parallel_size=2),
        key(root, wishes, gpus=[1], gpu_uuids=["GPU-2"]),
        key(root, dataclasses.replace(wishes, image_id="sha256:2")),
        key(root, dataclasses.replace(wishes, environment={"VLLM_X": "3"})),
        key(root, dataclasses.replace(wishes, volumes=("/a:/b",))),
        key(root, dataclasses.replace(wishes, device="cpu")),
    ]
    for change in ({"name": "H100"}, {"compute_capability": "9.1"}, {"mig_mode": True}):
        probed["gpus"][0] = {**GPU, **change}
        found.append(key(root, wishes))
    probed["gpus"][0] = GPU
    probed["driver_version"] = "580.2"
    found.append(key(root, wishes))
    probed["driver_version"] = "580.1"
    write_below(root, "models/scout/config.json", '{"x": 1}')
    found.append(key(root, wishes))
    write_below(root, "models/scout/config.json", "{}")
    write_below(root, "proc/cpuinfo", CPUINFO.format(1).replace("avx512f", "avx2"))
    found.append(key(root, wishes))
    assert "" not in found
    assert len(set(found)) == len(found)


def test_where_something_is_not_known_there_is_no_key(
    root: Path, wishes: ServerOptions, probed: dict[str, Any]
) -> None:
    assert key(root, dataclasses.replace(wishes, image_id="")) == ""
    assert cache_key([], wishes, str(root)) == ""
    gone = {"kind": "hub", "mount": "", "argument": "acme/gone"}
    assert key(root, dataclasses.replace(wishes, model_source=gone)) == ""
    assert key(root, wishes, gpus=[7], gpu_uuids=["GPU-7"]) == ""
    probed["gpus"][0]["error"] = "lost"
    assert key(root, wishes) == ""
    probed.update(copy.deepcopy(PROBED), driver_version=None)
    assert key(root, wishes) == ""
    probed.update(copy.deepcopy(PROBED))
    (root / "proc/cpuinfo").unlink()
    assert key(root, wishes) == ""


def test_a_model_of_the_hub_is_known_by_its_configuration_in_the_cache(root: Path, wishes: ServerOptions) -> None:
    hub = dataclasses.replace(wishes, model_source={"kind": "hub", "mount": "", "argument": "acme/scout"})
    write_below(root, "hf/hub/models--acme--scout/refs/main", "c1")
    write_below(root, "hf/hub/models--acme--scout/snapshots/c1/config.json", "{}")
    first = key(root, hub)
    assert first
    write_below(root, "hf/hub/models--acme--scout/refs/main", "c2")
    write_below(root, "hf/hub/models--acme--scout/snapshots/c2/config.json", '{"x": 2}')
    assert key(root, hub) not in ("", first)
    assert key(root, hub, config={**REPLICA["config"], "revision": "c1"}) not in ("", first)
