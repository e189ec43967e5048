# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests that work on a real Docker engine, at DOCKER_HOST or the usual socket.

What they make there carries a name of this run and is removed by its id.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import (
    debian_program,
    docker_host,
    engine,
)
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet, import_stand_in
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port, run_module

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["docker_host", "engine", "run_module"]  # fixtures of others, that of the unit tests among them

START_TIMEOUT = 60.0  # seconds

# User and password of the registry that wants them, and the line of htpasswd for both.
REGISTRY_USER, REGISTRY_PASSWORD = "fleet", "open-sesame"
REGISTRY_HTPASSWD = "fleet:$2b$04$oG7VngNIpLycjVOWsn4OUe7/99B1ZcLwrChFtQ9CYPSpcYxZoiskG\n"


@pytest.fixture(scope="session")
def run_name() -> str:
    """The beginning of every name that this run gives to something on the engine."""
    return f"gpufleet-test-{os.getpid()}"


@pytest.fixture(scope="session", autouse=True)
def clean_images(engine: DockerClient, run_name: str) -> Iterator[None]:
    """Remove every image of this run at its end, and the one it leaves without a name."""
    yield
    for image in engine.images.list():
        names = image.tags + list(image.attrs.get("RepoDigests") or [])
        if any(name.startswith(run_name) or f"/{run_name}" in name for name in names):
            engine.api.remove_image(image.attrs["Id"], force=True)


def image_tarball(programs: dict[str, Path], payload: int = 0) -> bytes:
    """Return a root file system as tar: programs by their paths in it, and C(payload) bytes that do not compress."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, program in programs.items():
            tar.add(program, arcname=name)
        if payload:
            member = tarfile.TarInfo("payload")
            member.size = payload
            tar.addfile(member, io.BytesIO(os.urandom(payload)))
    return buffer.getvalue()


def import_image(engine: DockerClient, name: str, *, payload: int = 0, changes: tuple[str, ...] = ()) -> str:
    """Make an image of a static busybox under C(name) and return its id."""
    repository, _colon, tag = name.rpartition(":")
    busybox = debian_program("busybox-static", "bin/busybox")
    engine.api.import_image_from_data(
        image_tarball({"bin/busybox": busybox, "bin/sh": busybox}, payload),
        repository=repository,
        tag=tag,
        changes=['ENTRYPOINT ["/bin/busybox"]', *changes],
    )
    image_id = engine.images.get(name).id
    assert image_id
    return image_id


@pytest.fixture(scope="session")
def tiny_image(engine: DockerClient, run_name: str) -> str:
    """The name of an image of 4 MB on the engine, whose entry point is busybox."""
    name = f"{run_name}/tiny:1"
    import_image(engine, name, changes=("LABEL io.gpufleet.vllm-version=0.12.0",))
    return name


@dataclass(frozen=True)
class Registry:
    """A running registry: its address, such as C(127.0.0.1:5000)."""

    address: str

    def reference(self, name: str) -> str:
        """Return the reference of an image of this registry."""
        return f"{self.address}/{name}"


@contextlib.contextmanager
def serve_registry(folder: Path, *, with_password: bool = False) -> Iterator[Registry]:
    """Run Debian's docker-registry on the loopback interface, its data in C(folder)."""
    installed = shutil.which("docker-registry")
    program = Path(installed) if installed else debian_program("docker-registry", "usr/bin/docker-registry")
    address = f"127.0.0.1:{free_port()}"
    lines = [
        "version: 0.1",
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}",
        f"http: {{addr: '{address}'}}",
    ]
    if with_password:
        (folder / "htpasswd").write_text(REGISTRY_HTPASSWD)
        lines.append(f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}")
    config = folder / "config.yml"
    config.write_text("\n".join(lines) + "\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(program), "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_until_answering(f"http://{address}/v2/")
        yield Registry(address)
    finally:
        process.terminate()
        process.wait(timeout=10)


def wait_until_answering(url: str) -> None:
    """Return as soon as something answers at C(url)."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            requests.get(url, timeout=1)
            return
        except requests.exceptions.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry open to all."""
    with serve_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def locked_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that wants REGISTRY_USER and REGISTRY_PASSWORD."""
    with serve_registry(tmp_path_factory.mktemp("locked-registry"), with_password=True) as running:
        yield running


def push(engine: DockerClient, image: str, reference: str, auth: dict[str, str] | None = None) -> str:
    """Push an image of the engine to a registry as C(reference), which the engine forgets; return its digest."""
    repository, _colon, tag = reference.rpartition(":")
    engine.api.tag(image, repository, tag=tag)
    digest = ""
    for event in engine.api.push(repository, tag=tag, stream=True, decode=True, auth_config=auth or {"username": ""}):
        assert "error" not in event, event
        # With the containerd image store the engine tells it in words alone.
        said = re.search(r"digest: (sha256:\S+)", str(event.get("status")))
        digest = (event.get("aux") or {}).get("Digest") or (said[1] if said else digest)
    engine.api.remove_image(reference)
    assert digest
    return digest


@pytest.fixture(scope="session")
def stand_in(engine: DockerClient, run_name: str) -> str:
    """The name of the stand-in's image."""
    name = f"{run_name}/stand-in:1"
    import_stand_in(engine, name, debian_program("busybox-static", "bin/busybox"))
    return name


@pytest.fixture
def fleet(
    engine: DockerClient, docker_host: str, run_module: RunModule, run_name: str, stand_in: str, tmp_path: Path
) -> Iterator[Fleet]:
    """A deployment of its own."""
    ports = [free_port() for _number in range(4)]
    fleet = Fleet(engine, docker_host, run_module, f"{run_name}-{ports[0]}", stand_in, tmp_path, ports)
    yield fleet
    fleet.clean()
