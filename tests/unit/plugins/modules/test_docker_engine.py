# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docker_engine as a module: its result, its difference, its failures and its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import yaml

from ansible_collections.gpufleet.vllm.plugins.modules import docker_engine

RunModule = Callable[..., dict[str, Any]]
NO_ENGINE = "unix:///nowhere/docker.sock"


def test_check_mode_shows_the_difference_and_that_the_engine_would_start(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"mtu": 9000}')
    arguments = {
        "docker_host": NO_ENGINE,
        "config_path": str(path),
        "config": {"proxies": {"https-proxy": "http://me:hunter2@proxy"}},
    }
    result = run_module(docker_engine.main, arguments, check=True, diff=True)
    assert result["failed"] is False
    assert (result["changed"], result["action"], result["changed_keys"]) == (True, "start", ["proxies"])
    assert "There is no socket at" in result["reason"]
    assert result["diff"]["before_header"] == str(path)
    assert '+    "proxies"' not in result["diff"]["before"]
    assert '"https-proxy": "(hidden)"' in result["diff"]["after"]
    assert '"mtu": 9000' in result["diff"]["after"]
    assert path.read_text() == '{"mtu": 9000}'


def test_a_broken_file_fails_by_name_and_stays(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text("{")
    result = run_module(docker_engine.main, {"docker_host": NO_ENGINE, "config_path": str(path), "config": {"mtu": 1}})
    assert result["failed"] is True
    assert result["error"]["name"] == "daemon-config-invalid"
    assert path.read_text() == "{"


def test_documentation_names_every_key_of_the_result(run_module: RunModule, tmp_path: Path) -> None:
    arguments = {"docker_host": NO_ENGINE, "config_path": str(tmp_path / "daemon.json")}
    result = run_module(docker_engine.main, arguments, check=True)
    returned = set(yaml.safe_load(docker_engine.RETURN)) - {"error"}
    assert returned == set(result) - {"changed", "failed", "invocation", "warnings", "diff"}
