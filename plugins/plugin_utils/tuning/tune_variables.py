# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables that say what a sweep tries, and how it measures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import (
    Reader,
    flag,
    integer,
    invalid,
    mapping_of,
    value_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.variables import concurrencies, number
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning.candidates import Axes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning.goal import Goal, read_goal

# What a candidate cannot vary: where it is and how it is reached is the sweep's own business.
NOT_VARIED = ("vllm_container_prefix", "vllm_host", "vllm_port", "vllm_replicas", "vllm_config_dir", "vllm_device")


@dataclass(frozen=True)
class Tuning:
    """How a sweep goes.

    Attributes:
        goal: what it looks for.
        axes: what it tries.
        concurrency: requests at once of each load; empty for what each candidate can take.
        waves: requests of a load, as a multiple of those at once.
        input_len, output_len: tokens of prompts and answers.
        runs: how often each load is measured.
        timeout: seconds for the start of a candidate, and for each load.
        max_candidates: the most that are allowed.
        margin: share by which a candidate has to be better than the plan as it is.
        again: whether what was measured before is forgotten.
    """

    goal: Goal
    axes: Axes
    concurrency: list[int]
    waves: int
    input_len: int
    output_len: int
    runs: int
    timeout: int
    max_candidates: int
    margin: float
    again: bool

    def load(self) -> dict[str, Any]:
        """Return what must be equal for two measurements to be of the same load."""
        return {
            "concurrency": self.concurrency,
            "waves": self.waves,
            "input_len": self.input_len,
            "output_len": self.output_len,
            "runs": self.runs,
        }

    def longest_s(self, loads: int) -> int:
        """Return the seconds after which a candidate with so many loads is ended at the latest."""
        return self.timeout * (1 + loads * self.runs)


def read_tuning(arguments: Mapping[str, Any]) -> Tuning:
    """Return how a sweep goes.

    Args:
        arguments: values by the names in READERS.

    Raises:
        GpufleetError: C(invalid-wishes), naming every problem at once.
    """
    problems: list[str] = []
    read = {
        name: value_of({variable: arguments.get(name)}, name, (variable, reader), problems)
        for name, (variable, reader) in READERS.items()
    }
    missing = [READERS[name][0] for name in READERS if arguments.get(name) is None]
    problems += [f"{name}: it has no value; give it one, or leave the variable out for its default" for name in missing]
    if problems:
        raise invalid(problems)
    axes = Axes(**{name: read.pop(name) for name in ("sizes", "sequences", "tokens", "levers")})
    return Tuning(axes=axes, **read)


def _levers(value: Any) -> dict[str, dict[str, Any]]:
    example = "it must be names and vllm_* variables, such as {eager: {vllm_extra_config: {enforce-eager: true}}}"
    found: dict[str, dict[str, Any]] = {}
    for name, variables in mapping_of(value, "names and variables").items():
        if not isinstance(variables, Mapping) or not variables:
            raise ValueError(f"{name}: {example}")
        wrong = [key for key in variables if not re.match("vllm_[a-z]", str(key)) or key in NOT_VARIED]
        if wrong:
            raise ValueError(f"{name}: {wrong[0]} cannot be varied; {example}")
        found[str(name)] = dict(variables)
    return found


def _margin(value: Any) -> float:
    found = number(value)
    if not 0 <= found < 1:
        raise ValueError("it must be a share, at least 0 and below 1: 0.03 stands for 3 %")
    return found


READERS: dict[str, tuple[str, Reader]] = {
    "goal": ("vllm_goal", read_goal),
    "sizes": ("vllm_tune_tensor_parallel_sizes", concurrencies),
    "sequences": ("vllm_tune_max_num_seqs", concurrencies),
    "tokens": ("vllm_tune_max_num_batched_tokens", concurrencies),
    "levers": ("vllm_tune_levers", _levers),
    "concurrency": ("vllm_tune_concurrency", concurrencies),
    "waves": ("vllm_tune_waves", integer(1)),
    "input_len": ("vllm_tune_input_len", integer(1)),
    "output_len": ("vllm_tune_output_len", integer(1)),
    "runs": ("vllm_tune_runs", integer(1)),
    "timeout": ("vllm_tune_timeout", integer(60)),
    "max_candidates": ("vllm_tune_max_candidates", integer(1)),
    "margin": ("vllm_tune_margin", _margin),
    "again": ("vllm_tune_again", flag),
}
