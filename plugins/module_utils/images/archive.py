# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of docker save: what one holds, and loading its image into the Docker engine."""

from __future__ import annotations

import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB, format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import event_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import inspect_image, tag_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.pull_failures import PullFailure, classify_pull_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import ImageWish, Reference

if TYPE_CHECKING:
    from docker import DockerClient


# What an archive may take from the engine's first byte to its last: tens of GiB from a slow disk.
LOAD_TIMEOUT = 7200
# gzip, bzip2, xz, zstd
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class ArchivedImage:
    """One image of an archive.

    Attributes:
        config: the digest of its configuration, its id in engines without the containerd image store.
        manifest: the digest of its manifest or index, its id in engines with that store; empty where the archive does
            not tell, as those of Docker before 25 do not.
        names: its names.
        created: when it was made, as C(docker inspect) tells it.
        layers: of what it was made, as C(docker inspect) tells it.
    """

    config: str
    manifest: str
    names: list[str]
    created: str
    layers: list[str]

    def is_image(self, image: dict[str, Any]) -> bool:
        """Say whether this is an engine's image; where its id tells nothing, time and layers do."""
        layers = (image.get("RootFS") or {}).get("Layers")
        by_content = self.created == image.get("Created") and self.layers == layers
        return by_content or image["Id"] in (self.config, self.manifest)


@dataclass(frozen=True)
class Archive:
    """What an archive of C(docker save) holds."""

    images: list[ArchivedImage]

    def holds(self, image: dict[str, Any]) -> bool:
        """Say whether the engine's image is one of the archive's."""
        return any(archived.is_image(image) for archived in self.images)

    def digests_of(self, image: dict[str, Any]) -> set[str]:
        """Return the ids that engines of both kinds give to the engine's image, if it is one of the archive's."""
        found = [archived for archived in self.images if archived.is_image(image)]
        return {digest for archived in found for digest in (archived.config, archived.manifest) if digest}


def read_archive(path: str) -> Archive | None:
    """Return what the archive at C(path) holds, or None for a compressed one, which only the engine reads.

    The layers are passed over, not read, so this takes well under a second for tens of GiB.

    Raises:
        GpufleetError: C(archive-missing) when there is no such file, C(archive-invalid) when it is no complete
            archive of C(docker save).
    """
    if not os.path.isfile(path):
        raise GpufleetError(
            f"vllm_image_archive: there is no file {path} on the host.",
            name="archive-missing",
            remedy="Copy the archive that docker save wrote to that path on the host, or correct vllm_image_archive.",
            details={"archive": path},
        )
    images: dict[str, ArchivedImage] = {}
    try:
        with open(path, "rb") as stream:
            if stream.read(6).startswith(COMPRESSED):
                return None
        with tarfile.open(path, "r:") as tar:
            names = set(tar.getnames())
            manifests = _manifests(tar, names)
            for entry in _json_member(tar, "manifest.json"):
                missing = {entry["Config"], *entry["Layers"]} - names
                if missing:
                    raise invalid_archive(path, f"{len(missing)} members named by its manifest are missing")
                config, digest = _json_member(tar, entry["Config"]), _config_digest(entry["Config"])
                images[digest] = ArchivedImage(
                    digest,
                    manifests.get(digest, ""),
                    list(entry.get("RepoTags") or []),
                    config.get("created", ""),
                    config["rootfs"]["diff_ids"],
                )
    except (tarfile.TarError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
        raise invalid_archive(path, str(error)) from error
    if not images:
        raise invalid_archive(path, "its manifest names no image")
    return Archive(list(images.values()))


def _json_member(tar: tarfile.TarFile, name: str) -> Any:
    """Return the JSON document C(name) of an archive."""
    member = tar.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is no file")
    return json.load(member)


def _manifests(tar: tarfile.TarFile, names: set[str]) -> dict[str, str]:
    """Return the digests of an archive's manifests, or of the indexes above them, by those of configurations."""
    entries = _json_member(tar, "index.json")["manifests"] if "index.json" in names else []
    return {config: entry["digest"] for entry in reversed(entries) for config in _configs(tar, names, entry["digest"])}


def _configs(tar: tarfile.TarFile, names: set[str], digest: str) -> list[str]:
    """Return the digests of the configurations that a manifest or an index leads to."""
    member = "blobs/" + digest.replace(":", "/")
    document = _json_member(tar, member) if member in names else {}
    below = [config for entry in document.get("manifests") or [] for config in _configs(tar, names, entry["digest"])]
    return [*below, *([document["config"]["digest"]] if "config" in document else [])]


def _config_digest(name: str) -> str:
    """Return the image id from the name of its configuration in the archive.

    Docker before 25 writes C(<hex>.json), later ones C(blobs/sha256/<hex>).
    """
    return "sha256:" + os.path.basename(name).replace(".json", "")


def invalid_archive(path: str, evidence: str) -> GpufleetError:
    """Return the error for an archive that cannot be loaded."""
    return GpufleetError(
        f"vllm_image_archive: {path} is no complete image archive.",
        name="archive-invalid",
        remedy="Make it with docker save -o <file> <image> (docker export is something else), copy it in binary mode,"
        " and compare sha256sum at both ends.",
        evidence=evidence,
        details={"archive": path},
    )


def load_image(
    engine: DockerClient,
    wish: ImageWish,
    reference: Reference,
    archive: Archive | None,
    progress: Progress,
    transfer: dict[str, Any],
) -> dict[str, Any]:
    """Load the archive and return its image, which has its reference as name."""
    started = time.monotonic()
    if archive:
        _one_of_archive(archive, wish, reference)
    size = os.path.getsize(wish.archive)
    loaded: list[str] = []
    try:
        with open(wish.archive, "rb") as stream:
            for event in _load_events(engine, _watched(stream, size, progress)):
                said = str(event.get("stream", ""))
                # With the containerd image store an engine reports a damaged layer in passing, and keeps the image.
                problem = event_error(event) or (said if said.startswith("Error unpacking image") else "")
                if problem:
                    raise _load_failure(wish, problem)
                match = re.match(r"Loaded image(?: ID)?: (\S+)", said)
                if match:
                    loaded.append(match[1])
    except OSError as error:
        raise invalid_archive(wish.archive, str(error)) from error
    transfer.update(bytes=size, seconds=round(time.monotonic() - started, 1), attempts=1)
    return _name_loaded(engine, wish, reference, archive, loaded)


def _one_of_archive(archive: Archive, wish: ImageWish, reference: Reference) -> ArchivedImage:
    """Return the archive's image that the wish means.

    Raises:
        GpufleetError: C(archive-invalid) when none or several of its images could be meant,
            C(digest-mismatch) when it is not the pinned one.
    """
    named = [image for image in archive.images if reference.local_name in image.names]
    candidates = named or archive.images
    if len(candidates) != 1:
        raise invalid_archive(
            wish.archive,
            f"it holds {len(archive.images)} images and none is named {reference.local_name}: "
            + ", ".join(name for image in archive.images for name in image.names),
        )
    return candidates[0]


def _watched(stream: Any, size: int, progress: Progress) -> Iterator[bytes]:
    """Yield the archive in pieces, telling how far it is."""
    done = 0
    shown = 0.0
    while True:
        piece = stream.read(4 * MIB)
        if not piece:
            progress.phase("loading image", f"{format_bytes(size)} handed over, the engine unpacks")
            return
        yield piece
        done += len(piece)
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            progress.phase("loading image", f"{format_bytes(done)} of {format_bytes(size)}")


def _load_events(engine: DockerClient, data: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the engine's events while it loads an image."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    api: Any = engine.api
    usual = api.timeout
    # The engine answers only after the whole archive has arrived.
    api.timeout = LOAD_TIMEOUT
    try:
        yield from api.load_image(data)
    except (DockerException, RequestException) as error:
        yield {"error": str(getattr(error, "explanation", None) or error)}
    finally:
        api.timeout = usual


def _load_failure(wish: ImageWish, text: str) -> GpufleetError:
    cause = classify_pull_error(text)
    if cause and cause.name == "disk-full":
        return PullFailure(cause, text, wish)
    return invalid_archive(wish.archive, text)


def _name_loaded(
    engine: DockerClient, wish: ImageWish, reference: Reference, archive: Archive | None, loaded: list[str]
) -> dict[str, Any]:
    """Return the image just loaded, after giving it its reference as name if the archive did not."""
    image = inspect_image(engine, reference.local_name) if reference.local_name in loaded else None
    if image is None:
        known = _one_of_archive(archive, wish, reference) if archive else None
        names = [known.config, known.manifest, *loaded] if known else loaded
        if not known and len(names) != 1:
            held = ", ".join(loaded) or "no image"
            raise invalid_archive(wish.archive, f"it holds {held}, not {reference.local_name}")
        found = [inspect_image(engine, name) for name in names if name]
        image = next((one for one in found if one and (known is None or known.is_image(one))), None)
        if image is None:
            raise invalid_archive(wish.archive, f"the engine has no {names[0]} after loading")
        tag_image(engine, image["Id"], reference.local_name)
    return image
