# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of the ways in which containers of this host get their GPUs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Decision, Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text

FILE_NAME = "gpu-access.json"
SCHEMA = 1


def remembered(path: str, now: Mapping[str, Any], *, guess: bool = False) -> list[Outcome]:
    """Return the outcomes that led to the way found before under the same circumstances; none if they changed.

    With C(guess), for a run that may try nothing, those found under other circumstances do, if the wish is the same.
    """
    try:
        kept = json.loads(read_text(path))
        same = kept["circumstances"] == now or (guess and kept["circumstances"]["wish"] == now["wish"])
        if kept["schema"] == SCHEMA and same:
            return [Outcome(**outcome) for outcome in kept["ways"]]
    except (ValueError, KeyError, TypeError):
        pass  # none yet, or not of this version: the ways are tried anew
    return []


def remember(path: str, now: Mapping[str, Any], outcomes: Sequence[Outcome]) -> bool:
    """Keep what was found; return whether the file changed."""
    ways = [dataclasses.asdict(outcome) for outcome in outcomes]
    document = {"schema": SCHEMA, "circumstances": dict(now), "ways": ways}
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    return write_file(path, text, 0o640, folder_mode=0o750, variable="vllm_config_dir")


def recorded(plan: Plan, outcomes: Sequence[Outcome]) -> Plan:
    """Return the plan with the way that works and the decision for it."""
    chosen = outcomes[-1]
    decision: Decision = {"field": "gpu_access", "value": chosen.way, "reason": reason_of(outcomes)}
    others = [entry for entry in plan.get("decisions") or [] if entry["field"] != "gpu_access"]
    return {**plan, "gpu_access": chosen.way, "decisions": [*others, decision]}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one way.

    Attributes:
        way: one of WAYS.
        works: whether CUDA and NVML in the container see exactly the GPUs it was given.
        said: that, or what is wrong, as a sentence.
        name: of the cause, if it does not work.
        remedy: what fixes the way.
        evidence: the text that proves the cause.
    """

    way: str
    works: bool
    said: str
    name: str = ""
    remedy: str = ""
    evidence: str = ""


def reason_of(outcomes: Iterable[Outcome]) -> str:
    """Return why the last of the outcomes was chosen, for the plan's decisions."""
    return "; ".join(f"{outcome.way}: {outcome.said.rstrip('.')}" for outcome in outcomes)
