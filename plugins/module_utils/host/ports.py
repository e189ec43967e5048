# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a TCP port of this host is free, and who holds it if not."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import sys
from typing import Any, TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bare
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import (
    container_id,
    list_folder,
    program_name,
    read_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import ContainerInfo

LISTEN = "0A"


class PortInfo(TypedDict):
    """A TCP port and who holds it."""

    port: int
    free: bool
    ours: bool
    container: str
    pid: int | None
    process: str


def bind_problem(host: str, port: int) -> int:
    """Return 0 when C(host:port) can be listened on, or the number of the error that says why not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        # Without this, connections that a server closed a moment ago would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bare(host), port))
            probe.listen(1)
        except OSError as error:
            return error.errno or errno.EINVAL
    return 0


def listener(port: int, root: str = "/") -> str:
    """Return the process that listens on the port, as `nginx (pid 123)`; empty when it cannot be told."""
    owners = _owners({entry["inode"] for entry in _listeners(root) if entry["port"] == port}, root)
    for pid in owners.values():
        return f"{program_name(read_text(root, 'proc', str(pid), 'cmdline')) or 'a process'} (pid {pid})"
    return ""


def address_available(host: str) -> bool:
    """Return whether this host can listen on an address, or on the address of a name."""
    for family, kind, protocol, _name, address in _resolve(host):
        with socket.socket(family, kind, protocol) as probe_socket:
            try:
                probe_socket.bind(address)
            except OSError:
                continue
            return True
    return False


def ports_in_use(ports: list[int], host: str, containers: list[ContainerInfo], root: str = "/") -> list[PortInfo]:
    """Return who holds each port on an address.

    Args:
        ports: TCP ports to look at.
        host: the address on which they are wanted.
        containers: what C(engine) told.
        root: the folder below which proc is mounted.

    Returns:
        For each port C(port), C(free), C(ours) (a container of this collection holds it), C(container) (its name),
        C(pid) and C(process) (name only), None or empty when not known.
    """
    wanted = addresses_of(host)
    held = [entry for entry in _listeners(root) if entry["port"] in ports and clash(entry["address"], wanted)]
    owners = _owners({entry["inode"] for entry in held}, root)
    result: list[PortInfo] = []
    for port in ports:
        listening = [entry["inode"] for entry in held if entry["port"] == port]
        pid = next((owners[inode] for inode in listening if inode in owners), None)
        holder = _publisher(port, wanted, containers)
        if holder is None and pid is not None:
            holder = _by_id(container_id(pid, root), containers)
        result.append(
            {
                "port": port,
                "free": not listening and holder is None,
                "ours": bool(holder and holder["ours"]),
                "container": holder["name"] if holder else "",
                "pid": pid,
                "process": program_name(read_text(root, "proc", str(pid), "comm")) if pid is not None else "",
            }
        )
    return result


def _publisher(port: int, wanted: set[str], containers: list[ContainerInfo]) -> ContainerInfo | None:
    """Return the container that publishes a port.

    Without its userland proxy the engine publishes by packet filter, and no process is seen to listen.
    """
    for container in containers:
        for published in container["ports"]:
            if published["port"] == port and clash(published["host"], wanted):
                return container
    return None


def _by_id(identifier: str, containers: list[ContainerInfo]) -> ContainerInfo | None:
    return next((container for container in containers if identifier and container["id"] == identifier), None)


def _resolve(host: str) -> list[Any]:
    return socket.getaddrinfo(bare(host), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def addresses_of(host: str) -> set[str]:
    """Return the addresses at which a server listens that is told this one or this name."""
    return {str(address[0]) for *_kind, address in _resolve(host)}


def clash(address: str, wanted: set[str]) -> bool:
    """Return whether listening on an address keeps others from listening on the wanted ones."""
    held = ipaddress.ip_address(address)
    for name in wanted:
        want = ipaddress.ip_address(name)
        # "::" takes the IPv4 addresses too, unless told otherwise, which /proc/net does not show.
        if held == want or _covers(held, want) or _covers(want, held):
            return True
    return False


def _covers(one: Any, other: Any) -> bool:
    return bool(one.is_unspecified and (one.version == 6 or other.version == 4))


def _listeners(root: str) -> list[dict[str, Any]]:
    """Return C(address), C(port) and C(inode) of every listening TCP socket, from /proc/net."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in read_text(root, "proc/net", name).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == LISTEN:
                address, port = fields[1].split(":")
                found.append({"address": _address(address), "port": int(port, 16), "inode": fields[9]})
    return found


def _address(text: str) -> str:
    """Return an address of /proc/net as people write it: the kernel prints words of 32 bits in its own byte order."""
    words = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _owners(inodes: set[str], root: str) -> dict[str, int]:
    """Return socket inode to process id, as far as this user may look."""
    owners: dict[str, int] = {}
    if not inodes:
        return owners
    for pid in list_folder(root, "proc"):
        if not pid.isdigit():
            continue
        folder = os.path.join(root, "proc", pid, "fd")
        for descriptor in list_folder(folder):
            try:
                target = os.readlink(os.path.join(folder, descriptor))
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                owners.setdefault(target[8:-1], int(pid))
        if len(owners) == len(inodes):
            break
    return owners


def port_holder(entry: PortInfo) -> str:
    """Return who holds a port, in words; empty when that is not known."""
    if entry.get("container"):
        return f"the container {entry['container']}"
    if entry.get("process"):
        return f"the process {entry['process']} (pid {entry.get('pid')})"
    return ""


def port_in_use(replica: str, host: str, port: int, holder: str) -> GpufleetError:
    """Return the error for a port that something else holds."""
    return GpufleetError(
        f"Replica {replica} cannot have port {port} on {host}: {holder or 'something else'} holds it.",
        name="port-in-use",
        remedy=f"Set vllm_port (or vllm_host) to a free one, or end what holds port {port}.",
        details={"port": port, "holder": holder},
    )
