# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of vllm_keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import key_sum
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_keys
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options for a host with two servers, and one of another deployment."""
    for name in ("vllm-0", "vllm-1", "vllm-small-0"):
        (tmp_path / "control" / name).mkdir(parents=True)
        (tmp_path / f"{name}.env").write_text("VLLM_API_KEY=sk-old-4711\n")
    return {"api_key": "sk-new-4712", "accepted_keys": ["sk-more-4713"], "config_dir": str(tmp_path)}


def test_every_server_of_the_deployment_takes_them_and_no_other(
    run_module: RunModule, options: dict[str, Any], tmp_path: Path
) -> None:
    told = run_module(vllm_keys.main, options, check=True, diff=True)
    assert (told["changed"], told["keys_changed"]) == (True, ["vllm-0", "vllm-1"])
    assert [entry["before_header"] for entry in told["diff"]] == ["keys of vllm-0", "keys of vllm-1"]
    done = run_module(vllm_keys.main, options)
    assert not any(key in str([told, done]) for key in ("sk-old", "sk-new", "sk-more"))
    taken = (tmp_path / "control" / "vllm-1" / "keys.sha256").read_text().split()
    assert taken == sorted(key_sum(key) for key in (b"sk-new-4712", b"sk-more-4713"))
    assert [path.parent.name for path in tmp_path.glob("control/*/keys.sha256")].count("vllm-small-0") == 0
    assert run_module(vllm_keys.main, options)["changed"] is False


def test_a_host_without_servers_or_without_a_key_is_left_as_it_is(
    run_module: RunModule, options: dict[str, Any], tmp_path: Path
) -> None:
    assert run_module(vllm_keys.main, {**options, "api_key": ""})["changed"] is False
    assert run_module(vllm_keys.main, {**options, "config_dir": str(tmp_path / "none")})["changed"] is False
    assert not (tmp_path / "none").exists()


def test_what_is_wrong_is_told(run_module: RunModule, options: dict[str, Any], tmp_path: Path) -> None:
    two_lines = run_module(vllm_keys.main, {**options, "api_key": "sk-new-4712\n"})
    assert two_lines["error"]["name"] == "secret-invalid" and "sk-new" not in str(two_lines)
    with host_lock(str(tmp_path / ".lock"), "vllm_server, state present"):
        assert run_module(vllm_keys.main, options)["error"]["name"] == "busy"
        # Nothing to do needs no lock.
        assert not run_module(vllm_keys.main, {**options, "api_key": ""})["changed"]
