# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images that the Docker engine of this host has: what they are, and the names they go by."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import docker_name
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import (
    engine_errors,
    image_missing,
    variables_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import parse_reference

if TYPE_CHECKING:
    from docker import DockerClient


HTTP_CONFLICT = 409
VERSION_TAG = re.compile(r"v?(\d+\.\d+(?:\.\d+)?(?:\.?(?:rc|post|dev)\d+)?)(?:[-_+].*)?")
VERSION_LABELS = ("io.gpufleet.vllm-version", "io.gpufleet.vllm.version", "ai.vllm.version")
VERSION_VARIABLES = ("VLLM_VERSION",)
NO_IMAGE = (
    "Have it there first with gpufleet.vllm.vllm_image (entry point image of the role gpufleet.vllm.vllm), or correct"
    " vllm_image and vllm_image_tag."
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
    return f"{image.get('Os') or 'linux'}/{docker_name(architecture)}"


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


@dataclasses.dataclass(frozen=True)
class Image:
    """An image on this host.

    Attributes:
        id: C(sha256:...), or C((not here yet)).
        python_path: the C(PYTHONPATH) that it sets.
    """

    id: str
    python_path: str = ""


def resolve_image(client: DockerClient, reference: str, *, missing_ok: bool = False) -> Image:
    """Return the image that a reference names here; one that is C((not here yet)) if it may be missing and is.

    Raises:
        GpufleetError: C(image-missing).
    """
    from docker.errors import ImageNotFound

    with engine_errors(f"looking for the image {reference}"):
        try:
            image = client.images.get(reference)
        except ImageNotFound as error:
            if missing_ok:
                return Image("(not here yet)")
            raise image_missing(reference, error, NO_IMAGE) from error
    return Image(str(image.id), variables_of(image.attrs["Config"].get("Env")).get("PYTHONPATH", ""))
