# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a certificate ends: the one that HAProxy serves, and one that it is to serve."""

from __future__ import annotations

import re
import ssl
import time
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import CERTIFICATE
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master

END = re.compile(r"notAfter[:=]\s*(.+)")


@dataclass(frozen=True)
class CertificateEnd:
    """Until when a certificate is valid: C(at) in seconds since the epoch, C(left) in seconds from now."""

    at: int
    left: int

    def as_result(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"not_after": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at)), "seconds_left": self.left}


def served_end(master: Master) -> CertificateEnd | None:
    """Return when the certificate ends that the current worker serves; None where it serves none, or does not run."""
    try:
        workers = master.processes().current
        listed = [(worker, name) for worker in workers for name in master.ask("show ssl cert", worker).splitlines()]
        ours = [(worker, name) for worker, name in listed if name.endswith(f"/{CERTIFICATE}")]
        ends = [end_in(master.ask(f"show ssl cert {name.lstrip('*')}", worker)) for worker, name in ours]
    except GpufleetError:
        return None
    return min((end for end in ends if end), key=lambda end: end.at, default=None)


def end_of(pem: str) -> CertificateEnd | None:
    """Return when the first certificate in a text ends; None where openssl is not there, or finds none."""
    openssl = program_path("openssl")
    if openssl is None or not pem:
        return None
    shown = run_program([openssl, "x509", "-noout", "-enddate"], input=pem, capture_output=True, check=False)
    return end_in(shown.stdout)


def end_in(text: str) -> CertificateEnd | None:
    """Return the end in what HAProxy or openssl shows of a certificate."""
    found = END.search(text)
    if not found:
        return None
    at = int(ssl.cert_time_to_seconds(found[1].strip()))
    return CertificateEnd(at, at - int(time.time()))
