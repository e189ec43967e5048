# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_image as Ansible runs it, as far as it gets without an engine (tests/engine has the rest)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ansible_collections.gpufleet.vllm.plugins.modules import vllm_image

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "reference"),
        ({"reference": "x:1", "source": "archive"}, "archive"),
        ({"reference": "x:1", "source": "build"}, "pull, archive, present"),
    ],
)
def test_options_that_do_not_fit(run_module: RunModule, options: dict[str, str], text: str) -> None:
    result = run_module(vllm_image.main, options)
    assert result["failed"]
    assert text in result["msg"]


def test_unknown_platform_is_refused_before_the_engine_is_asked(run_module: RunModule, tmp_path: Path) -> None:
    options = {"reference": "x:1", "platform": "linux/riscv64", "docker_host": f"unix://{tmp_path}/none"}
    result = run_module(vllm_image.main, options)
    assert result["error"]["name"] == "platform-invalid"
    assert "vllm_platform" in result["msg"]


def test_engine_that_does_not_run(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module(vllm_image.main, {"reference": "x:1", "docker_host": f"unix://{tmp_path}/none"})
    assert result["error"]["name"] == "engine-not-running"
    assert f"{tmp_path}/none" in result["msg"]
