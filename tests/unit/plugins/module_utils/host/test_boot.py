# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd says of units, read from a stand-in for systemctl that answers as systemd 252 does."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import boot
from ansible_collections.gpufleet.vllm.tests.unit.conftest import write_below

ROLE = Path(__file__).resolve().parents[5] / "roles" / "vllm"
ANSWER = """\
Id=docker.service
UnitFileState=disabled

Id=nvidia-fabricmanager.service
UnitFileState=

Id=nvidia-persistenced.service
UnitFileState=enabled

Id=gpufleet-device-files.service
UnitFileState=

Id=gpufleet-start-servers.timer
UnitFileState=enabled
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that answers so, as the only program there is."""
    write_below(tmp_path, "bin/systemctl", f"#!/bin/sh\necho '{ANSWER}'\n")
    program = tmp_path / "bin" / "systemctl"
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def test_without_systemd_nothing_is_told(tmp_path: Path) -> None:
    assert boot.boot(str(tmp_path)) is None


def test_units_are_told_in_systemds_words_and_files_by_their_sums(systemctl: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "systemd" / "system").mkdir(parents=True)
    write_below(tmp_path, "usr/local/sbin/gpufleet-start-servers", "text")
    found = boot.boot(str(tmp_path))
    assert found is not None
    assert found["units"] == {
        "docker.service": "disabled",
        "nvidia-fabricmanager.service": "",
        "nvidia-persistenced.service": "enabled",
        "gpufleet-device-files.service": "",
        "gpufleet-start-servers.timer": "enabled",
    }
    there = {path: digest for path, digest in found["files"].items() if digest}
    assert there == {"/usr/local/sbin/gpufleet-start-servers": hashlib.sha256(b"text").hexdigest()}


def test_a_systemd_that_does_not_answer_is_no_answer(systemctl: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "systemd" / "system").mkdir(parents=True)
    systemctl.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        boot.boot(str(tmp_path))


def test_the_files_are_those_that_the_role_writes() -> None:
    written = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))["__vllm_boot_files"]
    assert sorted(entry["path"] for entry in written) == sorted(boot.FILES)
    assert {Path(entry["path"]).name for entry in written if entry.get("enabled")} <= set(boot.UNITS)
    assert {Path(entry["path"]).name for entry in written} == {path.name for path in (ROLE / "files").iterdir()}
