# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide, on the controller, which servers of a host a verification tries, and with what."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import first_name
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.verification import verify_targets

ARGUMENTS: dict[str, Any] = {
    "plan": {"type": "dict", "default": {}},
    "gpu_info": {"type": "dict", "default": {}},
    "host_info": {"type": "dict", "default": {}},
    "url": {"type": "str", "default": ""},
    "url_ca": {"type": "str", "default": ""},
    "ca_bundle": {"type": "str", "default": ""},
    "image": {"type": "str", "default": ""},
    "served_model_name": {"type": "raw", "default": ""},
    "environment": {"type": "dict", "default": {}},
    "floors": {"type": "dict", "default": {}},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_verify_targets."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return the servers, and what the stages need to know of the host."""
        plan, gpu_info = {} if arguments["url"] else arguments["plan"], arguments["gpu_info"]
        ca_path, ca_bundle = verify_targets.authorities(
            arguments["url_ca"], arguments["ca_bundle"], arguments["host_info"]
        )
        return {
            "targets": verify_targets.targets(
                plan,
                url=arguments["url"],
                model=first_name(arguments["served_model_name"]),
                environment=arguments["environment"],
                gpu_info=gpu_info,
            ),
            "plan": plan,
            "image": arguments["image"] or str((plan.get("image") or {}).get("tag") or ""),
            "model_source": plan.get("model_source") or {},
            "ca_path": ca_path,
            "ca_bundle": ca_bundle,
            "floors": verify_targets.floors_of(arguments["floors"], str(plan.get("precision") or "")),
            "gpus": [gpu["name"] for gpu in gpu_info.get("gpus") or []],
            "driver": gpu_info.get("driver_version", ""),
        }
