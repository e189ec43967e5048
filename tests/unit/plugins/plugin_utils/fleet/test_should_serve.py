# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What does not serve though it should."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.should_serve import should_serve

SERVING = {"name": "vllm-0", "phase": "serving"}
UP = {"state": "ready", "status": "UP"}


def test_a_quiet_fleet_has_nothing() -> None:
    """What was drained is out on purpose, and a host without a deployment has nothing that should serve."""
    router = {"servers": {"gpu-1:vllm-0": UP, "gpu-2:vllm-0": {"state": "drain", "status": "DRAIN"}}}
    servers: dict[str, Any] = {"gpu-1": [SERVING], "gpu-2": [SERVING], "gpu-3": []}
    plans = {"gpu-1": {"replicas": [{"name": "vllm-0"}]}, "gpu-3": {}}
    assert should_serve(servers, {"lb": router}, plans) == []


def test_each_kind_is_named() -> None:
    """A dead replica, one without a container, one that a router leaves out or does not know, a router that is gone."""
    servers: dict[str, Any] = {
        "gpu-10": [SERVING],
        "gpu-2": [SERVING, {"name": "vllm-1", "phase": "dead"}],
        "gpu-3": [],
    }
    plans = {"gpu-3": {"replicas": [{"name": "vllm-0"}]}}
    routers: dict[str, Any] = {
        "lb-1": {"servers": {"gpu-2:vllm-0": {"state": "ready", "status": "DOWN"}, "gpu-2:vllm-1": UP}},
        "lb-2": {"error": {"message": "nothing listens"}},
    }
    assert should_serve(servers, routers, plans) == [
        "gpu-2/vllm-1: dead",
        "gpu-3/vllm-0: has no container",
        "gpu-10:vllm-0: the router lb-1 does not know it",
        "gpu-2:vllm-0: the router lb-1 sends nothing to it (DOWN)",
        "router lb-2: it could not be asked",
    ]


def test_what_a_run_has_given_up_is_not_out_on_purpose() -> None:
    drained = {"state": "drain", "status": "DRAIN"}
    router: dict[str, Any] = {"servers": {"gpu-1:vllm-0": drained, "gpu-2:vllm-0": drained}, "turns_over": ["gpu-2"]}
    servers = {"gpu-1": [SERVING], "gpu-2": [SERVING]}
    assert should_serve(servers, {"lb": router}, {}) == [
        "gpu-2:vllm-0: a run left it out of the router lb and could not put it right"
    ]
