# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The key that signs a vendor's repository: fetched, and checked by what gpg says of it.

A key that has the expected fingerprint is the expected key. apt and dnf verify signatures, with the key that passed.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from subprocess import PIPE

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import start_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB

FETCH_TIMEOUT = 30  # seconds
LARGEST_KEY = MIB
ARMOUR = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"


@dataclass
class PublicKey:
    """One primary key.

    Attributes:
        fingerprint: hexadecimal digits, upper case.
        expires: seconds since the epoch, None when it never does.
        revoked: whether its owner took it back.
        owners: its user ids.
    """

    fingerprint: str
    expires: int | None
    revoked: bool
    owners: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Expected:
    """What the key of a repository is expected to be.

    Attributes:
        key: its address, or its path on the host.
        fingerprints: those that it may have.
        proxy: for fetching it; empty for the environment's own.
        variables: the variables that a user sets, C(key) and C(fingerprints) to their names.
    """

    key: str
    fingerprints: Sequence[str]
    proxy: str
    variables: dict[str, str]

    def variable(self, what: str) -> str:
        """Return how messages call one of these settings."""
        return self.variables.get(what) or what


def has_gpg() -> bool:
    """Tell whether the host has gpg."""
    return program_path("gpg") is not None


def read_keys(data: bytes) -> list[PublicKey]:
    """Return the keys in C(data), armoured or not, as gpg reads them.

    Raises:
        ValueError: gpg takes it for no key, or for a damaged one; the text is what gpg says.
    """
    listing = _gpg(data, "--show-keys", "--with-colons", "--fixed-list-mode").decode(errors="replace")
    keys: list[PublicKey] = []
    primary = False
    for line in listing.splitlines():
        record = line.split(":")
        if record[0] in ("pub", "sub"):
            primary = record[0] == "pub"
        if record[0] == "pub":
            keys.append(PublicKey("", int(record[6]) if record[6] else None, revoked=record[1] == "r"))
        elif record[0] == "fpr" and primary:
            keys[-1].fingerprint = record[9]
        elif record[0] == "uid":
            keys[-1].owners.append(_plain_text(record[9]))
    if not keys:
        raise ValueError("it holds no public key")
    return keys


def dearmor(data: bytes) -> bytes:
    """Return the binary form of a key, which is the only one that apt takes from a file C(.gpg)."""
    return _gpg(data, "--dearmor") if ARMOUR in data else data


def fetch_key(expected: Expected) -> tuple[bytes, list[PublicKey]]:
    """Return the key, as it was fetched, and what it is, once it is known to be the expected one and to be in force.

    Raises:
        GpufleetError: C(key-unreachable), C(key-invalid), C(key-mismatch) or C(key-expired).
    """
    try:
        data = _read(expected)
        keys = read_keys(data)
    except (OSError, urllib.error.URLError) as error:
        raise GpufleetError(
            f"The signing key {expected.key} cannot be fetched.",
            name="key-unreachable",
            remedy=f"Check the network and the proxy of the host, or set {expected.variable('key')} to a mirror or to a"
            " file on the host.",
            evidence=str(getattr(error, "reason", "") or error),
        ) from error
    except ValueError as error:
        raise GpufleetError(
            f"{expected.key} is no signing key: {error}.",
            name="key-invalid",
            remedy=f"Set {expected.variable('key')} to the address of the repository's public key.",
        ) from error
    for key in keys:
        _check(key, expected)
    return data, keys


def _check(key: PublicKey, expected: Expected) -> None:
    """Raise C(key-mismatch) or C(key-expired) unless this is an expected key that is in force."""
    accepted = {_plain(fingerprint) for fingerprint in expected.fingerprints}
    if key.fingerprint not in accepted:
        raise GpufleetError(
            f"The key at {expected.key} is not the expected one: it has the fingerprint {key.fingerprint}"
            f" ({', '.join(key.owners) or 'no owner'}), expected is {' or '.join(sorted(accepted))}.",
            name="key-mismatch",
            remedy="Nothing was installed. Find out from the vendor whether its key changed; only then add the new"
            f" fingerprint to {expected.variable('fingerprints')}.",
            details={"found": key.fingerprint, "expected": sorted(accepted)},
        )
    if key.revoked or (key.expires is not None and key.expires <= time.time()):
        ended = "was revoked" if key.revoked else f"expired on {_day(key.expires or 0)}"
        raise GpufleetError(
            f"The key {key.fingerprint} at {expected.key} {ended}.",
            name="key-expired",
            remedy=f"Set {expected.variable('key')} to where the vendor publishes the renewed key, and"
            f" {expected.variable('fingerprints')} to its fingerprint if that is another. If the key is in force, set"
            " the host's clock.",
            details={"fingerprint": key.fingerprint, "expires": key.expires},
        )


def _gpg(data: bytes, *arguments: str) -> bytes:
    """Run gpg with C(data) as its input and a home of its own, and return its output."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-gpg-") as home:
        command = ["gpg", "--homedir", home, "--batch", "--no-autostart", *arguments]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        with start_program(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment) as process:
            output: bytes
            output, errors = process.communicate(data)
    if process.returncode:
        said = [re.sub(r"^gpg: ", "", line) for line in errors.decode(errors="replace").splitlines()]
        told = [line for line in said if not line.endswith("created")]
        raise ValueError(f"gpg says {told[0].rstrip('.')}" if told else f"gpg ended with status {process.returncode}")
    return output


def _read(expected: Expected) -> bytes:
    if "://" not in expected.key:
        with open(expected.key, "rb") as stream:
            return stream.read(LARGEST_KEY)
    if not expected.key.startswith(("https://", "http://", "file://")):
        raise ValueError("it is neither a path nor an address that begins with https://, http:// or file://")
    handlers = []
    if expected.proxy:
        handlers.append(urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), expected.proxy)))
    request = urllib.request.Request(expected.key, headers={"User-Agent": "gpufleet.vllm"})  # noqa: S310 - checked above
    with urllib.request.build_opener(*handlers).open(request, timeout=FETCH_TIMEOUT) as answer:
        content: bytes = answer.read(LARGEST_KEY)
        return content


def _plain(fingerprint: str) -> str:
    return re.sub(r"[\s:]|^0x", "", fingerprint).upper()


def _plain_text(field_of_gpg: str) -> str:
    r"""Return a field in which gpg wrote colons and control characters as C(\x3a)."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match.group(1), 16)), field_of_gpg)


def _day(epoch: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(epoch))
