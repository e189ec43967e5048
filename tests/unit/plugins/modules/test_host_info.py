# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""host_info as a module: its options, its result and its documentation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable

import yaml

from ansible_collections.gpufleet.vllm.plugins.modules import host_info
from ansible_collections.gpufleet.vllm.tests.fakes.hub import Hub, Repository

RunModule = Callable[..., dict[str, Any]]
NO_ENGINE = "unix:///nowhere/docker.sock"


def test_every_part_is_there_on_any_host(run_module: RunModule) -> None:
    result = run_module(host_info.main, {"docker_host": NO_ENGINE})
    assert result["failed"] is False
    assert result["changed"] is False
    assert result["errors"] == {}
    assert (result["venv"], result["model"], result["ports"], result["weights"]) == (None, None, [], [])
    # Nobody asked for a folder, but where images will be is always of interest.
    assert list(result["disks"]) == [result["engine"]["image_dir"]]
    assert result["engine"]["running"] is False
    assert result["system"]["operating_system"] == "Linux"
    assert result["memory"]["total_mib"] > result["memory"]["available_mib"] > 0


def test_every_option_reaches_its_part(run_module: RunModule, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    result = run_module(
        host_info.main,
        {
            "docker_host": NO_ENGINE,
            "venv": str(tmp_path / "venv"),
            "requirements": ["docker==7.1.0"],
            "paths": [str(tmp_path / "new")],
            "ports": [1],
            "host": "192.0.2.1",
            "model_path": str(tmp_path),
            "weights_paths": [str(tmp_path), str(tmp_path / "new")],
            "asked_at": time.time() - 1000,
        },
    )
    assert result["venv"]["missing"] == ["docker==7.1.0"]
    assert result["disks"][str(tmp_path / "new")]["existing"] == str(tmp_path)
    assert [entry["port"] for entry in result["ports"]] == [1]
    assert result["address_available"] is False
    assert result["model"]["config"] == {"model_type": "llama"}
    assert [entry["exists"] for entry in result["weights"]] == [True, False]
    assert 1000 <= result["clock"]["ahead_seconds"] < 1060
    assert result["reach"] == {}


def test_the_hub_is_asked_for_a_model_that_the_host_does_not_have(run_module: RunModule, tmp_path: Path) -> None:
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x"}
    with Hub({"org/m": Repository({"main": files}, token="hf_sesame")}).running() as hub:
        asked = {"docker_host": NO_ENGINE, "hub_model": "org/m", "hub_endpoint": hub.url, "hf_token": "hf_sesame"}
        result = run_module(host_info.main, {**asked, "model_path": str(tmp_path)})
        assert result["model"]["config"] == {"model_type": "llama"}
        assert (result["model"]["total_bytes"], len(result["model"]["at_hub"])) == (1, 40)
        (tmp_path / "config.json").write_text('{"model_type": "own"}')
        before = len(hub.log)
        result = run_module(host_info.main, {**asked, "model_path": str(tmp_path)})
        assert (result["model"]["config"], len(hub.log)) == ({"model_type": "own"}, before)
        result = run_module(host_info.main, {**asked, "hf_token": ""})
        assert (result["model"]["config"], result["errors"]) == (None, {})
        assert result["model"]["config_error"] == "The hub was asked: it answers 401."


def test_check_mode_is_the_same(run_module: RunModule) -> None:
    result = run_module(host_info.main, {"docker_host": NO_ENGINE}, check=True)
    assert result["failed"] is False
    assert result["system"]["platform"].startswith("linux/")


def test_it_is_quick(run_module: RunModule) -> None:
    # A look without an engine takes a few hundredths of a second; the bound is for a machine with much else to do.
    started = time.monotonic()
    run_module(host_info.main, {"docker_host": NO_ENGINE, "ports": [8000, 8001], "paths": ["/var/lib/docker"]})
    assert time.monotonic() - started < 2


def test_documentation_names_every_key_of_the_result(run_module: RunModule, tmp_path: Path) -> None:
    returned = yaml.safe_load(host_info.RETURN)
    result = run_module(
        host_info.main,
        {
            "docker_host": NO_ENGINE,
            "venv": str(tmp_path),
            "paths": ["/var/lib/docker"],
            "ports": [8000],
            "model_path": str(tmp_path),
        },
    )
    assert set(returned) == set(result) - {"changed", "failed", "invocation", "warnings"}
    for name in ("system", "cpu", "memory", "shm", "clock", "venv", "engine", "daemon_config", "nvidia", "model"):
        assert set(returned[name]["sample"]) == set(result[name]), name
    assert set(returned["ports"]["sample"][0]) == set(result["ports"][0])
    assert set(returned["disks"]["sample"]["/var/lib/docker"]) == set(result["disks"]["/var/lib/docker"])
