# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_weights_copy where it fetches nothing; tests/engine/test_weights_sharing.py has it fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.vllm_weights_copy import SHARED, sources
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_weights_copy
from ansible_collections.gpufleet.vllm.plugins.modules.vllm_weights_copy import told
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.test_vllm_weights_share import fill

SOURCE = {"host": "one", "serves": True, "address": "127.0.0.1", "port": 1, "host_key": "k", "models": []}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options of the module."""
    return {"model": "acme/scout", "hf_home": str(tmp_path / "hf"), "run_dir": str(tmp_path / "run")}


def test_a_host_that_lacks_nothing_asks_nobody(run_module: RunModule, options: dict[str, Any], tmp_path: Path) -> None:
    fill(tmp_path / "hf")
    result = run_module(vllm_weights_copy.main, {**options, "sources": [SOURCE]})
    assert (result["changed"], result["models"], result["msg"]) == (False, [], "")


@pytest.mark.parametrize("check", [False, True])
def test_what_no_host_has_is_left_to_the_hub(
    run_module: RunModule, options: dict[str, Any], tmp_path: Path, check: bool
) -> None:
    result = run_module(vllm_weights_copy.main, {**options, "sources": [SOURCE]}, check=check)
    assert result["failed"] is False
    expected = "Weights of acme/scout: nothing from other hosts; no host of the fleet has it whole, which the hub is"
    assert result["msg"] == f"{expected} asked for."
    assert not (tmp_path / "hf").exists()


def test_a_cache_that_is_no_folder_of_the_host_is_left_to_the_server(
    run_module: RunModule, options: dict[str, Any]
) -> None:
    result = run_module(vllm_weights_copy.main, {**options, "config": {"download-dir": "/elsewhere"}})
    assert (result["changed"], result["models"]) == (False, [])


def test_where_files_came_from_is_told() -> None:
    model = {"repository": "o/m", "bytes": 3 * 1024**3, "hosts": {"a": 1024**3, "b": 2 * 1024**3}, "left": ""}
    assert told([model], []) == "Weights of o/m: 3.0 GiB from b (2.0 GiB), a (1.0 GiB)."
    assert told([model], ["c: no"]).endswith(" Not in order: c: no.")


def test_sources_are_the_hosts_that_give_something_away() -> None:
    shared = {"serves": True, "address": "10.0.0.1", "port": 5, "host_key": "k", "models": [], "wanted": ["x"]}
    hostvars: dict[str, Any] = {"a": {SHARED: shared}, "b": {SHARED: {**shared, "serves": False}}, "c": {}}
    assert sources(hostvars, ["a", "b", "c"]) == [
        {"host": "a", "serves": True, "address": "10.0.0.1", "port": 5, "host_key": "k", "models": []}
    ]
