# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from a container."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import key_to_ask_with
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import LABEL_SPEC


@pytest.mark.parametrize(
    ("spec", "started_with", "written", "key"),
    [
        ({"takes_keys": True}, ["VLLM_API_KEY=old"], "A=b\nVLLM_API_KEY=n=w\n", "n=w"),
        ({"takes_keys": True}, ["VLLM_API_KEY=old"], "A=b\n", "old"),
        ({"takes_keys": True}, [], "VLLM_API_KEY=new\n", ""),
        ({}, ["VLLM_API_KEY=old"], "VLLM_API_KEY=new\n", "old"),
        (None, ["VLLM_API_KEY=old"], "VLLM_API_KEY=new\n", "old"),
    ],
)
def test_a_server_is_asked_with_a_key_that_it_takes(
    tmp_path: Path, spec: dict[str, Any] | None, started_with: list[str], written: str, key: str
) -> None:
    (tmp_path / "vllm-0.env").write_text(written)
    label = {LABEL_SPEC: json.dumps({"schema": 1, "name": "vllm-0", **spec})} if spec is not None else {}
    container: Any = SimpleNamespace(labels=label, attrs={"Config": {"Env": started_with}})
    assert key_to_ask_with(container, str(tmp_path)) == key
