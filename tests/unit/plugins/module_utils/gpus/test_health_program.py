# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that looks after a host's GPUs, as systemd runs it, on a stub of NVML and a kernel's log of its own."""

from __future__ import annotations

import compileall
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import health_service
from ansible_collections.gpufleet.vllm.tests.fakes.nvml.healthy import healthy_h200s

# What follows it is of GPU 1.
HOST = healthy_h200s(2) + "[gpu 1]\n"
UUID = "GPU-00000000-0000-4000-8000-00000000000{}"
# GPU 1 of the stub is at 0000:2b:00.
LINE = "<4>[{at:12.6f}] NVRM: Xid (PCI:0000:2b:00): {xid}, pid='<unknown>', name=<unknown>, {text}\n"


class Host:
    """A host with two GPUs, and a server on each."""

    def __init__(self, folder: Path, stub: Path, program: Path) -> None:
        self.folder, self.stub = folder, stub
        self.program = folder / "program"
        self.kernel_log = folder / "kernel.log"
        self.kernel_log.write_text("<6>[    0.000000] Linux version 6.1\n")
        self.etc = folder / "etc"
        self.serve([UUID.format(0)], [UUID.format(1)])
        shutil.copytree(program, self.program)
        settings = health_service.settings_of(
            [health_service.Deployment("vllm", str(self.etc), "drain")],
            30,
            str(folder / "textfile"),
        )
        (self.program / "settings.json").write_text(json.dumps(settings))

    def serve(self, *uuids: list[str]) -> None:
        """Have servers with these GPUs."""
        replicas = [{"name": f"vllm-{number}", "gpus": [number], "gpu_uuids": own} for number, own in enumerate(uuids)]
        for replica in replicas:
            (self.etc / "control" / str(replica["name"])).mkdir(parents=True, exist_ok=True)
        (self.etc / "plan.json").write_text(json.dumps({"replicas": replicas}))

    def look(self, scenario: str = "", *arguments: str, base: str = HOST, library: bool = True) -> dict[str, Any]:
        """Run the program once; return its report."""
        assert not self.run(base + scenario, [], arguments, library=library)
        report: dict[str, Any] = json.loads((self.folder / "run/report.json").read_text())
        return report

    def imported(self) -> set[str]:
        """Run the program once; return the names of the modules that it imports."""
        told = self.run(HOST, ["-X", "importtime"], []).splitlines()
        return {line.rpartition("|")[2].strip() for line in told}

    def run(self, scenario: str, options: Sequence[str], arguments: Sequence[str], *, library: bool = True) -> str:
        """Run the program once, Python with these options; return what it says."""
        path = self.folder / "scenario.ini"
        path.write_text(scenario)
        environment = {
            "PATH": str(self.folder / "bin"),
            "LD_LIBRARY_PATH": str(self.stub) if library else "/nonexistent",
            "LD_PRELOAD": str(self.stub / "libgpufleet-kernel-log.so"),
            "GPUFLEET_NVML_SCENARIO": str(path),
            "GPUFLEET_KERNEL_LOG": str(self.kernel_log),
        }
        command = health_service.command(str(self.program), str(self.folder / "run"))
        done = subprocess.run(
            [sys.executable, *options, *command[1:], *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def log(self, xid: int, at: float = 12.5, text: str = "words") -> None:
        """Have the kernel log an event of GPU 1."""
        with self.kernel_log.open("a") as stream:
            stream.write(LINE.format(at=at, xid=xid, text=text))

    def told(self, replica: str) -> dict[str, Any]:
        """Return what a server's door is told."""
        told: dict[str, Any] = json.loads((self.etc / "control" / replica / "gpu-health.json").read_text())
        return told

    @property
    def metrics(self) -> str:
        """The file for node_exporter."""
        return (self.folder / "textfile/gpufleet_gpu_health.prom").read_text()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program's folder, with what Python compiles of it at the first run."""
    folder = tmp_path_factory.mktemp("program")
    for path, text in health_service.program_files({}).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    compileall.compile_dir(folder, quiet=1)
    return folder


@pytest.fixture
def host(tmp_path: Path, nvml_stub: Path, program: Path) -> Host:
    """Return a host on which nothing is wrong."""
    return Host(tmp_path, nvml_stub, program)


def found(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return GPU, reason and severity of each finding."""
    return [(entry["gpu"], entry["reason"], entry["severity"]) for entry in report["findings"]]


def test_a_healthy_host_has_no_finding(host: Host) -> None:
    report = host.look()
    assert (report["findings"], report["unread"], len(report["gpus"])) == ([], [], 2)
    assert host.told("vllm-0")["sick"] == [] and host.told("vllm-0")["action"] == "drain"
    assert "gpufleet_gpu_count 2\n" in host.metrics and "gpufleet_gpu_sick" not in host.metrics
    assert f"gpufleet_gpu_health_time_seconds {report['time']:.17g}\n" in host.metrics


@pytest.mark.parametrize(
    ("scenario", "reason", "severity"),
    [
        ("error = 15", "off-the-bus", "sick"),
        ("handle_error = 15", "off-the-bus", "sick"),
        ("error = 16", "reset-required", "sick"),
        ("ecc_uncorrected_volatile = 3", "ecc-uncorrected", "sick"),
        ("remapped_rows = 0, 1, 1, 0", "row-remap-pending", "sick"),
        ("remapped_rows = 0, 9, 0, 1", "row-remap-failed", "sick"),
        ("nvlink_active = 17", "nvlink-down", "sick"),
        ("fabric_health = 2", "fabric-unhealthy", "sick"),
        ("fabric_status = 999", "fabric-unhealthy", "sick"),
        ("fabric_health = 3", "fabric-limited", "warning"),
        ("fabric_state = 1", "fabric-not-started", "warning"),
        ("clocks_reasons = 0x48", "hw-thermal", "warning"),
        ("clocks_reasons = 0x88", "power-brake", "warning"),
        ("clocks_reasons = 0x08", "hw-slowdown", "warning"),
        ("clocks_reasons = 0x20", "sw-thermal", "warning"),
        ("persistence_mode = 0", "persistence-off", "warning"),
        ("field_230 = 1", "reset-required", "sick"),
        ("field_230 = 2", "reboot-required", "sick"),
        ("field_230 = 77", "recovery-unknown", "warning"),
    ],
)
def test_each_reading(host: Host, scenario: str, reason: str, severity: str) -> None:
    """Each is of GPU 1, and of the server that has it alone."""
    host.look()
    report = host.look(scenario)
    assert found(report) == [("1", reason, severity)]
    assert report["findings"][0]["uuid"] == UUID.format(1)
    assert host.told("vllm-0")["sick"] == []
    assert host.told("vllm-1")["sick"] == ([f"GPU 1: {reason}"] if severity == "sick" else [])
    assert f'gpufleet_gpu_{severity}{{gpu="1",reason="{reason}"}} 1\n' in host.metrics
    assert found(host.look()) == [], "what has passed is gone"


@pytest.mark.parametrize("scenario", ["clocks_reasons = 0x40", "clocks_reasons = 0x80", "fabric_state = 2"])
def test_what_may_pass_is_a_sickness_once_it_lasts(host: Host, scenario: str) -> None:
    looks = [host.look(scenario)["findings"][0]["severity"] for _run in range(3)]
    assert looks == ["warning", "warning", "sick"]
    host.look()
    assert host.look(scenario)["findings"][0]["severity"] == "warning", "it counts anew"


def test_slow_clocks_by_software_stay_a_warning(host: Host) -> None:
    assert {host.look("clocks_reasons = 0x20")["findings"][0]["severity"] for _run in range(4)} == {"warning"}


def test_recoveries_of_links_are_told_when_there_are_more(host: Host) -> None:
    host.look()
    assert found(host.look("field_59 = 5")) == [("1", "nvlink-errors", "warning")]
    assert found(host.look("field_59 = 5")) == []
    assert 'gpufleet_gpu_nvlink_errors_total{gpu="1",kind="recovery"} 5\n' in host.metrics


@pytest.mark.parametrize("xid", [48, 64, 74, 79, 95, 119, 120, 140])
def test_an_event_of_the_card_makes_it_sick_until_it_is_repaired(host: Host, xid: int) -> None:
    host.log(xid)
    report = host.look()
    assert found(report) == [("1", f"xid-{xid}", "sick")] and report["xids"] == {"1": {str(xid): 1}}
    assert host.told("vllm-1")["sick"] == [f"GPU 1: xid-{xid}"]
    assert f'gpufleet_gpu_xid_total{{gpu="1",xid="{xid}"}} 1\n' in host.metrics
    assert found(host.look()) == [("1", f"xid-{xid}", "sick")], "since boot, and counted once"
    assert host.look()["xids"] == {"1": {str(xid): 1}}
    host.look("", "--repaired")
    assert found(host.look()) == []
    assert f'gpufleet_gpu_xid_total{{gpu="1",xid="{xid}"}} 1\n' in host.metrics, "the count goes on"


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 68])
def test_an_event_of_an_application_is_counted_and_no_finding(host: Host, xid: int) -> None:
    host.log(xid, 12.5)
    host.log(xid, 13.5)
    report = host.look()
    assert found(report) == [] and report["xids"] == {"1": {str(xid): 2}}


@pytest.mark.parametrize("xid", [63, 94, 999])
def test_an_event_after_which_the_card_works_on_or_that_nobody_knows_is_a_warning(host: Host, xid: int) -> None:
    host.log(xid)
    assert found(host.look()) == [("1", f"xid-{xid}", "warning")]


def test_the_journal_has_what_the_buffer_has_lost(host: Host) -> None:
    """It is asked once; a line that both have counts once."""
    binaries = host.folder / "bin"
    binaries.mkdir()
    journal = binaries / "journalctl"
    lines = "".join(LINE.format(at=at, xid=79, text="x").replace("<4>", "") for at in (3.0, 12.5))
    journal.write_text(f"#!/bin/sh\necho asked >>{host.folder}/asked\n/bin/cat <<'END'\n{lines}END\n")
    journal.chmod(0o755)
    host.log(79, 12.5)
    assert host.look()["xids"] == {"1": {"79": 2}}
    host.log(79, 20.0)
    assert host.look()["xids"] == {"1": {"79": 3}}
    assert (host.folder / "asked").read_text() == "asked\n"


def test_a_gpu_that_a_server_has_and_the_driver_does_not_list_is_missing(host: Host) -> None:
    lost = "GPU-ffffffff-0000-4000-8000-000000000000"
    host.serve([UUID.format(0)], [UUID.format(1), lost])
    assert found(host.look()) == [(lost, "missing", "sick")]
    assert (host.told("vllm-0")["sick"], host.told("vllm-1")["sick"]) == ([], [f"GPU {lost}: missing"])


@pytest.mark.parametrize(
    ("scenario", "reading"),
    [
        ("unreadable = nvmlDeviceGetTotalEccErrors", "ecc"),
        ("unreadable = nvmlDeviceGetRemappedRows", "remapped-rows"),
        ("unreadable = nvmlDeviceGetNvLinkState", "nvlink"),
        ("unreadable = nvmlDeviceGetGpuFabricInfoV", "fabric"),
        ("unreadable = nvmlDeviceGetCurrentClocksThrottleReasons", "clocks"),
        ("unreadable = nvmlDeviceGetFieldValues", "fields"),
    ],
)
def test_what_cannot_be_read_is_told(host: Host, scenario: str, reading: str) -> None:
    """Nothing is taken for healthy, and nothing is done."""
    host.look()
    report = host.look(scenario)
    assert {"gpu": "1", "reading": reading} in report["unread"]
    assert not [entry for entry in report["findings"] if entry["severity"] == "sick"]
    assert host.told("vllm-1")["unread"] >= 1
    assert f'gpufleet_gpu_reading_failed{{gpu="1",reading="{reading}"}} 1\n' in host.metrics


def test_what_an_old_driver_does_not_support_is_no_sickness(host: Host) -> None:
    host.serve([])
    report = host.look("[host]\ndriver_version = 450.80\n[gpu 0]\nname = Old\n", base="")
    assert (report["findings"], report["unread"]) == ([], [])


def test_a_driver_that_cannot_be_asked_is_told_and_no_gpu_is_missing(host: Host) -> None:
    report = host.look(library=False)
    assert report["unread"] == [{"gpu": "all", "reading": "nvml-library"}] and report["findings"] == []
    report = host.look("[host]\ninit_error = 18\n")
    assert report["unread"] == [{"gpu": "all", "reading": "nvml-error-18"}] and report["findings"] == []


def test_a_log_that_cannot_be_read_is_told(host: Host) -> None:
    host.look()
    host.kernel_log.unlink()
    report = host.look()
    assert report["unread"] == [{"gpu": "all", "reading": "kernel-log"}]


def test_a_run_is_cheap(host: Host) -> None:
    """By its own count of processor time, of which starting Python is most; a busy machine counts more."""
    host.look()
    assert min(host.look()["cpu"] for _run in range(5)) < 0.1


def test_a_run_imports_little(host: Host) -> None:
    """Importing what reads JSON takes longer than all else: only a run for which something is new does it."""
    dear = {"json", "re", "enum", "functools", "collections", "subprocess", "typing"}
    host.log(31)
    assert "json" in host.imported(), "the first one has to read"
    assert not dear & host.imported()
    host.log(79, 20.0)
    host.serve([UUID.format(1)], [UUID.format(0)])
    assert "json" in host.imported() and host.told("vllm-0")["sick"] == ["GPU 1: xid-79"], "the plan has changed"
    assert not dear & host.imported()
    assert host.told("vllm-0")["sick"] == ["GPU 1: xid-79"], "and is kept"


def test_what_earlier_runs_left_may_be_broken(host: Host) -> None:
    host.look()
    for content in (b"", b"nonsense", b"{}"):
        (host.folder / "run/state").write_bytes(content)
        assert host.look()["findings"] == []


def test_texts_are_written_as_json_and_as_labels(host: Host) -> None:
    lost = 'GPU-"1\\\n\u00e9'
    host.serve([lost])
    assert found(host.look()) == [(lost, "missing", "sick")]
    assert 'gpufleet_gpu_sick{gpu="GPU-\\"1\\\\\\n\u00e9",reason="missing"} 1\n' in host.metrics
