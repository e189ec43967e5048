# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored benchmarks that later ones are compared with, one file for each kind of measurement.

A file holds what each server of that kind did, for equal servers differ, and a fleet stores them all at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.gates import MAD_TO_STD

SCHEMA_VERSION = 2
# Of a release that kept one server's figures in a file, whichever was last.
FIRST_SCHEMA_VERSION = 1


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the key of everything that must be equal for two benchmarks to be comparable, as 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load(folder: str, key: str) -> dict[str, Any] | None:
    """Return the stored benchmark, or None when there is none: C(of) and C(entries), one a server.

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
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version not in (FIRST_SCHEMA_VERSION, SCHEMA_VERSION):
        raise _unreadable(path, f"schema_version is neither {FIRST_SCHEMA_VERSION} nor {SCHEMA_VERSION}")
    try:
        if version == FIRST_SCHEMA_VERSION:
            only = {"host": "", "server": "", "date": document["date"], "points": document["points"]}
            document = {**document, "entries": [only]}
        for entry in document["entries"]:
            _look_through(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(path, f"date or points are not as they were stored: {error!r}") from error
    return dict(document)


def concurrencies(folder: str) -> dict[str, list[int]]:
    """Return the concurrencies of each stored benchmark by its key; a file that cannot be read has none."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        with contextlib.suppress(GpufleetError):
            points = reference((load(folder, path.stem) or {"entries": []})["entries"])
            found[path.stem] = [point["concurrency"] for point in points]
    return found


def stored_parts(folder: str) -> list[dict[str, Any]]:
    """Return of what the stored benchmarks are, each with everything that makes it comparable; unreadable ones not."""
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        with contextlib.suppress(GpufleetError):
            found.append(dict((load(folder, path.stem) or {}).get("of") or {}))
    return found


def _look_through(entry: Mapping[str, Any]) -> None:
    """Read what a comparison reads, so that a file that was cut or edited is told before it."""
    _of(entry)
    str(entry["date"])
    for point in entry["points"]:
        int(point["concurrency"])
        len(point["runs"])
        for figure in point["summary"].values():
            float(figure["mean"])
            float(figure["std"])


def _of(entry: Mapping[str, Any]) -> tuple[str, str]:
    return str(entry["host"]), str(entry["server"])


def reference(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points to compare a measurement with, in order: of each figure the median over the servers.

    Each has C(concurrency), C(servers) (how many), C(runs) (those of the server with the fewest) and C(summary), which
    is name to C(mean), C(std) (of the runs of one server) and C(spread) (standard deviation between the servers).
    """
    by_load: dict[int, list[Mapping[str, Any]]] = {}
    for entry in entries:
        for point in entry["points"]:
            by_load.setdefault(int(point["concurrency"]), []).append(point)
    return [
        {
            "concurrency": concurrency,
            "servers": len(points),
            "runs": min((point["runs"] for point in points), key=len),
            "summary": _medians([point["summary"] for point in points]),
        }
        for concurrency, points in sorted(by_load.items())
    ]


def _medians(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for name in dict.fromkeys(name for summary in summaries for name in summary):
        figures = [summary[name] for summary in summaries if name in summary]
        means = [float(figure["mean"]) for figure in figures]
        median = statistics.median(means)
        found[name] = {
            "mean": median,
            "std": math.sqrt(statistics.fmean(float(figure["std"]) ** 2 for figure in figures)),
            # One server that is far off must not widen it.
            "spread": MAD_TO_STD * statistics.median(abs(mean - median) for mean in means),
        }
    return found


def save(
    folder: str,
    key: str,
    parts: Mapping[str, Any],
    points: list[dict[str, Any]],
    date: str,
    *,
    host: str = "",
    server: str = "",
) -> str:
    """Store what a server did beside what others of its kind did, in the place of its own older one; return the path.

    Raises:
        GpufleetError: C(baseline-not-written).
    """
    path = path_of(folder, key)
    entry = {"host": host, "server": server, "date": date, "points": points}
    with _alone(folder, path):
        try:
            before = (load(folder, key) or {"entries": []})["entries"]
        except GpufleetError:
            before = []  # replaced, as the message of load says
        others = [other for other in before if _of(other) not in ((host, server), ("", ""))]
        entries = sorted([*others, entry], key=_of)
        document = {"schema_version": SCHEMA_VERSION, "key": key, "of": dict(parts), "entries": entries}
        text = json.dumps(document, indent=2) + "\n"
        replace_file(path, text, what="baseline", name="baseline-not-written", variable="vllm_baseline_dir")
    return path


@contextlib.contextmanager
def _alone(folder: str, path: str) -> Iterator[None]:
    """Keep the other hosts of a play, each a process of its own, from changing the file inside the block."""
    lock = f"{path}.lock"
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = _locked(lock)
    except OSError as error:
        raise GpufleetError(
            f"The baseline cannot be written to {path}.",
            name="baseline-not-written",
            remedy="Set vllm_baseline_dir to a folder on the controller that you may write to.",
            evidence=str(error),
        ) from error
    try:
        yield
    finally:
        # The folder is kept in git, so nothing else stays there.
        with contextlib.suppress(OSError):
            os.unlink(lock)
        os.close(descriptor)


def _locked(lock: str) -> int:
    """Return the descriptor of a lock file that is held and still there; raises OSError."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it has removed it


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
