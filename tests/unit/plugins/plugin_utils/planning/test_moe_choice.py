# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan sets for the experts' kernels, against what the selection code of each release's wheel then does.

The data are of tools/extract_moe_backends.py: Llama 4's layer in FP8 with static scales, one a tensor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.moe_choice import FP8_VARIABLE, runs_triton

DATA = Path(__file__).parents[3] / "data" / "vllm_moe_backends.json"
RELEASES: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))["releases"]
MEMORY = {"9.0": 143771, "10.0": 183359, "10.3": 275040, "12.0": 97887}
COUNT = {"12.0": 2}


def planned(release: str, capability: str, **more: Any) -> Any:
    card = {
        "name": "a card",
        "compute_capability": capability,
        "memory_mib": MEMORY[capability],
        "count": COUNT.get(capability, 1),
    }
    given = {"accept_license": True, "precision": "fp8", "image_tag": f"v{release}-cu130", "gpus": [card], **more}
    return planner.plan({}, wishes.read({f"vllm_{name}": value for name, value in given.items()}))


def setting(replica: dict[str, Any]) -> str:
    """Return what is set as the data call it."""
    if "moe-backend" in replica["config"]:
        return f"moe-backend: {replica['config']['moe-backend']}"
    value = replica["environment"].get(FP8_VARIABLE)
    return f"{FP8_VARIABLE}={value}" if value else "nothing"


def wanted(release: str, capability: str) -> str:
    """Return the backend that is wanted: Triton's but on Blackwell since 0.15."""
    known = versions.parse(release)
    return "FLASHINFER_TRTLLM" if known and known >= (0, 15, 0) and capability.startswith("10.") else "TRITON"


@pytest.mark.parametrize("capability", MEMORY)
@pytest.mark.parametrize("release", RELEASES)
def test_the_wheel_selects_what_the_plan_means(release: str, capability: str) -> None:
    plan = planned(release, capability)
    selected = RELEASES[release]["selected"][capability][setting(plan["replicas"][0])]
    assert selected == wanted(release, capability)


@pytest.mark.parametrize("capability", ["10.0", "10.3"])
@pytest.mark.parametrize("release", RELEASES)
def test_the_recipe_on_blackwell_never_gets_cutlass(release: str, capability: str) -> None:
    plan = planned(release, capability, profile="recipe")
    selected = RELEASES[release]["selected"][capability][setting(plan["replicas"][0])]
    expected = "TRITON" if (release, capability) == ("0.12.0", "10.3") else "FLASHINFER_TRTLLM"
    assert selected == expected


@pytest.mark.parametrize("capability", MEMORY)
@pytest.mark.parametrize("release", RELEASES)
def test_who_runs_triton_is_known(release: str, capability: str) -> None:
    version = versions.parse(release)
    assert version
    for name, selected in RELEASES[release]["selected"][capability].items():
        option, _colon, value = name.partition(": ")
        config = {option: value} if value else {}
        variable, _equals, number = name.partition("=")
        environment = {variable: number} if number else {}
        if runs_triton(version, config, environment):
            assert selected == "TRITON", name


@pytest.mark.parametrize("release", RELEASES)
def test_the_reason_is_true(release: str) -> None:
    plan = planned(release, "9.0")
    (reason,) = [decision["reason"] for decision in plan["decisions"] if decision["field"] == "moe_backend"]
    by_itself = RELEASES[release]["selected"]["9.0"]["nothing"]
    assert ("by itself vLLM takes FlashInfer's from CUTLASS" in reason) == (by_itself == "FLASHINFER_CUTLASS")
    assert ("where nothing is set" in reason) == (by_itself == "TRITON")


def test_a_wish_beats_the_choice() -> None:
    plan = planned("0.26.0", "9.0", extra_config={"moe-backend": "auto"})
    assert plan["replicas"][0]["config"]["moe-backend"] == "auto"
    assert not runs_triton((0, 26, 0), plan["replicas"][0]["config"], {})


def test_the_releases_of_the_parsers_are_there() -> None:
    parsers = {path.stem for path in (DATA.parent / "vllm_parsers").glob("*.json")}
    assert parsers <= RELEASES.keys()
    assert all(len(release["sha256"]) == 64 for release in RELEASES.values())
