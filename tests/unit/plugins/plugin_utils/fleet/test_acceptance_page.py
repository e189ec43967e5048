# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slow and broken GPUs of a fleet, by name."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.acceptance_page import acceptance
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.card_figures import floors


def gpu(
    index: int, name: str = "NVIDIA H200", errors: dict[str, str] | None = None, **figures: float
) -> dict[str, Any]:
    """Return a GPU as vllm_accept does; one that is as fast as others unless it says otherwise."""
    usual = {"memory_gib": 126.0, "memory_errors": 0, "bandwidth_gbs": 4200.0, "gemm_tflops": 740.0}
    return {"index": index, "name": name, "uuid": f"u{index}", "figures": {**usual, **figures}, "errors": errors or {}}


def test_a_sound_fleet_is_accepted() -> None:
    found = acceptance({"gpu-1": {"gpus": [gpu(0), gpu(1)]}, "gpu-2": {"gpus": [gpu(0, gemm_tflops=700.0)]}}, 0.1)
    assert (found["failed"], found["slow"]) == ({}, [])
    assert found["lines"][0] == "2 of 2 hosts accepted"
    assert found["medians"] == {"NVIDIA H200": {"bandwidth_gbs": 4200.0, "gemm_tflops": 740.0}}
    assert "4,200 GB/s of memory, 740 TFLOP/s" in found["lines"][2]


def test_a_slow_card_is_named_by_the_fleets_median() -> None:
    found = acceptance({"gpu-1": {"gpus": [gpu(0), gpu(1), gpu(2, gemm_tflops=600.0)]}}, 0.1)
    assert found["slow"] == ["gpu-1 GPU 2 (NVIDIA H200, u2)"]
    assert found["failed"]["gpu-1"] == ("GPU 2 (NVIDIA H200, u2) is slow: 600 TFLOP/s, the fleet's median is 740")


def test_a_card_alone_is_named_by_what_is_known_of_it() -> None:
    found = acceptance({"gpu-1": {"gpus": [gpu(0, bandwidth_gbs=2000.0)]}}, 0.1)
    assert found["failed"]["gpu-1"].endswith("2,000 GB/s of memory, a sound one reaches 3,600")
    assert acceptance({"gpu-1": {"gpus": [gpu(0, "NVIDIA Unheard 9", bandwidth_gbs=1.0)]}}, 0.1)["failed"] == {}
    assert floors("processor") == {}


def test_broken_cards_and_hosts_without_an_answer_are_not_accepted() -> None:
    hosts: dict[str, Any] = {
        "gpu-1": {"gpus": [gpu(0, memory_errors=3)]},
        "gpu-2": {"gpus": [gpu(0, errors={"gemm": "RuntimeError: CUDA error"})]},
        "gpu-3": {"gpus": [gpu(0), gpu(1)], "allreduce": {"world": 2, "error": "not done after 300 s"}},
        "gpu-4": {"msg": "it was not reached"},
    }
    found = acceptance(hosts, 0.1)
    assert found["failed"] == {
        "gpu-1": "GPU 0 (NVIDIA H200, u0): 3 words of memory came back wrong",
        "gpu-2": "GPU 0 (NVIDIA H200): gemm: RuntimeError: CUDA error",
        "gpu-3": "adding up together: not done after 300 s",
        "gpu-4": "it was not reached",
    }
    assert found["lines"][0] == "0 of 4 hosts accepted"


def test_hosts_whose_gpus_are_slow_together_are_named() -> None:
    hosts = {
        f"gpu-{number}": {
            "gpus": [gpu(0), gpu(1)],
            "allreduce": {"world": 2, "figures": {"allreduce_gbs": speed}},
        }
        for number, speed in enumerate((300.0, 305.0, 120.0))
    }
    found = acceptance(hosts, 0.1)
    assert found["failed"] == {"gpu-2": "all 2 together is slow: 120 GB/s between GPUs, the fleet's median is 300"}
