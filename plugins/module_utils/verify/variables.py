# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables that say how a server is verified, read before anything runs: a slip must not switch a gate off."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import (
    Reader,
    flag,
    integer,
    invalid,
    value_of,
)

# Keys of vllm_accuracy_floors: the precisions that a plan may have, and all of them.
PRECISIONS = ("fp4", "fp8", "mxfp4", "4-bit", "8-bit", "bf16", "fp32", "any")
# Latencies that `vllm bench serve --goodput` knows.
GOODPUT = ("ttft", "tpot", "e2el")


def problems(variables: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with those of the variables that have a reader, a text for each."""
    found: list[str] = []
    for variable in sorted(READERS.keys() & variables.keys()):
        if variables[variable] is None:
            found.append(f"{variable}: it has no value; give it one, or leave the variable out for its default")
        value_of(variables, variable, (variable, READERS[variable]), found)
    return found


def options(params: Mapping[str, Any], prefix: str, **instead: Reader) -> dict[str, Any]:
    """Return a module's options, those whose variable has a reader as it reads them.

    Args:
        params: the module's. None stands for an option that was left out.
        prefix: of the variables, before the option's name.
        instead: readers of options that are written otherwise than their variable.

    Raises:
        GpufleetError: C(invalid-wishes), naming every variable that is wrong.
    """
    wrong: list[str] = []
    read = dict(params)
    for option in params:
        variable = f"{prefix}{option}"
        reader = instead.get(option) or READERS.get(variable)
        if reader and params[option] is not None:
            read[option] = value_of({variable: params[option]}, option, (variable, reader), wrong)
    if wrong:
        raise invalid(wrong)
    return read


def number(value: Any) -> float:
    """Read a number. Raises ValueError, as all readers do: for text, too, and for what is not finite."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError("it must be a number without a unit, such as 0.92 or 2000")
    return found


def task_floors(value: Any) -> dict[str, dict[str, float]]:
    """Read floors by task and metric."""
    example = 'it must be floors by task and metric, such as {gsm8k: {"exact_match,strict-match": 0.88}}'
    return {task: _numbers(metrics, example, f"{task}: ") for task, metrics in _items(value, example)}


def floors(value: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Read floors by precision, task and metric."""
    example = (
        'it must be floors by precision, task and metric, such as {fp8: {gsm8k: {"exact_match,strict-match": 0.88}}}'
    )
    read = {}
    for precision, tasks in _items(value, example):
        if precision not in PRECISIONS:
            raise ValueError(f"{_unknown('precision', precision, PRECISIONS)}; {example}")
        read[precision] = {
            task: _numbers(metrics, example, f"{precision}: {task}: ")
            for task, metrics in _items(tasks, example, f"{precision}: ")
        }
    return read


def limits(value: Any) -> dict[str, float]:
    """Read limits of figures by their names."""
    return _numbers(value, "it must be figures and limits, such as {output_throughput_per_gpu: 2000}")


def goodput(value: Any) -> dict[str, float]:
    """Read limits of latencies in milliseconds."""
    example = "it must be latencies and milliseconds, such as {ttft: 2000, tpot: 50}"
    read = _numbers(value, example)
    for name, limit in read.items():
        if name not in GOODPUT:
            raise ValueError(f"{_unknown('latency', name, GOODPUT)}; {example}")
        if limit <= 0:
            raise ValueError(f"{name}: {limit:g} is not above 0; {example}")
    return read


def tasks(value: Any) -> list[str]:
    """Read names of tasks, at least one."""
    found = _listed(value)
    if not found or not all(isinstance(name, str) and name.strip() for name in found):
        raise ValueError("it must name at least one task, such as [gsm8k]")
    return found


def concurrencies(value: Any) -> list[int]:
    """Read requests at once; there may be none."""
    try:
        return [integer(1)(entry) for entry in _listed(value)]
    except ValueError:
        raise ValueError("it must be whole numbers, at least 1, such as [1, 8, 32, 128]") from None


def some_concurrencies(value: Any) -> list[int]:
    """Read requests at once, at least one number."""
    found = concurrencies(value)
    if not found:
        raise ValueError("it must name at least one number of requests at once, such as [8]")
    return found


def _tolerance(value: Any) -> float:
    try:
        share = number(value)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError("it must be a share, at least 0 and below 1: 0.05 stands for 5 %")
    return share


def _at_least_0(value: Any) -> float:
    try:
        found = number(value)
    except ValueError:
        found = -1.0
    if found < 0:
        raise ValueError("it must be a number, at least 0, such as 2")
    return found


def _arguments(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a dictionary of arguments and values, such as {max_gen_toks: 512}")
    return dict(value)


def _listed(value: Any) -> list[Any]:
    """Return a list as Ansible's modules take it, also written as one text with commas."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, Mapping):
        raise ValueError("it must be a list")
    return [entry.strip() for entry in str(value).strip("[] ").split(",") if entry.strip()]


def _items(value: Any, example: str, where: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}{example}")
    return [(str(name), entry) for name, entry in value.items()]


def _numbers(value: Any, example: str, where: str = "") -> dict[str, float]:
    read = {}
    for name, limit in _items(value, example, where):
        try:
            read[name] = number(limit)
        except ValueError:
            shown = repr(str(limit)) if isinstance(limit, str) else limit
            raise ValueError(f"{where}{name}: {shown} is not a number; {example}") from None
    return read


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{name} is no {what}, {hint}"


READERS: dict[str, Reader] = {
    "vllm_accuracy_floors": floors,
    "vllm_accuracy_standard_errors": _at_least_0,
    "vllm_accuracy_tasks": tasks,
    "vllm_accuracy_limit": integer(0),
    "vllm_accuracy_num_concurrent": integer(1),
    "vllm_accuracy_request_timeout": integer(1),
    "vllm_accuracy_max_retries": integer(0),
    "vllm_accuracy_model_args": _arguments,
    "vllm_accuracy_timeout": integer(1),
    "vllm_benchmark_concurrency": concurrencies,
    "vllm_benchmark_num_prompts": integer(0),
    "vllm_benchmark_input_len": integer(1),
    "vllm_benchmark_output_len": integer(1),
    "vllm_benchmark_runs": integer(1),
    "vllm_benchmark_goodput": goodput,
    "vllm_benchmark_floors": limits,
    "vllm_benchmark_ceilings": limits,
    "vllm_benchmark_timeout": integer(1),
    "vllm_benchmark_save_baseline": flag,
    "vllm_benchmark_tolerance": _tolerance,
    "vllm_benchmark_standard_errors": _at_least_0,
    "vllm_report_outlier_tolerance": _at_least_0,
}
