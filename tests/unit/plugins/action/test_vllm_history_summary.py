# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the last deployments."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.action.vllm_history_summary import ActionModule
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.history_page import history_lines


def deployment(name: str, **parts: Any) -> dict[str, Any]:
    """Return what vllm_server_info tells of one deployment."""
    return {
        "id": name,
        "outcome": "ready",
        "current": False,
        "rolled_back_to": "",
        "model": "m",
        "vllm_version": "0.12.0",
        "image": {"reference": "vllm/vllm-openai:v0.12.0", "id": "sha256:1700a9d57cad0938"},
        "error": {},
        **parts,
    }


def test_each_deployment_is_a_row_with_what_became_of_it() -> None:
    found = {
        "gpu-02": [
            deployment("3", current=True, rolled_back_to="1"),
            deployment("2", outcome="failed", error={"name": "port-in-use", "message": "Replica vllm-0 cannot."}),
            deployment("1", vllm_version=""),
        ],
        "gpu-1": [],
    }
    told = history_lines(found)
    assert [line.split() for line in told["lines"][1:]] == [
        [
            "gpu-02",
            "3",
            "m",
            "0.12.0",
            "vllm/vllm-openai:v0.12.0",
            "(1700a9d57cad)",
            "current,",
            "brought",
            "back",
            "1",
        ],
        ["gpu-02", "2", "m", "0.12.0", "vllm/vllm-openai:v0.12.0", "(1700a9d57cad)", "failed:", "port-in-use"],
        ["gpu-02", "1", "m", "?", "vllm/vllm-openai:v0.12.0", "(1700a9d57cad)", "served"],
        ["No", "deployment", "remembered", "on", "gpu-1."],
    ]
    assert told["errors"] == ["gpu-02 2: Replica vllm-0 cannot."]
    assert (ActionModule.option, ActionModule.shown, ActionModule.verbose) == ("deployments", "lines", "errors")
