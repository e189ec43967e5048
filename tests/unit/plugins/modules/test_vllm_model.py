# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_model as Ansible runs it, as far as it gets without an engine (tests/engine has the rest)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.modules import vllm_model

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule


def test_a_missing_model_needs_the_engine(run_module: RunModule, tmp_path: Path) -> None:
    options = {"model": "o/m", "image": "x:1", "hf_home": str(tmp_path), "docker_host": f"unix://{tmp_path}/none"}
    result = run_module(vllm_model.main, options)
    assert (result["failed"], result["error"]["name"]) == (True, "engine-not-running")
    assert f"{tmp_path}/none" in result["msg"]


def test_offline_needs_none(run_module: RunModule, tmp_path: Path) -> None:
    options = {"model": "o/m", "image": "x:1", "hf_home": str(tmp_path), "offline": True}
    result = run_module(vllm_model.main, options)
    assert (result["failed"], result["error"]["name"]) == (True, "weights-missing")
    assert "o/m" in result["msg"]


def test_what_the_server_keeps_elsewhere_is_left_to_it(run_module: RunModule) -> None:
    options = {"model": "o/m", "image": "x:1", "config": {"download-dir": "/data"}}
    result = run_module(vllm_model.main, options)
    assert (result["failed"], result["changed"], result["models"]) == (False, False, [])


def test_a_cache_that_is_no_folder_of_the_host_is_left_to_the_server(run_module: RunModule) -> None:
    options = {"model": "o/m", "image": "x:1", "volumes": ["models:/root/.cache/huggingface"], "offline": True}
    result = run_module(vllm_model.main, options)
    assert (result["failed"], result["changed"], result["models"]) == (False, False, [])
