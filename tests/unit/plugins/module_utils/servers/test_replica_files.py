# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written for replicas, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replica_files import ReplicaFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings

NAME = "E=16,N=4096,device_name=NVIDIA_H200,dtype=fp8_w8a8.json"


def write(folder: Path, plan: dict[str, Any]) -> bool:
    """Write the control files of one replica, and return whether one changed."""
    settings = Settings(config_dir=str(folder), hf_home="", cache_dir="", prefix="vllm", docker_host="", plan=plan)
    files = ReplicaFiles(OwnContainers(MagicMock(), settings, MagicMock()), settings, {})
    spec: Any = {"name": "vllm-0", "restart_policy": "unless-stopped"}
    files.write_controls([spec])
    return files.changed


def test_tuned_tables_are_written_once_for_every_user(tmp_path: Path) -> None:
    plan = {"moe_tables": {"folder": "moe-1", "files": {NAME: "{}"}}}
    assert write(tmp_path, plan) is True
    table = tmp_path / "control" / "vllm-0" / "moe-1" / NAME
    assert table.read_text(encoding="utf-8") == "{}"
    assert table.stat().st_mode & 0o777 == 0o644
    assert table.parent.stat().st_mode & 0o005 == 0o005
    assert write(tmp_path, plan) is False


def test_an_old_server_finds_the_tables_that_it_had(tmp_path: Path) -> None:
    for number in ("1", "2"):
        write(tmp_path, {"moe_tables": {"folder": f"moe-{number}", "files": {NAME: number}}})
    folder = tmp_path / "control" / "vllm-0"
    assert [(folder / f"moe-{number}" / NAME).read_text(encoding="utf-8") for number in ("1", "2")] == ["1", "2"]


def test_a_plan_of_an_earlier_release_has_no_tables(tmp_path: Path) -> None:
    write(tmp_path, {})
    write(tmp_path, {"moe_tables": None})
    assert not list((tmp_path / "control" / "vllm-0").glob("moe-*"))
