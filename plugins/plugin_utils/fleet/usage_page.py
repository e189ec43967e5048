# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients used of the models, over all routers: a table, and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.usage import Key, Use, as_row, of_row
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned, count_of

HEAD = ("Day", "Client", "Model", "Requests", "Failed", "In", "Out", "Tokens in", "Tokens out", "Told by")
COLUMNS = ("day", "client", "model", *Use.__dataclass_fields__)
TOLD = "Tokens are those of answers that told them; streamed and large ones do not. Told by says of how many requests."


def together(routers: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of all routers, those of the same day, client and model as one."""
    sums: dict[Key, Use] = {}
    for rows in routers.values():
        for row in rows:
            key, use = of_row(row)
            sums.setdefault(key, Use()).add(use)
    return [as_row(key, sums[key]) for key in sorted(sums)]


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as CSV, with a line of names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def usage_lines(rows: Sequence[dict[str, Any]], routers: Sequence[str], missing: Mapping[str, str]) -> list[str]:
    """Return the table, and what is missing in it.

    Args:
        rows: of all routers together.
        routers: those whose logs are in it.
        missing: routers whose logs are not, and why.
    """
    lines = [f"{router} is missing, so these are not all requests: {why}" for router, why in sorted(missing.items())]
    if not rows:
        return [*lines, f"No request is in the log of {', '.join(routers) or 'any router'} for that time."]
    total = Use()
    for row in rows:
        total.add(of_row(row)[1])
    table = [HEAD, *(_cells(*of_row(row)) for row in rows), _cells(("Total", "", ""), total)]
    return [
        *lines,
        f"{count_of(total.requests, 'request')} at {count_of(len(routers), 'router')}",
        *aligned(table),
        TOLD,
    ]


def _cells(key: Key, use: Use) -> tuple[str, ...]:
    # A name that a client chose may have signs that a terminal obeys.
    names = [name if name.isprintable() else ascii(name) for name in key]
    numbers = [use.requests, use.failures]
    tokens = [use.tokens_in, use.tokens_out] if use.with_tokens else ["-", "-"]
    sizes = [_size(use.bytes_in), _size(use.bytes_out)]
    return (*names, *map(str, numbers), *sizes, *map(str, tokens), str(use.with_tokens))


def _size(number: float) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"
