# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate of the router, made on its own host by openssl where the site gives none."""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command, run_program

DAY_S = 24 * 3600
RENEW_DAYS = 30
MODE = 0o600
NAME = re.compile(r"[A-Za-z0-9_*.:-]+")
PUBLIC = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True)
class Certificate:
    """What a certificate says: its names, its end, and whether that is near."""

    names: tuple[str, ...]
    not_after: str
    fingerprint: str
    ends_soon: bool


def read_certificate(path: str, renew_days: int = RENEW_DAYS) -> Certificate | None:
    """Return what the certificate in a file says; None when there is none that openssl can read.

    Args:
        path: the file.
        renew_days: from how many days before its end on it counts as one that ends soon.
    """
    if not os.path.exists(path):
        return None
    openssl = _openssl()
    command = [openssl, "x509", "-in", path, "-noout", "-enddate", "-fingerprint", "-sha256", "-ext", "subjectAltName"]
    shown = run_program(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        return None
    margin = str(renew_days * DAY_S)
    soon = run_program([openssl, "x509", "-in", path, "-noout", "-checkend", margin], capture_output=True, check=False)
    return Certificate(
        names=parse_names(shown.stdout),
        not_after=_after(r"notAfter=(.*)", shown.stdout),
        fingerprint=_after(r"(?i)sha256 Fingerprint=(\S+)", shown.stdout),
        ends_soon=soon.returncode != 0,
    )


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names and addresses that openssl shows of a certificate, sorted."""
    found = re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)
    return tuple(sorted({_plain(name) for name in found}))


def _plain(name: str) -> str:
    """Return an address as people write it: openssl shows IPv6 in capitals and with every zero."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _after(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1].strip() if match else ""


def wanted_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names for a certificate, sorted.

    Raises:
        GpufleetError: C(invalid-router) for one that no certificate can carry, or when there is none.
    """
    wrong = [name for name in names if not NAME.fullmatch(name)]
    if wrong or not names:
        raise GpufleetError(
            f"router_names: {', '.join(wrong) or 'it is empty'}: a certificate is for names and addresses of hosts.",
            name="invalid-router",
            remedy="List the names and addresses by which clients reach the router, such as [llm.example.com].",
        )
    return tuple(sorted({_plain(name) for name in names}))


def make_certificate(path: str, names: Sequence[str], days: int) -> None:
    """Make a certificate signed by itself, with a key of its own, both in one file that root alone can read.

    Raises:
        GpufleetError: C(certificate-not-made).
    """
    entries = [f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names]
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".certificate-") as folder:
        key, certificate = os.path.join(folder, "key"), os.path.join(folder, "certificate")
        request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"]
        subject = ["-subj", f"/CN={names[0][:64]}", "-addext", f"subjectAltName={','.join(entries)}"]
        use = ["-addext", "extendedKeyUsage=serverAuth", "-days", str(days), "-keyout", key, "-out", certificate]
        run_command(
            [_openssl(), *request, *subject, *use],
            name="certificate-not-made",
            doing="Making the router's certificate",
            remedy="Give a certificate of your own in router_certificate.",
        )
        write_file(path, read_text(certificate) + read_text(key), MODE)


def public_part(path: str) -> str:
    """Return the certificates in a file, without the key, for clients to trust."""
    return "".join(PUBLIC.findall(read_text(path)))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _openssl() -> str:
    path = program_path("openssl")
    if path is None:
        raise GpufleetError(
            "openssl is not installed on this host.",
            name="openssl-missing",
            remedy="Install it (the role router does so with router_manage_package: true).",
        )
    return path
