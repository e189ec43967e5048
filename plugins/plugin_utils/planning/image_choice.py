# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image a plan runs, and for which platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import PLATFORMS, platform_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import ImageOfPlan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import advisories, catalogue, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

# The release that was measured on H200s (tests/gpu/RESULTS.md) and has no known hole of high or critical score.
CUDA_IMAGE = ("vllm/vllm-openai", "v0.26.0")
CPU_IMAGE = ("gpufleet/vllm-cpu", "0.32.0")
DEPLOY_TAG = "deploy"


def choose_image(
    draft: Draft, host: Mapping[str, Any], wishes: Wishes, default: tuple[str, str], cards: Sequence[Gpu]
) -> tuple[ImageOfPlan, versions.Version]:
    """Return the plan's C(image), and the vLLM in it.

    Args:
        draft: gathers the decisions.
        host: see planner.plan; C(architecture) is read here.
        wishes: what the user wants.
        default: name and tag of the image when the user names none.
        cards: the GPUs; their name tells the platform where the host was not probed.

    Raises:
        GpufleetError: C(unknown-version) or C(unsupported-platform).
    """
    name, (tag, why) = wishes.image or default[0], _tag(wishes, default, cards)
    version = wishes.version or versions.of_tag(tag, name)
    if version is None:
        raise GpufleetError(
            f"vllm_image_tag: {tag} does not tell which vLLM is in the image {name}.",
            name="unknown-version",
            remedy="Set vllm_version to the vLLM that is in it, such as 0.12.0, or use a tag with vLLM's own version.",
        )
    if version < versions.OLDEST:
        raise GpufleetError(
            f"vLLM {versions.as_text(version)} is older than {versions.as_text(versions.OLDEST)}, the oldest that this"
            " collection knows.",
            name="unknown-version",
            remedy=f"Set vllm_image_tag to v{versions.as_text(versions.OLDEST)} or newer.",
        )
    if version[:2] > versions.NEWEST[:2]:
        draft.warn(
            f"vLLM {versions.as_text(version)} is newer than {versions.as_text(versions.NEWEST)}, the newest that this"
            " collection knows; its options are taken to be the same."
        )
    source = wishes.image_source or (
        "archive" if wishes.image_archive else "build" if wishes.device == "cpu" else "pull"
    )
    reference = f"{name}:{tag}"
    draft.decide("image", reference, f"vLLM {versions.as_text(version)}, source {source}{why}")
    _holes(draft, wishes, version)
    image: ImageOfPlan = {
        "reference": reference,
        "tag": f"{name}:{DEPLOY_TAG}",
        "platform": _platform(draft, host, wishes, cards),
        "vllm_version": versions.as_text(version),
        "source": source,
        "archive": wishes.image_archive,
        "digest": wishes.image_digest,
    }
    return image, version


def references(wishes: Wishes) -> list[str]:
    """Return the names of the images that a plan may choose, whatever the cards; the usual one first."""
    default = CPU_IMAGE if wishes.device == "cpu" else CUDA_IMAGE
    tags = [_tag(wishes, default, ())[0]]
    if tags[0] == _profile_tag(wishes):
        tags.append(default[1])
    return [f"{wishes.image or default[0]}:{tag}" for tag in tags]


def _profile_tag(wishes: Wishes) -> str:
    """Return the tag that the profile asks for; empty where it asks for none, or another wish beats it."""
    free = wishes.device == "cuda" and not wishes.image_tag and not wishes.version
    return wishes.goals.image_tag if free else ""


def _tag(wishes: Wishes, default: tuple[str, str], cards: Sequence[Gpu]) -> tuple[str, str]:
    """Return the image's tag, and a reason to be told where it is not the usual one."""
    if wishes.image_tag:
        return wishes.image_tag, ""
    if wishes.version:
        prefix = "v" if default[1].startswith("v") else ""
        return prefix + versions.as_text(wishes.version), "; vllm_version"
    of_profile = _profile_tag(wishes)
    if of_profile and cards and cards[0].compute_capability == (10, 3):
        return default[1], (
            f"; {of_profile} of profile {wishes.profile} was not built for compute capability 10.3, which needs CUDA 13"
            " and a release since then"
        )
    if of_profile:
        return of_profile, f"; profile {wishes.profile} keeps to the release that the recipe names"
    return default[1], "; the release that was measured on H200s" if wishes.device == "cuda" else ""


def _holes(draft: Draft, wishes: Wishes, version: versions.Version) -> None:
    """Tell which published holes the image's vLLM has."""
    known = advisories.open_holes(version, wishes.extra_config)
    names = ", ".join(f"{hole.name} ({hole.what}{', by who has the key' if hole.with_key else ''})" for hole in known)
    reason = f"of those that concern such a server, as published until {advisories.READ_ON}"
    draft.decide("known_holes", len(known), f"{reason}: {names}" if names else reason)
    worst = advisories.serious(version, wishes.extra_config)
    if worst:
        texts = "; ".join(hole.as_text() for hole in worst)
        draft.warn(
            f"vLLM {versions.as_text(version)} has known holes: {texts}. {advisories.remedy(worst)}, or let only"
            " trusted clients reach the servers."
        )


def _platform(draft: Draft, host: Mapping[str, Any], wishes: Wishes, cards: Sequence[Gpu]) -> str:
    architecture = str(host.get("architecture") or "")
    own = platform_of(architecture)
    if architecture and own not in PLATFORMS:
        raise GpufleetError(
            f"This host's architecture {architecture} has no vLLM image.",
            name="unsupported-platform",
            remedy="Use an x86_64 or aarch64 host.",
        )
    if wishes.platform and architecture and not wishes.gpus and wishes.platform != own:
        raise GpufleetError(
            f"vllm_platform: {wishes.platform} does not run on this host, which is {architecture}.",
            name="unsupported-platform",
            remedy=f"Leave vllm_platform empty, or set it to {own}.",
        )
    if wishes.platform:
        platform, reason = wishes.platform, "vllm_platform"
    elif architecture and not wishes.gpus:
        platform, reason = own, f"the host is {architecture}"
    else:
        card = catalogue.card(cards[0].name) if cards else None
        platform = platform_of(card.architecture if card else "x86_64")
        reason = f"hosts with {cards[0].name} are {platform}" if cards else "not probed"
    draft.decide("platform", platform, reason)
    return platform
