# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of the controller's CPU the plans of a fleet take.

Run as C(python tests/bench/bench_plan.py [hosts]) with the folder above ansible_collections on PYTHONPATH. Prints CPU
seconds for reading the wishes and planning, for the fleet's table, and for writing the same plans as JSON, so that the
ratio means something on any machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import plan_page
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import profiles
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes

CARDS = (("NVIDIA H200", "9.0", 143771), ("NVIDIA B200", "10.0", 183359), ("NVIDIA H100 80GB HBM3", "9.0", 81559))
BUDGET_S = 5.0


def gpus(card: tuple[str, str, int], count: int) -> list[dict[str, Any]]:
    """Return what gpu_info says of C(count) linked cards."""
    name, capability, memory = card
    return [
        {
            "index": index,
            "uuid": f"GPU-{index}",
            "name": name,
            "compute_capability": capability,
            "memory_total_mib": memory,
            "memory_reserved_mib": 612,
            "peers": [other for other in range(count) if other != index],
            "processes": [],
        }
        for index in range(count)
    ]


def plan(number: int) -> Plan:
    """Return the plan of the fleet's host of that number."""
    host = {"gpus": gpus(CARDS[number % len(CARDS)], 8), "architecture": "x86_64", "driver_version": "580.95.05"}
    profile = sorted(profiles.PROFILES)[number % len(profiles.PROFILES)]
    return planner.plan(host, wishes.read({"vllm_accept_license": True, "vllm_profile": profile}))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds that C(work) took, and its result."""
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def main(hosts: int) -> None:
    """Print the figures for a fleet of so many hosts."""
    planning, plans = timed(lambda: {f"gpu-{number:04d}": plan(number) for number in range(hosts)})
    listing, found = timed(lambda: plan_page.table(plans))
    writing, text = timed(lambda: json.dumps(plans))
    print(f"{hosts} hosts: {planning:.3f} s CPU to plan ({planning / hosts * 1000:.2f} ms a host), of {BUDGET_S:.0f} s")
    print(f"table of {len(found['table'])} lines: {listing:.3f} s CPU")
    print(f"the same plans as JSON ({len(text) / 1e6:.1f} MB): {writing:.3f} s CPU")
    print(f"planning takes {planning / writing:.1f} times as long as writing its result")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
