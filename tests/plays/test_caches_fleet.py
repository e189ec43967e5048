# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a ready host compiled travels to others: the role's entry point caches on hosts that are folders of this one.

tests/engine/test_warm_start_play.py deploys servers with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.fakes.haproxy_master import listening
from ansible_collections.gpufleet.vllm.tests.plays.rolling import Rolling, changed
from ansible_collections.gpufleet.vllm.tests.plays.wired import COLLECTIONS, RESULTS

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: gpufleet.vllm.vllm, tasks_from: caches}
"""
LOST = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
COMPILED = {"vllm/torch_compile_cache/1a/graph": "graph", "triton/cache/K/kernel": "kernel"}


def said(folder: Path, host: str, *, warm: bool = False) -> dict[str, Any]:
    """Return what vllm_server said on a host."""
    caches = {"key": "a" * 64, "warm": warm, "received": "", "folder": str(folder / host)}
    return {"changed": True, "would_change": not warm, "caches": caches}


class Play:
    """Runs the role on one host that is ready and two that are not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.controller = folder / "controller"
        for name, text in COMPILED.items():
            (folder / "one" / name).parent.mkdir(parents=True)
            (folder / "one" / name).write_text(text)
        (folder / "play.yml").write_text(PLAY)

    def run(self, *words: str, one: dict[str, Any] | None = None, caches_from: str = "fleet") -> str:
        """Run it, and return what it says."""
        hosts = {
            name: {
                "vllm_cache_dir": str(self.folder / name),
                "vllm_config_dir": str(self.folder / f"{name}-etc"),
                "__vllm_server": said(self.folder, name, warm=name == "one"),
                **((one or {}) if name == "one" else {}),
            }
            for name in ("one", "two", "three")
        }
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_caches_from": caches_from,
        }
        (self.folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": common}}))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_LOCAL_TEMP": str(self.controller),
        }
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "play.yml", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(self.controller.glob("*")) == []
        return done.stdout

    def has(self, host: str) -> dict[str, str]:
        """Return what a host has compiled, or received."""
        folder = self.folder / host
        return {name: (folder / name).read_text() for name in COMPILED if (folder / name).exists()}


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """The play on three hosts."""
    return Play(tmp_path)


def test_hosts_have_what_a_ready_one_compiled(play: Play) -> None:
    assert "changed=1" not in play.run("--check")
    assert "changed=1" not in play.run(caches_from="host")
    assert play.has("two") == {}
    first = play.run()
    assert first.count("compile caches: 0.0 MiB from one") == 2
    assert play.has("two") == play.has("three") == COMPILED
    assert json.loads((play.folder / "two" / "received-vllm.json").read_text())["host"] == "one"
    assert (first.count("changed=0"), first.count("changed=1")) == (1, 2)


def test_a_host_that_is_lost_keeps_no_other_one_back(play: Play) -> None:
    told = play.run(one=LOST)
    assert told.count("starts without the caches of one: Failed to connect to the host via ssh") == 2
    assert told.count("failed=0") == 3
    assert told.count("unreachable=0") == 3
    assert play.has("two") == play.has("three") == {}


def test_a_host_without_room_starts_without(play: Play) -> None:
    (play.folder / "two").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(play.folder / "two")], check=True)
    try:
        told = play.run()
        assert "[two] starts without the caches of one: What another host compiled was thrown away: it is" in told
        assert play.has("two") == {}
        assert [path.name for path in (play.folder / "two").iterdir()] == []
    finally:
        subprocess.run(["umount", str(play.folder / "two")], check=True)
    assert play.has("three") == COMPILED


def test_in_a_rolling_change_the_batches_have_it_from_the_canary(tmp_path: Path) -> None:
    hosts = {name: {**changed(), "__vllm_server": said(tmp_path, name)} for name in ("gpu-01", "gpu-02", "gpu-03")}
    fleet = Rolling(tmp_path, hosts)
    ready = {**RESULTS["vllm_server"], "caches": said(tmp_path, "x", warm=True)["caches"]}
    nothing = {"changed": False, "why": "nothing to give", "msg": "", "sha256": ""}
    states = {f"{name}:vllm-0": "ready" for name in hosts}
    with listening(tmp_path) as master:
        master.sessions, master.states = {}, states
        log = fleet.run(succeeds=True, results={"vllm_server": ready, "vllm_caches": nothing}, vllm_caches_from="fleet")
    done = [line[:2] for line in log if line[1] in ("vllm_server", "vllm_caches")]
    served = [
        ["gpu-01", "vllm_server"],
        ["gpu-01", "vllm_caches"],
        ["gpu-02", "vllm_server"],
        ["gpu-03", "vllm_server"],
    ]
    assert done == served, "the canary packs what it compiled before the first host of the next batch is changed"
    assert fleet.said.count("starts without the caches of gpu-01: nothing to give") == 2
    (packed,) = [json.loads(line[2]) for line in log if line[1] == "vllm_caches"]
    assert (packed["state"], packed["cache_dir"]) == ("packed", str(tmp_path / "x"))
    assert all(json.loads(line[2])["tell_caches"] for line in log if line[1] == "vllm_server")
