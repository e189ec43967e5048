# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What apt and dnf say when a vendor's repository or package cannot be had, told by its one cause."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.package_managers import Package, last_lines

UNTRUSTED = (
    r"NO_PUBKEY|EXPKEYSIG|KEYEXPIRED|BADSIG|REVKEYSIG|is not signed|not signed by|Missing key|Bad GPG signature"
    r"|GPG verification is enabled|repomd\.xml\.asc|No working signature|Signing key on proxy"
)


@dataclass(frozen=True)
class Repository:
    """A vendor's repository.

    Attributes:
        url: its address.
        fingerprints: those of the keys that may sign it.
        variables: the variables that a user sets: C(url), C(key), C(version) to their names.
    """

    url: str
    fingerprints: Sequence[str]
    variables: dict[str, str]

    def variable(self, what: str) -> str:
        """Return how messages call one of this repository's settings."""
        return self.variables.get(what) or what


def refresh_failed(repository: Repository, output: str) -> GpufleetError:
    """Return the error for a repository whose lists could not be fetched: not to be trusted, or not to be reached."""
    # The apt module joins apt's lines by commas, behind words of its own.
    lines = re.sub(r"(?:^Failed to update apt cache.*?: |, )(?=[EW]:)", "\n", output)
    if re.search(UNTRUSTED, lines):
        return GpufleetError(
            f"The repository {repository.url} is not signed by the expected key"
            f" ({', '.join(repository.fingerprints)}), or that key has expired.",
            name="repository-untrusted",
            remedy=f"Nothing was installed. Check {repository.variable('url')}: a mirror has to carry the vendor's own"
            f" signatures; and {repository.variable('key')}, should the vendor sign with another key now.",
            evidence=_proof(lines, UNTRUSTED),
        )
    return GpufleetError(
        f"The repository {repository.url} cannot be read.",
        name="repository-unreachable",
        remedy=f"Check the network and the proxy of the host, or set {repository.variable('url')} to a mirror.",
        evidence=_proof(lines, r"^(?:E|Err|Error|Errors|Curl)\b|Could not|Failed|404|Cannot download"),
    )


def check_available(repository: Repository, packages: Sequence[Package], available: Sequence[Package]) -> None:
    """Raise C(package-missing), with the versions there are, unless the repository has every package."""
    for package in packages:
        versions = [found.version for found in available if found.name == package.name]
        if not versions or (package.version and package.version not in versions):
            there = f"it has {', '.join(versions)}" if versions else "it has no version of it for this architecture"
            raise GpufleetError(
                f"{repository.url} has no {package}; {there}.",
                name="package-missing",
                remedy=f"Set {repository.variable('version')} to a version that is there, or"
                f" {repository.variable('url')} to a repository that has it.",
                details={"package": str(package), "available": versions},
            )


def install_failed(packages: Sequence[Package], output: str) -> GpufleetError:
    """Return the error for packages that the package manager refused to install."""
    return GpufleetError(
        f"The package manager could not install {', '.join(map(str, packages))}.",
        name="packages-failed",
        remedy="Fix what it says on the host, then run the play again.",
        evidence=last_lines(output),
    )


def _proof(output: str, pattern: str) -> str:
    lines = [line.strip() for line in output.splitlines() if re.search(pattern, line)]
    return "\n".join(lines[:3]) or last_lines(output)
