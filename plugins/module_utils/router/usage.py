# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums up a router's log of requests by day, client and model."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.log_keeper import rotated

NONE = "-"
NO_REPLICA = "<NOSRV>"
# Names that no replica took: whoever asks decides on them, so they do not become rows of their own.
UNKNOWN_MODEL = "(unknown)"
NOT_TAKEN = (400, 404)
DAY_S = 86400


@dataclass
class Use:
    """What one client asked of one model on one day (UTC).

    Attributes:
        requests: all of them.
        failures: those that were answered with 400 or more, not answered, or cut short by either side.
        bytes_in: of requests, their heads too.
        bytes_out: of answers, their heads too.
        tokens_in: of prompts, as far as answers told.
        tokens_out: that were generated, as far as answers told.
        with_tokens: requests whose answers told.
    """

    requests: int = 0
    failures: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    with_tokens: int = 0

    def add(self, other: Use) -> None:
        """Count what another one has as well."""
        for name, number in asdict(other).items():
            setattr(self, name, getattr(self, name) + number)


Key = tuple[str, str, str]


def first_second(text: str, variable: str) -> float:
    """Return the second since 1970 at which a day (UTC) begins.

    Raises:
        GpufleetError: C(invalid-router).
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise GpufleetError(
            f"{variable}: {text!r} is no day.",
            name="invalid-router",
            remedy=f"Give {variable} a day such as 2027-01-31, or leave it empty.",
        ) from None
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()


def sum_up(path: str, since: float, until: float) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a log, and how many of its lines cannot be read.

    Args:
        path: the file that is written now; rotated ones are beside it.
        since: the first second that counts.
        until: the first one that does not any more.
    """
    found: dict[Key, Use] = {}
    taken: set[Key] = set()
    unreadable = 0
    for line in _lines(path, since):
        try:
            entry = json.loads(line)
            if not since <= entry["time"] < until:
                continue
            key, use = _key(entry), _use(entry)
        except (ValueError, KeyError, TypeError):
            unreadable += 1
            continue
        if entry["replica"] != NO_REPLICA and entry["status"] not in NOT_TAKEN:
            taken.add(key)
        found.setdefault(key, Use()).add(use)
    rows: dict[Key, Use] = {}
    for (day, client, model), use in found.items():
        name = model if model == NONE or (day, client, model) in taken else UNKNOWN_MODEL
        rows.setdefault((day, client, name), Use()).add(use)
    return [as_row(key, rows[key]) for key in sorted(rows)], unreadable


def as_row(key: Key, use: Use) -> dict[str, Any]:
    """Return a row, which `of_row` reads."""
    return {**dict(zip(("day", "client", "model"), key)), **asdict(use)}


def of_row(row: dict[str, Any]) -> tuple[Key, Use]:
    """Return what stands in a row."""
    return (str(row["day"]), str(row["client"]), str(row["model"])), Use(
        **{name: int(row[name]) for name in Use.__dataclass_fields__}
    )


def _key(entry: dict[str, Any]) -> Key:
    return time.strftime("%Y-%m-%d", time.gmtime(entry["time"])), str(entry["client"]), str(entry["model"] or NONE)


def _use(entry: dict[str, Any]) -> Use:
    tokens_in, tokens_out = (_number(entry[name]) for name in ("tokens_in", "tokens_out"))
    status = entry["status"]
    failed = status < 200 or status >= 400 or not entry["end"].startswith("-")
    told = tokens_in is not None or tokens_out is not None
    return Use(
        requests=1,
        failures=int(failed),
        bytes_in=int(entry["bytes_in"]),
        bytes_out=int(entry["bytes_out"]),
        tokens_in=tokens_in or 0,
        tokens_out=tokens_out or 0,
        with_tokens=int(told),
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _lines(path: str, since: float) -> Iterator[bytes]:
    """Yield the lines of a log and of its rotated files, each once, though it may be rotated meanwhile."""
    with contextlib.ExitStack() as stack:
        try:
            now = stack.enter_context(open(path, "rb"))  # before the others are listed
        except FileNotFoundError:
            now = None
        for name in rotated(path):
            with contextlib.suppress(FileNotFoundError), open(name, "rb") as stream:
                status = os.fstat(stream.fileno())
                is_now = now is not None and os.path.samestat(status, os.fstat(now.fileno()))
                if not is_now and status.st_mtime >= since:
                    yield from stream
        if now is not None:
            yield from now
