# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file from which a worker of HAProxy learns the state of its servers, whoever started it.

Between changes it has what an administrator set alone, so that a restart, a reboot or C(systemctl reload) keeps what is
drained and finds out anew which servers live. HAProxy believes the file more than its configuration: it asks a server
at the port that is said here. So rows are made for the configuration that the worker is going to have.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import BACKEND, SERVER_STATE
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica

# Of srv_admin_state: what was set by command, maintenance and drain.
SET_BY_COMMAND = 0x01 | 0x08
STOPPED = "0"
VERSION = "1\n"
LOCK, TURN_LOCK = ".server-state.lock", ".turn.lock"
# A reload that fails and is taken back takes a quarter of it.
LOCK_S = 120.0
MODE = 0o600
VARIABLE = "router_state_dir"


class ServerStates:
    """The file of one router.

    Args:
        state_dir: folder of what it keeps over a reboot.
    """

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self.path = os.path.join(state_dir, SERVER_STATE)

    def held(self, operation: str) -> contextlib.AbstractContextManager[None]:
        """Keep other runs from setting states or loading a configuration inside the block.

        Raises:
            GpufleetError: C(busy) or C(write-failed).
        """
        return self._lock(LOCK, operation)

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs from deciding inside the block whether a host may be taken out.

        Raises:
            GpufleetError: C(busy) or C(write-failed).
        """
        return self._lock(TURN_LOCK, "taking a host out")

    def _lock(self, name: str, operation: str) -> contextlib.AbstractContextManager[None]:
        try:
            os.makedirs(self._state_dir, mode=0o755, exist_ok=True)
        except OSError as error:
            raise write_failed(self._state_dir, error, VARIABLE) from error
        return host_lock(os.path.join(self._state_dir, name), operation, timeout=LOCK_S, variable=VARIABLE)

    def ensure_file(self) -> None:
        """Write an empty file if there is none: HAProxy warns without it."""
        if not read_text(self.path):
            self.write(VERSION)

    def read(self) -> str:
        """Return its text; empty when it is missing."""
        return read_text(self.path)

    def write(self, text: str) -> None:
        """Write it.

        Raises:
            GpufleetError: C(write-failed).
        """
        write_file(self.path, text, MODE, variable=VARIABLE)


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the replicas' rows in the answer to C(show servers state) or in the file, by the names of the columns."""
    lines = [line for line in text.splitlines() if line.strip()]
    heads = next((line[2:].split() for line in lines if line.startswith("# ")), [])
    rows = [dict(zip(heads, line.split())) for line in lines]
    return [row for row in rows if row.get("be_name") == BACKEND]


def set_by_command(text: str) -> str:
    """Return the rows of what an administrator took out, as a file."""
    return _as_file([row for row in rows_of(text) if int(row["srv_admin_state"]) & SET_BY_COMMAND])


def at_their_places(text: str, replicas: Sequence[Replica]) -> str:
    """Return the rows for a configuration with these replicas, as a file.

    One that has moved is a new server, of whose health nothing is known; what was drained stays so.
    """
    places = {replica.server(): replica for replica in replicas}
    kept = []
    for row in rows_of(text):
        replica = places.get(row["srv_name"])
        if replica is None:
            continue
        if _is_at(row, replica):
            kept.append(row)
            continue
        taken_out = int(row["srv_admin_state"]) & SET_BY_COMMAND
        if taken_out:
            place = {"srv_addr": "-", "srv_fqdn": "-", "srv_port": str(replica.port)}
            health = {"srv_op_state": STOPPED, "srv_check_health": "0"}
            kept.append({**row, **place, **health, "srv_admin_state": str(taken_out)})
    return _as_file(kept)


def _is_at(row: dict[str, str], replica: Replica) -> bool:
    """Return whether a row is of a server at the replica's place; one that has a name may have another address now."""
    try:
        there = ipaddress.ip_address(row["srv_addr"]) == ipaddress.ip_address(replica.address)
    except ValueError:
        there = row["srv_fqdn"].lower() == replica.address.lower()
    return there and row["srv_port"] == str(replica.port)


def _as_file(rows: Sequence[dict[str, str]]) -> str:
    lines = [f"# {' '.join(rows[0])}", *(" ".join(row.values()) for row in rows)] if rows else []
    return VERSION + "".join(f"{line}\n" for line in lines)
