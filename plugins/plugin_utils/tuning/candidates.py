# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The candidates of a sweep: plans of one server each, that differ from the inventory's in a few variables.

All combinations of sizes, sequences, tokens and levers are candidates; those that the planner refuses are left out
with its reason, and of those that come to the same server the first one stays. The plan as it is comes first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

SIZE, SEQUENCES, TOKENS = "vllm_tensor_parallel_size", "vllm_max_num_seqs", "vllm_max_num_batched_tokens"
SHORT = {SIZE: "TP", SEQUENCES: "sequences", TOKENS: "batched tokens"}
AS_PLANNED = "as planned"
# Where a server listens, and how it is called, makes no other candidate of it.
PLACE = ("host", "port")
# Of a server whose plan limits nothing.
SOME_REQUESTS = 8
Variables = dict[str, Any]


@dataclass(frozen=True)
class Axes:
    """What is tried. Empty ones are chosen by what is planned.

    Attributes:
        sizes: of tensor parallelism; else 1, 2, 4 … as far as there are GPUs.
        sequences: max-num-seqs; else half of what is planned for the size, that, and twice of it.
        tokens: max-num-batched-tokens; else what is planned for the size, and twice of it.
        levers: names to variables, each tried beside all of the above.
    """

    sizes: Sequence[int] = ()
    sequences: Sequence[int] = ()
    tokens: Sequence[int] = ()
    levers: Mapping[str, Variables] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One server to measure.

    Attributes:
        name: for people.
        variables: in which it differs from the inventory.
        plan: with that server alone.
    """

    name: str
    variables: Variables
    plan: Plan

    def digest(self, besides: Mapping[str, Any]) -> str:
        """Return what tells it from others, and from the same under another load or on other hardware."""
        replica = self.plan["replicas"][0]
        config = {name: value for name, value in replica["config"].items() if name not in PLACE}
        image = self.plan["image"]["reference"]
        everything = {"config": config, "environment": replica["environment"], "image": image, **besides}
        return hashlib.sha256(json.dumps(everything, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Grid:
    """The candidates, and the combinations that cannot be: C(name) and C(why)."""

    candidates: list[Candidate]
    refused: list[dict[str, str]]


def grid(planned: Callable[[Variables], Plan], axes: Axes, gpus: int) -> Grid:
    """Return the candidates.

    Args:
        planned: plans the host with some variables set otherwise.
        axes: what is tried.
        gpus: that the host has; 0 for one that serves on processors.

    Raises:
        GpufleetError: why the host cannot be planned at all.
    """
    found = [Candidate(AS_PLANNED, {}, planned({}))]
    seen = {found[0].digest({})}
    refused = []
    for size in _sizes(axes, gpus):
        try:
            base = planned(size)
        except GpufleetError as error:
            refused.append({"name": name_of(size), "why": error.message})
            continue
        for variables, lever in _combinations(size, base, axes):
            name = name_of(variables, lever)
            try:
                candidate = Candidate(name, variables, planned(variables))
            except GpufleetError as error:
                refused.append({"name": name, "why": error.message})
                continue
            if candidate.digest({}) not in seen:
                seen.add(candidate.digest({}))
                found.append(candidate)
    return Grid(found, refused)


def _sizes(axes: Axes, gpus: int) -> list[Variables]:
    if not gpus:
        return [{}]
    sizes = axes.sizes or [2**power for power in range(gpus.bit_length()) if 2**power <= gpus]
    return [{SIZE: size} for size in sizes]


def _combinations(size: Variables, base: Plan, axes: Axes) -> Iterator[tuple[Variables, str]]:
    """Yield the variables of each combination at one size, and the name of its lever."""
    config = base["replicas"][0]["config"]
    sequences = axes.sequences or _around(config.get("max-num-seqs"), (0.5, 1, 2))
    tokens = axes.tokens or _around(config.get("max-num-batched-tokens"), (1, 2))
    levers: dict[str, Variables] = {"": {}, **axes.levers}
    for (lever, extra), some, many in itertools.product(levers.items(), sequences, tokens):
        limits = {SEQUENCES: some, TOKENS: many}
        yield {**size, **{name: value for name, value in limits.items() if value is not None}, **extra}, lever


def _around(value: Any, factors: Sequence[float]) -> list[int | None]:
    """Return multiples of a planned number; nothing to set where none is planned."""
    if not isinstance(value, int):
        return [None]
    return [max(1, int(value * factor)) for factor in factors]


def name_of(variables: Mapping[str, Any], lever: str = "") -> str:
    """Return what a candidate is called."""
    parts = [f"{SHORT[name]} {value}" for name, value in variables.items() if name in SHORT]
    return ", ".join([*parts, *([lever] if lever else [])]) or AS_PLANNED


def loads(plan: Plan, wanted: Sequence[int]) -> list[int]:
    """Return how many requests at once a candidate is measured with: those wanted, or else a quarter, a half and all.

    All is what the server takes at once, or what its KV cache is expected to hold if that is less.
    """
    if wanted:
        return sorted(set(wanted))
    limit = plan["replicas"][0]["config"].get("max-num-seqs")
    held = plan["capacity"]["max_concurrent_requests"]
    known = [int(value) for value in (limit, held) if value]
    most = max(1, min(known)) if known else SOME_REQUESTS
    return sorted({max(1, most // 4), max(1, most // 2), most})


def as_candidate(plan: Plan, gpu_access: str) -> Plan:
    """Return a plan that serves one server beside the deployment: its image's tag stays what it is."""
    image = plan["image"]
    return {
        **plan,
        "image": {**image, "tag": image["reference"]},
        "replicas": plan["replicas"][:1],
        "gpu_access": gpu_access,
    }
