# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The look at a Docker engine, against a small HTTP server on a Unix socket, and at daemon.json."""

from __future__ import annotations

import dataclasses
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import engine as containers_engine
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import probe

VERSION = {"Version": "28.1.1", "ApiVersion": "1.49", "Os": "linux", "Arch": "amd64"}
INFO = {
    "DockerRootDir": "/var/lib/docker",
    "Driver": "overlay2",
    "CgroupDriver": "systemd",
    "Runtimes": {"runc": {}, "nvidia": {}},
    "DefaultRuntime": "runc",
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "HttpProxy": "http://user:password@proxy.example.org",
}
CONTAINERS = [
    {
        "Id": "b" * 64,
        "Names": ["/vllm-0"],
        "State": "running",
        "Image": "vllm/vllm-openai:deploy",
        "Labels": {"io.gpufleet.collection": "gpufleet.vllm", "io.gpufleet.replica": "vllm-0"},
        "Ports": [
            {"IP": "127.0.0.1", "PrivatePort": 8000, "PublicPort": 8000, "Type": "tcp"},
            {"IP": "0.0.0.0", "PrivatePort": 53, "PublicPort": 53, "Type": "udp"},
            {"PrivatePort": 9000, "Type": "tcp"},
        ],
    },
    {"Id": "a" * 64, "Names": ["/database"], "State": "exited", "Image": "postgres", "Labels": None, "Ports": []},
]


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers like an engine; C(answers) is path to status and body."""

    daemon_threads = True
    answers: dict[str, tuple[int, Any]]


class Handler(BaseHTTPRequestHandler):
    """Serves what the engine's table holds."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Engine)
        status, body = self.server.answers[self.path]
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_arguments: Any) -> None:
        return


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[str, Engine]]:
    """A running engine: its address and the server."""
    path = tmp_path / "docker.sock"
    with Engine(str(path), Handler) as server:
        server.answers = {
            "/version": (200, VERSION),
            "/info": (200, INFO),
            "/containers/json?all=1": (200, CONTAINERS),
        }
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"unix://{path}", server
        server.shutdown()


def test_an_engine_is_described(engine: tuple[str, Engine]) -> None:
    found: Any = containers_engine.engine(engine[0])
    del found["dockerd"]
    assert found == {
        "running": True,
        "reason": "",
        "docker_host": engine[0],
        "version": "28.1.1",
        "api_version": "1.49",
        "os": "linux",
        "architecture": "amd64",
        "root_dir": "/var/lib/docker",
        "storage_driver": "overlay2",
        "cgroup_driver": "systemd",
        "runtimes": ["nvidia", "runc"],
        "default_runtime": "runc",
        "cdi_spec_dirs": ["/etc/cdi", "/var/run/cdi"],
        "image_dir": "/var/lib/docker",
        "kind": "docker",
        "rootless": False,
        "config_path": "",
        "own_proxies": False,
        "containers": [
            {
                "id": "a" * 64,
                "name": "database",
                "state": "exited",
                "image": "postgres",
                "ours": False,
                "replica": "",
                "ports": [],
            },
            {
                "id": "b" * 64,
                "name": "vllm-0",
                "state": "running",
                "image": "vllm/vllm-openai:deploy",
                "ours": True,
                "replica": "vllm-0",
                "ports": [{"host": "127.0.0.1", "port": 8000}],
            },
        ],
    }


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/version", (500, {"message": "no"}), "/version answered 500"),
        ("/info", (200, b"<html>"), "No engine answers"),
    ],
)
def test_an_engine_that_answers_nonsense_is_not_running(
    engine: tuple[str, Engine], path: str, answer: tuple[int, Any], reason: str
) -> None:
    engine[1].answers[path] = answer
    found = containers_engine.engine(engine[0])
    assert found["running"] is False
    assert reason in found["reason"]
    assert found["containers"] == []


def test_no_socket_is_said(tmp_path: Path) -> None:
    found = containers_engine.engine(f"unix://{tmp_path}/none.sock")
    assert found["running"] is False
    assert "There is no socket" in found["reason"]


def test_a_socket_without_an_engine_is_said(tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socketserver.UnixStreamServer(str(path), Handler):
        pass
    found = containers_engine.engine(f"unix://{path}")
    assert "No engine answers" in found["reason"]


@pytest.mark.parametrize("address", ["ssh://host", "nonsense", "", "tcp://"])
def test_an_address_of_another_kind_is_said(address: str) -> None:
    found = containers_engine.engine(address)
    assert found["running"] is False
    assert "unix:///" in found["reason"]


def test_the_program_of_the_daemon_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dockerd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert containers_engine.engine("unix:///nowhere")["dockerd"] == str(program)


@pytest.mark.parametrize(
    ("text", "valid", "key_names", "error"),
    [
        (None, True, [], ""),
        ("", True, [], ""),
        (" \n", True, [], ""),
        ("{}", True, [], ""),
        ('{"data-root": "/data", "proxies": {"http-proxy": "http://user:word@p"}}', True, ["data-root", "proxies"], ""),
        ('{"data-root": "/data",}', False, [], "It is not JSON"),
        ("[]", False, [], "It is not a JSON object."),
    ],
)
def test_daemon_config(tmp_path: Path, text: str | None, valid: bool, key_names: list[str], error: str) -> None:
    path = tmp_path / "etc/docker/daemon.json"
    path.parent.mkdir(parents=True)
    if text is not None:
        path.write_text(text)
    found = containers_engine.daemon_config(str(tmp_path))
    assert found["path"] == str(path)
    assert (found["exists"], found["valid"], found["key_names"]) == (text is not None, valid, key_names)
    assert found["error"].startswith(error)
    assert bool(found["error"]) is bool(error)
    assert "word" not in json.dumps(found["content"])


def test_daemon_config_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "etc/docker/daemon.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    # Root, who may run this test, reads everything.
    monkeypatch.setattr(os, "access", lambda *_arguments: False)
    found = containers_engine.daemon_config(str(tmp_path))
    assert found["valid"] is None
    assert "become: true" in found["error"]


# ---- images, and the way to registries ----


def test_an_image_is_told_by_what_it_needs_of_the_driver(engine: tuple[str, Engine]) -> None:
    engine[1].answers["/images/vllm/vllm-openai%3Av0.12.0/json"] = (
        200,
        {
            "Id": "sha256:1",
            "Size": 7,
            "Os": "linux",
            "Architecture": "amd64",
            "Config": {"Env": ["NVIDIA_REQUIRE_CUDA=cuda>=12.9", "CUDA_VERSION=12.9.1", "HF_TOKEN=secret"]},
        },
    )
    assert containers_engine.image(engine[0], "vllm/vllm-openai:v0.12.0") == {
        "id": "sha256:1",
        "size_bytes": 7,
        "platform": "linux/amd64",
        "environment": {"NVIDIA_REQUIRE_CUDA": "cuda>=12.9", "CUDA_VERSION": "12.9.1"},
    }


def test_an_image_that_is_not_there_is_none(engine: tuple[str, Engine]) -> None:
    engine[1].answers["/images/nothing%3A1/json"] = (404, {"message": "No such image"})
    assert containers_engine.image(engine[0], "nothing:1") is None


def test_an_image_that_may_be_wanted_instead_keeps_the_registry_from_being_asked(engine: tuple[str, Engine]) -> None:
    engine[1].answers["/images/vllm%3A1/json"] = (404, {"message": "No such image"})
    engine[1].answers["/images/vllm%3A2/json"] = (200, {"Id": "sha256:2", "Os": "linux", "Architecture": "amd64"})
    asked = probe.Questions(docker_host=engine[0], image_reference="vllm:1", registry="127.0.0.1:9/vllm:1")
    found: Any = probe.probe(dataclasses.replace(asked, image_alternatives=["vllm:2", "vllm:1"]))
    assert (found["image"], list(found["image_alternatives"]), found["reach"]) == (None, ["vllm:2"], {})
    assert found["image_alternatives"]["vllm:2"]["id"] == "sha256:2"
    again: Any = probe.probe(asked)
    assert list(again["reach"]) == ["registry"]


def test_images_of_a_containerd_store_are_elsewhere(engine: tuple[str, Engine]) -> None:
    status = [["driver-type", "io.containerd.snapshotter.v1"]]
    engine[1].answers["/info"] = (200, {**INFO, "DriverStatus": status})
    assert containers_engine.engine(engine[0])["image_dir"] == "/var/lib/containerd"


def test_the_engines_own_way_to_registries(engine: tuple[str, Engine], tmp_path: Path) -> None:
    registries = {
        "Mirrors": ["https://mirror.example.org/"],
        "InsecureRegistryCIDRs": ["127.0.0.0/8"],
        "IndexConfigs": {"docker.io": {"Secure": True}, "registry:5000": {"Secure": False}},
    }
    engine[1].answers["/info"] = (200, {**INFO, "NoProxy": "localhost", "RegistryConfig": registries})
    assert containers_engine.pull_settings(engine[0], str(tmp_path)) == {
        "proxies": {"http": "http://user:password@proxy.example.org", "no": "localhost"},
        "mirrors": ["https://mirror.example.org/"],
        "insecure": ["127.0.0.0/8", "registry:5000"],
    }


def test_a_password_that_the_engine_hides_is_read_where_it_was_told(
    engine: tuple[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    engine[1].answers["/info"] = (200, {"HttpsProxy": "http://xxxxx:xxxxx@proxy.example.org"})
    (tmp_path / "etc/docker").mkdir(parents=True)
    told = {"proxies": {"https-proxy": "http://user:word@proxy.example.org"}}
    (tmp_path / "etc/docker/daemon.json").write_text(json.dumps(told))
    found = containers_engine.pull_settings(engine[0], str(tmp_path))
    assert found["proxies"] == {"https": "http://user:word@proxy.example.org"}


def test_before_there_is_an_engine_its_file_tells_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "localhost")
    (tmp_path / "etc/docker").mkdir(parents=True)
    file = tmp_path / "etc/docker/daemon.json"
    file.write_text('{"registry-mirrors": ["https://m"], "insecure-registries": ["r:5000"]}')
    found = containers_engine.pull_settings(f"unix://{tmp_path}/none.sock", str(tmp_path))
    assert (found["mirrors"], found["insecure"], found["proxies"]["no"]) == (["https://m"], ["r:5000"], "localhost")
    file.write_text("{")
    assert containers_engine.pull_settings(f"unix://{tmp_path}/none.sock", str(tmp_path))["mirrors"] == []
