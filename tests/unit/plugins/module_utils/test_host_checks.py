# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would stop a plan on its host is told before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host_checks import check_host

PLAN: dict[str, Any] = {
    "replicas": [
        {"name": "vllm-0", "host": "127.0.0.1", "port": 8000},
        {"name": "vllm-1", "host": "127.0.0.1", "port": 8001},
    ],
    "model_source": {"kind": "path", "mount": "/models/m"},
}
FREE = {"port": 8000, "free": True, "ours": False, "container": None, "pid": None, "process": None}
MODEL: dict[str, Any] = {"exists": True, "config": {"model_type": "llama"}, "config_error": ""}


@pytest.mark.parametrize(
    ("ports", "model", "error", "says"),
    [
        ([], None, None, ""),
        ([FREE], MODEL, None, ""),
        ([{**FREE, "free": False, "ours": True, "container": "vllm-0"}], MODEL, None, ""),
        ([FREE, {**FREE, "port": 8001, "free": False, "process": "nginx", "pid": 7}], MODEL, "port-in-use", "nginx"),
        ([{**FREE, "free": False, "container": "web"}], MODEL, "port-in-use", "the container web"),
        ([{**FREE, "free": False}], MODEL, "port-in-use", "something else"),
        ([], {**MODEL, "exists": False, "config": None}, "model-folder-missing", "no such folder"),
        ([], {**MODEL, "config": None}, "model-folder-missing", "no config.json"),
        ([], {**MODEL, "config": None, "config_error": "line 3"}, "model-folder-missing", "line 3"),
    ],
)
def test_check_host(ports: list[dict[str, Any]], model: dict[str, Any] | None, error: str | None, says: str) -> None:
    """A port of ours and a folder with a model pass; everything else is named with who or what is in the way."""
    info = {"ports": ports, "model": model}
    if error is None:
        check_host(PLAN, info)
        return
    with pytest.raises(GpufleetError) as raised:
        check_host(PLAN, info)
    assert raised.value.name == error
    assert says in raised.value.message


def test_a_model_of_the_hub_needs_no_folder() -> None:
    """Only a plan that mounts a folder asks for one."""
    check_host({**PLAN, "model_source": {"kind": "hub", "mount": ""}}, {"ports": [], "model": {"exists": False}})
    with pytest.raises(GpufleetError):
        check_host(PLAN, {"ports": [], "model": {"exists": False, "config": None, "config_error": ""}})
