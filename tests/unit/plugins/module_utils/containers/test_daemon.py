# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""daemon.json and what has to be done with the daemon. The tests' nvidia-ctk is the stand-in; the rest is real.

Starts, reloads and restarts of real daemons are tested by the Molecule scenario hosts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import daemon as containers_daemon
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import daemon_config, engine, engine_proxies
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon import DaemonStep
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_config import DaemonWish as Wish

TOOLKIT = Path(__file__).resolve().parents[4] / "fakes" / "container_toolkit"
RUNTIME = {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}
NO_ENGINE = "unix:///nowhere/docker.sock"


def seen(*names: str, running: bool = True, runtimes: tuple[str, ...] = ("runc",)) -> dict[str, Any]:
    """Return what engine_probe tells of an engine with running containers of these names and a stopped one."""
    containers = [{"name": name, "state": "running"} for name in names] + [{"name": "old", "state": "exited"}]
    return {"running": running, "reason": "no socket", "runtimes": list(runtimes), "containers": containers}


@pytest.fixture
def nvidia_ctk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in nvidia-ctk first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-ctk"
    text = (TOOLKIT / "nvidia-ctk").read_text(encoding="utf-8")
    program.write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return program


# daemon.json


@pytest.mark.parametrize(
    ("content", "wanted", "merged"),
    [
        ({}, {"debug": True}, {"debug": True}),
        ({"debug": False, "mtu": 9000}, {"debug": True}, {"debug": True, "mtu": 9000}),
        ({"log-opts": {"max-size": "1m", "tag": "x"}}, {"log-opts": {"max-size": "9m"}}, None),
        ({"dns": ["192.0.2.1"]}, {"dns": ["192.0.2.2"]}, {"dns": ["192.0.2.2"]}),
        ({"runtimes": {"kata": {"path": "kata"}}}, {"runtimes": RUNTIME}, None),
    ],
)
def test_wanted_keys_are_merged_and_others_stay(
    content: dict[str, Any], wanted: dict[str, Any], merged: dict[str, Any] | None
) -> None:
    found = daemon_config.merge(content, wanted)
    if merged is None:
        ((key, inner),) = content.items()
        merged = {key: {**inner, **wanted[key]}}
    assert found == merged


@pytest.mark.parametrize(
    ("text", "proof"),
    [
        ('{"mtu": 9000,}', ": line 1 column"),
        ('{\n  "mtu": 9000\n  "debug": true\n}', 'line 3 column 3 (char 18): "debug": true'),
        ("[1]", "it holds a list, not an object"),
        ("mtu: 9000", "mtu: 9000"),
    ],
)
def test_a_broken_file_is_told_with_its_line_and_stays(tmp_path: Path, text: str, proof: str) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(text)
    with pytest.raises(GpufleetError) as raised:
        containers_daemon.ensure(Wish(NO_ENGINE, {"debug": True}, path=str(path)), check_mode=False)
    assert raised.value.name == "daemon-config-invalid"
    assert str(path) in raised.value.message
    assert proof in raised.value.evidence
    assert path.read_text() == text


def test_a_file_that_has_it_all_keeps_its_form(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{ "mtu":9000,\n"debug":true }')
    before, after, keys = daemon_config.wanted_config(Wish(NO_ENGINE, {"mtu": 9000}, path=str(path)))
    assert (after, keys) == (before, [])


def test_nvidia_ctk_adds_its_runtime_and_leaves_the_file_to_us(tmp_path: Path, nvidia_ctk: Path) -> None:
    path = tmp_path / "daemon.json"
    text = '{"mtu": 9000, "runtimes": {"kata": {"path": "kata"}}, "features": {"buildkit": true}}'
    path.write_text(text)
    wish = Wish(NO_ENGINE, {"log-driver": "local"}, nvidia_runtime=True, path=str(path))
    _before, after, keys = daemon_config.wanted_config(wish)
    assert path.read_text() == text
    assert keys == ["log-driver", "runtimes"]
    assert json.loads(after) == {
        "mtu": 9000,
        "log-driver": "local",
        "runtimes": {"kata": {"path": "kata"}, **RUNTIME},
        "features": {"buildkit": True},
    }
    wish.cdi = True
    _before, after, keys = daemon_config.wanted_config(wish)
    assert json.loads(after)["features"] == {"buildkit": True, "cdi": True}
    assert keys == ["features", "log-driver", "runtimes"]


def test_a_file_that_names_the_runtime_needs_no_nvidia_ctk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers_daemon, "program_path", lambda _name: None)
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps({"runtimes": {"nvidia": {"path": "/opt/nvidia-container-runtime"}}}))
    wish = Wish(NO_ENGINE, nvidia_runtime=True, path=str(path))
    assert daemon_config.wanted_config(wish)[2] == []
    path.write_text("{}")
    with pytest.raises(GpufleetError) as raised:
        daemon_config.wanted_config(wish)
    assert raised.value.name == "toolkit-missing"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "ended with exit status 3"),
        ('echo \'{"mtu": 1}\' >"${4#--config=}"', "added no runtime nvidia"),
        ('echo \'{"runtimes": {"nvidia": {}}}\' >"${4#--config=}"', "dropped mtu"),
    ],
)
def test_an_nvidia_ctk_that_misbehaves_changes_nothing(
    tmp_path: Path, nvidia_ctk: Path, script: str, says: str
) -> None:
    nvidia_ctk.write_text(f"#!/bin/sh\n{script}\n")
    path = tmp_path / "daemon.json"
    path.write_text('{"mtu": 9000}')
    with pytest.raises(GpufleetError, match=says) as raised:
        daemon_config.wanted_config(Wish(NO_ENGINE, nvidia_runtime=True, path=str(path)))
    assert raised.value.name == "toolkit-failed"
    assert path.read_text() == '{"mtu": 9000}'


def test_a_difference_shows_no_password() -> None:
    text = json.dumps(
        {
            "proxies": {"https-proxy": "http://me:hunter2@proxy.example.com:3128"},
            "log-driver": "splunk",
            "log-opts": {"splunk-token": "0a1b2c", "max-size": "1m"},
            "registry-mirrors": ["https://me:hunter2@mirror.example.com", "https://mirror.example.com"],
        }
    )
    found = daemon_config.shown(text)
    assert "hunter2" not in found and "0a1b2c" not in found
    assert json.loads(found)["log-opts"] == {"splunk-token": "(hidden)", "max-size": "1m"}
    assert json.loads(found)["registry-mirrors"] == ["(hidden)", "https://mirror.example.com"]
    assert daemon_config.shown("") == ""


# What has to be done


@pytest.mark.parametrize(
    ("state", "keys", "old", "action"),
    [
        (seen(running=False), [], False, "start"),
        (seen(runtimes=("nvidia", "runc")), [], False, "none"),
        (seen("vllm-0", runtimes=("nvidia", "runc")), [], False, "none"),
        # A reload touches no container.
        (seen("vllm-0"), ["runtimes"], False, "reload"),
        (seen("vllm-0"), ["live-restore", "registry-mirrors"], False, "reload"),
        # The file is right, the engine has not read it.
        (seen("vllm-0"), [], False, "reload"),
        (seen(), ["data-root"], False, "restart"),
        (seen(runtimes=("nvidia", "runc")), [], True, "restart"),
        (seen(), ["runtimes"], True, "restart"),
    ],
)
def test_the_mildest_step_that_does_it_is_taken(state: dict[str, Any], keys: list[str], old: bool, action: str) -> None:
    step = containers_daemon.next_step(Wish(NO_ENGINE, nvidia_runtime=True), state, keys, old)
    assert step.action == action
    assert step.pending == ""


def test_a_restart_that_would_end_containers_is_refused_unless_allowed() -> None:
    wish = Wish(NO_ENGINE, variable="the_variable")
    with pytest.raises(GpufleetError) as raised:
        containers_daemon.next_step(wish, seen("vllm-0", "db"), ["data-root", "debug"], False)
    assert raised.value.name == "engine-serves"
    assert "data-root in /etc/docker/daemon.json" in raised.value.message
    assert "debug" not in raised.value.message
    assert raised.value.details == {"containers": ["vllm-0", "db"]}
    assert "the_variable: true" in raised.value.remedy
    wish.allow_restart = True
    assert containers_daemon.next_step(wish, seen("vllm-0"), ["data-root"], False).action == "restart"


def test_an_engine_older_than_the_toolkit_goes_on_serving_and_says_what_is_left() -> None:
    wish = Wish(NO_ENGINE, nvidia_runtime=True)
    step = containers_daemon.next_step(wish, seen("vllm-0"), ["runtimes"], True)
    assert step.action == "reload"
    assert "does not know --gpus" in step.pending
    assert "vllm-0" in step.pending
    wish.allow_restart = True
    assert containers_daemon.next_step(wish, seen("vllm-0"), ["runtimes"], True).action == "restart"


# The daemon


def test_a_process_tells_when_it_started() -> None:
    with subprocess.Popen(["sleep", "30"]) as process:
        try:
            start = engine.started_at(process.pid)
        finally:
            process.kill()
    assert start == pytest.approx(time.time(), abs=5)
    assert engine.started_at(2**22 + 1) is None


def test_only_a_dockerd_counts_as_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "var/run").mkdir(parents=True)
    (tmp_path / "proc/42").mkdir(parents=True)
    (tmp_path / "var/run/docker.pid").write_text("42\n")
    for other in ("", "/bin/bash\0/usr/bin/dockerd\0"):
        (tmp_path / "proc/42/cmdline").write_text(other)
        assert engine.daemon_pid(str(tmp_path)) is None
    (tmp_path / "proc/42/cmdline").write_text("/usr/bin/dockerd\0-H\0fd://\0")
    assert engine.daemon_pid(str(tmp_path)) == 42


@pytest.mark.parametrize(("age", "old"), [(3600, True), (-3600, False)])
def test_a_daemon_from_before_the_toolkit_is_known_by_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: int, old: bool
) -> None:
    hook = tmp_path / "hook"
    hook.touch()
    monkeypatch.setattr(engine, "program_path", lambda _name: str(hook))
    monkeypatch.setattr(engine, "daemon_pid", lambda _root: 42)
    monkeypatch.setattr(engine, "started_at", lambda _pid, _root: time.time() - age)
    assert engine.predates_toolkit() is old


def test_of_a_log_only_what_tells_the_failure_is_shown() -> None:
    log = """\
time="2026-11-22T18:38:26Z" level=info msg="containerd successfully booted in 0.119121s"
time="2026-11-22T18:38:27Z" level=error msg="Failed to GetDriver graph" driver=nonsense home-dir=/var/lib/docker
time="2026-11-22T18:38:27Z" level=info msg="stopping healthcheck following graceful shutdown" module=libcontainerd
failed to start daemon: error initializing graphdriver: driver not supported: nonsense
docker.service: Main process exited, code=exited, status=1/FAILURE
"""
    assert [line.split(" ")[0] for line in containers_daemon._failure(log).splitlines()] == [
        'time="2026-11-22T18:38:27Z"',
        "failed",
    ]
    assert containers_daemon._failure("one\ntwo\n") == "one\ntwo"
    assert containers_daemon._failure("one\n", "Connection timed out") == "Connection timed out\none"
    assert containers_daemon._failure("level=error msg=bad\n", "Job for docker.service failed") == "level=error msg=bad"


@pytest.fixture
def dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that has a shell script stand in for dockerd; the engine answers once it made the file C(up)."""

    def have(script: str) -> Path:
        program = tmp_path / "dockerd"
        program.write_text(f"#!/bin/sh\ncd {tmp_path}; echo start >>starts\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(containers_daemon, "LOG", str(tmp_path / "log"))
        monkeypatch.setattr(engine, "PID_FILES", ())
        monkeypatch.setattr(containers_daemon, "SCRIPT_PID_FILE", str(tmp_path / "none.pid"))
        monkeypatch.setattr(containers_daemon, "program_path", lambda _name: str(program))
        monkeypatch.setattr(containers_daemon, "_succeeds", lambda *_words: False)
        monkeypatch.setattr(containers_daemon, "engine", lambda _host: seen(running=(tmp_path / "up").exists()))
        return tmp_path / "starts"

    return have


def test_a_daemon_that_gave_up_on_a_busy_host_is_started_again(dockerd: Callable[[str], Path]) -> None:
    starts = dockerd("""\
[ $(wc -l <starts) = 2 ] && touch up && exit 0
echo 'failed to start containerd: timeout waiting for containerd to start'; exit 1""")
    containers_daemon.Daemon(NO_ENGINE).start()
    assert len(starts.read_text().splitlines()) == 2


def test_a_daemon_that_cannot_start_is_told_after_one_try(dockerd: Callable[[str], Path]) -> None:
    starts = dockerd("echo 'failed to start daemon: driver not supported: nonsense'; exit 1")
    with pytest.raises(GpufleetError) as raised:
        containers_daemon.Daemon(NO_ENGINE).start()
    assert (raised.value.name, len(starts.read_text().splitlines())) == ("engine-start-failed", 1)
    assert raised.value.evidence == "failed to start daemon: driver not supported: nonsense"


class Steps:
    """Stands in for Daemon: a daemon that only starts with a given text in daemon.json."""

    def __init__(self, path: Path, accepts: str) -> None:
        self.path, self.accepts = path, accepts
        self.taken: list[str] = []
        self.up = True

    def __call__(self, _docker_host: str, _proxies: Any = None) -> Steps:
        return self

    def restart(self) -> None:
        self.taken.append("restart")
        self.up = self.path.read_text() == self.accepts
        if not self.up:
            raise GpufleetError("It did not start.", name="engine-start-failed", evidence="unknown storage driver")

    def reload(self, loaded: Any) -> bool:
        self.taken.append("reload")
        return bool(loaded(seen()))

    def probe(self, _docker_host: str) -> dict[str, Any]:
        return seen(running=self.up)


def test_a_configuration_that_the_engine_refuses_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"mtu": 9000}')
    steps = Steps(path, accepts='{"mtu": 9000}')
    monkeypatch.setattr(containers_daemon, "Daemon", steps)
    monkeypatch.setattr(containers_daemon, "engine", steps.probe)
    wish = Wish(NO_ENGINE, {"storage-driver": "nonsense"}, path=str(path))
    with pytest.raises(GpufleetError) as raised:
        containers_daemon.ensure(wish, check_mode=False)
    assert raised.value.name == "daemon-config-refused"
    assert "storage-driver" in raised.value.message
    assert "the engine runs with it" in raised.value.message
    assert raised.value.evidence == "unknown storage driver"
    assert path.read_text() == '{"mtu": 9000}'
    assert steps.taken == ["restart", "restart"]


def test_check_mode_tells_the_step_and_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "daemon.json"
    steps = Steps(path, accepts="")
    monkeypatch.setattr(containers_daemon, "Daemon", steps)
    monkeypatch.setattr(containers_daemon, "engine", steps.probe)
    result = containers_daemon.ensure(Wish(NO_ENGINE, {"mtu": 9000}, path=str(path)), check_mode=True)
    assert (result["changed"], result["action"], result["changed_keys"]) == (True, "restart", ["mtu"])
    assert steps.taken == []
    assert not path.exists()
    step = containers_daemon.next_step(Wish(NO_ENGINE), seen(), [], False)
    assert step == DaemonStep("none")


# ---- proxies ----

PROXIES = {"HTTPS_PROXY": "http://me:my-marker@proxy:3128", "NO_PROXY": "localhost"}


@pytest.fixture
def proxy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where the variables of the engine's service lie, and what names that file to systemd."""
    variables, drop_in = tmp_path / "docker" / "proxies.env", tmp_path / "docker.service.d" / "proxies.conf"
    monkeypatch.setattr(engine_proxies, "OWN_PROXIES", str(variables))
    monkeypatch.setattr(engine_proxies, "DROP_IN", str(drop_in))
    monkeypatch.setattr(containers_daemon, "has_unit", lambda: True)
    monkeypatch.setattr(containers_daemon, "_succeeds", lambda *_words: True)
    return variables, drop_in


def test_only_root_reads_the_engines_proxies_and_none_takes_them_away(proxy_files: tuple[Path, Path]) -> None:
    variables, drop_in = proxy_files
    assert engine_proxies.due(PROXIES, unit=True) and not engine_proxies.due({}, unit=True)
    engine_proxies.write(PROXIES, unit=True)
    assert variables.read_text() == 'HTTPS_PROXY="http://me:my-marker@proxy:3128"\nNO_PROXY="localhost"\n'
    assert variables.stat().st_mode & 0o777 == 0o600
    assert "my-marker" not in drop_in.read_text()
    assert not engine_proxies.due(PROXIES, unit=True) and engine_proxies.due({}, unit=True)
    assert engine.variables_in(variables.read_text()) == PROXIES
    engine_proxies.write({}, unit=True)
    assert not variables.exists() and not drop_in.exists()


def test_what_the_engine_tells_of_its_proxies_is_compared_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"https": "http://xxxxx:xxxxx@proxy:3128", "no": "localhost"}
    monkeypatch.setattr(engine_proxies, "pull_settings", lambda *_arguments: {"proxies": told})
    assert engine_proxies.taken(NO_ENGINE, PROXIES)
    assert not engine_proxies.taken(NO_ENGINE, {**PROXIES, "HTTPS_PROXY": "http://proxy:3128"})
    assert not engine_proxies.taken(NO_ENGINE, {})


@pytest.mark.parametrize(
    ("names", "allowed", "action", "pending"),
    [((), False, "restart", ""), (("vllm-0",), True, "restart", ""), (("vllm-0",), False, "none", "vllm-0")],
)
def test_what_serves_is_not_ended_for_proxies(
    names: tuple[str, ...],
    allowed: bool,
    action: str,
    pending: str,
    tmp_path: Path,
    proxy_files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(containers_daemon, "engine", lambda _host: seen(*names))
    monkeypatch.setattr(containers_daemon, "refuse_unread", lambda *_arguments: None)
    monkeypatch.setattr(engine_proxies, "taken", lambda *_arguments: False)
    path = tmp_path / "daemon.json"
    wish = Wish(NO_ENGINE, path=str(path), allow_restart=allowed, proxies=PROXIES)
    result = containers_daemon.ensure(wish, check_mode=True)
    assert (result["changed"], result["action"]) == (True, action)
    assert pending in result["pending"] and bool(result["pending"]) == bool(pending)
    assert "my-marker" not in str(result) and not proxy_files[0].exists()
    # What a person wrote into daemon.json counts.
    path.write_text('{"proxies": {"https-proxy": "http://other:3128"}}')
    result = containers_daemon.ensure(wish, check_mode=True)
    assert (result["changed"], result["action"], result["pending"]) == (False, "none", "")
