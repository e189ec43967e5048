# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ensures that a host has an image: pulls it, loads it from an archive or finds it, then checks and tags it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import CONTAINERD_STORE
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.archive import Archive, load_image, read_archive
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import (
    guess_vllm_version,
    image_digests,
    image_platform,
    inspect_image,
    names_restored_on_failure,
    tag_image,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.pull import pull_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import (
    DIGEST,
    ImageWish,
    Reference,
    parse_reference,
)

if TYPE_CHECKING:
    from docker import DockerClient


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
    digests = image_digests(image) | (archive.digests_of(image) if archive else set())
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
            details={"found": image["Id"], "archive": sorted(one.config for one in archive.images)},
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
    """Pull or load the image, and give it its reference and its tag as names.

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
            return _would_fetch(wish, names, before, _id_to_come(engine, archive), actions, transfer)
        with names_restored_on_failure(engine, before):
            if wish.source == "archive":
                image = load_image(engine, wish, reference, archive, progress, transfer)
            else:
                image = pull_image(engine, wish, reference, progress, transfer, sleep)
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


def _id_to_come(engine: DockerClient, archive: Archive | None) -> str:
    """Return the id that the engine will give to an archive's image; C("") if that is not known."""
    if not archive or len(archive.images) != 1:
        return ""
    with engine_errors("telling its image store"):
        status: Any = engine.info().get("DriverStatus")
    return archive.images[0].manifest if CONTAINERD_STORE in str(status) else archive.images[0].config


def _would_fetch(
    wish: ImageWish,
    names: list[str],
    before: dict[str, dict[str, Any] | None],
    known: str,
    actions: list[str],
    transfer: dict[str, Any],
) -> dict[str, Any]:
    """Return the result of check mode where the image would be pulled or loaded, with its id as far as it is known."""
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
