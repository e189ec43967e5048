# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image asks of the driver."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.cuda_requirement import is_met

# As NVIDIA's own CUDA 12.9 images have it, shortened.
NVIDIAS = (
    "cuda>=12.9 brand=unknown,driver>=535,driver<536 brand=grid,driver>=535,driver<536"
    " brand=tesla,driver>=535,driver<536 brand=nvidia,driver>=535,driver<536 brand=tesla,driver>=550,driver<551"
)


@pytest.mark.parametrize(
    ("requirement", "driver", "cuda", "met"),
    [
        ("", "", "", True),
        ("cuda>=12.9", "575.57.08", "12.9", True),
        ("cuda>=12.9", "570.172.08", "12.8", False),
        ("cuda>=12.9", "570.172.08", "", None),
        ("cuda>=12.10", "580.1", "12.9", False),
        (NVIDIAS, "580.159.04", "13.0", True),
        (NVIDIAS, "570.172.08", "12.8", False),
        (NVIDIAS, "550.54.15", "12.4", True),
        (NVIDIAS, "535.183.01", "12.2", True),
        (NVIDIAS, "551.1", "12.4", False),
        ("brand!=geforce", "580.1", "13.0", True),
        ("driver>=580", "580.65.06", "13.0", True),
        ("arch>=9.0", "580.1", "13.0", None),
        ("nonsense", "580.1", "13.0", None),
    ],
)
def test_requirements(requirement: str, driver: str, cuda: str, met: bool | None) -> None:
    assert is_met({"NVIDIA_REQUIRE_CUDA": requirement}, driver, cuda) is met


@pytest.mark.parametrize(("value", "met"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_a_requirement_may_be_waived(value: str, met: bool) -> None:
    assert is_met({"NVIDIA_REQUIRE_CUDA": "cuda>=99", "NVIDIA_DISABLE_REQUIRE": value}, "580.1", "13.0") is met
