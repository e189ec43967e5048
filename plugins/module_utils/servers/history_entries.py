# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The entries of a host's history of deployments: read, told in brief, and chosen from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import all_fields, what_matters

SCHEMA_VERSION = 1
FOLDER = "history"
READY, FAILED = "ready", "failed"
# What status and the list of deployments show of an entry.
BRIEF = ("id", "time", "outcome", "rolled_back_to", "model", "vllm_version", "image", "error")
Entry = dict[str, Any]


def read_entries(config_dir: str) -> list[Entry]:
    """Return the recorded deployments, the oldest first; a file that is no entry is left out."""
    folder = os.path.join(config_dir, FOLDER)
    entries = []
    for name in list_folder(folder):
        with contextlib.suppress(ValueError):
            entry = json.loads(read_text(folder, name)) if name.endswith(".json") else None
            if isinstance(entry, dict) and entry.get("schema_version") == SCHEMA_VERSION:
                entries.append(entry)
    return sorted(entries, key=lambda entry: int(entry["number"]))


def fingerprint(specs: Iterable[Spec]) -> str:
    """Return a digest of what matters for servers, equal for servers of which none would replace the other."""
    return _digest({spec["name"]: what_matters(spec) for spec in specs})


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def fingerprints(specs: Iterable[Spec]) -> tuple[str, str]:
    """Return the fingerprint, and the one that entries have which were recorded before time-outs ceased to matter."""
    known = list(specs)
    everything = {spec["name"]: all_fields(spec) for spec in known}
    return fingerprint(known), _digest(everything)


def current(entries: Sequence[Entry]) -> Entry | None:
    """Return the newest deployment that became ready, if there is one."""
    return next((entry for entry in reversed(entries) if entry["outcome"] == READY), None)


def serving(entries: Sequence[Entry]) -> Entry:
    """Return the newest deployment that became ready.

    Raises:
        GpufleetError: C(no-earlier-deployment).
    """
    found = current(entries)
    if found is None:
        raise GpufleetError(
            "This host's history has no deployment that became ready, so it is not known what to restart.",
            name="no-earlier-deployment",
            remedy="Deploy it (playbook gpufleet.vllm.deploy); vllm_history_keep must be 1 at least.",
        )
    return found


def brief(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return what a person wants to see of the deployments, the newest first, each with C(current)."""
    newest = current(entries)
    return [
        {**{key: entry.get(key) for key in BRIEF}, "current": entry is newest, "replicas": len(replicas_of(entry))}
        for entry in reversed(entries)
    ]


def select(entries: Sequence[Entry], wanted: str, running: Collection[str]) -> Entry:
    """Return the deployment to go back to.

    Args:
        entries: the oldest first.
        wanted: its id; empty for the last one that served something else than what runs now. If what runs now was
            itself brought back, that is the one, so that asking twice does not go back twice.
        running: fingerprints of the servers on the host, which may be those of a change that did not get to its end.

    Raises:
        GpufleetError: C(no-earlier-deployment), C(deployment-unknown) or C(deployment-failed).
    """
    serving = current(entries)
    good = [entry["id"] for entry in entries if entry["outcome"] == READY]
    if wanted:
        found = next((entry for entry in entries if entry["id"] == wanted), None)
        if found is None:
            raise GpufleetError(
                f"vllm_rollback_to: this host has no deployment {wanted!r} in its history.",
                name="deployment-unknown",
                remedy=f"Choose one of {', '.join(good)}." if good else "Nothing was deployed on this host yet.",
                details={"deployments": good},
            )
        if found["outcome"] != READY:
            raise GpufleetError(
                f"vllm_rollback_to: the deployment {wanted} failed and never served.",
                name="deployment-failed",
                remedy=f"Choose one of {', '.join(good)}.",
                evidence=str((found.get("error") or {}).get("message") or ""),
                details={"deployments": good},
            )
        return found
    if serving is not None and serving["rolled_back_to"] and serving["fingerprint"] in running:
        return serving
    for entry in reversed(entries):
        if entry["outcome"] == READY and entry["fingerprint"] not in running:
            return entry
    raise GpufleetError(
        f"There is no earlier deployment to go back to: {_only(serving)}.",
        name="no-earlier-deployment",
        remedy="Set the variables to what you want and deploy.",
        details={"deployments": good},
    )


def _only(serving: Entry | None) -> str:
    return f"{serving['id']} is the only one in this host's history" if serving else "this host's history is empty"


def replicas_of(entry: Entry) -> list[dict[str, Any]]:
    return list((entry.get("server") or {}).get("replicas") or [])
