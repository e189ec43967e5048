# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for GPUs' memory: the real pynvml on the stub library, whose scenario changes while it is waited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import errors

# Waits with a clock of its own; each second of it is the next scenario.
WAIT = """
import json, os, sys
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import memory
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress

scenarios, what = sys.argv[2:], json.loads(sys.argv[1])
seconds = 0.0

def show():
    os.environ["GPUFLEET_NVML_SCENARIO"] = scenarios[min(int(seconds), len(scenarios) - 1)]

def sleep(length):
    global seconds
    seconds += length
    show()

class Told(Progress):
    def phase(self, name, detail=""):
        told.append(detail)

told, error = [], {}
show()
specs = [{"name": "vllm-0", "gpus": [what["gpu"]], "config": what.get("config", {})}]
needs = memory.needs(specs)
try:
    if "own" in what:
        memory.check_others(needs, what["own"])
    else:
        memory.wait_until_free(needs, what["timeout"], Told(None), sleep=sleep, clock=lambda: seconds)
except GpufleetError as problem:
    error = problem.as_result()
print(json.dumps({"seconds": seconds, "told": told, "error": error}))
"""
HELD = "python3 (pid 4190042, 61440 MiB)"


@pytest.fixture
def wait(nvml_stub: Path) -> Any:
    """Run WAIT through some scenarios and return what it prints."""

    def run(*scenarios: str, **what: Any) -> dict[str, Any]:
        root = str(Path(errors.__file__).absolute().parents[6])
        done = subprocess.run(
            [sys.executable, "-c", WAIT, json.dumps({"gpu": "0", "timeout": 60, **what}), *scenarios],
            env={**os.environ, "LD_LIBRARY_PATH": str(nvml_stub), "PYTHONPATH": os.pathsep.join([root, *sys.path])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def test_memory_that_is_freed_late_is_waited_for(wait: Any) -> None:
    result = wait(*["h200-foreign-process"] * 3, "h200")
    assert (result["seconds"], result["error"]) == (3.0, {})
    assert result["told"][0].endswith(f"MiB of GPU 0 still held by {HELD}")


def test_who_holds_it_after_the_timeout_is_named_and_no_secret_with_it(wait: Any) -> None:
    result = wait("h200-foreign-process", timeout=5)
    error = result["error"]
    assert (result["seconds"], error["name"]) == (5.0, "gpu-memory-held")
    assert "GPU 0 (NVIDIA H200) has 81719 of 143771 MiB free after 5 s (vllm_vram_timeout)" in error["message"]
    assert error["message"].endswith(f"It is held by {HELD}.")
    assert "sk-not-for-your-eyes" not in json.dumps(result)


@pytest.mark.parametrize(
    ("scenario", "gpu", "config"),
    [
        ("h200", "0", {}),
        ("h200", "GPU-00000000-0000-4000-8000-000000000000", {"gpu-memory-utilization": 0.98}),
        # A server that takes less fits beside the other process.
        ("h200-foreign-process", "0", {"gpu-memory-utilization": 0.5}),
        # Drivers that do not answer are not judged here.
        ("no-driver", "0", {}),
        ("lost-in-use", "0", {}),
    ],
)
def test_what_fits_is_not_waited_for(wait: Any, scenario: str, gpu: str, config: dict[str, Any]) -> None:
    result = wait(scenario, gpu=gpu, config=config)
    assert (result["seconds"], result["error"]) == (0.0, {})


def test_memory_of_others_is_told_before_a_server_is_stopped(wait: Any) -> None:
    error = wait("h200-foreign-process", own=["a" * 64])["error"]
    assert (error["name"], HELD in error["message"]) == ("gpu-memory-held", True)
    # Ours are gone by then; the stub's process is in no container, so an empty id stands for it.
    assert wait("h200-foreign-process", own=[""])["error"] == {}
    assert wait("h200", own=[])["error"] == {}
