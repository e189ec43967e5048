# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of taking over what an earlier version kept beside the sockets; test_router_server does it with HAProxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.server_states import ServerStates
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.state_folder import state_folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """The folder of the state, and that of the sockets, in which an earlier version left a drained host."""
    state_dir, run_dir = str(tmp_path / "lib"), str(tmp_path / "run")
    ServerStates(run_dir).write("1\nrows\n")
    DrainMarks(run_dir).keep("gpu-01", "deploy", ["gpu-01:vllm-0"])
    return state_dir, run_dir


def test_it_is_moved_once(folders: tuple[str, str]) -> None:
    state_dir, run_dir = folders
    assert state_folder(state_dir, run_dir, check=False) == state_dir
    assert DrainMarks(state_dir).of("gpu-01", "deploy") == ["gpu-01:vllm-0"]
    assert ServerStates(state_dir).read() == "1\nrows\n"
    DrainMarks(state_dir).forget("gpu-01")
    ServerStates(state_dir).write("1\n")
    assert state_folder(state_dir, run_dir, check=False) == state_dir
    assert DrainMarks(state_dir).of("gpu-01", "deploy") == []
    # HAProxy with its old configuration finds the new state.
    assert ServerStates(run_dir).read() == "1\n"


def test_one_that_was_interrupted_goes_on(folders: tuple[str, str]) -> None:
    state_dir, run_dir = folders
    DrainMarks(state_dir).keep("gpu-01", "deploy", ["gpu-01:vllm-0"])
    state_folder(state_dir, run_dir, check=False)
    assert ServerStates(state_dir).read() == "1\nrows\n"
    assert not (Path(run_dir) / "drained" / "gpu-01.json").exists()


def test_an_earlier_version_that_comes_after_this_one_counts(folders: tuple[str, str]) -> None:
    """Such as on the laptop of a colleague: HAProxy has what it has set last."""
    state_dir, run_dir = folders
    state_folder(state_dir, run_dir, check=False)
    (Path(run_dir) / "server-state").unlink()
    ServerStates(run_dir).write("1\nlater\n")
    state_folder(state_dir, run_dir, check=False)
    assert ServerStates(state_dir).read() == "1\nlater\n"


def test_check_mode_reads_it_where_it_is(folders: tuple[str, str]) -> None:
    state_dir, run_dir = folders
    assert state_folder(state_dir, run_dir, check=True) == run_dir
    assert not Path(state_dir).exists()


def test_nothing_is_done_without_it_or_with_one_folder_for_both(folders: tuple[str, str], tmp_path: Path) -> None:
    state_dir, run_dir = folders
    assert state_folder(state_dir, str(tmp_path / "nothing"), check=False) == state_dir
    assert state_folder(f"{run_dir}/", run_dir, check=False) == f"{run_dir}/"
    assert not Path(state_dir).exists()


def test_a_folder_that_cannot_be_had_is_told_by_its_variable(folders: tuple[str, str], tmp_path: Path) -> None:
    _state_dir, run_dir = folders
    (tmp_path / "file").write_text("")
    with pytest.raises(GpufleetError, match="cannot be written") as raised:
        state_folder(str(tmp_path / "file" / "state"), run_dir, check=False)
    assert "router_state_dir" in raised.value.remedy
