# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes whom the Ethernet interfaces of its network namespace send to: watch.py FILE.

A line for each protocol, address and port, and how often: each TCP connection that is tried counts once, of all else
each packet of IPv4.
"""

from __future__ import annotations

import collections
import ctypes
import socket
import struct
import sys
from pathlib import Path

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
# Only what is sent (4) as IPv4, and of TCP only the first packet of a connection: its flags are SYN without ACK.
FILTER = (
    (0x30, 0, 0, 0xFFFFF004),
    (0x15, 0, 9, 4),
    (0x28, 0, 0, 0xFFFFF000),
    (0x15, 0, 7, 0x0800),
    (0x30, 0, 0, 9),
    (0x15, 0, 4, socket.IPPROTO_TCP),
    (0xB1, 0, 0, 0),
    (0x50, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)
NAMES = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", socket.IPPROTO_ICMP: "icmp"}


def destination(packet: bytes) -> str:
    """Return whom an IPv4 packet is for."""
    protocol, address = packet[9], socket.inet_ntoa(packet[16:20])
    start = (packet[0] & 0xF) * 4
    port = struct.unpack_from("!H", packet, start + 2)[0] if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) else 0
    return f"{NAMES.get(protocol, str(protocol))} {address} {port}"


def main(path: Path) -> None:
    """Watch until ended."""
    words = b"".join(struct.pack("HBBI", *line) for line in FILTER)
    held = ctypes.create_string_buffer(words, len(words))
    seen: collections.Counter[str] = collections.Counter()
    path.write_text("", encoding="utf-8")
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(FILTER), ctypes.addressof(held)))
        while True:
            packet, sender = tap.recvfrom(65535)
            if sender[0].startswith("eth"):
                seen[destination(packet)] += 1
                path.write_text("".join(f"{to} {count}\n" for to, count in sorted(seen.items())), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
