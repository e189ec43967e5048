# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking the replicas of some hosts out of the router, or back: which of them, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import PERSON, DrainMarks
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import BackendServer, Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import server_name


@dataclass(frozen=True)
class Selection:
    """What the caller asks for.

    Attributes:
        hosts: names in the inventory.
        replicas: names of those replicas of each host that are meant; None for all.
        state: what they become: ready, drain or maint.
        owner: who drains them for a while; empty for a person, whose drains stay.
        reason: why a person drains them.
        run: what tells the run that drains them from others.
    """

    hosts: Sequence[str]
    replicas: Sequence[str] | None
    state: str
    owner: str
    reason: str = ""
    run: str = ""

    def named(self, host: str) -> list[str]:
        """Return the replicas of a host that the caller names, by their names in HAProxy."""
        return [server_name(host, replica) for replica in self.replicas or []]

    def of(self, host: str, servers: Mapping[str, BackendServer], marks: DrainMarks) -> list[str]:
        """Return the names of those replicas of a host that the caller means and that the router has."""
        names = [name for name in servers if host_of(name) == host]
        if self.replicas is not None:
            names = [name for name in names if name in self.named(host)]
        if self.owner and self.state == "ready":
            # An owner takes back only what it has drained itself.
            own = marks.of(host, self.owner)
            names = [name for name in names if servers[name].state == "drain" and name in own]
        return names


@dataclass(frozen=True)
class StateChange:
    """What a run changes.

    Attributes:
        selection: what the caller asks for.
        before: every server of the router, by its name, as it was.
        names_of: for each host the names of the replicas that are meant.
    """

    selection: Selection
    before: Mapping[str, BackendServer]
    names_of: Mapping[str, Sequence[str]]

    @property
    def names(self) -> list[str]:
        """The replicas that are meant."""
        return [name for names in self.names_of.values() for name in names]

    @property
    def to_set(self) -> list[str]:
        """Those of them that are in another state."""
        return [name for name in self.names if self.before[name].state != self.selection.state]

    @property
    def hosts(self) -> list[str]:
        """The hosts that have one of those."""
        changed = set(self.to_set)
        return [host for host, names in self.names_of.items() if changed & set(names)]

    def servers(self) -> dict[str, BackendServer]:
        """Return the replicas that are meant, as they were."""
        return {name: self.before[name] for name in self.names}

    def begin(self, master: Master, marks: DrainMarks) -> None:
        """Set the state, and note who did it.

        Raises:
            GpufleetError: as Master.set_state does, and `write-failed`.
        """
        selection, to_set = self.selection, self.to_set
        if selection.owner and selection.state == "drain":
            # Those of a run that is over are this one's from now on.
            for host, names in self.names_of.items():
                marks.keep(host, selection.owner, set(names) & set(to_set), run=selection.run)
        master.set_state(to_set, selection.state)
        if not selection.owner or selection.state == "ready":
            for host in self.names_of:
                marks.forget(host, None if selection.replicas is None else selection.named(host))
        if not selection.owner and selection.state != "ready":
            for host, names in self.names_of.items():
                marks.keep(host, PERSON, names, reason=selection.reason)
        if selection.state == "ready":
            # HAProxy takes a server that comes out of maintenance for a healthy one.
            master.distrust([name for name in to_set if self.before[name].state == "maint"])

    def wait(self, master: Master, timeout: float) -> tuple[dict[str, BackendServer], float]:
        """Wait for the end of what runs there, or for the health checks.

        Returns:
            The replicas as they are then, and the seconds that it took.

        Raises:
            GpufleetError: as Master.wait does.
        """
        return master.wait(self.names, self.selection.state, timeout)

    def as_result(self, servers: Mapping[str, BackendServer], waited: float) -> dict[str, Any]:
        """Return what was done as values of a module's result.

        Args:
            servers: the replicas that are meant, as they are now.
            waited: seconds.
        """
        state, names = self.selection.state, set(self.names)
        ready = state == "ready"
        return {
            "changed": bool(self.to_set),
            "servers": {name: _as_data(server) for name, server in servers.items()},
            "hosts": self.hosts,
            "unknown": [
                name for host in self.selection.hosts for name in self.selection.named(host) if name not in self.before
            ],
            "sessions_left": 0 if ready else sum(server.sessions for server in servers.values()),
            "still_running": [] if ready else [name for name, server in servers.items() if server.sessions],
            "not_up": [name for name, server in servers.items() if ready and not server.up],
            "others_ready": sum(server.usable() for name, server in self.before.items() if name not in names),
            "waited_s": round(waited, 1),
            "diff": [_difference(name, self.before[name].state, state) for name in self.to_set],
        }


def change_for(selection: Selection, before: Mapping[str, BackendServer], marks: DrainMarks) -> StateChange:
    """Return what has to change for a selection.

    Args:
        selection: what the caller asks for.
        before: every server of the router, by its name.
        marks: who has drained which replica.
    """
    return StateChange(selection, before, {host: selection.of(host, before, marks) for host in selection.hosts})


def _as_data(server: BackendServer) -> dict[str, Any]:
    return {"state": server.state, "status": server.status, "sessions": server.sessions}


def _difference(name: str, before: str, after: str) -> dict[str, str]:
    """Return a replica's change of state for Ansible's diff."""
    return {"before_header": name, "after_header": name, "before": f"{before}\n", "after": f"{after}\n"}
