# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that has a host look after its GPUs, with a systemctl that only writes down what it is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import health_program, health_service
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_gpu_health, vllm_server_info
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.gpu_lines import gpu_lines, sick_hosts
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.gpu_reasons import explained
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a host that systemd runs."""
    for module, name in (
        (health_service, "PROGRAM"),
        (health_service, "RUN_DIR"),
        (systemd, "SYSTEMD_FOLDER"),
        (systemd, "UNIT_FOLDER"),
    ):
        monkeypatch.setattr(module, name, str(tmp_path / name))
    (tmp_path / "SYSTEMD_FOLDER").mkdir()
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/told\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return tmp_path


def told(host: Path) -> list[str]:
    """Return what systemctl was told since the last time."""
    path = host / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_it_is_installed_once_and_removed_with_the_last_deployment(host: Path, run_module: RunModule) -> None:
    options = {"textfile_dir": str(host / "textfile"), "action": "drain"}

    def run(**more: Any) -> dict[str, Any]:
        result = run_module(vllm_gpu_health.main, {**options, **more})
        assert not result["failed"], result
        return result

    assert run_module(vllm_gpu_health.main, options, check=True)["changed"] and not (host / "PROGRAM").exists()
    assert run()["changed"] and run()["changed"] is False
    assert told(host) == [
        "daemon-reload",
        "enable gpufleet-gpu-health.timer",
        "restart gpufleet-gpu-health.timer",
        "start gpufleet-gpu-health.service",
    ]
    unit = (host / "UNIT_FOLDER/gpufleet-gpu-health.timer").read_text()
    assert "OnUnitActiveSec=30s" in unit
    assert run(deployment="other", config_dir="/etc/other")["changed"]
    settings = json.loads((host / "PROGRAM/settings.json").read_text())
    assert [entry["name"] for entry in settings["deployments"]] == ["other", "vllm"]
    assert run(state="absent")["installed"] and (host / "PROGRAM/main.py").exists()
    told(host)
    (host / "textfile").mkdir()
    (host / "textfile/gpufleet_gpu_health.prom").write_text("")
    gone = run(state="absent", deployment="other")
    assert gone["changed"] and not gone["installed"]
    assert told(host) == ["disable --now gpufleet-gpu-health.timer", "daemon-reload"]
    assert not list((host / "UNIT_FOLDER").iterdir()) and not (host / "PROGRAM").exists()
    assert not list((host / "textfile").iterdir())
    assert not run(state="absent", deployment="other")["changed"]


def test_without_systemd_nothing_is_installed(host: Path, run_module: RunModule) -> None:
    (host / "SYSTEMD_FOLDER").rmdir()
    result = run_module(vllm_gpu_health.main, {})
    assert (result["changed"], result["installed"], told(host)) == (False, False, [])


def test_too_short_an_interval_is_refused(host: Path, run_module: RunModule) -> None:
    result = run_module(vllm_gpu_health.main, {"interval": 1})
    assert result["error"]["name"] == "invalid-wishes" and "vllm_gpu_health_interval is 1" in result["msg"]


def entry(reason: str, severity: str = "sick") -> dict[str, str]:
    """Return a finding about GPU 3."""
    return {"gpu": "3", "uuid": "GPU-3", "reason": reason, "severity": severity, "evidence": "seen"}


def test_every_reason_has_words_and_a_remedy() -> None:
    """Those that the program knows are in its source."""
    report = {
        "time": 100.0,
        "interval": 30,
        "findings": [entry("persistence-off", "warning"), entry("xid-79"), entry("xid-4711")],
        "unread": [{"gpu": "3", "reading": "ecc"}, {"gpu": "3", "reading": "nvlink"}],
    }
    found = explained({**report, "age_s": 10})
    assert found["age_s"] == 10
    assert [line["message"] for line in found["findings"]] == [
        "GPU 3: XID 79, the GPU has fallen off the bus",
        "GPU 3: XID 4711, which this release does not know",
        "GPU 3: persistence mode is off",
        "GPU 3: cannot be read (ecc, nvlink)",
    ]
    assert all(line["remedy"] and "{" not in line["remedy"] for line in found["findings"])
    assert explained({}) == {}
    assert explained({**report, "findings": [], "unread": [], "age_s": 400})["findings"][0]["reason"] == "report-old"


def test_the_page_names_sick_gpus_first_and_alike_hosts_together() -> None:
    sick = explained({"time": 1, "interval": 9, "findings": [entry("xid-79")]})
    old = explained({"time": 1, "interval": 9, "findings": [entry("persistence-off", "warning")]})
    health = {"gpu-2": old, "gpu-1": sick, "gpu-3": old, "gpu-4": {}}
    assert sick_hosts(health) == ["gpu-1"]
    assert gpu_lines(health, 4) == [
        "Sick GPUs:",
        "  gpu-1: GPU 3: XID 79, the GPU has fallen off the bus (xid-79: seen). Drain the host and power-cycle it; a"
        " GPU that is lost again needs its vendor's service",
        "GPUs to look after:",
        "  gpu-[2:3] (2 hosts): GPU 3: persistence mode is off (persistence-off: seen). Start nvidia-persistenced"
        " (systemctl enable --now nvidia-persistenced), or run nvidia-smi -pm 1",
    ]


def test_what_looks_at_servers_reads_that_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.path.join(health_service.RUN_DIR, health_program.REPORT) == vllm_server_info.GPU_REPORT
    monkeypatch.setattr(vllm_server_info, "GPU_REPORT", str(tmp_path / "report.json"))
    assert vllm_server_info.read_gpu_report() == {}
    (tmp_path / "report.json").write_text('{"time": 1, "interval": 9}')
    assert explained(vllm_server_info.read_gpu_report())["findings"][0]["reason"] == "report-old"
