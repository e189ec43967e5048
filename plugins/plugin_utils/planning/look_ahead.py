# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that keeps a plan from being made, not only the first of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import catalogue
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

# The card that is taken where none of the host's can be, to learn what else would stand in the way.
STAND_IN = {"name": "NVIDIA H200"}
# What is true whatever card it is found with.
WITHOUT_A_CARD = frozenset(
    {
        "architecture-not-supported",
        "invalid-wishes",
        "licence-not-accepted",
        "no-model-folder",
        "invalid-model-folder",
        "model-size-unknown",
        "precision-contradicts-model",
        "unknown-model",
        "unknown-option",
        "unknown-version",
        "unsupported-platform",
    }
)


@dataclass(frozen=True)
class State:
    """What a plan is made from. C(stand_in) is set when the cards are not the host's own."""

    host: Mapping[str, Any]
    wishes: Wishes
    stand_in: bool = False


@dataclass(frozen=True)
class Outlook:
    """What came of planning.

    Attributes:
        plan: the plan, or the one that would be if what stands in its way were fixed; None when none can be made.
        errors: what stands in its way, each name once.
        own_cards: whether C(plan) is about the host's own cards.
    """

    plan: Plan | None
    errors: list[GpufleetError]
    own_cards: bool = True

    @property
    def names(self) -> set[str]:
        """The names of the errors."""
        return {error.name for error in self.errors}


def look_ahead(host: Mapping[str, Any], wishes: Wishes, cards: list[str] | None = None) -> Outlook:
    """Plan, and where the planner refuses, plan again as if that were fixed.

    Args:
        host: see planner.plan.
        wishes: what the user wants.
        cards: names of the cards that the kernel's driver tells, for a host that NVML could not be asked on.
    """
    state = State({**host, "cards": cards or []}, wishes)
    errors: list[GpufleetError] = []
    tried: set[str] = set()
    while True:
        try:
            return Outlook(planner.plan(state.host, state.wishes), errors, not state.stand_in)
        except GpufleetError as error:
            if error.name in tried:
                return Outlook(None, errors, not state.stand_in)
            tried.add(error.name)
            if not state.stand_in or error.name in WITHOUT_A_CARD:
                errors.append(error)
            if error.name not in FIXED:
                return Outlook(None, errors, not state.stand_in)
            state = FIXED[error.name](state)


def _with_gpus(state: State, **changes: Any) -> State:
    gpus = [{**gpu, **changes} for gpu in state.host.get("gpus") or []]
    return replace(state, host={**state.host, "gpus": gpus})


def _other_cards(state: State) -> State:
    """Take the cards that the kernel names where the catalogue knows them, or else a stand-in."""
    names = [name for name in state.host["cards"] if catalogue.card(name)]
    wishes = replace(state.wishes, gpu_selection="free")
    if names and not state.host.get("gpus") and not state.wishes.gpus:
        return replace(state, wishes=replace(wishes, gpus=tuple({"name": name} for name in names)))
    return replace(state, wishes=replace(wishes, gpus=(STAND_IN,)), stand_in=True)


def _healthy_cards(state: State) -> State:
    known = [gpu for gpu in state.host.get("gpus") or [] if gpu.get("compute_capability")]
    healthy = replace(state, host={**state.host, "gpus": known})
    return _with_gpus(healthy, error=None, fabric=None) if known else _other_cards(healthy)


def _any_platform(state: State) -> State:
    host = {**state.host, "architecture": ""}
    return replace(state, host=host, wishes=replace(state.wishes, platform=""))


def _trusted(state: State) -> State:
    options = {**state.wishes.extra_config, "trust-remote-code": True}
    return replace(state, wishes=replace(state.wishes, extra_config=options))


def _any_driver(state: State) -> State:
    host = {**state.host, "driver_version": ""}
    return replace(state, host=host, wishes=replace(state.wishes, driver_version=""))


# The planner's refusals after which it is worth while to look on, and how each is taken to be fixed.
FIXED: dict[str, Callable[[State], State]] = {
    "architecture-not-supported": _trusted,
    "no-gpu": _other_cards,
    "unsupported-gpu": _other_cards,
    "gpu-lost": _healthy_cards,
    "mig-enabled": lambda state: _with_gpus(state, mig_mode=False),
    "gpu-in-use": lambda state: _with_gpus(state, processes=[], memory_used_mib=0),
    "unknown-gpu": lambda state: replace(state, wishes=replace(state.wishes, gpu_selection="free")),
    "mixed-gpus": lambda state: replace(state, wishes=replace(state.wishes, gpu_selection="free")),
    "driver-too-old": _any_driver,
    "unsupported-platform": _any_platform,
    "model-size-unknown": lambda state: replace(state, wishes=replace(state.wishes, tensor_parallel_size=1)),
    "licence-not-accepted": lambda state: replace(state, wishes=replace(state.wishes, accept_license=True)),
}
