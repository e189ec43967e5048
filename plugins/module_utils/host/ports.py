# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a TCP port of this host is free, and who holds it if not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, program_name, read_text

LISTEN = "0A"


def bind_problem(host: str, port: int) -> int:
    """Return 0 when C(host:port) can be listened on, or the number of the error that says why not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        # Without this, connections that a server closed a moment ago would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
            probe.listen(1)
        except OSError as error:
            return error.errno or errno.EINVAL
    return 0


def listener(port: int, root: str = "/") -> str:
    """Return the process that listens on the port, as C(nginx (pid 123)); empty when it cannot be told."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in read_text(root, "proc/net", table).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    if not sockets:
        return ""
    for pid in list_folder(root, "proc"):
        if pid.isdigit() and _holds(root, pid, sockets):
            return f"{program_name(read_text(root, 'proc', pid, 'cmdline')) or 'a process'} (pid {pid})"
    return ""


def _holds(root: str, pid: str, sockets: set[str]) -> bool:
    folder = os.path.join(root, "proc", pid, "fd")
    for name in list_folder(folder):
        with contextlib.suppress(OSError):
            if os.readlink(os.path.join(folder, name)) in sockets:
                return True
    return False
