# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vllm_image decides: names, causes of failure, progress, archives, and when to try again."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError, ImageNotFound

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.images import local
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.archive import read_archive
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.ensure import ensure_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.pull import UNREACHABLE_BACKOFF, LayerProgress
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.pull_failures import classify_pull_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import (
    ImageWish,
    normalize_platform,
    parse_reference,
)

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        (" Linux/ARM64 ", "linux/arm64"),
        ("aarch64", "linux/arm64"),
    ],
)
def test_platforms_are_normalized(given: str, wanted: str) -> None:
    assert normalize_platform(given) == wanted


@pytest.mark.parametrize("given", ["windows/amd64", "linux/ppc64le", "linux/", "", "linux"])
def test_other_platforms_are_refused(given: str) -> None:
    with pytest.raises(GpufleetError, match="vllm_platform") as caught:
        normalize_platform(given)
    assert caught.value.name == "platform-invalid"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vllm/vllm-openai:v0.12.0", ("vllm/vllm-openai", "v0.12.0", "")),
        ("vllm", ("vllm", "latest", "")),
        ("localhost:5000/a/b_c/d-e", ("localhost:5000/a/b_c/d-e", "latest", "")),
        (f"r.example.com/x@{DIGEST}", ("r.example.com/x", "", DIGEST)),
        (f"x/y:1@{DIGEST}", ("x/y", "1", DIGEST)),
    ],
)
def test_references_are_split(text: str, parts: tuple[str, str, str]) -> None:
    reference = parse_reference(text)
    assert (reference.repository, reference.tag, reference.digest) == parts


@pytest.mark.parametrize("text", ["", "Upper/Case:1", "a//b", "a:b:c", "a@sha256:12", "-a", "a b", "a:" + "x" * 129])
def test_bad_references_name_the_variable(text: str) -> None:
    with pytest.raises(GpufleetError, match="vllm_image:") as caught:
        parse_reference(text)
    assert caught.value.name == "reference-invalid"


# As Docker 20.10 to 29 and containerd word them.
@pytest.mark.parametrize(
    ("text", "name", "transient"),
    [
        ("manifest for x:nope not found: manifest unknown: manifest unknown", "image-not-found", False),
        ('failed to resolve reference "docker.io/x/y:1": docker.io/x/y:1: not found', "image-not-found", False),
        ("name unknown: repository name not known to registry", "image-not-found", False),
        (
            "pull access denied for x, repository does not exist or may require 'docker login': denied: requested"
            " access to the resource is denied",
            "registry-unauthorized",
            False,
        ),
        ('Head "https://r/v2/x/manifests/1": no basic auth credentials', "registry-unauthorized", False),
        ("failed to authorize: unexpected status from GET request: 401 Unauthorized", "registry-unauthorized", False),
        (
            "pull access denied, repository does not exist or may require authorization: server message:"
            " insufficient_scope: authorization failed",
            "registry-unauthorized",
            False,
        ),
        (
            "no matching manifest for linux/arm64/v8 in the manifest list entries",
            "platform-missing",
            False,
        ),
        (
            "image with reference x was found but does not match the specified platform: wanted linux/arm64,"
            " actual: linux/amd64",
            "platform-missing",
            False,
        ),
        ("no match for platform in manifest: not found", "platform-missing", False),
        (
            "failed to register layer: Error processing tar file(exit status 1): write /a: no space left on device",
            "disk-full",
            False,
        ),
        (
            "toomanyrequests: You have reached your unauthenticated pull rate limit. https://www.docker.com/x",
            "rate-limited",
            True,
        ),
        ("unexpected status code 429 Too Many Requests", "rate-limited", True),
        ('Get "https://r/v2/": dial tcp: lookup r on 10.0.0.1:53: no such host', "registry-unreachable", True),
        ("dial tcp: lookup r: Temporary failure in name resolution", "registry-unreachable", True),
        (
            'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
            "registry-unreachable",
            True,
        ),
        ('Get "https://r/v2/": net/http: TLS handshake timeout', "registry-unreachable", True),
        ('Get "https://r/v2/": context deadline exceeded', "registry-unreachable", True),
        ("read tcp 10.0.0.2:1->10.0.0.3:443: read: connection reset by peer", "registry-unreachable", True),
        ("unexpected EOF", "registry-unreachable", True),
        ("received unexpected HTTP status: 503 Service Unavailable", "registry-unreachable", True),
        ("error parsing HTTP 502 response body: bad gateway", "registry-unreachable", True),
        ("x509: certificate signed by unknown authority", "registry-untrusted", False),
        ("http: server gave HTTP response to HTTPS client", "registry-untrusted", False),
        ("tls: first record does not look like a TLS handshake", "registry-untrusted", False),
        ("filesystem layer verification failed for digest sha256:12", "digest-mismatch", True),
    ],
)
def test_wordings_of_the_engine_have_a_name(text: str, name: str, transient: bool) -> None:
    cause = classify_pull_error(text)
    assert cause
    assert (cause.name, cause.transient) == (name, transient)


def test_unknown_wording_has_no_cause() -> None:
    assert classify_pull_error("the moon is full") is None


# Progress of a pull


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    """Return an event as the engine sends it."""
    detail = {"current": current, "total": total} if total else {}
    return {"id": name, "status": status, "progressDetail": detail}


def test_progress_sums_up_the_layers() -> None:
    gib = 2**30
    clock = Clock()
    progress = LayerProgress(clock)
    assert progress.text() == "asking the registry"

    progress.update({"id": "v0.12.0", "status": "Pulling from vllm/vllm-openai"})
    for name in "abcd":
        progress.update(layer(name, "Pulling fs layer"))
    progress.update(layer("a", "Already exists"))
    progress.update(layer("b", "Downloading", 0, 4 * gib))
    assert progress.text() == "1/4 layers, 0.0/4.0+ GiB"

    clock.now = 10
    progress.update(layer("b", "Downloading", 2 * gib, 4 * gib))
    progress.update(layer("c", "Downloading", gib, 2 * gib))
    progress.update(layer("d", "Downloading", 0, gib))
    assert progress.text() == "1/4 layers, 3.0/7.0 GiB, 307 MiB/s"

    for name in "bcd":
        progress.update(layer(name, "Download complete"))
    progress.update(layer("b", "Extracting", 1, 100))
    progress.update(layer("b", "Pull complete"))
    assert progress.text() == "unpacking, 2/4 layers"
    assert progress.layers == 4
    assert progress.bytes == 7 * gib


def test_progress_of_a_layer_that_is_resumed_goes_on() -> None:
    progress = LayerProgress(Clock())
    progress.update(layer("a", "Downloading", 600, 1000))
    progress.update(layer("a", "Retrying in 5 seconds"))
    assert "retrying in 5 seconds" in progress.text()
    progress.update(layer("a", "Downloading", 100, 400))
    assert progress.bytes == 700
    assert "retrying" not in progress.text()


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 MiB"), (50 * 2**20, "50.0 MiB"), (2**30, "1.0 GiB")])
def test_bytes_are_readable(count: int, text: str) -> None:
    assert format_bytes(count) == text


# Archives


def write_archive(path: Path, members: dict[str, Any]) -> None:
    """Write a tar whose members hold text or JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


CONFIG = {"created": "2025-12-03T00:00:00Z", "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]}}
CONFIG_HEX = hashlib.sha256(json.dumps(CONFIG).encode()).hexdigest()


@pytest.mark.parametrize("config_name", [f"{CONFIG_HEX}.json", f"blobs/sha256/{CONFIG_HEX}"])
def test_archives_of_old_and_new_engines_are_read(tmp_path: Path, config_name: str) -> None:
    path = tmp_path / "image.tar"
    manifest = [{"Config": config_name, "RepoTags": ["vllm:1"], "Layers": ["a/layer.tar"]}]
    write_archive(path, {config_name: CONFIG, "a/layer.tar": "layer", "manifest.json": manifest})

    archive = read_archive(str(path))

    assert archive
    assert [(image.config, image.names) for image in archive.images] == [(f"sha256:{CONFIG_HEX}", ["vllm:1"])]
    assert archive.holds({"Id": f"sha256:{CONFIG_HEX}"})
    # An engine with the containerd image store gives another id to the same image.
    assert archive.holds({"Id": OTHER, "Created": CONFIG["created"], "RootFS": {"Layers": ["sha256:1"]}})
    assert not archive.holds({"Id": OTHER, "Created": CONFIG["created"], "RootFS": {"Layers": ["sha256:2"]}})


@pytest.mark.parametrize("with_index", [False, True])
def test_an_archive_tells_the_ids_that_both_kinds_of_engines_give(tmp_path: Path, with_index: bool) -> None:
    path, config = tmp_path / "image.tar", f"blobs/sha256/{CONFIG_HEX}"
    members: dict[str, Any] = {
        config: CONFIG,
        "blobs/sha256/11": "layer",
        "blobs/sha256/22": {"config": {"digest": f"sha256:{CONFIG_HEX}"}, "layers": [{"digest": "sha256:11"}]},
        # One manifest of an index is here, the one of another platform is not.
        "blobs/sha256/33": {"manifests": [{"digest": "sha256:22"}, {"digest": "sha256:44"}]},
        "index.json": {"manifests": [{"digest": "sha256:33" if with_index else "sha256:22"}]},
        "manifest.json": [{"Config": config, "RepoTags": ["vllm:1"], "Layers": ["blobs/sha256/11"]}],
    }
    write_archive(path, members)

    archive = read_archive(str(path))

    assert archive
    top = "sha256:33" if with_index else "sha256:22"
    assert [(image.config, image.manifest) for image in archive.images] == [(f"sha256:{CONFIG_HEX}", top)]
    assert archive.holds({"Id": top})
    assert archive.digests_of({"Id": top}) == archive.digests_of({"Id": f"sha256:{CONFIG_HEX}"})
    assert archive.digests_of({"Id": top}) == {top, f"sha256:{CONFIG_HEX}"}
    assert archive.digests_of({"Id": OTHER}) == set()


@pytest.mark.parametrize(
    ("members", "evidence"),
    [
        ({"manifest.json": []}, "names no image"),
        ({"other": "text"}, "manifest.json"),
        ({"manifest.json": "no json"}, "Expecting value"),
        ({"manifest.json": [{"Config": "c.json", "Layers": ["gone"]}], "c.json": CONFIG}, "1 members"),
        ({"manifest.json": [{"Config": "c.json", "Layers": []}], "c.json": {}}, "rootfs"),
    ],
)
def test_incomplete_archives_are_refused(tmp_path: Path, members: dict[str, Any], evidence: str) -> None:
    path = tmp_path / "image.tar"
    write_archive(path, members)
    with pytest.raises(GpufleetError) as caught:
        read_archive(str(path))
    assert caught.value.name == "archive-invalid"
    assert evidence in caught.value.evidence


def test_compressed_archive_is_left_to_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "image.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd and more")
    assert read_archive(str(path)) is None


def test_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(GpufleetError, match="vllm_image_archive") as caught:
        read_archive(str(tmp_path))
    assert caught.value.name == "archive-missing"


@pytest.mark.parametrize(
    ("config", "reference", "version"),
    [
        ({"Labels": {"io.gpufleet.vllm-version": "0.32.0"}}, "x:v0.12.0", "0.32.0"),
        ({"Env": ["PATH=/bin", "VLLM_VERSION=v0.12.1"]}, "x:deploy", "0.12.1"),
        # vllm/vllm-openai has the version of its Ubuntu there.
        ({"Labels": {"org.opencontainers.image.version": "22.04"}}, "vllm/vllm-openai:v0.12.0", "0.12.0"),
        ({}, "x:v0.12.0-cu130", "0.12.0"),
        ({}, "x:0.13.0rc1", "0.13.0rc1"),
        ({}, "x:nightly", ""),
        ({}, "x:12", ""),
    ],
)
def test_version_of_vllm_is_guessed(config: dict[str, Any], reference: str, version: str) -> None:
    assert local.guess_vllm_version({"Config": config}, reference) == version


# Deciding and trying again, on an engine that only exists here


def api_error(text: str) -> APIError:
    """Return the SDK's exception for an answer 500 of the engine."""
    return APIError("500 Server Error", explanation=text)


class Engine:
    """As much of the SDK's client as a pull needs; C(attempts) says how each attempt ends.

    An attempt is a text (the engine's refusal), a list of events, or an image id: success.
    """

    def __init__(self, images: dict[str, str], attempts: list[Any], architecture: str = "amd64") -> None:
        self.images = images
        self.attempts = attempts
        self.architecture = architecture
        self.pulled: list[str] = []
        self.api = SimpleNamespace(
            inspect_image=self.inspect, pull=self.pull, tag=self.tag, remove_image=self.images.pop
        )

    def inspect(self, name: str) -> dict[str, Any]:
        if name in self.images:
            return {"Id": self.images[name], "Os": "linux", "Architecture": self.architecture, "RepoDigests": []}
        raise ImageNotFound(name)

    def tag(self, image_id: str, repository: str, tag: str) -> None:
        self.images[f"{repository}:{tag}"] = image_id

    def pull(self, repository: str, tag: str, **_options: Any) -> Iterator[dict[str, Any]]:
        self.pulled.append(f"{repository}:{tag}")
        outcome = self.attempts.pop(0)
        if isinstance(outcome, list):
            return iter(outcome)
        if not outcome.startswith("sha256:"):
            raise api_error(outcome)
        self.images[f"{repository}:{tag}"] = outcome
        return iter([layer("a", "Downloading", 5, 10), layer("a", "Pull complete")])


def ensure(engine: Engine, **options: Any) -> tuple[dict[str, Any], list[float]]:
    """Run ensure_image for x:1 and return its result and the pauses it made."""
    pauses: list[float] = []
    result = ensure_image(engine, ImageWish("x:1", **options), sleep=pauses.append)  # type: ignore[arg-type]
    return result, pauses


def test_transient_failures_are_tried_again_with_growing_pauses() -> None:
    engine = Engine({}, ["unexpected EOF", [{"error": "503 Service Unavailable"}], "TLS handshake timeout", DIGEST])
    result, pauses = ensure(engine, tag="x:deploy", backoff=5)

    assert pauses == [5, 10, 20]
    assert result["transfer"]["attempts"] == 4
    assert result["transfer"]["bytes"] == 10
    assert engine.images == {"x:1": DIGEST, "x:deploy": DIGEST}


def test_closed_port_is_tried_once_more_and_soon() -> None:
    engine = Engine({}, ["connection refused"] * 9)
    pauses: list[float] = []
    with pytest.raises(GpufleetError) as caught:
        ensure_image(engine, ImageWish("x:1", retries=8), sleep=pauses.append)  # type: ignore[arg-type]

    assert caught.value.name == "registry-unreachable"
    assert pauses == [UNREACHABLE_BACKOFF]


@pytest.mark.parametrize(
    "text", ["manifest unknown", "unauthorized", "no space left on device", "no matching manifest for x", "odd"]
)
def test_permanent_failures_are_not_tried_again(text: str) -> None:
    engine = Engine({}, [text, DIGEST])
    with pytest.raises(GpufleetError) as caught:
        ensure(engine)
    assert len(engine.pulled) == 1
    assert text in caught.value.evidence


def test_no_retries_means_one_attempt() -> None:
    engine = Engine({}, ["unexpected EOF", DIGEST])
    with pytest.raises(GpufleetError):
        ensure(engine, retries=0)
    assert len(engine.pulled) == 1


def test_image_that_is_there_is_not_pulled() -> None:
    engine = Engine({"x:1": DIGEST}, [])
    result, _pauses = ensure(engine)
    assert not result["changed"]
    assert result["diff"]["before"] == result["diff"]["after"]


def test_wrong_architecture_puts_the_names_back() -> None:
    engine = Engine({"x:1": OTHER}, [DIGEST], architecture="arm64")
    with pytest.raises(GpufleetError) as caught:
        ensure(engine)
    assert caught.value.name == "platform-missing"
    assert engine.images == {"x:1": OTHER}


def test_pull_that_stands_still_is_given_up() -> None:
    release = threading.Event()

    def silent(*_args: Any, **_options: Any) -> Iterator[dict[str, Any]]:
        release.wait()
        return iter(())

    engine = Engine({}, [])
    engine.api.pull = silent
    try:
        with pytest.raises(GpufleetError, match="stands still") as caught:
            ensure(engine, stall_timeout=0.05)
    finally:
        release.set()
    assert caught.value.name == "pull-stalled"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"digest": "sha256:12"}, "vllm_image_digest"),
        ({"digest": "latest"}, "vllm_image_digest"),
        ({"tag": "No:1"}, "tag"),
    ],
)
def test_bad_options_are_named(options: dict[str, str], text: str) -> None:
    with pytest.raises(GpufleetError, match=text):
        ensure(Engine({}, []), **options)


def test_two_different_pins_contradict_each_other() -> None:
    with pytest.raises(GpufleetError, match="vllm_image_digest") as caught:
        ensure_image(Engine({}, []), ImageWish(f"x:1@{DIGEST}", digest=OTHER))  # type: ignore[arg-type]
    assert caught.value.name == "digest-invalid"


def test_a_pull_that_tells_the_same_state_again_and_again_stands_still() -> None:
    ended = threading.Event()

    def standing() -> Iterator[dict[str, Any]]:
        yield layer("a", "Downloading", 5, 10)
        yield layer("b", "Downloading", 1, 10)
        while not ended.wait(0.01):
            yield layer("a", "Downloading", 5, 10)
            yield layer("b", "Downloading", 1, 10)

    engine = Engine({}, [])
    engine.api.pull = lambda *_words, **_options: standing()
    with pytest.raises(GpufleetError) as caught:
        ensure(engine, retries=0, stall_timeout=0.2)
    ended.set()
    assert caught.value.name == "pull-stalled"
    assert "0/2 layers" in caught.value.evidence


@pytest.mark.parametrize(
    ("reason", "name"),
    [("content digest sha256:1: not found", "archive-invalid"), ("no space left on device", "disk-full")],
)
def test_an_archive_that_cannot_be_unpacked_is_refused_though_it_counts_as_loaded(
    tmp_path: Path, reason: str, name: str
) -> None:
    path, engine = tmp_path / "image.tar.gz", Engine({}, [])
    path.write_bytes(b"\x1f\x8b and more")

    def load(data: Iterator[bytes]) -> Iterator[dict[str, Any]]:
        assert b"".join(data)
        engine.images["x:1"] = DIGEST
        yield {"stream": "Loaded image: x:1\n"}
        yield {"stream": f"Error unpacking image x:1: apply layer error: {reason}\n"}

    engine.api.load_image, engine.api.timeout = load, 60
    with pytest.raises(GpufleetError) as caught:
        ensure(engine, source="archive", archive=str(path))
    assert caught.value.name == name
    assert reason in caught.value.evidence
    assert engine.images == {}
