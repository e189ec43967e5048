# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a pull failed, from the Docker engine's own words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import ImageWish


@dataclass(frozen=True)
class PullCause:
    """A family of failures of a pull: how the engine words it, what it is called and whether it may pass."""

    pattern: re.Pattern[str]
    name: str
    message: str
    remedy: str
    transient: bool = False
    brief: bool = False


def _cause(
    pattern: str, name: str, message: str, remedy: str, *, transient: bool = False, brief: bool = False
) -> PullCause:
    return PullCause(re.compile(pattern, re.IGNORECASE), name, message, remedy, transient, brief)


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
        "Wait, name a user with a higher limit in vllm_registries, or load the image from an archive"
        " (vllm_image_source: archive).",
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
        r"x509|certificate|server gave HTTP response to HTTPS client|does not look like a TLS handshake",
        "registry-untrusted",
        "The engine does not trust the registry of {reference}.",
        "Name the registry's CA certificate as ca in vllm_registries, or, for a registry without"
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
        "Check the name in vllm_image, and name a user who may pull it, with the password, in vllm_registries.",
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

    def __init__(self, cause: PullCause | None, text: str, wish: ImageWish) -> None:
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


def classify_pull_error(text: str) -> PullCause | None:
    """Return the cause that the engine's wording C(text) belongs to, or None for a wording we do not know."""
    return next((cause for cause in CAUSES if cause.pattern.search(text)), None)
