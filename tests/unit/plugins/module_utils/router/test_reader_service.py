# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the reader is run by systemd, which is played; test_router_models.py has a real one without."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import Unit
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import reader_service
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master, Processes
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.reader_service import ReaderService


class Systemd:
    """What systemd was told, and the worker that runs."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.units: dict[str, str] = {}
        self.worker, self.starts = 0, True

    def systemctl(self, *words: str) -> None:
        """Take a command; a restart has a worker run."""
        self.told.append(" ".join(words))
        self.worker += words == ("restart",) and self.starts

    def reload(self) -> None:
        """Have another worker run."""
        self.told.append("reload")
        self.worker += self.starts

    def processes(self) -> Processes:
        """Return what runs."""
        if not self.worker:
            raise GpufleetError("nothing", name="router-not-running")
        return Processes(1, (100 + self.worker,), ())


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """One that is played."""
    found = Systemd()
    monkeypatch.setattr(reader_service, "on_systemd", lambda: True)
    monkeypatch.setattr(Unit, "systemctl", found.systemctl)
    monkeypatch.setattr(Unit, "write", lambda unit, text: found.units.update({unit.name: text}))
    monkeypatch.setattr(Unit, "remove", lambda unit: found.units.pop(unit.name))
    monkeypatch.setattr(reader_service, "START_S", 0.2)
    monkeypatch.setattr(Master, "reload", found.reload)
    monkeypatch.setattr(Master, "processes", found.processes)
    return found


def test_it_is_a_unit_that_is_started_once_and_then_reloaded(systemd: Systemd, tmp_path: Path) -> None:
    reader = ReaderService(str(tmp_path), "/run/x", str(tmp_path), "/var/log/x")
    assert not reader.runs()
    reader.load("/usr/sbin/haproxy")
    assert reader.runs() and systemd.told == ["enable", "restart"]
    text = systemd.units[reader_service.UNIT.name]
    assert f"ExecStart=/usr/sbin/haproxy -Ws -S /run/x/reader.cli,mode,600 -f {tmp_path}/reader.cfg\n" in text
    assert "Environment=MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=268435456\n" in text
    reader.load("/usr/sbin/haproxy")
    assert systemd.told[2:] == ["enable", "reload"]
    socket = tmp_path / "reader.sock"
    socket.touch()
    (tmp_path / "reader.cfg").write_text(f"frontend reader\n    bind unix@{socket} mode 600\n", encoding="utf-8")
    reader.stop()
    assert systemd.units == {} and sorted(tmp_path.iterdir()) == []


def test_one_that_does_not_start_is_an_error(systemd: Systemd, tmp_path: Path) -> None:
    systemd.starts = False
    with pytest.raises(GpufleetError, match="reads the router's large requests does not start") as caught:
        ReaderService(str(tmp_path), "/run/x", str(tmp_path), "/var/log/x").load("/usr/sbin/haproxy")
    assert caught.value.name == "router-not-started" and reader_service.UNIT.name in caught.value.as_text()
