# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks that install a vendor's packages, in dry runs on this machine: what they would write, and what they refuse.

Molecule's scenario hosts runs them for real.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.plays.local_play import run_play

KEYS = Path(__file__).resolve().parents[1] / "unit" / "data" / "keys"
VENDOR: dict[str, Any] = {
    "name": "gpufleet-no-such-vendor",
    "packages": ["gpufleet-no-such-package=1.19.1-1"],
    "url": "https://example.com/stable/deb/amd64",
    "key": str(KEYS / "rsa.asc"),
    "fingerprints": ["E1E3 9BD8 D85D 6869 34AB  3C75 B89C 6E4E 4133 D588"],
    "variables": {"key": "the_key"},
}
SOURCE = Path("/etc/apt/sources.list.d/gpufleet-no-such-vendor.list")
KEYRING = "/usr/share/keyrings/gpufleet-no-such-vendor-keyring.gpg"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("apt-get"), reason="asks apt of this machine, as root"
)


def dry_run(folder: Path, vendor: dict[str, Any]) -> tuple[int, str]:
    """Run the tasks with --check and --diff on this machine; return the exit code and what was printed."""
    system = {"distribution": {"id": "debian", "like": [], "version_id": "12", "codename": "bookworm"}}
    play = {
        "hosts": "localhost",
        "vars": {"__preflight_host_info": {"system": system}, "ansible_python_interpreter": "/usr/bin/python3"},
        "tasks": [
            {
                "name": "Install",
                "ansible.builtin.include_role": {"name": "gpufleet.vllm.docker", "tasks_from": "vendor"},
                "vars": {"__docker_vendor": vendor},
            }
        ],
    }
    return run_play(folder, play, "--check", "--diff")


@pytest.mark.parametrize(
    ("more", "ending"),
    [({}, "amd64 /"), ({"suite": "bookworm", "components": ["stable"]}, "amd64 bookworm stable")],
)
def test_a_dry_run_shows_the_source_as_the_vendors_instructions_have_it(
    tmp_path: Path, more: dict[str, Any], ending: str
) -> None:
    code, shown = dry_run(tmp_path, {**VENDOR, **more})
    assert code == 0, shown
    assert f"+deb [signed-by={KEYRING}] https://example.com/stable/deb/{ending}\n" in shown
    assert f"+++ after: {SOURCE}" in shown
    assert "+gpufleet-no-such-package 1.19.1-1\n" in shown
    assert not SOURCE.exists()
    assert not Path(KEYRING).exists()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"fingerprints": ["0" * 40]}, "key-mismatch"),
        (
            {"key": str(KEYS / "expired.asc"), "fingerprints": ["E79F1406DEAF08E9E94B0339E70C95108D2EFEA5"]},
            "key-expired",
        ),
        ({"key": "/nowhere/key"}, "key-unreachable"),
        ({"key": "/etc/passwd"}, "key-invalid"),
        ({"folder": "/nowhere"}, "package-missing"),
    ],
)
def test_a_dry_run_refuses_by_name_what_a_run_would(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    code, shown = dry_run(tmp_path, {**VENDOR, **change})
    assert code == 2, shown
    assert f'"name": "{name}"' in shown
    assert not SOURCE.exists()


def test_a_host_that_has_the_packages_is_left_alone(tmp_path: Path) -> None:
    code, shown = dry_run(tmp_path, {**VENDOR, "packages": ["dpkg"], "key": "/nowhere/key"})
    assert code == 0, shown
    assert "changed=0" in shown
