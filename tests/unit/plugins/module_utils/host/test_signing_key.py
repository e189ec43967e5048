# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys made by gpg, whole, renewed, revoked and damaged, read by the gpg of this machine and judged by what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import signing_key

KEYS = Path(__file__).resolve().parents[3] / "data" / "keys"
RSA = "E1E3 9BD8 D85D 6869 34AB  3C75 B89C 6E4E 4133 D588"
EXPECTED = signing_key.Expected(
    key=str(KEYS / "rsa.asc"),
    fingerprints=(RSA,),
    proxy="",
    variables={"key": "the_key", "fingerprints": "the_fingerprints"},
)


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
    (key,) = signing_key.read_keys((KEYS / f"{name}.asc").read_bytes())
    assert (key.fingerprint, key.expires, key.revoked) == (fingerprint, expires, revoked)
    assert key.owners == [f"{name} <{name}@example.com>"]


def test_a_keyring_gives_every_key_in_it() -> None:
    found = [key.owners[0] for key in signing_key.read_keys((KEYS / "two.gpg").read_bytes())]
    assert found == ["ed25519 <ed25519@example.com>", "rsa <rsa@example.com>"]


def test_armour_may_hold_several_blocks_headers_and_windows_line_ends() -> None:
    rsa, expired = ((KEYS / f"{name}.asc").read_text() for name in ("rsa", "expired"))
    text = rsa.replace("BLOCK-----\n\n", "BLOCK-----\nVersion: GnuPG v2\nComment: x\n\n", 1) + "\n" + expired
    data = text.replace("\n", "\r\n").encode()
    keys = signing_key.read_keys(data)
    assert signing_key.read_keys(signing_key.dearmor(data)) == keys
    assert [key.fingerprint[:4] for key in keys] == ["E1E3", "E79F"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no valid OpenPGP data found"),
        (b"<html>404 Not Found</html>", "no valid OpenPGP data found"),
        ((KEYS / "two.gpg").read_bytes()[:200], "Invalid packet"),
        ((KEYS / "two.gpg").read_bytes()[:-50], "Invalid packet"),
        (b"\x98\x01", "unknown version"),
        (b"\xc6\x06\x06abcde", "unknown version 6"),
        (b"\xa8\x00", "marker packet|no valid OpenPGP data"),
    ],
)
def test_what_is_no_key_is_told(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        signing_key.read_keys(data)


def test_damaged_armour_is_told() -> None:
    text = (KEYS / "rsa.asc").read_text().splitlines()
    text[4] = text[4][:-3] + "%%%"
    with pytest.raises(ValueError, match="invalid radix64 character"):
        signing_key.read_keys("\n".join(text).encode())


# What is expected of it


def test_a_key_with_the_expected_fingerprint_comes_in_binary_form() -> None:
    data, keys = signing_key.fetch_key(EXPECTED)
    assert [key.fingerprint for key in keys] == [RSA.replace(" ", "")]
    data = signing_key.dearmor(data)
    assert data[0] & 0x80
    assert b"BEGIN PGP" not in data


def test_another_key_is_refused_and_both_fingerprints_are_named() -> None:
    with pytest.raises(GpufleetError) as raised:
        signing_key.fetch_key(replace(EXPECTED, key=str(KEYS / "ed25519.asc")))
    assert raised.value.name == "key-mismatch"
    assert "40C09FC53A360013DE9A3D76E6C57C3B1E053A88 (ed25519 <ed25519@example.com>)" in raised.value.message
    assert "E1E39BD8D85D686934AB3C75B89C6E4E4133D588" in raised.value.message
    assert "the_fingerprints" in raised.value.remedy


def test_a_further_key_beside_the_expected_one_is_refused_too() -> None:
    with pytest.raises(GpufleetError) as raised:
        signing_key.fetch_key(replace(EXPECTED, key=str(KEYS / "two.gpg")))
    assert raised.value.name == "key-mismatch"


@pytest.mark.parametrize(
    ("name", "fingerprint", "says"),
    [
        ("expired", "E79F1406DEAF08E9E94B0339E70C95108D2EFEA5", "expired on 2024-01-01"),
        ("revoked", "0x9EA30B27A7C222311514C73F531C2157252D4CBE", "was revoked"),
    ],
)
def test_a_key_out_of_force_is_refused(name: str, fingerprint: str, says: str) -> None:
    with pytest.raises(GpufleetError, match=says) as raised:
        signing_key.fetch_key(replace(EXPECTED, key=str(KEYS / f"{name}.asc"), fingerprints=(fingerprint,)))
    assert raised.value.name == "key-expired"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("/nowhere/key", "key-unreachable"),
        ("http://127.0.0.1:9/key", "key-unreachable"),
        (str(Path(__file__)), "key-invalid"),
        ("ftp://example.com/key", "key-invalid"),
    ],
)
def test_a_key_that_is_not_there_is_told_with_its_variable(key: str, name: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        signing_key.fetch_key(replace(EXPECTED, key=key))
    assert raised.value.name == name
    assert "the_key" in raised.value.remedy
