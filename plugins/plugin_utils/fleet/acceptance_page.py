# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the test of a fleet's GPUs found: broken and slow ones by name, and what is usual."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import in_order
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.card_figures import floors

WORDS = {
    "memory_gib": "GiB of memory tested",
    "bandwidth_gbs": "GB/s of memory",
    "gemm_tflops": "TFLOP/s",
    "allreduce_gbs": "GB/s between GPUs",
}
RATES = ("bandwidth_gbs", "gemm_tflops", "allreduce_gbs")
# Fewer cards of a name tell nothing of what is usual.
FEWEST = 3

Card = tuple[str, str, str, Mapping[str, float]]


def acceptance(hosts: Mapping[str, Mapping[str, Any]], tolerance: float) -> dict[str, Any]:
    """Return what a person reads of the test, and which hosts failed.

    Args:
        hosts: host names to what the module vllm_accept returned; a host that failed has C(msg) instead.
        tolerance: share of the median by which a card may be slower.

    Returns:
        C(lines), C(failed) (host names to why), C(medians) (card's name to figure to median) and C(slow) (names).
    """
    cards = list(_cards(hosts))
    medians = _medians(cards)
    failed: dict[str, list[str]] = {host: [str(found["msg"])] for host, found in hosts.items() if "msg" in found}
    slow = []
    for host, card, name, figures in cards:
        for figure, why in _slow(name, figures, medians, tolerance):
            failed.setdefault(host, []).append(f"{card} is slow: {figures[figure]:,g} {WORDS[figure]}, {why}")
            slow.append(f"{host} {card}")
        if figures.get("memory_errors"):
            failed.setdefault(host, []).append(
                f"{card}: {figures['memory_errors']:.0f} words of memory came back wrong"
            )
    for host, found in hosts.items():
        failed.setdefault(host, []).extend(_errors(found))
    failed = {host: texts for host, texts in failed.items() if texts}
    return {
        "lines": _lines(hosts, cards, failed),
        "failed": {host: "; ".join(failed[host]) for host in in_order(failed)},
        "medians": medians,
        "slow": list(dict.fromkeys(slow)),
    }


def _cards(hosts: Mapping[str, Mapping[str, Any]]) -> Iterator[Card]:
    """Yield host, what the card is called there, its name and its figures; what GPUs do together is of the host."""
    for host in in_order(hosts):
        gpus = hosts[host].get("gpus") or []
        for gpu in gpus:
            uuid = f", {gpu['uuid']}" if gpu.get("uuid") else ""
            where = f"GPU {gpu['index']} ({gpu['name']}{uuid})" if gpu["name"] != "processor" else "the processor"
            yield host, where, str(gpu["name"]), gpu["figures"]
        together = hosts[host].get("allreduce") or {}
        if gpus and "figures" in together:
            yield (
                host,
                f"all {together['world']} together",
                f"{together['world']} x {gpus[0]['name']}",
                together["figures"],
            )


def _medians(cards: list[Card]) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, list[float]]] = {}
    for _host, _card, name, figures in cards:
        for figure in RATES:
            if figure in figures:
                values.setdefault(name, {}).setdefault(figure, []).append(figures[figure])
    return {
        name: {figure: statistics.median(found) for figure, found in by_figure.items() if len(found) >= FEWEST}
        for name, by_figure in values.items()
    }


def _slow(
    name: str, figures: Mapping[str, float], medians: Mapping[str, Mapping[str, float]], tolerance: float
) -> Iterator[tuple[str, str]]:
    """Yield each figure that is too low, with what it is compared with."""
    known = floors(name)
    for figure in RATES:
        if figure not in figures:
            continue
        median = medians.get(name, {}).get(figure)
        if median and figures[figure] < median * (1 - tolerance):
            yield figure, f"the fleet's median is {median:,g}"
        elif figure in known and figures[figure] < known[figure]:
            yield figure, f"a sound one reaches {known[figure]:,g}"


def _errors(found: Mapping[str, Any]) -> list[str]:
    texts = [
        f"GPU {gpu['index']} ({gpu['name']}): {test}: {text}"
        for gpu in found.get("gpus") or []
        for test, text in gpu["errors"].items()
    ]
    error = (found.get("allreduce") or {}).get("error")
    return [*texts, *([f"adding up together: {error}"] if error else [])]


def _lines(hosts: Mapping[str, Mapping[str, Any]], cards: list[Card], failed: Mapping[str, list[str]]) -> list[str]:
    passed = len(hosts) - len(failed)
    head = f"{passed} of {len(hosts)} hosts accepted"
    rows = [
        (host, card, ", ".join(f"{figures[figure]:,g} {words}" for figure, words in WORDS.items() if figure in figures))
        for host, card, _name, figures in cards
    ]
    table = aligned([("host", "what", "figures"), *rows]) if rows else []
    told = [f"  {host}: {text}" for host in in_order(failed) for text in failed[host]]
    return [head, *table, *(["Not accepted:", *told] if told else [])]
