# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of images, the platforms they are built for, and what image a host is asked to have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import PLATFORMS, platform_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

REFERENCE = re.compile(
    r"(?P<repository>(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:(?:[./]|_{1,2}|-+)[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DOCKER_HUB = "docker.io"


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
        tag: further name that it must have on the host, such as C(vllm/vllm-openai:deploy), or C("").
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


def normalize_platform(platform: str) -> str:
    """Return C(linux/amd64) or C(linux/arm64) for what people write, such as the recipe's C(linux/aarch64).

    Raises:
        GpufleetError: C(platform-invalid) for anything else.
    """
    system, separator, architecture = platform.strip().lower().partition("/")
    architecture = architecture.split("/", 1)[0] if separator else system
    system = system if separator else "linux"
    platform_name = platform_of(architecture)
    if system != "linux" or platform_name not in PLATFORMS:
        raise GpufleetError(
            f"vllm_platform is {platform!r}, which is no platform that vLLM images exist for.",
            name="platform-invalid",
            remedy="Set vllm_platform to linux/amd64 or linux/arm64 (linux/aarch64 is taken as the latter).",
        )
    return platform_name


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


def registry_of(reference: str) -> str:
    """Return the registry in an image's name, such as C(docker.io) or C(registry.example.com:5000)."""
    first, slash, _rest = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else DOCKER_HUB
