# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say from which host a host has what its servers would compile, see M(gpufleet.vllm.vllm_caches_turn)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction

# What the role keeps on each host.
SERVER = "__vllm_server"


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_caches_turn."""

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return whose caches the host takes."""
        hostvars, here = variables["hostvars"], variables["inventory_hostname"]
        own = _said(hostvars[here])
        key = str(_caches(own).get("key") or "")
        nothing = {"host": "", "folder": "", "key": key}
        if not key or _caches(own).get("warm") or _caches(own).get("received") or not own.get("would_change"):
            return nothing
        # The first one for all, as it packs once.
        for host in variables["ansible_play_hosts_all"]:
            said = _said(hostvars[host]) if host != here else {}
            if _is_ready(said, key):
                return {"host": host, "folder": str(_caches(said)["folder"]), "key": key}
        return nothing


def _said(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    found = variables.get(SERVER)
    return found if isinstance(found, Mapping) else {}


def _caches(said: Mapping[str, Any]) -> Mapping[str, Any]:
    return said.get("caches") or {}


def _is_ready(said: Mapping[str, Any], key: str) -> bool:
    """Return whether the servers of a host are ready with caches of this key."""
    failed = said.get("failed") or said.get("unreachable")
    return not failed and bool(_caches(said).get("warm")) and _caches(said).get("key") == key
