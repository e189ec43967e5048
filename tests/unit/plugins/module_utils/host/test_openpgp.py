# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys made by gpg (its own reading of them stands in the expectations), whole, renewed, revoked and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host.openpgp import dearmor, read_keys

KEYS = Path(__file__).resolve().parents[3] / "data" / "keys"


@pytest.mark.parametrize(
    ("name", "fingerprint", "expires", "revoked"),
    [
        ("rsa", "E1E39BD8D85D686934AB3C75B89C6E4E4133D588", None, False),
        ("ed25519", "40C09FC53A360013DE9A3D76E6C57C3B1E053A88", 3786955200, False),
        ("expired", "E79F1406DEAF08E9E94B0339E70C95108D2EFEA5", 1704067200, False),
        # Its first signature says 2024-01-01, a later one that it never expires.
        ("renewed", "7BA50601FC43D75AD5D7AD88D5257FDE18021DB7", None, False),
        ("revoked", "9EA30B27A7C222311514C73F531C2157252D4CBE", None, True),
    ],
)
def test_a_key_is_read_as_gpg_reads_it(name: str, fingerprint: str, expires: int | None, revoked: bool) -> None:
    (key,) = read_keys(dearmor((KEYS / f"{name}.asc").read_bytes()))
    assert (key.fingerprint, key.expires, key.revoked) == (fingerprint, expires, revoked)
    assert key.owners == [f"{name} <{name}@example.com>"]


def test_a_keyring_gives_every_key_in_it() -> None:
    found = [key.owners[0] for key in read_keys((KEYS / "two.gpg").read_bytes())]
    assert found == ["ed25519 <ed25519@example.com>", "rsa <rsa@example.com>"]


def test_armour_may_hold_several_blocks_headers_and_windows_line_ends() -> None:
    rsa, expired = ((KEYS / f"{name}.asc").read_text() for name in ("rsa", "expired"))
    text = rsa.replace("BLOCK-----\n\n", "BLOCK-----\nVersion: GnuPG v2\nComment: x\n\n", 1) + "\n" + expired
    keys = read_keys(dearmor(text.replace("\n", "\r\n").encode()))
    assert [key.fingerprint[:4] for key in keys] == ["E1E3", "E79F"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "holds no public OpenPGP key"),
        (b"<html>404 Not Found</html>", "is not OpenPGP data"),
        ((KEYS / "two.gpg").read_bytes()[:200], "ends in the middle of a packet"),
        (b"\x98\x01", "ends in the middle of a packet"),
        (b"\xc6\x06\x06abcde", "key of version 6"),
        (b"\xa8\x00", "holds no public OpenPGP key"),
    ],
)
def test_what_is_no_key_is_told(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_keys(data)


def test_damaged_armour_is_told() -> None:
    text = (KEYS / "rsa.asc").read_text().splitlines()
    text[4] = text[4][:-3] + "%%%"
    with pytest.raises(ValueError, match="not base64"):
        dearmor("\n".join(text).encode())
