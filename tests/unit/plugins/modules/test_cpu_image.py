# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU image: what decides that it is made again, and what is said before a build that would fail.

The build itself runs for real in Molecule's scenario default and in make demo.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.images import cpu_build as util
from ansible_collections.gpufleet.vllm.plugins.modules import cpu_image

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

RECIPE = util.Recipe("0.32.0", "2.13.0", ("numpy==2.3.5", "jinja2==3.1.6"), "x86_64")
ARGUMENTS: dict[str, Any] = {
    "reference": "gpufleet/vllm-cpu:0.32.0",
    "vllm_version": "0.32.0",
    "torch_version": "2.13.0",
    "requirements": ["# a comment", "numpy==2.3.5", ""],
    "work_dir": "/nowhere/at/all",
}


def build(recipe: util.Recipe, folder: Path) -> str:
    """Start a build without an engine: everything that these tests reach comes before the engine is asked."""
    client: Any = None
    return util.build_image(client, "a:1", recipe, util.Sources(), str(folder), Progress(None))


@pytest.mark.parametrize(
    "change",
    [
        {"vllm_version": "0.33.0"},
        {"torch_version": "2.14.0"},
        {"requirements": ("numpy==2.3.5",)},
        {"architecture": "aarch64"},
    ],
)
def test_whatever_changes_the_content_changes_the_digest(change: dict[str, Any]) -> None:
    """An image made by another recipe is not taken for this one."""
    assert dataclasses.replace(RECIPE, **change).digest() != RECIPE.digest()


def test_the_order_of_requirements_does_not_matter() -> None:
    """Sorting a list does not cost a build."""
    turned = dataclasses.replace(RECIPE, requirements=tuple(reversed(RECIPE.requirements)))
    assert turned.digest() == RECIPE.digest()


def test_an_architecture_without_a_build_is_named(tmp_path: Path) -> None:
    """The error says what the host is and what would do."""
    with pytest.raises(GpufleetError) as raised:
        build(dataclasses.replace(RECIPE, architecture="riscv64"), tmp_path)
    assert raised.value.name == "unsupported-architecture"
    assert "riscv64" in raised.value.message


def test_a_missing_debootstrap_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is made."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GpufleetError) as raised:
        build(RECIPE, tmp_path)
    assert raised.value.name == "debootstrap-missing"


def stand_in_for_debootstrap(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have a program of that name come first, which fetches nothing."""
    tool = folder / "debootstrap"
    tool.write_text(f"#!/bin/sh\n{script}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_full_disk_is_told_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed and what there is, before anything is made."""
    stand_in_for_debootstrap(tmp_path, monkeypatch, "")
    monkeypatch.setattr(util, "NEEDED_MIB", 2**40)
    with pytest.raises(GpufleetError) as raised:
        build(RECIPE, tmp_path)
    assert raised.value.name == "disk-full"
    assert str(2**40) in raised.value.message
    assert not list(tmp_path.glob("build-*"))


def test_a_failing_base_system_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's last words are the evidence, and the half-made root file system is gone."""
    stand_in_for_debootstrap(tmp_path, monkeypatch, "echo 'E: no such mirror' >&2\nexit 3\n")
    monkeypatch.setattr(util, "NEEDED_MIB", 0)
    work = tmp_path / "work"
    (work / "build-interrupted").mkdir(parents=True)
    with pytest.raises(GpufleetError) as raised:
        build(RECIPE, work)
    assert raised.value.name == "base-system-failed"
    assert "no such mirror" in raised.value.evidence
    assert not list(work.iterdir())


def test_an_error_in_the_engines_answer_is_raised() -> None:
    """An import answers 200 and tells its failure in the stream."""
    with pytest.raises(GpufleetError) as raised:
        util._raise_stream_error('{"status":"a"}\n{"error":"no space left on device"}\n')
    assert "no space left" in raised.value.evidence


def test_without_an_engine_the_module_says_so(run_module: RunModule) -> None:
    """The engine is asked first, whatever else is wrong."""
    result = run_module(cpu_image.main, {**ARGUMENTS, "docker_host": "unix:///nowhere.sock"})
    assert result["failed"]
    assert result["error"]["name"] == "engine-not-running"
