# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a page says of GPUs: which are sick, what to look after, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import by_text, in_order


def sick_hosts(health: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the hosts with a sick GPU.

    Args:
        health: host names to what explained of gpu_reasons.py returns.
    """
    return in_order(
        host for host, found in health.items() if any(entry["severity"] == "sick" for entry in _findings(found))
    )


def gpu_lines(health: Mapping[str, Mapping[str, Any]], hosts: int) -> list[str]:
    """Return the lines for GPUs: the sick ones, then those to look after, alike hosts in one line.

    Args:
        health: host names to what explained of gpu_reasons.py returns.
        hosts: how many hosts were looked at.
    """
    lines = []
    for severity, head in (("sick", "Sick GPUs:"), ("warning", "GPUs to look after:")):
        texts = {host: _text(found, severity) for host, found in health.items()}
        there = [(host, text) for host, text in texts.items() if text]
        if there:
            lines += [head, *by_text(there, hosts)]
    return lines


def _text(found: Mapping[str, Any], severity: str) -> str:
    return "; ".join(
        ". ".join(
            part.rstrip(".")
            for part in (f"{entry['message']} ({entry['reason']}{_evidence(entry)})", str(entry["remedy"]))
        )
        for entry in _findings(found)
        if entry["severity"] == severity
    )


def _evidence(entry: Mapping[str, Any]) -> str:
    text = " ".join(str(entry.get("evidence") or "").split())
    return f": {text}" if text else ""


def _findings(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list((found or {}).get("findings") or [])
