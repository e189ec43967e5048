# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Having one image on a host: pulled, loaded from an archive or already present, checked and tagged."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import tarfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors

if TYPE_CHECKING:
    from docker import DockerClient

HTTP_CONFLICT = 409

# What an archive may take from the engine's first byte to its last: tens of GiB from a slow disk.
LOAD_TIMEOUT = 7200
# A name that does not resolve or a closed port seldom mends itself: one more try, soon, then the error.
UNREACHABLE_RETRIES = 1
UNREACHABLE_BACKOFF = 2.0

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

REFERENCE = re.compile(
    r"(?P<repository>(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:(?:[./]|_{1,2}|-+)[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
# gzip, bzip2, xz, zstd
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
VERSION_TAG = re.compile(r"v?(\d+\.\d+(?:\.\d+)?(?:\.?(?:rc|post|dev)\d+)?)(?:[-_+].*)?")
VERSION_LABELS = ("io.gpufleet.vllm-version", "io.gpufleet.vllm.version", "ai.vllm.version")
VERSION_VARIABLES = ("VLLM_VERSION",)


@dataclass(frozen=True)
class Reference:
    """An image's name in its parts, such as C(vllm/vllm-openai), C(v0.12.0) and a digest or C("")."""

    repository: str
    tag: str
    digest: str

    @property
    def local_name(self) -> str:
        """The name under which the engine keeps the image."""
        return f"{self.repository}:{self.tag}" if self.tag else self.pinned_name

    @property
    def pinned_name(self) -> str:
        """The name that pulls exactly this digest."""
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True)
class ImageWish:
    """What image a host should have.

    Attributes:
        reference: the image's name, such as C(vllm/vllm-openai:v0.12.0).
        tag: further name that it shall have on the host, such as C(vllm/vllm-openai:deploy), or C("").
        platform: C(linux/amd64) or C(linux/arm64), as normalize_platform gives it.
        source: C(pull), C(archive) or C(present).
        archive: path of the archive on the host, where source is C(archive).
        digest: C(sha256:…) that the image must have, or C("").
        retries: further attempts at a pull after the first, where the cause may pass.
        backoff: seconds before the first of them, doubled before each next.
        force: pull or load even though the image is there.
        stall_timeout: seconds without a sign of a pull's progress after which it is given up.
        timeout: seconds for a whole pull, further attempts included; 0 for no deadline.
    """

    reference: str
    tag: str = ""
    platform: str = "linux/amd64"
    source: str = "pull"
    archive: str = ""
    digest: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    retries: int = 3
    backoff: float = 5.0
    force: bool = False
    stall_timeout: float = 900.0
    timeout: float = 0.0


@dataclass(frozen=True)
class Cause:
    """A family of failures of a pull: how the engine words it, what it is called and whether it may pass."""

    pattern: re.Pattern[str]
    name: str
    message: str
    remedy: str
    transient: bool = False
    brief: bool = False


def _cause(
    pattern: str, name: str, message: str, remedy: str, *, transient: bool = False, brief: bool = False
) -> Cause:
    return Cause(re.compile(pattern, re.IGNORECASE), name, message, remedy, transient, brief)


# In order: the first that matches names the failure. Wordings of Docker 20.10 to 29 and of containerd.
CAUSES = (
    _cause(
        r"no space left on device|disk quota exceeded",
        "disk-full",
        "The disk of the Docker engine is full: {reference} does not fit.",
        "Free space under the engine's data root (docker info shows it; docker image prune removes unused images),"
        " or move the data root to a larger disk.",
    ),
    _cause(
        r"toomanyrequests|\b429\b|rate limit",
        "rate-limited",
        "The registry limits how often this host may pull, and refused {reference}.",
        "Wait, log in for a higher limit (docker login on the host, as the user that Ansible becomes), or load the"
        " image from an archive (vllm_image_source: archive).",
        transient=True,
    ),
    _cause(
        r"no such host|server misbehaving|name resolution|connection refused|network is unreachable|no route to host",
        "registry-unreachable",
        "The registry of {reference} cannot be reached from this host.",
        "Check the registry's name in vllm_image, the host's DNS and its way out (a proxy is set for the engine, not"
        " for the shell); without a way out, use vllm_image_source: archive.",
        transient=True,
        brief=True,
    ),
    _cause(
        r"x509|certificate|server gave HTTP response to HTTPS client",
        "registry-untrusted",
        "The engine does not trust the registry of {reference}.",
        "Put the registry's CA certificate under /etc/docker/certs.d/<registry>/ca.crt, or, for a registry without"
        " TLS, name it in insecure-registries of /etc/docker/daemon.json.",
    ),
    _cause(
        r"no matching manifest|no match for platform|does not (?:match|provide) the specified platform",
        "platform-missing",
        "{reference} has no image for {platform}.",
        "Choose an image that is built for this host's processors (vllm_image, vllm_image_tag), or correct"
        " vllm_platform.",
    ),
    _cause(
        r"unauthorized|authentication required|no basic auth credentials|incorrect username or password|denied"
        r"|authorization failed|insufficient_scope|\b40[13]\b",
        "registry-unauthorized",
        "The registry does not let this host pull {reference}: it wants credentials, refuses those it got, or has"
        " no such repository.",
        "Check the name in vllm_image, and log in: docker login on the host, as the user that Ansible becomes (or"
        " registry_username and registry_password of the module).",
    ),
    _cause(
        r"manifest unknown|name unknown|repository name not known|not found|\b404\b",
        "image-not-found",
        "The registry has no image {reference}.",
        "Check the spelling of vllm_image and vllm_image_tag; docker pull {reference} on the host shows the same.",
    ),
    _cause(
        r"verification failed|unexpected commit digest|failed precondition",
        "digest-mismatch",
        "What the registry sent for {reference} is not what its digest says: the download was altered on its way.",
        "Try again; if it persists, look at the proxy between this host and the registry.",
        transient=True,
    ),
    _cause(
        r"time-?out|timed out|deadline exceeded|reset by peer|broken pipe|\bEOF\b|connection (?:closed|lost|aborted)|"
        r"\b5\d\d\b|bad gateway|service unavailable|internal server error|too many open",
        "registry-unreachable",
        "The registry of {reference} fails or breaks the connection.",
        "Try again later (layers that are complete are kept, so a new pull goes on where this one ended), raise"
        " vllm_image_retries, or use vllm_image_source: archive.",
        transient=True,
    ),
)
STALLED = _cause(
    r"(?!)",  # the engine says nothing at all
    "pull-stalled",
    "The pull of {reference} stands still.",
    "Look at the network between this host and the registry, and run again: layers that are complete are kept. If the"
    " connection is only slow, raise vllm_stall_timeout.",
)


class PullFailure(GpufleetError):
    """A GpufleetError of one attempt at a pull, with what decides on a further one."""

    def __init__(self, cause: Cause | None, text: str, wish: ImageWish) -> None:
        values = {"reference": wish.reference, "platform": wish.platform}
        if cause:
            message, name = cause.message.format(**values), cause.name
            remedy = cause.remedy.format(**values)
        else:
            message, name = f"The Docker engine failed pulling {wish.reference}.", "pull-failed"
            remedy = f"docker pull --platform {wish.platform} {wish.reference} on the host shows the same."
        super().__init__(message, name=name, remedy=remedy, evidence=text, details={"reference": wish.reference})
        self.transient = bool(cause and cause.transient)
        self.brief = bool(cause and cause.brief)


def normalize_platform(platform: str) -> str:
    """Return C(linux/amd64) or C(linux/arm64) for what people write, such as the recipe's C(linux/aarch64).

    Raises:
        GpufleetError: C(platform-invalid) for anything else.
    """
    system, separator, architecture = platform.strip().lower().partition("/")
    architecture = architecture.split("/", 1)[0] if separator else system
    system = system if separator else "linux"
    architecture = ARCHITECTURES.get(architecture, architecture)
    if system != "linux" or architecture not in ARCHITECTURES.values():
        raise GpufleetError(
            f"vllm_platform is {platform!r}, which is no platform that vLLM images exist for.",
            name="platform-invalid",
            remedy="Set vllm_platform to linux/amd64 or linux/arm64 (linux/aarch64 is taken as the latter).",
        )
    return f"linux/{architecture}"


def parse_reference(text: str, variable: str = "vllm_image") -> Reference:
    """Split an image's name; without tag and digest the tag is C(latest).

    Raises:
        GpufleetError: C(reference-invalid) when the engine would not take the name, naming C(variable).
    """
    match = REFERENCE.fullmatch(text)
    if not match:
        raise GpufleetError(
            f"{variable}: {text!r} is no image reference.",
            name="reference-invalid",
            remedy="Write [registry[:port]/]repository[:tag][@sha256:<64 hex digits>], the repository in lower case.",
        )
    tag, digest = match["tag"] or "", match["digest"] or ""
    return Reference(match["repository"], tag or ("" if digest else "latest"), digest)


def classify_pull_error(text: str) -> Cause | None:
    """Return the cause that the engine's wording C(text) belongs to, or None for a wording we do not know."""
    return next((cause for cause in CAUSES if cause.pattern.search(text)), None)


def format_bytes(count: float) -> str:
    """Return a number of bytes as GiB, from a tenth of a GiB on, or else as MiB."""
    gib = count / 2**30
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{count / 2**20:.1f} MiB"


class LayerProgress:
    """Sums up the events of a pull, which the engine sends per layer.

    Args:
        clock: returns seconds; only differences count.
    """

    WINDOW = 10.0  # seconds over which the rate is taken

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._layers: set[str] = set()
        self._downloaded: set[str] = set()
        self._extracted: set[str] = set()
        self._samples: deque[tuple[float, int]] = deque()
        self.note = ""

    @property
    def layers(self) -> int:
        """The number of layers that the engine named."""
        return len(self._layers)

    @property
    def bytes(self) -> int:
        """The bytes downloaded so far, as transferred (compressed)."""
        return sum(self._current.values())

    def update(self, event: dict[str, Any]) -> None:
        """Take one event of the stream."""
        status, layer = str(event.get("status", "")), str(event.get("id", ""))
        if not layer or status.startswith("Pulling from"):
            return
        self._layers.add(layer)
        self.note = ""
        detail = event.get("progressDetail") or {}
        if status == "Downloading":
            rest = int(detail.get("total") or self._total.get(layer, 0))
            # After an interruption the engine counts only what is left of the layer.
            self._total[layer] = max(rest, self._total.get(layer, 0))
            self._current[layer] = self._total[layer] - rest + int(detail.get("current") or 0)
        elif status in ("Download complete", "Verifying Checksum", "Extracting"):
            self._finish_download(layer)
        elif status in ("Pull complete", "Already exists"):
            self._finish_download(layer)
            self._extracted.add(layer)
        elif status.startswith("Retrying in"):
            self.note = status.lower()

    def _finish_download(self, layer: str) -> None:
        self._downloaded.add(layer)
        if layer in self._total:
            self._current[layer] = max(self._current[layer], self._total[layer])

    def rate(self) -> float:
        """Return the bytes per second of the last seconds; 0.0 at the beginning."""
        now, done = self._clock(), self.bytes
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > self.WINDOW:
            self._samples.popleft()
        then, before = self._samples[0]
        return max(done - before, 0) / (now - then) if now > then else 0.0

    def text(self) -> str:
        """Return the state in a line, such as C(12/23 layers, 4.1/8.3 GiB, 120 MiB/s).

        The total is followed by C(+) until every layer's size is known.
        """
        if not self._layers:
            return "asking the registry"
        if len(self._downloaded) == len(self._layers):
            return f"unpacking, {len(self._extracted)}/{len(self._layers)} layers"
        parts = [f"{len(self._downloaded)}/{len(self._layers)} layers"]
        total = sum(self._total.values())
        if total:
            unknown = self._layers - self._downloaded - self._total.keys()
            amount, unit = format_bytes(total).split()
            done = self.bytes / (2**30 if unit == "GiB" else 2**20)
            parts.append(f"{done:.1f}/{amount}{'+' if unknown else ''} {unit}")
        rate = self.rate()
        if rate:
            parts.append(f"{rate / 2**20:.0f} MiB/s")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


@dataclass(frozen=True)
class ArchivedImage:
    """One image of an archive: its names, and when it was made of which layers (as C(docker inspect) tells both)."""

    names: list[str]
    created: str
    layers: list[str]


@dataclass(frozen=True)
class Archive:
    """What an archive of C(docker save) holds, by image id (C(sha256:…) of the image's configuration)."""

    images: dict[str, ArchivedImage]

    def holds(self, image: dict[str, Any]) -> bool:
        """Say whether the engine's image is one of the archive's.

        Engines with the containerd image store number images otherwise, so the time and the layers count too.
        """
        layers = (image.get("RootFS") or {}).get("Layers")
        return image["Id"] in self.images or any(
            archived.created == image.get("Created") and archived.layers == layers for archived in self.images.values()
        )


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
    images = {}
    try:
        with open(path, "rb") as stream:
            if stream.read(6).startswith(COMPRESSED):
                return None
        with tarfile.open(path, "r:") as tar:
            names = set(tar.getnames())
            for entry in _json_member(tar, "manifest.json"):
                missing = {entry["Config"], *entry["Layers"]} - names
                if missing:
                    raise invalid_archive(path, f"{len(missing)} members named by its manifest are missing")
                config = _json_member(tar, entry["Config"])
                image = ArchivedImage(
                    list(entry.get("RepoTags") or []), config.get("created", ""), config["rootfs"]["diff_ids"]
                )
                images[_config_digest(entry["Config"])] = image
    except (tarfile.TarError, EOFError, OSError, KeyError, TypeError, ValueError) as error:
        raise invalid_archive(path, str(error)) from error
    if not images:
        raise invalid_archive(path, "its manifest names no image")
    return Archive(images)


def _json_member(tar: tarfile.TarFile, name: str) -> Any:
    """Return the JSON document C(name) of an archive."""
    member = tar.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is no file")
    return json.load(member)


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


def inspect_image(engine: DockerClient, name: str) -> dict[str, Any] | None:
    """Return what the engine knows of an image, by name or id, or None when it has none."""
    from docker.errors import ImageNotFound, NotFound

    api: Any = engine.api
    with engine_errors(f"looking for the image {name}"):
        try:
            attributes: dict[str, Any] = api.inspect_image(name)
        except (ImageNotFound, NotFound):
            return None
    return attributes


def image_digests(image: dict[str, Any]) -> set[str]:
    """Return every digest an image goes by: its id and those under which registries know it."""
    return {image["Id"], *(name.partition("@")[2] for name in image.get("RepoDigests") or [])}


def image_platform(image: dict[str, Any]) -> str:
    """Return an image's platform, such as C(linux/amd64)."""
    architecture = image.get("Architecture") or ""
    return f"{image.get('Os') or 'linux'}/{ARCHITECTURES.get(architecture, architecture)}"


def guess_vllm_version(image: dict[str, Any], reference: str) -> str:
    """Return the vLLM version of an image from its labels, its environment or else its tag; C("") if none tells.

    C(org.opencontainers.image.version) is not asked: vllm/vllm-openai inherits Ubuntu's.
    """
    config = image.get("Config") or {}
    labels = config.get("Labels") or {}
    environment = dict(entry.partition("=")[::2] for entry in config.get("Env") or [])
    for known in [labels.get(key) for key in VERSION_LABELS] + [environment.get(key) for key in VERSION_VARIABLES]:
        if known:
            return str(known).lstrip("v")
    match = VERSION_TAG.fullmatch(parse_reference(reference).tag)
    return match[1] if match else ""


def unsuitable(image: dict[str, Any], wish: ImageWish, archive: Archive | None = None) -> GpufleetError | None:
    """Return why the image C(image) does not fulfil the wish, or None when it does."""
    if image_platform(image) != wish.platform:
        return GpufleetError(
            f"{wish.reference} on this host is for {image_platform(image)}, but {wish.platform} is wanted.",
            name="platform-missing",
            remedy=f"Take the image from a machine of {wish.platform} (docker pull --platform {wish.platform}), choose"
            " another vllm_image, or correct vllm_platform.",
            details={"found": image_platform(image), "wanted": wish.platform},
        )
    digests = image_digests(image)
    if wish.digest and wish.digest not in digests:
        return GpufleetError(
            f"vllm_image_digest: {wish.reference} is not the image that {wish.digest} pins.",
            name="digest-mismatch",
            remedy="If the new image is the one you want, set vllm_image_digest to its digest (evidence); if not,"
            " find out who changed it.",
            evidence=", ".join(sorted(digests)),
            details={"found": sorted(digests), "wanted": wish.digest},
        )
    if archive and not archive.holds(image):
        return GpufleetError(
            f"{wish.reference} on this host is not the image in {wish.archive}.",
            name="archive-differs",
            details={"found": image["Id"], "archive": sorted(archive.images)},
        )
    return None


def ensure_image(
    engine: DockerClient,
    wish: ImageWish,
    *,
    check_mode: bool = False,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Have the image of the wish on the host under its reference and its tag.

    An image that is there and fulfils the wish is left alone, and no registry is asked. When the new one turns
    out to be wrong, the names are put back to where they pointed before.

    Args:
        engine: a connected engine.
        wish: the image.
        check_mode: only say what would change.
        progress: told of phases while pulling and loading.
        sleep: how to wait between attempts.

    Returns:
        the module's result: C(changed), C(actions), C(diff) and what is known of the image.

    Raises:
        GpufleetError: named after its cause; see the module's documentation.
    """
    progress = progress or Progress(None)
    reference = parse_reference(wish.reference)
    wish = _with_digest(wish, reference)
    if wish.tag:
        parse_reference(wish.tag, "tag")
    names = [name for name in (reference.local_name, wish.tag) if name]
    before = {name: inspect_image(engine, name) for name in names}

    image = before[reference.local_name]
    archive = None
    if wish.source == "archive" and (image is None or wish.force or os.path.isfile(wish.archive)):
        archive = read_archive(wish.archive)
    reason = _why_fetch(image, wish, archive)

    actions: list[str] = []
    transfer = {"layers": 0, "bytes": 0, "seconds": 0.0, "attempts": 0}
    if reason or image is None:
        actions.append(f"{'load ' + wish.archive if wish.source == 'archive' else 'pull ' + wish.reference}: {reason}")
        if check_mode:
            return _would_fetch(wish, names, before, archive, actions, transfer)
        with names_restored_on_failure(engine, before):
            if wish.source == "archive":
                image = _load(engine, wish, reference, archive, progress, transfer)
            else:
                image = _pull(engine, wish, reference, progress, transfer, sleep)
            problem = unsuitable(image, wish, archive)
            if problem:
                raise problem
    for name in names:
        old = inspect_image(engine, name)
        if old is None or old["Id"] != image["Id"]:
            actions.append(f"tag {name}")
            if not check_mode:
                tag_image(engine, image["Id"], name)
    ids_before = {name: (found["Id"] if found else "") for name, found in before.items()}
    ids_after = dict.fromkeys(names, image["Id"])
    result = describe_image(image, wish)
    result.update(
        changed=ids_before != ids_after,
        actions=actions,
        transfer=transfer,
        diff={"before": _diff_text(ids_before), "after": _diff_text(ids_after)},
    )
    return result


def _with_digest(wish: ImageWish, reference: Reference) -> ImageWish:
    """Return the wish with the digest that stands in its reference, if one does; check the one given."""
    if wish.digest and not DIGEST.fullmatch(wish.digest):
        raise GpufleetError(
            f"vllm_image_digest is {wish.digest!r}, which is no digest.",
            name="digest-invalid",
            remedy="Write sha256: and 64 hexadecimal digits, as docker images --digests shows them.",
        )
    if reference.digest and wish.digest and reference.digest != wish.digest:
        raise GpufleetError(
            f"vllm_image pins {reference.digest}, but vllm_image_digest {wish.digest}.",
            name="digest-invalid",
            remedy="Give the digest once.",
        )
    return wish if wish.digest or not reference.digest else replace(wish, digest=reference.digest)


def _why_fetch(image: dict[str, Any] | None, wish: ImageWish, archive: Archive | None) -> str:
    """Return why the image must be pulled or loaded, or C("") when the one on the host serves.

    Raises:
        GpufleetError: where source is C(present), so that nothing may be fetched.
    """
    if image is None:
        if wish.source == "present":
            raise GpufleetError(
                f"There is no image {wish.reference} on this host, and vllm_image_source is present.",
                name="image-missing",
                remedy="Build or load the image on the host, or set vllm_image_source to pull or archive.",
                details={"reference": wish.reference},
            )
        return "not on this host"
    problem = unsuitable(image, wish, archive)
    if problem:
        if wish.source == "present":
            raise problem
        return problem.message
    return "asked to" if wish.force and wish.source != "present" else ""


def _would_fetch(
    wish: ImageWish,
    names: list[str],
    before: dict[str, dict[str, Any] | None],
    archive: Archive | None,
    actions: list[str],
    transfer: dict[str, Any],
) -> dict[str, Any]:
    """Return the result of check mode where the image would be pulled or loaded."""
    known = next(iter(archive.images)) if archive and len(archive.images) == 1 else ""
    coming = known or f"(from {wish.archive if wish.source == 'archive' else 'the registry'})"
    result = describe_image(None, wish)
    result.update(
        changed=True,
        image_id=known,
        actions=actions + [f"tag {name}" for name in names[1:]],
        transfer=transfer,
        diff={
            "before": _diff_text({name: (found["Id"] if found else "") for name, found in before.items()}),
            "after": _diff_text(dict.fromkeys(names, coming)),
        },
    )
    return result


def _diff_text(ids: dict[str, str]) -> str:
    return "".join(f"{name} -> {image_id or '(absent)'}\n" for name, image_id in ids.items())


def describe_image(image: dict[str, Any] | None, wish: ImageWish) -> dict[str, Any]:
    """Return what is known of an image as the values of the module's result; empty ones for None."""
    image = image or {}
    config = image.get("Config") or {}
    repository = parse_reference(wish.reference).repository
    registry_names: list[str] = image.get("RepoDigests") or []
    own = [name for name in registry_names if name.partition("@")[0] == repository]
    return {
        "reference": wish.reference,
        "tag": wish.tag,
        "source": wish.source,
        "image_id": image.get("Id", ""),
        "digest": (own or registry_names or ["@"])[0].partition("@")[2],
        "platform": image_platform(image) if image else wish.platform,
        "architecture": image.get("Architecture", ""),
        "size": image.get("Size", 0),
        "created": image.get("Created", ""),
        "labels": config.get("Labels") or {},
        "entrypoint": config.get("Entrypoint") or [],
        "vllm_version": guess_vllm_version(image, wish.reference),
    }


@contextlib.contextmanager
def names_restored_on_failure(engine: DockerClient, before: dict[str, dict[str, Any] | None]) -> Iterator[None]:
    """Point the names back at their images of before, or remove them, when the block fails."""
    from docker.errors import DockerException

    try:
        yield
    except Exception:
        for name, image in before.items():
            # The first failure is the one to report, so one in here stays silent.
            with contextlib.suppress(GpufleetError, DockerException):
                now = inspect_image(engine, name)
                if now and image is None:
                    engine.api.remove_image(name)
                elif now and image and now["Id"] != image["Id"]:
                    tag_image(engine, image["Id"], name)
        raise


def tag_image(engine: DockerClient, image_id: str, name: str) -> None:
    """Give an image a name; a digest in the name is left out, since names are given by tag."""
    target = parse_reference(name, "tag")
    if not target.tag:
        return
    with engine_errors(f"tagging {image_id} as {name}"):
        engine.api.tag(image_id, target.repository, tag=target.tag)


def _pull(
    engine: DockerClient,
    wish: ImageWish,
    reference: Reference,
    progress: Progress,
    transfer: dict[str, Any],
    sleep: Callable[[float], None],
) -> dict[str, Any]:
    """Pull with retries and return the image, which has its reference as name.

    The engine keeps each layer that is complete, so a further attempt only fetches those that are missing.
    """
    name = f"{reference.repository}@{wish.digest}" if wish.digest else reference.local_name
    started = time.monotonic()
    deadline = started + wish.timeout if wish.timeout else float("inf")
    delay = wish.backoff
    brief_failures = 0
    while True:
        transfer["attempts"] += 1
        layers = LayerProgress()
        try:
            _pull_once(engine, wish, reference, layers, progress, deadline)
            break
        except PullFailure as failure:
            brief_failures += failure.brief
            last = transfer["attempts"] > wish.retries or brief_failures > UNREACHABLE_RETRIES
            if last or not failure.transient:
                failure.details["attempts"] = transfer["attempts"]
                raise _explain_pinned(engine, wish, failure) from failure
            wait = min(delay, UNREACHABLE_BACKOFF) if failure.brief else delay
            delay *= 2
            progress.phase(
                "pulling image",
                f"attempt {transfer['attempts']} failed ({failure.name}: {failure.evidence[:120]}), next in {wait:g} s",
            )
            sleep(wait)
        finally:
            transfer["layers"] = max(transfer["layers"], layers.layers)
            transfer["bytes"] += layers.bytes
            transfer["seconds"] = round(time.monotonic() - started, 1)
    image = inspect_image(engine, name)
    if image is None:
        raise PullFailure(None, f"the engine reported success, but has no {name}", wish)
    if wish.digest:
        tag_image(engine, image["Id"], reference.local_name)
    return image


def _explain_pinned(engine: DockerClient, wish: ImageWish, failure: PullFailure) -> GpufleetError:
    """Return the failure, or, where the pinned digest alone is unknown to the registry, one that says so."""
    from docker.errors import DockerException

    if failure.name != "image-not-found" or not wish.digest:
        return failure
    try:
        auth = {"username": wish.username, "password": wish.password} if wish.username else None
        api: Any = engine.api
        found = api.inspect_distribution(wish.reference, auth_config=auth)["Descriptor"]["digest"]
    except (DockerException, KeyError, TypeError):
        return failure
    return GpufleetError(
        f"vllm_image_digest: the registry has {wish.reference}, but not as {wish.digest}.",
        name="digest-mismatch",
        remedy=f"If the image there now is the one you want, set vllm_image_digest: {found}; if not, find out who"
        " changed it.",
        evidence=f"{wish.reference} is {found}; {failure.evidence}",
        details={"found": [found], "wanted": wish.digest},
    )


def _pull_once(
    engine: DockerClient,
    wish: ImageWish,
    reference: Reference,
    layers: LayerProgress,
    progress: Progress,
    deadline: float,
) -> None:
    """Do one attempt at a pull, until C(deadline) by the monotonic clock.

    Raises:
        PullFailure: what the engine said.
    """
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    progress.phase("pulling image", layers.text())
    auth = {"username": wish.username, "password": wish.password} if wish.username else None
    try:
        events = _while_moving(
            lambda: engine.api.pull(
                reference.repository,
                tag=wish.digest or reference.tag,
                platform=wish.platform,
                stream=True,
                decode=True,
                auth_config=auth,
            ),
            wish.stall_timeout,
            deadline,
        )
        _follow(events, layers, progress, wish)
    except PullTooLongError as error:
        raise GpufleetError(
            f"The pull of {wish.reference} took more than {wish.timeout:g} s (vllm_phase_timeouts: image).",
            name="phase-too-long",
            remedy="Run the play again: the engine keeps each layer that is complete. Raise vllm_phase_timeouts:"
            " {image: SECONDS} if the connection is only slow, or set vllm_image to a nearer registry.",
            evidence=f"last state: {layers.text()}",
            details={"phase": "image", "deadline_s": wish.timeout},
        ) from error
    except TimeoutError as error:
        raise PullFailure(STALLED, f"{error}; state: {layers.text()}", wish) from error
    except APIError as error:
        text = str(error.explanation or error)
        raise PullFailure(classify_pull_error(text), text, wish) from error
    except (DockerException, RequestException) as error:
        raise PullFailure(None, f"connection to the engine: {error}", wish) from error


class PullTooLongError(Exception):
    """A pull has passed its deadline."""


def _while_moving(
    start: Callable[[], Iterable[dict[str, Any]]], seconds: float, deadline: float = float("inf")
) -> Iterator[dict[str, Any]]:
    """Yield the events of the pull that C(start) begins, or raise TimeoutError when none comes for C(seconds).

    Raises PullTooLongError at C(deadline), by the monotonic clock.

    The engine waits for a silent registry without end. It ends the pull when its client is gone, so a thread left
    behind here ends with the module.
    """
    arrived: queue.Queue[Any] = queue.Queue()
    end = object()

    def read() -> None:
        try:
            for event in start():
                arrived.put(event)
            arrived.put(end)
        except Exception as error:  # raised again where the events are read
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            item = arrived.get(timeout=min(seconds, left))
        except queue.Empty:
            if left < seconds:
                raise PullTooLongError from None
            raise TimeoutError(f"the engine reported nothing for {seconds:g} s") from None
        if item is end:
            return
        if isinstance(item, Exception):
            raise item
        yield item


def _event_error(event: dict[str, Any]) -> str:
    """Return what an event of the engine says went wrong, or C("")."""
    return str((event.get("errorDetail") or {}).get("message") or event.get("error") or "")


def _follow(events: Iterable[dict[str, Any]], layers: LayerProgress, progress: Progress, wish: ImageWish) -> None:
    """Show the events of a pull until they end."""
    shown = time.monotonic()
    for event in events:
        problem = _event_error(event)
        if problem:
            raise PullFailure(classify_pull_error(problem), problem, wish)
        layers.update(event)
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            progress.phase("pulling image", layers.text())


def _load(
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
                problem = _event_error(event)
                if problem:
                    raise _load_failure(wish, problem)
                match = re.match(r"Loaded image(?: ID)?: (\S+)", str(event.get("stream", "")))
                if match:
                    loaded.append(match[1])
    except OSError as error:
        raise invalid_archive(wish.archive, str(error)) from error
    transfer.update(bytes=size, seconds=round(time.monotonic() - started, 1), attempts=1)
    return _name_loaded(engine, wish, reference, archive, loaded)


def _one_of_archive(archive: Archive, wish: ImageWish, reference: Reference) -> str:
    """Return the id of the archive's image that the wish means.

    Raises:
        GpufleetError: C(archive-invalid) when none or several of its images could be meant,
            C(digest-mismatch) when it is not the pinned one.
    """
    named = [image_id for image_id, image in archive.images.items() if reference.local_name in image.names]
    candidates = named or list(archive.images)
    if len(candidates) != 1:
        raise invalid_archive(
            wish.archive,
            f"it holds {len(archive.images)} images and none is named {reference.local_name}: "
            + ", ".join(name for image in archive.images.values() for name in image.names),
        )
    return candidates[0]


def _watched(stream: Any, size: int, progress: Progress) -> Iterator[bytes]:
    """Yield the archive in pieces, telling how far it is."""
    done = 0
    shown = 0.0
    while True:
        piece = stream.read(4 * 2**20)
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
        known = _one_of_archive(archive, wish, reference) if archive else ""
        names = [known] if known else loaded
        if len(names) != 1:
            held = ", ".join(loaded) or "no image"
            raise invalid_archive(wish.archive, f"it holds {held}, not {reference.local_name}")
        image = inspect_image(engine, names[0])
        if image is None:
            raise invalid_archive(wish.archive, f"the engine has no {names[0]} after loading")
        tag_image(engine, image["Id"], reference.local_name)
    return image


def remove_names(engine: DockerClient, names: Iterable[str], *, check_mode: bool) -> dict[str, Any]:
    """Take names of images away and return the result of the module; an image goes with its last name.

    Raises:
        GpufleetError: C(image-in-use) when a container needs the image.
    """
    from docker.errors import APIError, ImageNotFound

    present = [name for name in dict.fromkeys(names) if name and inspect_image(engine, name)]
    if not check_mode:
        for name in present:
            with engine_errors(f"to remove the image {name}"):
                try:
                    engine.images.remove(name)
                except ImageNotFound:
                    continue
                except APIError as error:
                    if error.status_code != HTTP_CONFLICT:
                        raise
                    raise GpufleetError(
                        f"The image {name} is not removed: a container uses it.",
                        name="image-in-use",
                        remedy="Remove that container first.",
                        evidence=str(error.explanation or error),
                    ) from error
    return {"changed": bool(present), "actions": [f"removed {name}" for name in present]}
