# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what `vllm bench serve` and lm_eval write, and says what was measured in one form."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

LATENCIES = ("ttft", "tpot", "itl", "e2el")
STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")
# The names are those of vllm bench's own JSON. A request is one prompt with its answer.
COUNTS = ("completed", "failed", "total_input_tokens", "total_output_tokens")
RATES = ("duration", "request_throughput", "request_goodput", "output_throughput", "total_token_throughput")
# Keys that lm_eval puts beside the metrics of a task.
NO_METRICS = ("alias", "sample_len", "name", "sample_count")


def benchmark_figures(document: Any, *, prompts: int, gpus: int) -> dict[str, float]:
    """Return the figures of one run of `vllm bench serve`.

    Args:
        document: what it saved as JSON.
        prompts: the number of requests that it was asked to send.
        gpus: GPUs of the server; 0 for a server on processors.

    Returns:
        C(completed) and C(failed) requests, rates (tokens or requests a second), C(output_throughput_per_gpu) if there
        are GPUs, and latencies in milliseconds, such as C(median_ttft_ms). A latency that the run does not tell is not
        there, nor is one of a run in which no request was answered.

    Raises:
        GpufleetError: C(result-unreadable) when the document is no such result.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("completed"), int):
        raise GpufleetError(
            "The result of vllm bench serve is not what it should be: it does not count completed requests.",
            name="result-unreadable",
            remedy="Look whether this vLLM writes another format than versions 0.12 to 0.33.",
            evidence=str(document)[:300],
        )
    figures: dict[str, float] = {}
    wanted = [*COUNTS, *RATES, *(f"{kind}_{name}_ms" for name in LATENCIES for kind in STATISTICS)]
    for name in wanted:
        # Releases before 0.13 wrote the goodput's name with a colon.
        value = document.get(name, document.get(f"{name}:"))
        if _is_number(value):
            figures[name] = value
    figures["failed"] = max(figures.get("failed", 0), prompts - figures["completed"])
    if not figures["completed"]:
        figures = {name: value for name, value in figures.items() if not name.endswith("_ms")}
    if gpus and "output_throughput" in figures:
        figures["output_throughput_per_gpu"] = figures["output_throughput"] / gpus
    return {name: _rounded(value) for name, value in figures.items()}


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and sample standard deviation (0 for one run) of each figure over repeated runs."""
    names = [name for name in runs[0] if all(name in run for run in runs)] if runs else []
    summary = {}
    for name in names:
        values = [run[name] for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[name] = {"mean": _rounded(statistics.fmean(values)), "std": _rounded(deviation)}
    return summary


def accuracy_scores(document: Any, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Return the scores in a results file of lm_eval.

    Args:
        document: the content of C(results_<time>.json).
        tasks: the tasks that were asked for; a group counts by itself and by its parts.

    Returns:
        one entry for each task, metric and filter: C(task), C(metric) (as C(exact_match,strict-match)), C(value),
        C(stderr) (None when lm_eval gives none), C(samples).

    Raises:
        GpufleetError: C(result-unreadable) when it is no such file, C(task-missing) when it has no score and a task
            is not in it, and C(no-samples) when a task was judged by none.
    """
    results = document.get("results") if isinstance(document, Mapping) else None
    if not isinstance(results, Mapping):
        raise GpufleetError(
            "The results of lm_eval are not what they should be: there is no 'results'.",
            name="result-unreadable",
            evidence=str(document)[:300],
        )
    counts = document.get("n-samples") or {}
    scores = []
    for task, values in results.items():
        samples = _samples(counts.get(task))
        if samples == 0:
            raise GpufleetError(
                f"lm_eval judged {task} by no sample.",
                name="no-samples",
                remedy="Check vllm_accuracy_limit and the data set of the task.",
            )
        scores += [
            {"task": task, "metric": metric, "value": _rounded(value), "stderr": stderr, "samples": samples}
            for metric, value, stderr in _metrics(values)
        ]
    missing = missing_tasks(document, tasks)
    if missing and not scores:
        raise GpufleetError(
            f"lm_eval wrote no result of {', '.join(missing)}; it has {', '.join(sorted(results)) or 'none'}.",
            name="task-missing",
            remedy="Name tasks in vllm_accuracy_tasks as `lm_eval --tasks list` does, or as the task key of your own.",
        )
    if not scores:
        raise GpufleetError(
            f"lm_eval wrote no score of {', '.join(tasks)}.", name="no-samples", evidence=str(results)[:300]
        )
    return scores


def tasks_of(document: Mapping[str, Any]) -> list[str]:
    """Return the tasks and groups in a results file of lm_eval, those without a score included."""
    return sorted({*document["results"], *(document.get("groups") or {})})


def missing_tasks(document: Mapping[str, Any], tasks: Sequence[str]) -> list[str]:
    """Return those of C(tasks) that are not in a results file, as a tag, in whose place lm_eval names its tasks."""
    return sorted(set(tasks) - set(tasks_of(document)))


def _samples(count: Any) -> int | None:
    """Return how many samples were judged; None where lm_eval does not say, as for a group of tasks."""
    effective = count.get("effective") if isinstance(count, Mapping) else None
    return int(effective) if _is_number(effective) else None


def _metrics(values: Mapping[str, Any]) -> Iterable[tuple[str, float, float | None]]:
    for key, value in values.items():
        metric, _comma, filter_name = key.partition(",")
        if metric in NO_METRICS or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr = values.get(f"{metric}_stderr,{filter_name}")
        yield key, float(value), _rounded(stderr) if _is_number(stderr) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(value: float) -> float:
    """Return the value with six significant digits: more is noise in every report."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
