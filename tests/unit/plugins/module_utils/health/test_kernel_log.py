# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills for lack of memory, read from the lines that a kernel wrote."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.kernel_log import memory_kill

BOX, OTHER = "914a68c2f8cc" + "0" * 52, "c7476ce5bf30" + "0" * 52
# As Linux 6.18 wrote it, 300 s after its start.
KILL = (
    "4,1201,300000000,-;oom-kill:constraint={},nodemask=(null),cpuset={},mems_allowed=0,oom_memcg=/docker/{},"
    "task_memcg=/docker/{},task=vllm,pid=3580,uid=0\n"
)


@pytest.fixture
def uptime(tmp_path: Path) -> str:
    """A kernel that has run for 400 seconds: it killed 100 seconds ago."""
    path = tmp_path / "uptime"
    path.write_text("400.00 800.00\n")
    return str(path)


def log_of(folder: Path, *lines: str) -> str:
    """Write a kernel's log and return its path."""
    path = folder / "kmsg"
    path.write_text("6,1,0,-;Linux version 6.18\n SUBSYSTEM=cpu\n" + "".join(lines))
    return str(path)


def kill(box: str, constraint: str = "CONSTRAINT_MEMCG") -> str:
    """Return the line on a killed process of a container."""
    return KILL.format(constraint, box, box, box)


def test_the_kill_of_a_container_is_found_since_its_start(tmp_path: Path, uptime: str) -> None:
    log = log_of(tmp_path, kill(OTHER), kill(BOX))
    found = memory_kill(BOX, time.time() - 120, log, uptime)
    assert (found.startswith("oom-kill:constraint=CONSTRAINT_MEMCG"), BOX in found) == (True, True)
    assert memory_kill(BOX, time.time() - 60, log, uptime) == ""


@pytest.mark.parametrize("group", ["/docker/{}", "/system.slice/docker-{}.scope"])
def test_only_the_container_of_the_killed_process_was_killed(group: str, tmp_path: Path, uptime: str) -> None:
    """When the host is short of memory, whoever asks for some has the kernel kill a process of somebody else."""
    line = (
        f"4,1201,300000000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset={BOX},mems_allowed=0,"
        f"global_oom,task_memcg={group.format(OTHER)},task=python3,pid=3580,uid=0\n"
    )
    log = log_of(tmp_path, line)
    assert memory_kill(BOX, 0.0, log, uptime) == ""
    assert "global_oom" in memory_kill(OTHER, 0.0, log, uptime)


@pytest.mark.parametrize("log", ["/nowhere/kmsg", "/dev/null"])
def test_a_log_that_says_nothing_is_no_error(log: str, uptime: str) -> None:
    assert memory_kill(BOX, 0.0, log, uptime) == ""


def test_a_line_of_another_form_is_no_error(tmp_path: Path, uptime: str) -> None:
    assert memory_kill(BOX, 0.0, log_of(tmp_path, f"oom-kill:{BOX}\n", f"4;oom-kill:{BOX}\n"), uptime) == ""


@pytest.mark.parametrize(
    ("constraint", "name"),
    [("CONSTRAINT_MEMCG", "out-of-memory-kill"), ("CONSTRAINT_NONE", "host-out-of-memory")],
)
def test_the_kill_is_the_cause_whatever_the_log_of_the_server_says(
    constraint: str, name: str, tmp_path: Path, uptime: str
) -> None:
    line = memory_kill(BOX, 0.0, log_of(tmp_path, kill(BOX, constraint)), uptime)
    error = diagnose(["RuntimeError: Engine core initialization failed."], exit_code=1, memory_kill=line)
    assert error.name == name
    assert error.evidence.startswith("oom-kill:")
