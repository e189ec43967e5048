# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that closes ports, with an iptables that is played; tests/engine/test_closed_ports.py has a real one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import closed_ports
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_ports
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

WANTED = {"replicas": [{"host": "0.0.0.0", "port": 8000}], "sources": ["10.0.0.5"]}


class Kernel:
    """What iptables and ip6tables know: chains by the program's name, and what leads to them."""

    def __init__(self) -> None:
        self.chains: dict[str, str] = {}

    def run(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        """Answer a question, or remove a chain."""
        program, words = Path(command[0]).name, command[2:]
        known = program in self.chains
        if words[0] == "-X":
            self.chains.pop(program, None)
        there = known and words[0] != "-D"
        return subprocess.CompletedProcess(command, 0 if there else 1, self.chains.get(program, ""), "")

    def apply(self, _command: list[str], **_options: Any) -> str:
        """Take the files, as the script does."""
        for path in Path(closed_ports.FOLDER).iterdir():
            self.chains[closed_ports.FAMILIES[int(path.suffix[-1])]] = path.read_text(encoding="utf-8")
        return ""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel without rules, and folders of the test."""
    found = Kernel()
    monkeypatch.setattr(closed_ports, "FOLDER", str(tmp_path / "ports"))
    monkeypatch.setattr(closed_ports, "SCRIPT", str(tmp_path / "script"))
    monkeypatch.setattr(systemd, "SYSTEMD_FOLDER", "/none")
    monkeypatch.setattr(systemd, "UNIT_FOLDER", "/none")
    monkeypatch.setattr(vllm_ports, "LOCK", str(tmp_path.parent / f"{tmp_path.name}.lock"))
    monkeypatch.setattr(vllm_ports, "families", lambda: [4, 6])
    monkeypatch.setattr(vllm_ports, "program_path", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(vllm_ports, "run_program", found.run)
    monkeypatch.setattr(vllm_ports, "run_command", found.apply)
    return found


def test_ports_are_closed_once_and_opened_once(run_module: RunModule, kernel: Kernel, tmp_path: Path) -> None:
    looked = run_module(vllm_ports.main, WANTED, check=True, diff=True)
    assert looked["changed"] and "--dport 8000" in str(looked["diff"]) and kernel.chains == {}
    assert not (tmp_path / "ports").exists()
    done = run_module(vllm_ports.main, WANTED)
    assert (done["changed"], done["closed"], done["sources"]) == (True, [8000], ["10.0.0.5/32"])
    assert set(kernel.chains) == {"iptables", "ip6tables"} and (tmp_path / "script").stat().st_mode & 0o111
    assert not run_module(vllm_ports.main, WANTED)["changed"]
    assert run_module(vllm_ports.main, {"state": "absent"})["changed"]
    assert kernel.chains == {} and sorted(tmp_path.iterdir()) == []
    assert not run_module(vllm_ports.main, {"state": "absent"})["changed"]


def test_what_the_kernel_lost_is_put_back(run_module: RunModule, kernel: Kernel) -> None:
    run_module(vllm_ports.main, WANTED)
    kernel.chains.pop("ip6tables")
    assert run_module(vllm_ports.main, WANTED)["changed"]
    assert not run_module(vllm_ports.main, WANTED)["changed"]


def test_one_run_waits_for_another(run_module: RunModule, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_ports, "LOCK_S", 0)
    with host_lock(vllm_ports.LOCK, "another run"):
        assert run_module(vllm_ports.main, WANTED)["error"]["name"] == "busy"
        assert run_module(vllm_ports.main, WANTED, check=True)["changed"]
    assert run_module(vllm_ports.main, WANTED)["changed"]


def test_what_cannot_be_asked_keeps_what_it_had(run_module: RunModule, kernel: Kernel) -> None:
    run_module(vllm_ports.main, WANTED)
    silent = {**WANTED, "sources": ["10.0.0.6"], "keep_sources": True}
    assert run_module(vllm_ports.main, silent)["sources"] == ["10.0.0.5/32", "10.0.0.6/32"]
    moved = {**WANTED, "replicas": [{"host": "0.0.0.0", "port": 9000}], "keep_replicas": True}
    assert run_module(vllm_ports.main, moved)["closed"] == [8000, 9000]


def test_servers_of_the_host_alone_need_nothing(run_module: RunModule, kernel: Kernel) -> None:
    result = run_module(vllm_ports.main, {"replicas": [{"host": "127.0.0.1", "port": 8000}], "sources": ["10.0.0.5"]})
    assert (result["changed"], result["closed"], result["sources"]) == (False, [], [])


def test_without_iptables_a_warning_names_what_is_open(
    run_module: RunModule, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_ports, "program_path", lambda _name: None)
    result = run_module(vllm_ports.main, WANTED)
    assert not result["failed"] and not result["changed"]
    assert "8000" in str(result["warnings"]) and "iptables" in str(result["warnings"])
    assert not run_module(vllm_ports.main, {"state": "absent"})["failed"]


def test_a_source_that_is_none_is_named(run_module: RunModule, kernel: Kernel) -> None:
    result = run_module(vllm_ports.main, {**WANTED, "sources": ["lb-01"]})
    assert result["failed"] and result["error"]["name"] == "invalid-source" and "lb-01" in result["msg"]


def test_systemd_closes_the_ports_at_boot_until_they_are_opened(
    run_module: RunModule, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(systemd, "SYSTEMD_FOLDER", str(tmp_path))
    monkeypatch.setattr(systemd, "UNIT_FOLDER", str(tmp_path / "units"))
    monkeypatch.setattr(systemd, "run_command", lambda command, **_options: told.append(" ".join(command)))
    assert run_module(vllm_ports.main, WANTED, check=True)["changed"] and told == []
    assert run_module(vllm_ports.main, WANTED)["changed"]
    unit = tmp_path / "units" / closed_ports.UNIT
    assert unit.read_text() == closed_ports.UNIT_TEXT
    assert told == ["systemctl daemon-reload", f"systemctl enable {closed_ports.UNIT}"]
    assert not run_module(vllm_ports.main, WANTED)["changed"] and len(told) == 2
    assert run_module(vllm_ports.main, {"state": "absent"})["changed"] and not unit.exists()
    assert told[2:] == [f"systemctl disable --now {closed_ports.UNIT}", "systemctl daemon-reload"]
