# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module vllm_orphans, and what proves that a process is ours: real processes in mount namespaces of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import orphans
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONFIG_PATH
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_orphans
from ansible_collections.gpufleet.vllm.tests.unit.conftest import write_below

RunModule = Callable[..., dict[str, Any]]
Start = Callable[..., int]
MOUNT_HEAD = "700 60 252:1"


# ---- what the kernel tells ----


@pytest.mark.parametrize(
    ("source", "point", "replica"),
    [
        ("/etc/gpufleet/active/vllm-0-0a1b2c3d4e5f.yaml", "/etc/vllm/config.yaml", "vllm-0"),
        ("/active/my-vllm-11-0a1b2c3d4e5f.yaml", "/etc/vllm/config.yaml", "my-vllm-11"),
        ("/etc/gpufleet/active/vllm-0-0a1b2c3d4e5f.yaml//deleted", "/etc/vllm/config.yaml", "vllm-0"),
        ("/home/me/config.yaml", "/etc/vllm/config.yaml", ""),
        ("/etc/gpufleet/active/vllm-0-0a1b2c3d4e5f.yaml", "/elsewhere", ""),
    ],
)
def test_the_mounted_configuration_names_the_replica(tmp_path: Path, source: str, point: str, replica: str) -> None:
    lines = f"{MOUNT_HEAD} / / rw - ext4 /dev/vda rw\n{MOUNT_HEAD} {source} {point} ro,relatime - ext4 /dev/vda rw\n"
    write_below(tmp_path, "proc/9/mountinfo", lines)
    assert orphans.replica_of(9, str(tmp_path)) == replica


def test_this_process_is_nobodys_replica() -> None:
    assert orphans.replica_of(os.getpid()) == ""


@pytest.mark.parametrize(("parent", "supervised"), [("containerd-shim", True), ("init", False), ("bash", False)])
def test_an_engine_above_a_process(tmp_path: Path, parent: str, supervised: bool) -> None:
    write_below(tmp_path, "proc/30/stat", "30 (python3 (vllm)) S 20 30 30 0")
    write_below(tmp_path, "proc/20/stat", "20 (vllm) S 10 20 20 0")
    write_below(tmp_path, "proc/20/comm", "vllm\n")
    write_below(tmp_path, "proc/10/stat", f"10 ({parent}) S 1 10 10 0")
    write_below(tmp_path, "proc/10/comm", f"{parent}\n")
    write_below(tmp_path, "proc/1/stat", "1 (systemd) S 0 1 1 0")
    write_below(tmp_path, "proc/1/comm", "systemd\n")
    assert orphans.is_supervised(30, str(tmp_path)) is supervised


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    until = time.monotonic() + 20
    while orphans.exists(child.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert orphans.exists(child.pid) is False
    assert Path(f"/proc/{child.pid}").is_dir()
    child.wait()


# ---- the module ----


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that sees a server's configuration mounted, as the kernel shows it of a server's container."""
    started: list[subprocess.Popen[bytes]] = []

    def run(command: str = "exec sleep 300", mounted: bool = True) -> int:
        config = tmp_path / "active/vllm-0-0a1b2c3d4e5f.yaml"
        config.parent.mkdir(exist_ok=True)
        config.touch()
        # Only this process sees the /etc made here.
        point = os.path.dirname(CONFIG_PATH)
        script = f"mount -t tmpfs none /etc && mkdir {point} && touch {CONFIG_PATH}"
        script += f" && mount --bind {config} {CONFIG_PATH}"
        words = (
            ["unshare", "--mount", "sh", "-c", f"{script} && echo ready && {command}"] if mounted else ["sleep", "300"]
        )
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        started.append(process)
        if mounted:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n", "unshare and mount need root"
        return process.pid

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def reclaim(run_module: RunModule, tmp_path: Path, *pids: int, check: bool = False, timeout: int = 5) -> dict[str, Any]:
    arguments = {
        "docker_host": f"unix://{tmp_path}/none.sock",
        "orphans": [{"pid": pid, "gpu": 0, "used_mib": 1000, "replica": "vllm-0", "why": "gone"} for pid in pids],
        "drain_timeout": timeout,
    }
    return run_module(vllm_orphans.main, arguments, check=check)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")


@needs_root
def test_a_process_whose_container_is_gone_is_ended_once(run_module: RunModule, start: Start, tmp_path: Path) -> None:
    pid = start()
    assert orphans.replica_of(pid) == "vllm-0"
    dry = reclaim(run_module, tmp_path, pid, check=True)
    assert (dry["changed"], dry["processes"], orphans.exists(pid)) == (True, [pid], True)
    result = reclaim(run_module, tmp_path, pid)
    assert (result["changed"], result["processes"], orphans.exists(pid)) == (True, [pid], False)
    assert result["diff"]["before"] == f"process {pid}\n"
    again = reclaim(run_module, tmp_path, pid)
    assert (again["changed"], again["processes"], again["gone"]) == (False, [], [str(pid)])


@needs_root
def test_one_that_does_not_listen_is_killed(run_module: RunModule, start: Start, tmp_path: Path) -> None:
    pid = start("trap '' TERM; while :; do sleep 0.1; done")
    assert reclaim(run_module, tmp_path, pid, timeout=1)["processes"] == [pid]
    assert orphans.exists(pid) is False


@needs_root
def test_nothing_is_ended_when_one_is_not_ours(run_module: RunModule, start: Start, tmp_path: Path) -> None:
    ours, others = start(), start(mounted=False)
    result = reclaim(run_module, tmp_path, ours, others)
    assert result["failed"] is True
    assert result["error"]["name"] == "not-ours"
    assert f"Process {others}" in result["msg"]
    assert orphans.exists(ours)
    assert orphans.exists(others)


def test_a_process_of_a_running_container_is_never_ended() -> None:
    running: Any = {"id": "a" * 64, "name": "vllm-0", "ours": True, "state": "running"}
    assert orphans.may_end(os.getpid(), [running]) is False


@pytest.mark.parametrize(
    ("ours", "state", "ends"),
    [(True, "exited", True), (True, "running", False), (True, "paused", False), (False, "exited", False)],
)
def test_a_container_decides_about_its_processes(tmp_path: Path, ours: bool, state: str, ends: bool) -> None:
    write_below(tmp_path, "proc/9/cgroup", f"0::/docker/{'a' * 64}\n")
    container: Any = {"id": "a" * 64, "name": "vllm-0", "ours": ours, "state": state}
    assert orphans.may_end(9, [container], str(tmp_path)) is ends
