# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A vLLM server's load, from its page of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The gauges we show, by the names that they have had; the first that a server has counts.
METRICS: dict[str, tuple[str, ...]] = {
    "requests_running": ("vllm:num_requests_running",),
    "requests_waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prompt_tokens": ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
    "generation_tokens": ("vllm:generation_tokens_total", "vllm:generation_tokens"),
}
# Summed over the engines of a server, except for shares, of which the largest counts.
SHARES = {"kv_cache_usage"}

SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")


def parse_metrics(text: str) -> dict[str, float]:
    """Return a server's load from the text of its `/metrics` page.

    Returns:
        Those of METRICS that the server tells; `kv_cache_usage` is a share from 0 to 1.
    """
    values: dict[str, list[float]] = {}
    for name, _labels, value in parse_samples(text.splitlines()):
        values.setdefault(name, []).append(value)
    load = {}
    for key, names in METRICS.items():
        found = next((values[name] for name in names if name in values), None)
        if found:
            load[key] = max(found) if key in SHARES else sum(found)
    return load


def parse_samples(lines: Iterable[str]) -> list[tuple[str, str, float]]:
    """Return name, labels (as written) and value of each sample in lines of Prometheus' text format."""
    samples = []
    for line in lines:
        match = None if line.startswith("#") else SAMPLE.fullmatch(line.strip())
        if match:
            try:
                samples.append((match[1], match[2] or "", float(match[3])))
            except ValueError:
                continue
    return samples
