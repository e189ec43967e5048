# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What dockerd would refuse at its next start, or never reads, is told before daemon.json is written.

A process that calls itself dockerd listens at a socket; what it prints for --validate is what Docker 26.1 printed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import daemon as containers_daemon
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import daemon_options, daemon_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import engine as containers_engine
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_config import DaemonWish

LISTENER = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
while True:
    server.accept()[0].close()
"""
OLD = '{"mtu": 9000}'


class Engine:
    """A dockerd of 20.10, by its command line and what the probe tells of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.path = folder / "daemon.json"
        self.path.write_text(OLD)
        self.docker_host = f"unix://{folder}/docker.sock"
        self.seen: dict[str, Any] = {
            "running": True,
            "reason": "",
            "version": "20.10.24+dfsg1",
            "runtimes": ["runc"],
            "kind": "docker",
            "containers": [],
        }
        self.program(None)
        monkeypatch.setattr(containers_daemon, "engine", lambda _host: self.seen)

    def program(self, script: str | None) -> None:
        """Have a script stand in for the program dockerd, or none."""
        path = self.folder / "dockerd"
        if script is not None:
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        found = None if script is None else str(path)
        self.monkeypatch.setattr(daemon_rules, "program_path", lambda _name: found)

    def refused(self, config: dict[str, Any], *, check_mode: bool = False) -> GpufleetError:
        """Return the error with which this configuration is refused, nothing being written or signalled."""
        self.monkeypatch.setattr(containers_daemon, "Daemon", None)
        wish = DaemonWish(self.docker_host, config, path=str(self.path))
        with pytest.raises(GpufleetError) as raised:
            containers_daemon.ensure(wish, check_mode)
        assert self.path.read_text() == OLD
        return raised.value


@pytest.fixture
def dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    """A function that has a dockerd with these options listen at a socket."""
    started: list[subprocess.Popen[str]] = []

    def run(*options: str) -> Engine:
        found = Engine(tmp_path, monkeypatch)
        words = ["dockerd", "-c", LISTENER, str(tmp_path / "docker.sock"), f"--config-file={found.path}", *options]
        # Called by another name, Python does not find its own libraries.
        home = {**os.environ, "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}"}
        process = subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE, text=True, env=home)
        started.append(process)
        assert process.stdout and process.stdout.readline() == "ready\n"
        return found

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("option", "config", "key"),
    [
        (
            "--registry-mirror=https://b.example.com",
            {"registry-mirrors": ["https://a.example.com"]},
            "registry-mirrors",
        ),
        ("--insecure-registry=b.example.com", {"insecure-registries": ["a.example.com"]}, "insecure-registries"),
        ("--debug", {"debug": True}, "debug"),
        ("-D", {"debug": True}, "debug"),
        ("--default-runtime=runc", {"default-runtime": "nvidia"}, "default-runtime"),
        ("-Hunix:///run/other.sock", {"hosts": ["unix:///run/x.sock"]}, "hosts"),
        ("--log-opt=max-size=1m", {"log-opts": {"max-file": "3"}}, "log-opts"),
        ("--default-ulimit=nofile=1024", {"default-ulimits": {"nofile": {"Hard": 9}}}, "default-ulimits"),
    ],
)
@pytest.mark.parametrize("check_mode", [False, True])
def test_a_key_that_dockerds_command_line_has_is_refused_by_name(
    dockerd: Callable[..., Engine], option: str, config: dict[str, Any], key: str, check_mode: bool
) -> None:
    error = dockerd(option).refused(config, check_mode=check_mode)
    assert error.name == "daemon-config-refused"
    assert key in error.message and "Nothing was changed" in error.message
    assert "docker_daemon_config" in error.remedy and "command line" in error.remedy
    assert error.details == {"keys": [key]}


def test_dockerd_merges_runtimes_with_those_of_its_command_line(dockerd: Callable[..., Engine]) -> None:
    engine = dockerd("--add-runtime=kata=/usr/bin/kata")
    wish = DaemonWish(engine.docker_host, {"runtimes": {"nvidia": {"path": "x"}}}, path=str(engine.path))
    assert containers_daemon.ensure(wish, check_mode=True)["action"] == "reload"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"max-concurrent-downloads": "ten"}, "a whole number"),
        ({"max-concurrent-downloads": True}, "a whole number"),
        ({"debug": "yes"}, "true or false"),
        ({"live-restore": 1}, "true or false"),
        ({"registry-mirrors": "https://a.example.com"}, "a list of strings"),
        ({"insecure-registries": [5000]}, "a list of strings"),
        ({"log-opts": {"max-file": 3}}, "a mapping"),
        ({"data-root": ["/srv"]}, "a string"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_name(
    dockerd: Callable[..., Engine], config: dict[str, Any], kind: str
) -> None:
    error = dockerd().refused(config)
    ((key, value),) = config.items()
    assert error.name == "daemon-config-refused"
    assert f"{key}: {value!r} is not {kind}" in error.message
    assert f"Correct {key} in docker_daemon_config" in error.remedy


def test_dockerd_itself_is_asked_with_the_options_that_it_runs_with(dockerd: Callable[..., Engine]) -> None:
    engine = dockerd("--data-root=/srv/docker")
    said = "unable to configure the Docker daemon with file daemon.json: configuration validation from file failed"
    engine.program(f'echo "$@" >{engine.folder}/asked\necho "{said}: x is not an ip address" >&2\nexit 1')
    error = engine.refused({"dns": ["x"]})
    assert (error.name, error.evidence) == ("daemon-config-refused", f"{said}: x is not an ip address")
    asked = (engine.folder / "asked").read_text()
    assert "--data-root=/srv/docker" in asked and "--validate" in asked
    assert asked.count("--config-file=") == 1 and str(engine.path) not in asked


def test_an_engine_without_validate_goes_by_the_keys_that_it_knows(dockerd: Callable[..., Engine]) -> None:
    engine = dockerd()
    engine.program("echo \"unknown flag: --validate\nSee 'dockerd --help'.\" >&2; exit 125")
    assert "knows no proxies" in engine.refused({"proxies": {"http-proxy": "http://proxy:3128"}}).message
    assert "knows no nonsense" in engine.refused({"nonsense": 1}).message
    wish = DaemonWish(engine.docker_host, {"debug": True, "default-shm-size": "1G"}, path=str(engine.path))
    assert containers_daemon.ensure(wish, check_mode=True)["changed_keys"] == ["debug", "default-shm-size"]
    # What a newer engine knows is for itself to say.
    engine.seen["version"] = "28.1.1"
    wish.config = {"newest": 1}
    assert containers_daemon.ensure(wish, check_mode=True)["changed_keys"] == ["newest"]


def test_a_file_that_the_engine_does_not_read_is_not_written(dockerd: Callable[..., Engine]) -> None:
    engine = dockerd()
    read = str(engine.path)
    engine.path = engine.folder / "other.json"
    engine.path.write_text(OLD)
    error = engine.refused({"debug": True})
    assert error.name == "daemon-config-not-read"
    assert read in error.message and str(engine.path) in error.message
    assert "--config-file" in error.remedy
    # Also when it holds all that is wanted.
    assert engine.refused({"mtu": 9000}).name == "daemon-config-not-read"
    engine.seen["kind"] = "snap"
    assert "snap remove docker" in engine.refused({"debug": True}).remedy


def test_podman_reads_no_daemon_json(dockerd: Callable[..., Engine]) -> None:
    engine = dockerd()
    engine.seen["kind"] = "podman"
    assert engine.refused({"debug": True}).name == "engine-is-podman"


@pytest.mark.parametrize(
    ("words", "user_id", "path"),
    [
        (["/usr/bin/dockerd", "-H", "fd://"], 0, "/etc/docker/daemon.json"),
        (["dockerd", "--config-file", "/srv/d.json"], 0, "/srv/d.json"),
        (
            ["dockerd", "--config-file=/var/snap/docker/1/config/daemon.json"],
            0,
            "/var/snap/docker/1/config/daemon.json",
        ),
        (["dockerd", "--rootless"], 0, "/root/.config/docker/daemon.json"),
        (["dockerd"], 2**22, "/.config/docker/daemon.json"),
    ],
)
def test_the_file_that_a_dockerd_reads(words: list[str], user_id: int, path: str) -> None:
    assert daemon_options.config_file(words, user_id) == path


def test_only_a_dockerd_behind_a_socket_is_the_engines_process(tmp_path: Path, dockerd: Callable[..., Engine]) -> None:
    engine = dockerd()
    pid = containers_engine.process_of(engine.docker_host)
    assert pid and daemon_options.config_of(pid) == str(engine.path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "mine.sock"))
        server.listen()
        assert containers_engine.process_of(f"unix://{tmp_path}/mine.sock") is None
    assert containers_engine.process_of("tcp://127.0.0.1:1") is None


@pytest.mark.parametrize(
    ("version", "info", "kind"),
    [
        ({"Components": [{"Name": "Engine"}]}, {"DockerRootDir": "/var/lib/docker"}, "docker"),
        ({"Components": [{"Name": "Podman Engine"}]}, {}, "podman"),
        ({}, {"DockerRootDir": "/var/snap/docker/common/var-lib-docker"}, "snap"),
    ],
)
def test_what_answers_in_dockers_place_is_known(version: dict[str, Any], info: dict[str, Any], kind: str) -> None:
    assert containers_engine._kind(version, info) == kind


def test_images_of_a_containerd_of_the_daemons_own_are_in_its_folder() -> None:
    info: dict[str, Any] = {
        "DockerRootDir": "/srv/docker",
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    }
    assert containers_engine._image_dir("unix:///x", info) == "/var/lib/containerd"
    info["Containerd"] = {"Address": "/var/run/docker/containerd/containerd.sock"}
    assert containers_engine._image_dir("unix:///x", info) == "/srv/docker/containerd/daemon"
    info["Containerd"] = {"Address": "/run/another/exec/containerd/containerd.sock"}
    assert containers_engine._image_dir("unix:///x", info) == "/srv/docker/containerd/daemon"


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        ('version = 3\nroot = "/data/containerd"\n', "/data/containerd"),
        ("root = '/data/containerd'\nstate = '/run/containerd'\n", "/data/containerd"),
        ('#root = "/data/containerd"\n', "/var/lib/containerd"),
        ("", "/var/lib/containerd"),
    ],
)
def test_images_of_the_hosts_containerd_are_in_its_root(
    config: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(config)
    monkeypatch.setattr(containers_engine, "CONTAINERD_CONFIG", str(tmp_path / "config.toml"))
    info = {
        "DockerRootDir": "/srv/docker",
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "Containerd": {"Address": "/run/containerd/containerd.sock"},
    }
    assert containers_engine._image_dir("unix:///x", info) == folder
