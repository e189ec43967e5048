# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deployments of a host, one a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import fold, natural
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned


def history_lines(deployments: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Return the lines that a person reads of the last deployments of many hosts.

    Args:
        deployments: host names to what the module vllm_server_info returned as C(deployments), the newest first.

    Returns:
        C(lines) (a row for each deployment) and C(errors) (why those failed that did).
    """
    found = [(host, entry) for host in sorted(deployments, key=natural) for entry in deployments[host]]
    empty = [host for host in deployments if not deployments[host]]
    rows = [
        (host, entry["id"], str(entry["model"]), str(entry["vllm_version"] or "?"), _image(entry), _outcome(entry))
        for host, entry in found
    ]
    lines = aligned([("host", "deployment", "model", "vLLM", "image", ""), *rows] if rows else [])
    if empty:
        lines.append(f"No deployment remembered on {fold(empty)}.")
    failed = [(host, entry) for host, entry in found if entry["outcome"] != "ready"]
    return {
        "lines": lines,
        "errors": [f"{host} {entry['id']}: {(entry['error'] or {}).get('message', '')}" for host, entry in failed],
    }


def _image(entry: Mapping[str, Any]) -> str:
    image = entry["image"]
    return f"{image['reference']} ({str(image['id']).rpartition(':')[2][:12]})"


def _outcome(entry: Mapping[str, Any]) -> str:
    if entry["outcome"] != "ready":
        return f"failed: {(entry['error'] or {}).get('name', 'unknown')}"
    parts = ["current"] if entry["current"] else []
    if entry["rolled_back_to"]:
        parts.append(f"brought back {entry['rolled_back_to']}")
    return ", ".join(parts) or "served"
