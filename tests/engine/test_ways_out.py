# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real registry with TLS and a password, and a real proxy with one (Debian's docker-registry and tinyproxy)."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import hub_model, reach, registries
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.trust import CERTIFICATES as TRUSTED
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_image
from ansible_collections.gpufleet.vllm.tests.engine.conftest import (
    REGISTRY_HTPASSWD,
    REGISTRY_PASSWORD,
    REGISTRY_USER,
    push,
)
from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program
from ansible_collections.gpufleet.vllm.tests.fakes.hub import Hub, Repository
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port

if TYPE_CHECKING:
    from docker import DockerClient

CERTIFICATES = Path(TRUSTED)
PROXY_PASSWORD = "tiny-sesame"


@dataclass(frozen=True)
class TlsRegistry:
    """A registry whose certificate only its C(ca) signs, which wants a password."""

    address: str
    ca: str


def own_address() -> str:
    """Return an address of this machine that is not the loopback one, for which no engine wants a certificate."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path, host: str = "127.0.0.1") -> Iterator[None]:
    """Run a server until the block ends, once it listens."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        for _attempt in range(600):
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.1):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def tls_registry(tmp_path: Path) -> Iterator[TlsRegistry]:
    """A registry with TLS and a password at this machine's own address."""
    host, port = own_address(), free_port()
    ca = tmp_path / "ca.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry"]
    words += ["-addext", f"subjectAltName=IP:{host}", "-keyout", str(tmp_path / "key.pem"), "-out", str(ca)]
    subprocess.run(words, check=True, capture_output=True)
    (tmp_path / "htpasswd").write_text(REGISTRY_HTPASSWD)
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": f"{tmp_path}/data"}},
        "http": {"addr": f"{host}:{port}", "tls": {"certificate": str(ca), "key": f"{tmp_path}/key.pem"}},
        "auth": {"htpasswd": {"realm": "test", "path": f"{tmp_path}/htpasswd"}},
    }
    (tmp_path / "config.yml").write_text(json.dumps(config))
    program = shutil.which("docker-registry") or str(debian_program("docker-registry", "usr/bin/docker-registry"))
    folder = CERTIFICATES / f"{host}:{port}"
    with running([program, "serve", str(tmp_path / "config.yml")], port, tmp_path / "log", host):
        yield TlsRegistry(f"{host}:{port}", ca.read_text())
    shutil.rmtree(folder, ignore_errors=True)


def test_a_registry_with_tls_and_a_password_gives_its_image_to_those_it_should(
    engine: DockerClient,
    docker_host: str,
    run_module: RunModule,
    run_name: str,
    tiny_image: str,
    tls_registry: TlsRegistry,
) -> None:
    login = {"username": REGISTRY_USER, "password": REGISTRY_PASSWORD}
    reference = f"{tls_registry.address}/{run_name}/private:1"
    common = {"docker_host": docker_host, "platform": f"linux/{engine.version()['Arch']}", "reference": reference}
    right = {"registry_username": REGISTRY_USER, "registry_password": REGISTRY_PASSWORD}

    # Before anything is there, preflight knows what the pull would meet.
    assert registries.look(reference, {})["cause"] == "certificate"
    trusting = registries.Access(ca=tls_registry.ca)
    assert registries.look(reference, {}, trusting)["status"] == 401
    allowed = registries.Access(REGISTRY_USER, REGISTRY_PASSWORD, tls_registry.ca)
    assert registries.look(reference, {}, allowed)["status"] == 404

    untrusted = run_module(vllm_image.main, {**common, **right, "retries": 0})
    assert untrusted["error"]["name"] == "registry-untrusted"
    dry = run_module(vllm_image.main, {**common, **right, "registry_ca": tls_registry.ca}, check=True)
    folder = CERTIFICATES / tls_registry.address
    assert dry["actions"][0] == f"trust {tls_registry.address}: {folder}/ca.crt" and not folder.exists()
    missing = run_module(vllm_image.main, {**common, **right, "registry_ca": tls_registry.ca, "retries": 0})
    assert missing["error"]["name"] == "image-not-found"

    push(engine, tiny_image, reference, login)
    assert registries.look(reference, {}, allowed)["status"] == 200
    refused = run_module(vllm_image.main, {**common, "retries": 0})
    assert refused["error"]["name"] == "registry-unauthorized"
    pulled = run_module(vllm_image.main, {**common, **right, "registry_ca": tls_registry.ca})
    engine.api.remove_image(reference)
    pulled.pop("invocation", None)
    assert pulled["changed"] and REGISTRY_PASSWORD not in json.dumps(pulled)
    logins = Path("~/.docker/config.json").expanduser()
    assert not logins.exists() or tls_registry.address not in logins.read_text()


@pytest.fixture
def tinyproxy(tmp_path: Path) -> Iterator[str]:
    """The address of a proxy that wants a password, without it."""
    port = free_port()
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 60", f'LogFile "{tmp_path}/proxy.log"', "LogLevel Info"]
    lines += ["MaxClients 20", f"BasicAuth fleet {PROXY_PASSWORD}", "ConnectPort 443"]
    (tmp_path / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    program = shutil.which("tinyproxy") or str(debian_program("tinyproxy-bin", "usr/bin/tinyproxy"))
    with running([program, "-d", "-c", str(tmp_path / "tinyproxy.conf")], port, tmp_path / "out"):
        yield f"127.0.0.1:{port}"


def test_a_real_proxy_lets_through_who_has_its_password(tinyproxy: str) -> None:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x"}
    with Hub({"org/m": Repository({"main": files})}).running() as hub:

        def route(user: str) -> reach.Route:
            return reach.Route({"http": f"http://{user}{tinyproxy}", "https": f"http://{user}{tinyproxy}"})

        right, wrong = route(f"fleet:{PROXY_PASSWORD}@"), route("fleet:a-guess@")
        told = hub_model.read(hub_model.HubQuestion("org/m", endpoint=hub.url, route=right))
        assert told["config"] == {"model_type": "llama"}
        assert reach.ask(f"{hub.url}/org/m/resolve/main/config.json", right)["status"] == 200
        for way, reason in ((route(""), "wants a name and a password (407)"), (wrong, "password of fleet (401)")):
            found = reach.ask(f"{hub.url}/org/m/resolve/main/config.json", way)
            assert (found["reachable"], found["cause"]) == (False, "proxy"), found
            assert reason in found["reason"] and "guess" not in str(found)
        # Through the tunnel of HTTPS a port that the proxy does not allow, and one where nothing listens.
        assert reach.ask("https://127.0.0.1:9/", right)["cause"] == "proxy"
        assert "wants a name and a password, or other" in reach.ask("https://127.0.0.1/", wrong)["reason"]
        assert "wants a name and a password, or other" in reach.ask("https://127.0.0.1/", route(""))["reason"]
