# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test of a host before it serves, in vLLM's CPU image: torch on the processor, and two processes with gloo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.modules import vllm_accept
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes

if TYPE_CHECKING:
    from docker import DockerClient

    from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

IMAGE = "gpufleet/vllm-cpu:deploy"
PLAN: Any = planner.plan({}, wishes.read({"vllm_device": "cpu"}))


@pytest.fixture
def options(engine: DockerClient, docker_host: str, tmp_path: Path) -> dict[str, Any]:
    """Return options of the module; skip where the CPU image was not built."""
    from docker.errors import ImageNotFound

    try:
        engine.images.get(IMAGE)
    except ImageNotFound:
        pytest.skip(f"there is no {IMAGE}; make demo or Molecule builds it")
    prefix = tmp_path.name.replace("_", "-")
    work = {"work_dir": str(tmp_path / "work"), "container_prefix": f"accept-{prefix}", "docker_host": docker_host}
    return {"plan": PLAN, "image": IMAGE, "repeats": 3, "cpu_mib": 16, "timeout": 600, **work}


def test_each_test_has_a_figure(run_module: RunModule, options: dict[str, Any]) -> None:
    result = run_module(vllm_accept.main, options)
    assert not result["failed"], result
    (processor,) = result["gpus"]
    assert processor["errors"] == {} and processor["name"] == "processor"
    assert processor["figures"]["memory_errors"] == 0
    assert min(processor["figures"][name] for name in ("bandwidth_gbs", "gemm_tflops", "memory_gib")) > 0
    assert result["allreduce"]["world"] == 2 and result["allreduce"]["figures"]["allreduce_gbs"] > 0


def test_only_what_is_asked_for_is_done(run_module: RunModule, options: dict[str, Any]) -> None:
    result = run_module(vllm_accept.main, {**options, "tests": ["gemm"]})
    assert not result["failed"], result
    assert list(result["gpus"][0]["figures"]) == ["gemm_tflops"] and result["allreduce"] == {}
