# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test of a host's GPUs before they serve, as far as it gets without an engine (tests/engine has the rest)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import acceptance
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import accept_gpus
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_accept

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule


class Containers:
    """What an engine has."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def list(self, **_options: Any) -> list[Any]:
        """Return the containers."""
        return [type("Container", (), {"name": name}) for name in self._names]


def test_a_host_with_a_server_of_the_deployment_is_refused() -> None:
    """Another deployment has other GPUs."""
    client: Any = type("Client", (), {"containers": Containers("vllm-small-0", "vllm-1", "vllm-0")})
    with pytest.raises(GpufleetError) as caught:
        acceptance.check_idle(client, "vllm")
    assert caught.value.name == "servers-running" and "vllm-0, vllm-1 runs" in caught.value.message
    acceptance.check_idle(client, "other")


def test_a_test_that_there_is_none_of_is_refused(run_module: RunModule) -> None:
    result = run_module(vllm_accept.main, {"plan": {}, "image": "x:1", "tests": ["speed"]})
    assert result["failed"] and "memory, bandwidth, gemm, allreduce" in result["msg"]


def test_a_process_that_cannot_add_up_is_told(tmp_path: Path) -> None:
    """There is no torch here, so that each of them ends at once."""
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode == 0:
        pytest.skip("there is torch here")
    request = {"device": "cpu", "port": 1, "tests": ["allreduce"]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    found = accept_gpus.all_reduce(str(tmp_path), 2, request)
    assert found["world"] == 2 and "ModuleNotFoundError" in found["error"]
