# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vendor_packages_check on a host whose package manager has nothing installed; gpg is this machine's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import package_managers, signing_key
from ansible_collections.gpufleet.vllm.plugins.modules import vendor_packages_check

RunModule = Callable[..., dict[str, Any]]
KEYS = Path(__file__).resolve().parents[2] / "data" / "keys"
ARGUMENTS: dict[str, Any] = {
    "packages": ["toolkit=1.19.1-1", "base"],
    "manager": "apt",
    "url": "https://example.com/stable/deb/amd64",
    "key": str(KEYS / "rsa.asc"),
    "fingerprints": ["E1E39BD8D85D686934AB3C75B89C6E4E4133D588"],
}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What apt and dpkg would have been asked; they answer that nothing is installed."""
    asked: list[str] = []

    def run(_family: package_managers.Family, *command: str) -> subprocess.CompletedProcess[str]:
        asked.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(package_managers.Family, "run", run)
    monkeypatch.setattr(package_managers, "program_path", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(package_managers.Family, "path", lambda _family, *parts: str(tmp_path.joinpath(*parts)))
    return asked


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """Arguments with a place for the key."""
    return {**ARGUMENTS, "key_copy": str(tmp_path / "key.gpg")}


def test_check_mode_shows_the_packages_and_writes_nothing(
    run_module: RunModule, commands: list[str], arguments: dict[str, Any], tmp_path: Path
) -> None:
    result = run_module(vendor_packages_check.main, arguments, check=True, diff=True)
    assert result["failed"] is False
    assert (result["changed"], result["manager"]) == (True, "apt")
    assert result["lacking"] == ["toolkit=1.19.1-1", "base"]
    assert result["diff"]["after"] == "base newest\ntoolkit 1.19.1-1\n"
    assert [command.split()[0] for command in commands] == ["dpkg-query"]
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_there_for_what_installs_once_it_is_checked(
    run_module: RunModule, commands: list[str], arguments: dict[str, Any], tmp_path: Path
) -> None:
    result = run_module(vendor_packages_check.main, arguments)
    assert (result["failed"], result["changed"]) == (False, False)
    assert result["fingerprints"] == ARGUMENTS["fingerprints"]
    assert (tmp_path / "key.gpg").read_bytes()[0] & 0x80
    assert oct((tmp_path / "key.gpg").stat().st_mode)[-3:] == "644"


def test_another_key_fails_by_name_also_in_check_mode(
    run_module: RunModule, commands: list[str], arguments: dict[str, Any], tmp_path: Path
) -> None:
    for check in (True, False):
        result = run_module(vendor_packages_check.main, {**arguments, "fingerprints": ["0" * 40]}, check=check)
        assert result["failed"] is True
        assert result["error"]["name"] == "key-mismatch"
        assert list(tmp_path.iterdir()) == []


def test_check_mode_says_that_a_host_without_gpg_cannot_check_the_key(
    run_module: RunModule, commands: list[str], arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(GpufleetModule, "warn", lambda _module, text: warned.append(text))
    monkeypatch.setattr(signing_key, "program_path", lambda _name: None)
    result = run_module(vendor_packages_check.main, arguments, check=True)
    assert (result["failed"], result["changed"]) == (False, True)
    assert len(warned) == 1
    assert "not checked in check mode" in warned[0]
    result = run_module(vendor_packages_check.main, {**arguments, "gpg_refused": "E:Unable to locate package gpg"})
    assert result["error"]["name"] == "gpg-missing"
    assert "Unable to locate" in result["error"]["evidence"]


def test_a_source_with_another_key_is_refused_by_name(
    run_module: RunModule, commands: list[str], arguments: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    hand = tmp_path / "etc/apt/sources.list.d/hand.list"
    hand.write_text(f"deb {ARGUMENTS['url']} /\n")
    result = run_module(vendor_packages_check.main, {**arguments, "keyring": "/usr/share/keyrings/x.gpg"})
    assert result["error"]["name"] == "source-conflict"
    assert str(hand) in result["error"]["message"]


def test_files_of_a_folder_need_no_key(run_module: RunModule, commands: list[str], tmp_path: Path) -> None:
    arguments = {"packages": ["toolkit"], "manager": "apt", "folder": str(tmp_path)}
    result = run_module(vendor_packages_check.main, {**arguments, "variables": {"folder": "the_folder"}})
    assert result["error"]["name"] == "package-missing"
    assert "no .deb file" in result["error"]["message"]
    assert "the_folder" in result["error"]["remedy"]


def test_what_is_installed_needs_neither_key_nor_source(
    run_module: RunModule, commands: list[str], arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"toolkit": "1.19.1-1", "base": "1"}
    monkeypatch.setattr(package_managers.Apt, "installed", lambda _apt, _names: there)
    result = run_module(vendor_packages_check.main, {**arguments, "key": "/nowhere"})
    assert (result["failed"], result["changed"], result["lacking"]) == (False, False, [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": None, "key": None, "fingerprints": None}, "one of the following is required: url, folder"),
        ({"fingerprints": None}, "parameters are required together: url, key, fingerprints"),
        ({"folder": "/srv"}, "parameters are mutually exclusive: url|folder"),
    ],
)
def test_a_repository_needs_its_key(
    run_module: RunModule, arguments: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    given = {name: value for name, value in {**arguments, **change}.items() if value is not None}
    result = run_module(vendor_packages_check.main, given)
    assert result["failed"] is True
    assert says in result["msg"]


def test_the_proxy_is_hidden(run_module: RunModule, commands: list[str], arguments: dict[str, Any]) -> None:
    given = {**arguments, "proxy": "http://me:hunter2@proxy:3128"}
    result = run_module(vendor_packages_check.main, given, check=True)
    assert "hunter2" not in str(result)
