# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a repository or its packages cannot be had, by what apt, dnf and Ansible's modules for them said.

Recorded from Debian 12 and 13 (apt 2.6 and 3.0, dnf 4.14). Molecule's scenario hosts provokes these for real.
"""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import package_failures
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.package_failures import Repository
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.package_managers import Package

REPOSITORY = Repository(
    url="https://example.com/stable/deb/amd64",
    fingerprints=("E1E39BD8D85D686934AB3C75B89C6E4E4133D588",),
    variables={"key": "the_key", "version": "the_version", "url": "the_url"},
)
APT_OTHER_KEY = """\
Err:1 https://example.com/stable/deb/amd64  InRelease
  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY B89C6E4E4133D588
W: GPG error: https://example.com/stable/deb/amd64  InRelease: The following signatures couldn't be verified because \
the public key is not available: NO_PUBKEY B89C6E4E4133D588
E: The repository 'https://example.com/stable/deb/amd64  InRelease' is not signed.
"""
APT_OTHER_KEY_SQV = """\
Err:1 https://example.com/stable/deb/amd64  InRelease
  Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key AB2C, which is needed to verify it.
W: OpenPGP signature verification failed: https://example.com/stable/deb/amd64  InRelease: Sub-process /usr/bin/sqv \
returned an error code (1), error message is: Missing key AB2C, which is needed to verify signature.
E: The repository 'https://example.com/stable/deb/amd64  InRelease' is not signed.
"""
DNF_OTHER_KEY = """\
Importing GPG key 0x0175AEEC:
Error: Failed to download metadata for repo 'toolkit': repomd.xml GPG signature verification error: Bad GPG signature
"""
APT_UNREACHABLE = """\
Err:1 https://example.com/stable/deb/amd64  InRelease
  Could not connect to example.com:443 (192.0.2.1). - connect (111: Connection refused)
E: Failed to fetch https://example.com/stable/deb/amd64/InRelease  Could not connect to example.com:443
"""
MODULE_OTHER_KEY = (
    "Failed to update apt cache after 1 retries: W:GPG error: https://example.com/stable/deb/amd64  InRelease: The"
    " following signatures couldn't be verified because the public key is not available: NO_PUBKEY B89C6E4E4133D588,"
    " E:The repository 'https://example.com/stable/deb/amd64  InRelease' is not signed."
)
MODULE_UNREACHABLE = (
    "Failed to update apt cache after 1 retries: W:Download is performed unsandboxed as root, E:Failed to fetch"
    " https://example.com/stable/deb/amd64/InRelease  Could not connect to example.com:443 (192.0.2.1). - connect"
    " (111: Connection refused), E:Some index files failed to download. They have been ignored, or old ones used"
    " instead."
)
DNF_UNREACHABLE = (
    "Failed to download metadata for repo 'toolkit': Cannot download repomd.xml: Cannot download repodata/repomd.xml:"
    " All mirrors were tried"
)
THERE = [Package("toolkit", "1.19.1-1"), Package("toolkit", "1.17.8-1"), Package("base", "1.19.1-1")]


@pytest.mark.parametrize(
    ("output", "name", "proof"),
    [
        (APT_OTHER_KEY, "repository-untrusted", "NO_PUBKEY B89C6E4E4133D588"),
        (APT_OTHER_KEY_SQV, "repository-untrusted", "Missing key AB2C"),
        (APT_UNREACHABLE, "repository-unreachable", "Connection refused"),
        (MODULE_OTHER_KEY, "repository-untrusted", "NO_PUBKEY B89C6E4E4133D588"),
        (MODULE_UNREACHABLE, "repository-unreachable", "Connection refused"),
        (DNF_OTHER_KEY, "repository-untrusted", "Bad GPG signature"),
        (DNF_UNREACHABLE, "repository-unreachable", "All mirrors were tried"),
    ],
)
def test_a_repository_that_does_not_work_is_told(output: str, name: str, proof: str) -> None:
    error = package_failures.refresh_failed(REPOSITORY, output)
    assert error.name == name
    assert proof in error.evidence
    assert "the_url" in error.remedy


def test_the_proof_is_without_what_is_beside_the_point() -> None:
    error = package_failures.refresh_failed(REPOSITORY, MODULE_UNREACHABLE)
    assert error.evidence.startswith("E:Failed to fetch")
    assert "unsandboxed" not in error.evidence


@pytest.mark.parametrize(
    ("package", "says"),
    [
        (Package("toolkit", "9.9"), "has no toolkit=9.9; it has 1.19.1-1, 1.17.8-1"),
        (Package("nope"), "has no nope; it has no version of it"),
    ],
)
def test_a_missing_package_is_told_with_the_versions_there_are(package: Package, says: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        package_failures.check_available(REPOSITORY, [package], THERE)
    assert raised.value.name == "package-missing"
    assert says in raised.value.message
    assert "the_version" in raised.value.remedy


def test_what_is_there_is_not_missing() -> None:
    package_failures.check_available(REPOSITORY, [Package("toolkit", "1.17.8-1"), Package("base")], THERE)


def test_what_cannot_be_installed_is_told_with_the_last_lines() -> None:
    said = "\n".join(f"line {number}" for number in range(20)) + "\nE: unmet dependencies"
    error = package_failures.install_failed([Package("toolkit", "1.19.1-1")], said)
    assert error.name == "packages-failed"
    assert "could not install toolkit=1.19.1-1" in error.message
    assert error.evidence.endswith("E: unmet dependencies")
    assert "line 1\n" not in error.evidence
