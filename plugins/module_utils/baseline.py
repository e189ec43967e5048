# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored benchmarks that later ones are compared with, one file for each kind of measurement."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.whole_file import replace_file

SCHEMA_VERSION = 1


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of everything that must be equal for two benchmarks to be comparable, as 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load(folder: str, key: str) -> dict[str, Any] | None:
    """Return the stored benchmark, or None when there is none.

    Raises:
        GpufleetError: C(baseline-unreadable) when the file is there and holds something else.
    """
    path = path_of(folder, key)
    try:
        with open(path, encoding="utf-8") as stream:
            document = json.load(stream)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise _unreadable(path, f"schema_version is not {SCHEMA_VERSION}")
    try:
        _look_through(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(path, f"date or points are not as they were stored: {error!r}") from error
    return document


def concurrencies(folder: str) -> dict[str, list[int]]:
    """Return the concurrencies of each stored benchmark by its key; a file that cannot be read has none."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        with contextlib.suppress(GpufleetError):
            document = load(folder, path.stem) or {"points": []}
            found[path.stem] = sorted({int(point["concurrency"]) for point in document["points"]})
    return found


def _look_through(document: Mapping[str, Any]) -> None:
    """Read what a comparison reads, so that a file that was cut or edited is told before it."""
    str(document["date"])
    for point in document["points"]:
        int(point["concurrency"])
        len(point["runs"])
        for figure in point["summary"].values():
            float(figure["mean"])
            float(figure["std"])


def save(folder: str, key: str, parts: Mapping[str, Any], points: list[dict[str, Any]], date: str) -> str:
    """Store a benchmark in the place of an older one and return its path.

    Raises:
        GpufleetError: C(baseline-not-written).
    """
    path = path_of(folder, key)
    document = {"schema_version": SCHEMA_VERSION, "key": key, "date": date, "of": dict(parts), "points": points}
    text = json.dumps(document, indent=2) + "\n"
    replace_file(path, text, what="baseline", name="baseline-not-written", variable="vllm_baseline_dir")
    return path


def path_of(folder: str, key: str) -> str:
    """Return the path of the file with this key."""
    return os.path.join(folder, f"{key}.json")


def _unreadable(path: str, why: str) -> GpufleetError:
    return GpufleetError(
        f"The baseline {path} cannot be read.",
        name="baseline-unreadable",
        remedy="Remove it and store a new one with vllm_benchmark_save_baseline: true.",
        evidence=why,
    )
