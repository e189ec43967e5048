# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a remedy tells people to set may be set: the planner takes it, and vLLM has the option or the variable.

That a remedy makes a real server start is tried by `make faults`, for those of the CPU build.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.health import causes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.extra_options import (
    read_environment,
    read_extra_config,
)

PARSERS = Path(__file__).parents[3] / "data" / "vllm_parsers"
ALL = [
    *causes.CAUSES,
    *(cause for _place, cause in causes.PLACES),
    causes.PROCESS_DIED,
    *causes.EXIT_CAUSES.values(),
    causes.OUT_OF_MEMORY_KILL,
    causes.HOST_MEMORY_KILL,
]
REMEDIES = sorted({cause.remedy for cause in ALL})
SWITCH = re.compile(r"\b([a-z]+(?:-[a-z0-9]+)+): (true|false)\b")
VARIABLE = re.compile(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+): '?(\w+)'?")
NAMED = re.compile(r"\b(?:Set|Lower|and) ([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b")
OPTION = re.compile(r"\b([a-z]+(?:-[a-z0-9]+)+)\b(?=[^.;]*\bvllm_extra_config|[^.;]*\))")
# Words of these sentences that are no options of vLLM's.
WORDS = {
    "all-reduce",
    "docker-ce",
    "limit-hit",
    "nvidia-ctk",
    "nvidia-smi",
    "nvidia-modprobe",
    "flashinfer-cubin",
    "git-lfs",
}


def parser(version: str) -> dict[str, Any]:
    """Return what was read in the wheel of a release."""
    document: dict[str, Any] = json.loads((PARSERS / f"{version}.json").read_text(encoding="utf-8"))
    return document


def found(pattern: re.Pattern[str], least: int) -> list[tuple[str, ...]]:
    """Return what the pattern finds in the remedies, which is not nothing."""
    matches = sorted({match.groups() for remedy in REMEDIES for match in pattern.finditer(remedy)})
    assert len(matches) >= least
    return matches


@pytest.mark.parametrize(("option", "value"), found(SWITCH, 4))
def test_a_switch_is_taken_by_the_planner_and_by_vllm(option: str, value: str) -> None:
    assert read_extra_config({option: value == "true"})
    for version in ("0.12.0", "0.33.0"):
        names = {name.lstrip("-") for name in parser(version)["arguments"]}
        assert option in names or option.removeprefix("no-") in names, version


@pytest.mark.parametrize(("name", "value"), found(VARIABLE, 4))
def test_an_environment_variable_is_taken_by_the_planner_and_by_vllm(name: str, value: str) -> None:
    assert read_environment({name: value}) == {name: value}
    if name.startswith("VLLM_"):
        assert name in parser("0.33.0")["environment"]


@pytest.mark.parametrize("name", [name for (name,) in found(NAMED, 6)])
def test_an_environment_variable_that_is_to_be_set_is_not_refused(name: str) -> None:
    assert read_environment({name: "lo"})


def test_the_options_that_are_named_are_vllms() -> None:
    names = {name.lstrip("-") for name in parser("0.33.0")["arguments"]}
    named = {option for (option,) in found(OPTION, 10)} - WORDS
    assert {"attention-backend", "moe-backend", "load-format"} <= named
    assert {option for option in named if option.removeprefix("no-") not in names} == set()
