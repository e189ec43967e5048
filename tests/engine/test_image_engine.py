# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_image against a real Docker engine and real registries, some of which misbehave."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest
import requests

from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import inspect_image
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_image
from ansible_collections.gpufleet.vllm.tests.engine.conftest import (
    REGISTRY_PASSWORD,
    REGISTRY_USER,
    Registry,
    import_image,
    push,
)
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

if TYPE_CHECKING:
    from docker import DockerClient

Ensure = Callable[..., dict[str, Any]]


@dataclass
class Scene:
    """One test's names: an image in the registry that the engine does not have, and the name to deploy it under."""

    name: str
    reference: str
    tag: str
    digest: str
    image_id: str


@pytest.fixture
def platform(engine: DockerClient) -> str:
    """The engine's own platform."""
    return f"linux/{engine.version()['Arch']}"


@pytest.fixture
def other_platform(platform: str) -> str:
    """A platform that the engine's own images are not for."""
    return "linux/arm64" if platform == "linux/amd64" else "linux/amd64"


@pytest.fixture
def ensure(run_module: RunModule, docker_host: str, platform: str) -> Ensure:
    """Run the module with the options given and the engine's address and platform."""

    def run(*, check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {"docker_host": docker_host, "platform": platform, "backoff": 0.1, **options}
        return run_module(vllm_image.main, arguments, check=check, diff=True)

    return run


@pytest.fixture
def scene(
    engine: DockerClient, registry: Registry, tiny_image: str, run_name: str, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """An image in the registry that the engine has under none of its names."""
    name = f"{run_name}/{request.node.name.partition('[')[0].replace('_', '-')}"
    reference = registry.reference(f"{name}:v0.12.0")
    digest = push(engine, tiny_image, reference)
    yield Scene(name, reference, f"{name}:deploy", digest, str(engine.images.get(tiny_image).id))
    forget(engine, reference, f"{name}:deploy")


def forget(engine: DockerClient, *names: str) -> None:
    """Remove names from the engine, and with the last of them the image."""
    for name in names:
        if inspect_image(engine, name):
            engine.api.remove_image(name, force=True)


def id_of(engine: DockerClient, name: str) -> str:
    """Return the id of an image, or an empty text."""
    return str((inspect_image(engine, name) or {"Id": ""})["Id"])


def test_pull_names_and_describes_the_image(engine: DockerClient, scene: Scene, ensure: Ensure, platform: str) -> None:
    result = ensure(reference=scene.reference, tag=scene.tag)

    assert result["changed"]
    assert id_of(engine, scene.reference) == id_of(engine, scene.tag) == scene.image_id == result["image_id"]
    assert result["digest"] == scene.digest
    assert result["platform"] == platform
    assert result["entrypoint"] == ["/bin/busybox"]
    assert result["vllm_version"] == "0.12.0"
    assert result["size"] > 1_000_000
    assert result["transfer"]["attempts"] == 1
    assert [phase["name"] for phase in result["phases"]] == ["pulling image"]
    assert f"{scene.tag} -> (absent)" in result["diff"]["before"]
    assert f"{scene.tag} -> {scene.image_id}" in result["diff"]["after"]


def test_second_run_changes_nothing_and_asks_no_registry(engine: DockerClient, scene: Scene, ensure: Ensure) -> None:
    closed = "127.0.0.1:1/" + scene.name + ":v0.12.0"
    engine.api.tag(scene.image_id, closed.rpartition(":")[0], tag="v0.12.0")
    first = ensure(reference=closed, tag=scene.tag)
    second = ensure(reference=closed, tag=scene.tag)
    forget(engine, closed)

    assert first["changed"]  # the tag
    assert not second["changed"]
    assert second["actions"] == []
    assert second["diff"]["before"] == second["diff"]["after"]


def test_check_mode_changes_nothing(engine: DockerClient, scene: Scene, ensure: Ensure) -> None:
    result = ensure(reference=scene.reference, tag=scene.tag, check=True)

    assert result["changed"]
    assert result["actions"] == [f"pull {scene.reference}: not on this host", f"tag {scene.tag}"]
    assert id_of(engine, scene.reference) == id_of(engine, scene.tag) == ""


def test_tag_that_points_elsewhere_is_moved(engine: DockerClient, scene: Scene, ensure: Ensure, run_name: str) -> None:
    other = import_image(engine, f"{run_name}/other:1", changes=("LABEL which=other",))
    engine.api.tag(other, scene.name, tag="deploy")

    would = ensure(reference=scene.reference, tag=scene.tag, check=True)
    assert would["changed"] and id_of(engine, scene.tag) == other

    result = ensure(reference=scene.reference, tag=scene.tag)
    assert result["changed"]
    assert f"{scene.tag} -> {other}" in result["diff"]["before"]
    assert id_of(engine, scene.tag) == scene.image_id


def test_force_pull_follows_a_tag_moved_in_the_registry(
    engine: DockerClient, scene: Scene, ensure: Ensure, run_name: str
) -> None:
    ensure(reference=scene.reference, tag=scene.tag)
    newer = import_image(engine, f"{run_name}/newer:1", changes=("LABEL which=newer",))
    other_name = f"{run_name}/elsewhere:1"
    engine.api.tag(scene.image_id, f"{run_name}/elsewhere", tag="1")
    push(engine, newer, scene.reference)
    engine.api.tag(scene.image_id, scene.reference.rpartition(":")[0], tag="v0.12.0")

    without = ensure(reference=scene.reference, tag=scene.tag)
    forced = ensure(reference=scene.reference, tag=scene.tag, force_pull=True)
    again = ensure(reference=scene.reference, tag=scene.tag, force_pull=True)
    forget(engine, other_name)

    assert not without["changed"]
    assert forced["changed"] and forced["image_id"] == newer == id_of(engine, scene.tag)
    assert not again["changed"]


def test_pinned_digest_is_pulled_whatever_the_tag_points_at(
    engine: DockerClient, scene: Scene, ensure: Ensure, run_name: str
) -> None:
    newer = import_image(engine, f"{run_name}/moved:1", changes=("LABEL which=moved",))
    push(engine, newer, scene.reference)

    result = ensure(reference=scene.reference, tag=scene.tag, digest=scene.digest)
    again = ensure(reference=scene.reference, tag=scene.tag, digest=scene.digest)

    assert result["image_id"] == scene.image_id == id_of(engine, scene.reference) == id_of(engine, scene.tag)
    assert result["digest"] == scene.digest
    assert not again["changed"]


def test_digest_in_the_reference_pins_too(engine: DockerClient, scene: Scene, ensure: Ensure) -> None:
    result = ensure(reference=f"{scene.reference}@{scene.digest}", tag=scene.tag)

    assert result["image_id"] == scene.image_id == id_of(engine, scene.tag)


def test_digest_unknown_to_the_registry_names_the_one_there(engine: DockerClient, scene: Scene, ensure: Ensure) -> None:
    result = ensure(reference=scene.reference, tag=scene.tag, digest="sha256:" + "0" * 64)

    assert result["error"]["name"] == "digest-mismatch"
    assert scene.digest in result["error"]["remedy"]
    assert id_of(engine, scene.tag) == ""


def test_present_image_with_another_digest_is_refused(engine: DockerClient, scene: Scene, ensure: Ensure) -> None:
    ensure(reference=scene.reference)
    good = ensure(reference=scene.reference, source="present", digest=scene.digest)
    by_id = ensure(reference=scene.reference, source="present", digest=scene.image_id)
    bad = ensure(reference=scene.reference, source="present", digest="sha256:" + "0" * 64)

    assert not good["failed"] and not by_id["failed"]
    assert bad["error"]["name"] == "digest-mismatch"
    assert scene.digest in bad["error"]["evidence"]


def test_absent_image_where_it_must_be_present(ensure: Ensure, run_name: str) -> None:
    result = ensure(reference=f"{run_name}/never:1", source="present")

    assert result["error"]["name"] == "image-missing"
    assert "vllm_image_source" in result["msg"]


def test_image_of_another_platform_is_refused_and_forgotten(
    engine: DockerClient, scene: Scene, ensure: Ensure, other_platform: str
) -> None:
    result = ensure(reference=scene.reference, tag=scene.tag, platform=other_platform)

    assert result["error"]["name"] == "platform-missing"
    assert other_platform in result["msg"]
    assert id_of(engine, scene.reference) == id_of(engine, scene.tag) == ""


def test_refused_image_leaves_the_names_where_they_were(
    engine: DockerClient, scene: Scene, ensure: Ensure, run_name: str, other_platform: str
) -> None:
    old = import_image(engine, f"{run_name}/old:1", changes=("LABEL which=old",))
    engine.api.tag(old, scene.reference.rpartition(":")[0], tag="v0.12.0")
    engine.api.tag(old, scene.name, tag="deploy")

    result = ensure(reference=scene.reference, tag=scene.tag, platform=other_platform, force_pull=True)

    assert result["error"]["name"] == "platform-missing"
    assert id_of(engine, scene.reference) == id_of(engine, scene.tag) == old


def test_manifest_list_without_the_platform(
    registry: Registry, scene: Scene, ensure: Ensure, platform: str, other_platform: str
) -> None:
    base = f"http://{registry.address}/v2/{scene.name}/manifests"
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = requests.get(f"{base}/{scene.digest}", headers={"Accept": kind}, timeout=10)
    entry = {
        "mediaType": kind,
        "size": len(manifest.content),
        "digest": scene.digest,
        "platform": {"os": "linux", "architecture": platform.partition("/")[2]},
    }
    list_kind = "application/vnd.docker.distribution.manifest.list.v2+json"
    body = json.dumps({"schemaVersion": 2, "mediaType": list_kind, "manifests": [entry]})
    requests.put(f"{base}/multi", data=body, headers={"Content-Type": list_kind}, timeout=10).raise_for_status()

    result = ensure(reference=registry.reference(f"{scene.name}:multi"), platform=other_platform)

    assert result["error"]["name"] == "platform-missing"


@pytest.mark.parametrize("name", ["{name}:no-such-tag", "{name}-misspelt:v0.12.0"])
def test_image_that_the_registry_does_not_have(registry: Registry, scene: Scene, ensure: Ensure, name: str) -> None:
    started = time.monotonic()
    result = ensure(reference=registry.reference(name.format(name=scene.name)))

    assert result["error"]["name"] == "image-not-found"
    assert result["error"]["details"]["attempts"] == 1
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("host", ["127.0.0.1:1", "registry.invalid"])
def test_unreachable_registry_fails_in_seconds(ensure: Ensure, run_name: str, host: str) -> None:
    started = time.monotonic()
    result = ensure(reference=f"{host}/{run_name}/image:1", backoff=5, retries=10)

    assert result["error"]["name"] == "registry-unreachable"
    assert result["error"]["details"]["attempts"] == 2
    assert time.monotonic() - started < 15


def test_registry_that_wants_a_password(
    engine: DockerClient, locked_registry: Registry, tiny_image: str, run_name: str, ensure: Ensure
) -> None:
    reference = locked_registry.reference(f"{run_name}/locked:1")
    push(engine, tiny_image, reference, {"username": REGISTRY_USER, "password": REGISTRY_PASSWORD})

    without = ensure(reference=reference)
    wrong = ensure(reference=reference, registry_username=REGISTRY_USER, registry_password="guess-me")
    right = ensure(reference=reference, registry_username=REGISTRY_USER, registry_password=REGISTRY_PASSWORD)
    forget(engine, reference)

    assert without["error"]["name"] == wrong["error"]["name"] == "registry-unauthorized"
    assert right["changed"]
    assert REGISTRY_PASSWORD not in json.dumps(right["transfer"]) + json.dumps(right["diff"])


# Archives


@pytest.fixture
def archive(engine: DockerClient, scene: Scene, ensure: Ensure, tmp_path: Path) -> Path:
    """An archive of the scene's image under its reference; the engine has the image under no name of the scene."""
    ensure(reference=scene.reference)
    path = tmp_path / "image.tar"
    save(engine, scene.reference, path)
    forget(engine, scene.reference)
    return path


def save(engine: DockerClient, name: str, path: Path) -> None:
    """Write an image to an archive as docker save does."""
    with path.open("wb") as stream:
        for piece in engine.api.get_image(name):
            stream.write(piece)


def test_archive_is_loaded_once(engine: DockerClient, scene: Scene, ensure: Ensure, archive: Path) -> None:
    options = {"reference": scene.reference, "tag": scene.tag, "source": "archive", "archive": str(archive)}
    would = ensure(check=True, **options)
    absent_after_check = id_of(engine, scene.reference)
    first = ensure(**options)
    second = ensure(**options)
    archive.unlink()
    third = ensure(**options)

    assert would["changed"] and would["image_id"] == scene.image_id and absent_after_check == ""
    assert first["changed"] and first["image_id"] == scene.image_id == id_of(engine, scene.tag)
    assert first["transfer"]["bytes"] > 1_000_000
    assert not second["changed"] and not third["changed"]


def test_archive_with_another_image_is_loaded_again(
    engine: DockerClient, scene: Scene, ensure: Ensure, archive: Path, run_name: str
) -> None:
    other = import_image(engine, f"{run_name}/before:1", changes=("LABEL which=before",))
    engine.api.tag(other, scene.reference.rpartition(":")[0], tag="v0.12.0")

    result = ensure(reference=scene.reference, tag=scene.tag, source="archive", archive=str(archive))

    assert result["changed"]
    assert id_of(engine, scene.reference) == id_of(engine, scene.tag) == scene.image_id


def test_compressed_archive(engine: DockerClient, scene: Scene, ensure: Ensure, archive: Path) -> None:
    compressed = archive.with_suffix(".tar.gz")
    compressed.write_bytes(gzip.compress(archive.read_bytes(), compresslevel=1))
    forget(engine, scene.reference)

    result = ensure(reference=scene.reference, tag=scene.tag, source="archive", archive=str(compressed))

    assert result["changed"]
    assert id_of(engine, scene.tag) == scene.image_id


def test_archive_under_another_name(engine: DockerClient, scene: Scene, ensure: Ensure, archive: Path) -> None:
    wanted = f"{scene.name}:renamed"
    result = ensure(reference=wanted, tag=scene.tag, source="archive", archive=str(archive))
    found = id_of(engine, wanted)
    forget(engine, wanted)

    assert result["changed"]
    assert found == scene.image_id


def test_archive_pinned_by_the_image_id(engine: DockerClient, scene: Scene, ensure: Ensure, archive: Path) -> None:
    options = {"reference": scene.reference, "source": "archive", "archive": str(archive)}
    bad = ensure(digest="sha256:" + "0" * 64, **options)
    forgotten = id_of(engine, scene.reference)
    good = ensure(digest=scene.image_id, **options)

    assert bad["error"]["name"] == "digest-mismatch"
    assert forgotten == ""
    assert good["changed"] and good["image_id"] == scene.image_id


@pytest.mark.parametrize("kind", ["cut short", "compressed and cut short", "no archive at all", "flipped bits"])
def test_damaged_archive(engine: DockerClient, run_name: str, ensure: Ensure, tmp_path: Path, kind: str) -> None:
    # An image of its own: the engine does not look at layers of an archive that it already has.
    reference, tag, archive = f"{run_name}/damaged:1", f"{run_name}/damaged:deploy", tmp_path / "image.tar"
    import_image(engine, reference, payload=100_000)
    save(engine, reference, archive)
    forget(engine, reference)
    content = archive.read_bytes()
    middle = len(content) // 2
    flipped = bytes(255 - byte for byte in content[middle : middle + 64])
    damaged = {
        "cut short": content[:middle],
        "compressed and cut short": gzip.compress(content, compresslevel=1)[: middle // 2],
        "no archive at all": b"#!/bin/sh\necho no archive\n" * 1000,
        "flipped bits": content[:middle] + flipped + content[middle + 64 :],
    }[kind]
    archive.write_bytes(damaged)

    result = ensure(reference=reference, tag=tag, source="archive", archive=str(archive))

    assert result["error"]["name"] == "archive-invalid"
    assert result["error"]["evidence"]
    assert id_of(engine, reference) == id_of(engine, tag) == ""


def test_archive_that_is_not_there(scene: Scene, ensure: Ensure, tmp_path: Path) -> None:
    result = ensure(reference=scene.reference, source="archive", archive=str(tmp_path / "none.tar"))

    assert result["error"]["name"] == "archive-missing"
    assert str(tmp_path / "none.tar") in result["msg"]


# Registries that misbehave


@dataclass
class CuttingProxy:
    """Passes connections on to a registry, but cuts the first few after some bytes of the answer, or falls silent."""

    target: str
    cuts: int
    after: int = 0
    silent: bool = False
    address: str = ""
    cut: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _listener: socket.socket = field(default_factory=socket.socket)

    def start(self) -> None:
        """Listen and serve in the background."""
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and end what stands still."""
        self._stopped.set()
        # Closing alone does not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _peer = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_until_broken, args=(client,), daemon=True).start()

    def _serve_until_broken(self, client: socket.socket) -> None:
        # Either end may leave whenever it likes.
        with contextlib.suppress(OSError):
            self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        host, _colon, port = self.target.partition(":")
        with client, socket.create_connection((host, int(port))) as server:
            upward = threading.Thread(target=self._pass_on, args=(client, server), daemon=True)
            upward.start()
            passed = 0
            while piece := server.recv(65536):
                passed += len(piece)
                if passed > self.after and self.cut < self.cuts:
                    self.cut += 1
                    if self.silent:
                        self._stopped.wait()
                    # To end with a reset, not politely.
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                    client.shutdown(socket.SHUT_RD)
                    return
                client.sendall(piece)

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)


@pytest.fixture
def cutting(registry: Registry) -> Iterator[Callable[..., CuttingProxy]]:
    """Start proxies in front of the registry that cut connections."""
    proxies: list[CuttingProxy] = []

    def start(cuts: int, after: int = 0, *, silent: bool = False) -> CuttingProxy:
        proxy = CuttingProxy(registry.address, cuts, after, silent)
        proxy.start()
        proxies.append(proxy)
        return proxy

    yield start
    for proxy in proxies:
        proxy.stop()


def test_cut_connections_are_recovered_by_trying_again(
    engine: DockerClient, scene: Scene, ensure: Ensure, cutting: Callable[..., CuttingProxy], tmp_path: Path
) -> None:
    proxy = cutting(cuts=4)
    reference = f"{proxy.address}/{scene.name}:v0.12.0"
    progress = tmp_path / "progress"
    result = ensure(reference=reference, tag=scene.tag, retries=6, progress_file=str(progress))
    forget(engine, reference)

    assert not result["failed"], result
    assert result["image_id"] == scene.image_id
    assert result["transfer"]["attempts"] > 1
    assert proxy.cut == 4
    assert json.loads(progress.read_text())["phase"] == "pulling image"


def test_connections_cut_for_ever_end_after_the_last_attempt(
    engine: DockerClient, scene: Scene, ensure: Ensure, cutting: Callable[..., CuttingProxy]
) -> None:
    proxy = cutting(cuts=10_000)
    reference = f"{proxy.address}/{scene.name}:v0.12.0"
    result = ensure(reference=reference, tag=scene.tag, retries=2)

    assert result["error"]["name"] == "registry-unreachable"
    assert result["error"]["details"]["attempts"] == 3
    assert id_of(engine, reference) == id_of(engine, scene.tag) == ""


def test_layer_cut_in_the_middle_is_completed(
    engine: DockerClient, registry: Registry, run_name: str, ensure: Ensure, cutting: Callable[..., CuttingProxy]
) -> None:
    name = f"{run_name}/large:1"
    image_id = import_image(engine, name, payload=8 * 2**20)
    push(engine, name, registry.reference(name))
    forget(engine, name)
    proxy = cutting(cuts=1, after=4 * 2**20)
    reference = f"{proxy.address}/{name}"

    result = ensure(reference=reference)
    forget(engine, reference)

    assert not result["failed"], result
    assert proxy.cut == 1
    assert result["image_id"] == image_id
    assert result["transfer"]["layers"] == 1
    assert result["transfer"]["bytes"] >= 2**20  # the engine reports now and then, so not every byte is seen


@pytest.mark.parametrize("after", [0, 2 * 2**20], ids=["from the start", "within a layer"])
def test_registry_that_falls_silent(
    engine: DockerClient,
    registry: Registry,
    run_name: str,
    ensure: Ensure,
    cutting: Callable[..., CuttingProxy],
    after: int,
) -> None:
    name = f"{run_name}/silent:1"
    import_image(engine, name, payload=4 * 2**20)
    push(engine, name, registry.reference(name))
    forget(engine, name)
    reference = f"{cutting(cuts=100, after=after, silent=True).address}/{name}"

    started = time.monotonic()
    result = ensure(reference=reference, tag=f"{name}-deploy", stall_timeout=2)

    assert result["error"]["name"] == "pull-stalled"
    assert "vllm_stall_timeout" in result["msg"]
    assert time.monotonic() - started < 10
    assert id_of(engine, reference) == id_of(engine, f"{name}-deploy") == ""


class RefusingRegistry(http.server.ThreadingHTTPServer):
    """Answers every request for a manifest with one status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(("127.0.0.1", 0), _RefusingHandler)
        self.status = status
        self.body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.manifests_asked = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server_address[1]}"


class _RefusingHandler(http.server.BaseHTTPRequestHandler):
    server: RefusingRegistry

    def handle(self) -> None:
        """Tell an engine that tries TLS first that this is HTTP, as a web server does."""
        if self.connection.recv(1, socket.MSG_PEEK) == b"\x16":
            self.connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        else:
            super().handle()

    def do_GET(self) -> None:
        """Answer the engine."""
        is_manifest = "/manifests/" in self.path
        self.server.manifests_asked += is_manifest
        body = self.server.body if is_manifest else b"{}"
        self.send_response(self.server.status if is_manifest else 200)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "code", "message", "name", "attempts"),
    [
        (429, "TOOMANYREQUESTS", "You have reached your pull rate limit.", "rate-limited", 3),
        (503, "UNAVAILABLE", "overloaded", "registry-unreachable", 3),
        (500, "UNKNOWN", "unknown error", "registry-unreachable", 3),
        (401, "UNAUTHORIZED", "authentication required", "registry-unauthorized", 1),
        (403, "DENIED", "requested access to the resource is denied", "registry-unauthorized", 1),
        (404, "MANIFEST_UNKNOWN", "manifest unknown", "image-not-found", 1),
    ],
)
def test_refusals_by_name(
    ensure: Ensure, run_name: str, status: int, code: str, message: str, name: str, attempts: int
) -> None:
    server = RefusingRegistry(status, code, message)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        result = ensure(reference=f"{server.address}/{run_name}/image:1", retries=2)
    finally:
        server.shutdown()
        server.server_close()

    assert result["error"]["name"] == name, result
    assert result["error"]["details"]["attempts"] == attempts
    assert server.manifests_asked >= attempts


def test_engine_that_is_not_running(ensure: Ensure, tmp_path: Path) -> None:
    result = ensure(reference="vllm/vllm-openai:v0.12.0", docker_host=f"unix://{tmp_path}/none.sock")

    assert result["error"]["name"] == "engine-not-running"
    assert "vllm_docker_host" in result["msg"]
