# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which vLLM has which known hole, and that no image is planned by itself that has a serious one."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import advisories, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.image_choice import CPU_IMAGE, CUDA_IMAGE

# version, and the serious holes of a server without options
SERIOUS = {
    "0.12.0": ["CVE-2026-22778", "CVE-2026-48746", "CVE-2026-22807", "CVE-2026-114051"],
    "0.13.0": ["CVE-2026-22778", "CVE-2026-48746", "CVE-2026-22807", "CVE-2026-114051"],
    "0.14.0": ["CVE-2026-22778", "CVE-2026-48746", "CVE-2026-114051"],
    "0.14.1": ["CVE-2026-48746", "CVE-2026-114051"],
    "0.21.0": ["CVE-2026-48746", "CVE-2026-114051"],
    "0.22.0": [],
    "0.26.0": [],
    "0.33.0": [],
}


def version(text: str) -> versions.Version:
    found = versions.parse(text)
    assert found
    return found


@pytest.mark.parametrize("release", SERIOUS)
def test_serious(release: str) -> None:
    assert [hole.name for hole in advisories.serious(version(release), {})] == SERIOUS[release]


def test_a_hole_that_an_option_opens() -> None:
    config = {"trust-remote-code": True}
    assert [hole.name for hole in advisories.serious(version("0.26.0"), config)] == ["CVE-2026-114053"]
    assert advisories.serious(version("0.31.0"), config) == []


@pytest.mark.parametrize("image", [CUDA_IMAGE, CPU_IMAGE])
def test_the_images_that_are_planned_by_themselves_have_none(image: tuple[str, str]) -> None:
    assert advisories.serious(version(image[1]), {}) == []


def test_the_newest_known_release_has_none_at_all() -> None:
    assert advisories.open_holes(versions.NEWEST, {"trust-remote-code": True}) == []


def test_the_remedy_is_the_release_that_fixes_all() -> None:
    assert "v0.22.0 or newer" in advisories.remedy(advisories.serious(version("0.12.0"), {}))
    assert "v0.14.0 or newer" in advisories.remedy([advisories.ADVISORIES[2]])


def test_each_is_told_with_the_release_that_fixes_it() -> None:
    for hole in advisories.open_holes(version("0.12.0"), {}):
        assert hole.span.until
        assert f"fixed in {versions.as_text(hole.span.until)}" in hole.as_text()
