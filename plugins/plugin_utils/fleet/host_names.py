# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of hosts, short enough for a line: gpu[01-12]."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_HOSTS = 40


def fold(hosts: Iterable[str]) -> str:
    """Return host names with runs of numbers folded as Ansible's inventories write them: C(gpu-[01:48])."""
    runs: list[tuple[str, str, str, str]] = []
    for host in sorted(hosts, key=natural):
        before, number, after = _parts(host)
        if runs and number:
            run_before, first, last, run_after = runs[-1]
            follows = last and len(last) == len(number) and int(number) == int(last) + 1
            if follows and (run_before, run_after) == (before, after):
                runs[-1] = (before, first, number, after)
                continue
        runs.append((before, number, number, after))
    return ", ".join(
        f"{before}[{first}:{last}]{after}" if first != last else f"{before}{first}{after}"
        for before, first, last, after in runs
    )


def _parts(host: str) -> tuple[str, str, str]:
    """Return what stands before, in and after the last number of the host's own name, without its domain."""
    name, dot, domain = host.partition(".")
    found = re.search(r"\d+(?=\D*$)", name)
    if not found or name.isdigit():
        return host, "", ""
    return name[: found.start()], found.group(), name[found.end() :] + dot + domain


def in_order(hosts: Iterable[str]) -> list[str]:
    """Return host names in the order in which people number them: gpu-2 before gpu-10."""
    return sorted(hosts, key=natural)


def natural(host: str) -> tuple[Any, ...]:
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", host))


def shortened(hosts: Sequence[str]) -> str:
    """Return the folded names, and only as many of them as a column holds."""
    parts = fold(hosts).split(", ")
    shown = parts[:1]
    for part in parts[1:]:
        if len(", ".join([*shown, part])) > LONGEST_HOSTS:
            break
        shown.append(part)
    left = len(parts) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def by_text(pairs: Iterable[tuple[str, str]], total: int) -> list[str]:
    """Return each text once, after the hosts that it is about; the one about most hosts first."""
    hosts_of: dict[str, list[str]] = {}
    for host, text in pairs:
        hosts_of.setdefault(text, []).append(host)
    ordered = sorted(hosts_of.items(), key=lambda item: (-len(item[1]), natural(item[1][0])))
    return [f"  {who(hosts, total)}: {text}" for text, hosts in ordered]


def who(hosts: Sequence[str], total: int) -> str:
    if len(hosts) == total and total > 1:
        return f"all {total}"
    return shortened(hosts) + (f" ({len(hosts)} hosts)" if len(hosts) > 1 else "")
