# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What several routers know of drained hosts, brought together: all are to have the newest mark of each host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import (
    GPU_HEALTH,
    NOTHING,
    DrainMarks,
    Mark,
    mark_in,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master


def as_data(marks: Mapping[str, Mark]) -> dict[str, dict[str, Any]]:
    """Return marks by their hosts as plain data."""
    return {host: mark.as_data() for host, mark in sorted(marks.items())}


def newest(of_all: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, Mark]:
    """Return the newest mark of each host among those of several routers, as plain data."""
    found: dict[str, Mark] = {}
    for marks in of_all:
        for host, data in marks.items():
            mark = mark_in(data)
            # What GPUs are sick each router finds by itself, within its own limit.
            if mark.owner != GPU_HEALTH and mark.at > found.get(host, NOTHING).at:
                found[host] = mark
    return found


def missed(own: Mapping[str, Mark], others: Mapping[str, Mark]) -> dict[str, Mark]:
    """Return the marks of others that are newer than one's own and say something else."""
    return {
        host: mark
        for host, mark in others.items()
        if mark.at > own.get(host, NOTHING).at and not mark.says_the_same(own.get(host, NOTHING))
    }


def take_over(master: Master, marks: DrainMarks, others: Mapping[str, Mark]) -> list[str]:
    """Drain and put back what this router has missed; return the hosts.

    Raises:
        GpufleetError: as Master.set_state does, and `write-failed`.
    """
    with master.states.turn():
        own = marks.everyone()
        found = missed(own, others)
        servers = master.servers() if found else {}
        for host, mark in found.items():
            before = own.get(host, NOTHING).replicas if own.get(host, NOTHING).owner != GPU_HEALTH else set()
            here = {name: server.state for name, server in servers.items() if host_of(name) == host}
            marks.write(host, mark)
            drained = sorted(mark.replicas)
            master.set_state([name for name in drained if here.get(name) == "ready"], "drain")
            back = sorted(before - mark.replicas)
            master.set_state([name for name in back if here.get(name) in ("drain", "maint")], "ready")
            master.distrust([name for name in back if here.get(name) == "maint"])
    return sorted(found)
