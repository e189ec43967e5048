# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a public OpenPGP key is: its fingerprint, owner and expiry, for hosts that have no gpg.

A fingerprint is the hash of the key itself, so a key that has the expected one is the expected key (RFC 4880, 12.2).
Signatures are not verified here: apt and dnf do that, with the key that was let through.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

ARMOR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
SIGNATURE, PUBLIC_KEY, USER_ID = 2, 6, 13
CERTIFICATIONS = (0x10, 0x11, 0x12, 0x13, 0x1F)
REVOCATION = 0x20
CREATED, KEY_EXPIRES = 2, 9  # subpackets of a signature


@dataclass
class PublicKey:
    """One primary key.

    Attributes:
        fingerprint: 40 hexadecimal digits, upper case.
        created: seconds since the epoch.
        expires: seconds since the epoch, None when it never does.
        revoked: whether its owner took it back.
        owners: its user ids.
    """

    fingerprint: str
    created: int
    expires: int | None = None
    revoked: bool = False
    owners: list[str] = field(default_factory=list)
    _said: int = -1

    def note_expiry(self, said: int, seconds: int) -> None:
        """Take over when the key expires from a signature made at C(said), unless a later one told already."""
        if said >= self._said:
            self._said = said
            self.expires = self.created + seconds if seconds else None


def dearmor(data: bytes) -> bytes:
    """Return the binary form of a key that may be armoured (ASCII), as C(gpg --dearmor) does.

    Raises:
        ValueError: it is armoured and damaged.
    """
    blocks = ARMOR.findall(data)
    if not blocks:
        return data
    found = b""
    for block in blocks:
        # Headers, an empty line, base64, a checksum that begins with '='.
        lines = block.replace(b"\r", b"").strip(b"\n").split(b"\n")
        start = lines.index(b"") + 1 if b"" in lines else 0
        body = b"".join(line.strip() for line in lines[start:] if not line.startswith(b"="))
        try:
            found += base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise ValueError(f"it is armoured, but not base64: {error}") from error
    return found


def read_keys(data: bytes) -> list[PublicKey]:
    """Return the primary keys in the binary form of a key or keyring.

    Raises:
        ValueError: it holds no key of a version that apt and dnf take.
    """
    keys: list[PublicKey] = []
    try:
        for tag, body in _packets(data):
            if tag == PUBLIC_KEY:
                if body[0] != 4:
                    raise ValueError(f"it holds a key of version {body[0]}; version 4 is understood")
                digest = hashlib.sha1(b"\x99" + struct.pack(">H", len(body)) + body, usedforsecurity=False)
                keys.append(PublicKey(digest.hexdigest().upper(), struct.unpack(">I", body[1:5])[0]))
            elif tag == USER_ID and keys:
                keys[-1].owners.append(body.decode(errors="replace"))
            elif tag == SIGNATURE and keys:
                _note_signature(keys[-1], body)
    except (IndexError, struct.error) as error:
        raise ValueError("it ends in the middle of a packet") from error
    if not keys:
        raise ValueError("it holds no public OpenPGP key")
    return keys


def _note_signature(key: PublicKey, body: bytes) -> None:
    """Take what a signature of version 4 says of the key before it: expiry or revocation."""
    if body[0] != 4:
        return
    kind = body[1]
    if kind == REVOCATION:
        key.revoked = True
    if kind in CERTIFICATIONS:
        length = struct.unpack(">H", body[4:6])[0]
        said, seconds = 0, 0
        for subpacket, value in _subpackets(body[6 : 6 + length]):
            if subpacket == CREATED:
                said = struct.unpack(">I", value)[0]
            elif subpacket == KEY_EXPIRES:
                seconds = struct.unpack(">I", value)[0]
        key.note_expiry(said, seconds)


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and body of each packet (RFC 4880, 4.2)."""
    position = 0
    while position < len(data):
        head = data[position]
        if not head & 0x80:
            raise ValueError("it is not OpenPGP data")
        if head & 0x40:
            tag = head & 0x3F
            length, position = _length(data, position + 1)
        else:
            tag = head >> 2 & 0x0F
            size = (1, 2, 4)[head & 3] if head & 3 < 3 else 0
            if not size:
                raise ValueError("it holds a packet of indefinite length")
            length = int.from_bytes(data[position + 1 : position + 1 + size], "big")
            position += 1 + size
        if position + length > len(data):
            raise ValueError("it ends in the middle of a packet")
        yield tag, data[position : position + length]
        position += length


def _subpackets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each subpacket of a signature (RFC 4880, 5.2.3.1)."""
    position = 0
    while position < len(data):
        length, position = _length(data, position)
        yield data[position] & 0x7F, data[position + 1 : position + length]
        position += length


def _length(data: bytes, position: int) -> tuple[int, int]:
    """Return a length in the new format, and where what it counts begins."""
    first = data[position]
    if first < 192:
        return first, position + 1
    if first < 255:
        return ((first - 192) << 8) + data[position + 1] + 192, position + 2
    return struct.unpack(">I", data[position + 1 : position + 5])[0], position + 5
