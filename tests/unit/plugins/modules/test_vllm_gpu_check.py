# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module vllm_gpu_check, its script on stubs of the driver's libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import NotFound

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions, build_spec, labels
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_gpu_check
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

GPUS = ["GPU-11d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7", "GPU-22d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7"]
Check = Callable[..., "dict[str, Any]"]


class Server:
    """A server's container: C(given) by its spec, and what a process in it sees."""

    def __init__(self, given: list[str], variables: dict[str, str]) -> None:
        replica: Any = {"name": "vllm-0", "gpus": [0], "gpu_uuids": given, "host": "::1", "port": 8000, "config": {}}
        if not given:
            replica["gpus"] = []
        wishes = ServerOptions(
            "i:1", "sha256:1", {"argument": "/m"}, "cuda", "gpus", "host", "/hub", "/cache", "/etc/gpufleet"
        )
        self.labels = labels(build_spec(replica, wishes, (), lambda _path: False))
        self.name, self.status = "vllm-0", "running"
        self._variables = variables

    def exec_run(self, command: list[str]) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", *command[4:]],
            env={**os.environ, **self._variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def check(run_module: RunModule, monkeypatch: pytest.MonkeyPatch, nvml_stub: Path, tmp_path: Path) -> Check:
    """Run the module against a server that was given some GPUs and sees others."""

    def run(
        given: list[str], seen: list[str], *, cuda: str = "", name: str = "vllm-0", **changes: Any
    ) -> dict[str, Any]:
        (tmp_path / "cuda").write_text(cuda + "".join(f"{gpu}\n" for gpu in seen))
        scenario = "".join(f"[gpu {index}]\nname = H\nuuid = {gpu}\n" for index, gpu in enumerate(seen))
        (tmp_path / "nvml.ini").write_text("[host]\ndriver_version = 580.1\n" + scenario)
        variables = {
            "LD_LIBRARY_PATH": str(nvml_stub),
            "GPUFLEET_CUDA_STUB": str(tmp_path / "cuda"),
            "GPUFLEET_NVML_SCENARIO": str(tmp_path / "nvml.ini"),
        }
        server = Server(given, variables)
        for attribute, value in changes.items():
            setattr(server, attribute, value)

        def get(wanted: str) -> Server:
            if wanted != server.name:
                raise NotFound(wanted)
            return server

        client = SimpleNamespace(containers=SimpleNamespace(get=get))
        monkeypatch.setattr(vllm_gpu_check, "connect", lambda _host, _timeout: client)
        return run_module(vllm_gpu_check.main, {"name": name})

    return run


def test_exactly_its_gpus(check: Check) -> None:
    result = check(GPUS, GPUS[::-1])
    assert (result["failed"], result["changed"], result["gpu_access"]) == (False, False, "gpus")
    assert (result["given"], result["seen"]["nvml"]["gpus"]) == (GPUS, GPUS[::-1])


def test_a_foreign_gpu_and_a_missing_one_are_named(check: Check) -> None:
    result = check(GPUS[:1], GPUS[1:])
    assert (result["failed"], result["error"]["name"]) == (True, "wrong-gpus")
    assert result["msg"].startswith(f"vllm-0 (access gpus): CUDA in the container does not see {GPUS[0]}")
    assert result["error"]["details"] == {"seen": GPUS[1:], "given": GPUS[:1]}


def test_a_gpu_that_the_container_has_lost(check: Check) -> None:
    result = check(GPUS, [], cuda="")
    assert (result["error"]["name"], "no CUDA-capable device" in result["error"]["evidence"]) == (
        "no-gpu-in-container",
        True,
    )


def test_a_server_on_processors_has_nothing_to_see(check: Check) -> None:
    result = check([], GPUS)
    assert (result["failed"], result["given"], result["seen"]) == (False, [], {})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"name": "vllm-9"}, "server-missing"),
        ({"status": "exited"}, "server-stopped"),
        ({"exec_run": lambda _command: (126, b"no such file")}, "no-answer"),
    ],
)
def test_a_server_that_cannot_be_asked(check: Check, options: dict[str, Any], name: str) -> None:
    result = check(GPUS, GPUS, **options)
    assert (result["failed"], result["error"]["name"]) == (True, name)
