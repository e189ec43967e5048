# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""signed_packages as a module, on a host whose package manager has nothing installed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import signed_packages as signed
from ansible_collections.gpufleet.vllm.plugins.modules import signed_packages

RunModule = Callable[..., dict[str, Any]]
KEYS = Path(__file__).resolve().parents[2] / "data" / "keys"
ARGUMENTS: dict[str, Any] = {
    "name": "toolkit",
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

    def run(_family: signed.Family, *command: str) -> subprocess.CompletedProcess[str]:
        asked.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr(signed.Family, "run", run)
    monkeypatch.setattr(signed, "program_path", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(signed.Family, "path", lambda _family, *parts: str(tmp_path.joinpath(*parts)))
    return asked


def test_check_mode_shows_source_and_packages_and_writes_nothing(
    run_module: RunModule, commands: list[str], tmp_path: Path
) -> None:
    result = run_module(signed_packages.main, ARGUMENTS, check=True, diff=True)
    assert result["failed"] is False
    assert (result["changed"], result["manager"]) == (True, "apt")
    assert result["installed"] == ["toolkit=1.19.1-1", "base"]
    source, packages = result["diff"]
    assert source["after_header"] == str(tmp_path / "etc/apt/sources.list.d/toolkit.list")
    assert source["after"].startswith("deb [signed-by=")
    assert packages["after"] == "base newest\ntoolkit 1.19.1-1\n"
    assert [command.split()[0] for command in commands] == ["dpkg-query"]
    assert list(tmp_path.iterdir()) == []


def test_another_key_fails_by_name_also_in_check_mode(
    run_module: RunModule, commands: list[str], tmp_path: Path
) -> None:
    for check in (True, False):
        arguments = {**ARGUMENTS, "fingerprints": ["0" * 40]}
        result = run_module(signed_packages.main, arguments, check=check)
        assert result["failed"] is True
        assert result["error"]["name"] == "key-mismatch"
        assert list(tmp_path.iterdir()) == []


def test_what_is_installed_needs_neither_key_nor_source(
    run_module: RunModule, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"toolkit": "1.19.1-1", "base": "1"}
    monkeypatch.setattr(signed.Apt, "installed", lambda _apt, _names: there)
    result = run_module(signed_packages.main, {**ARGUMENTS, "key": "/nowhere"})
    assert (result["failed"], result["changed"], result["installed"]) == (False, False, [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": None, "key": None, "fingerprints": None}, "one of the following is required: url, folder"),
        ({"fingerprints": None}, "parameters are required together: url, key, fingerprints"),
        ({"folder": "/srv"}, "parameters are mutually exclusive: url|folder"),
    ],
)
def test_a_repository_needs_its_key(run_module: RunModule, change: dict[str, Any], says: str) -> None:
    arguments = {name: value for name, value in {**ARGUMENTS, **change}.items() if value is not None}
    result = run_module(signed_packages.main, arguments)
    assert result["failed"] is True
    assert says in result["msg"]


def test_the_proxy_is_hidden(run_module: RunModule, commands: list[str]) -> None:
    result = run_module(signed_packages.main, {**ARGUMENTS, "proxy": "http://me:hunter2@proxy:3128"}, check=True)
    assert "hunter2" not in str(result)
