# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each phase of a deployment may take: the keys of the variable vllm_phase_timeouts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

VARIABLE = "vllm_phase_timeouts"
IMAGE = "image"
DOWNLOAD = "download"
# Seconds. Each is several times what the phase was seen to take with the largest model on a slow disk or network, so
# that one that is passed means something is wrong; the sum may well pass vllm_ready_timeout, which counts as well.
DEFAULTS: dict[str, int] = {
    IMAGE: 7200,
    DOWNLOAD: 14400,
    "container": 300,
    "engine_start": 900,
    "weights": 3600,
    "compile": 1800,
    "kv_cache": 1800,
    "warm_up": 1800,
    "graphs": 900,
    "serving": 600,
}


def key_of(phase: str) -> str:
    """Return the key of a phase: C(kv_cache) for C(KV cache)."""
    return phase.lower().replace(" ", "_").replace("-", "_")


def problems(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the value of the variable, a text for each entry."""
    found = []
    for name, value in given.items():
        if key_of(str(name)) not in DEFAULTS:
            near = difflib.get_close_matches(key_of(str(name)), DEFAULTS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the phases are {', '.join(DEFAULTS)}."
            found.append(f"there is no phase {name}; {hint}")
        elif isinstance(value, bool) or not str(value).strip().isdigit():
            found.append(f"{name}: {str(value)!r} is no number of seconds, 0 or more (0: no deadline)")
    return found


def deadlines(given: Mapping[str, Any]) -> dict[str, int]:
    """Return the seconds that each phase may take by its key, the given ones over the defaults; 0 means no deadline.

    Raises:
        GpufleetError: C(phase-timeouts-invalid), with every problem there is.
    """
    wrong = problems(given)
    if wrong:
        raise GpufleetError(
            f"{VARIABLE}: {'; '.join(wrong)}",
            name="phase-timeouts-invalid",
            remedy=f"Set only those of {', '.join(DEFAULTS)} that differ from their defaults, in seconds.",
            details={"problems": wrong},
        )
    return {**DEFAULTS, **{key_of(str(name)): int(value) for name, value in given.items()}}


def deadline_of(phase: str, limits: Mapping[str, int]) -> int:
    """Return the seconds that a phase of start_phases.PHASES may take; 0 for no deadline."""
    return limits.get(key_of(phase), 0)
