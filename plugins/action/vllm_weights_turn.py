# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say whether a host fetches weights from the hub or from other hosts, see M(gpufleet.vllm.vllm_weights_turn)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from ansible_collections.gpufleet.vllm.plugins.action.vllm_model import complete
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.weights_turns import turn_of

# What the role keeps on each host: what the probe showed, what vllm_weights_share said, what the hub's download did.
LACKS, SEEN, FETCHED = "__vllm_weights_lack", "__vllm_weights_seen", "__vllm_weights_fetched"


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_weights_turn."""

    options: ClassVar[dict[str, Any]] = {
        "step": {"type": "str", "choices": ["probed", "turn"], "default": "turn"},
        "model": {"type": "str", "default": ""},
        "config": {"type": "dict", "default": {}},
        "hf_home": {"type": "str", "default": ""},
        "environment": {"type": "dict", "default": {}},
        "volumes": {"type": "list", "elements": "str", "default": []},
        "probed": {"type": "list", "elements": "dict", "default": []},
        "seeds": {"type": "int", "default": 1},
    }

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return what the host does."""
        if arguments["step"] == "probed":
            return {"lacks": not complete(arguments, arguments["probed"])}
        hosts, hostvars = variables["ansible_play_hosts"], variables["hostvars"]
        if not any(_dictionary(hostvars[host], LACKS).get("lacks") for host in hosts):
            return {"looks": False, "part": "none", "members": [], "public_keys": [], "text": ""}
        seen = {host: _said(hostvars[host]) for host in hosts if _dictionary(hostvars[host], SEEN).get("wanted")}
        turn = turn_of(variables["inventory_hostname"], hosts, seen, arguments["seeds"])
        return {"looks": True, **asdict(turn)}


def _dictionary(variables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = variables.get(name)
    return found if isinstance(found, Mapping) else {}


def _said(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a host said, and whether the hub did not give it the weights."""
    fetched = _dictionary(variables, FETCHED)
    return {**_dictionary(variables, SEEN), "failed": bool(fetched.get("failed") or fetched.get("unreachable"))}
