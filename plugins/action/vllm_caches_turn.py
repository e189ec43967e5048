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
        hosts, here = variables["ansible_play_hosts_all"], variables["inventory_hostname"]
        said = {host: _said(variables["hostvars"][host]) for host in hosts}
        own = _caches(said[here])
        nothing = {"host": "", "folder": "", "key": str(own.get("key") or "")}
        if not own.get("key") or own.get("warm") or own.get("received") or not said[here].get("would_change"):
            return nothing
        able = [host for host in hosts if host != here and _is_ready(said[host], own["key"])]
        if not able:
            return nothing
        # The same one for all, as it packs once.
        return {"host": able[0], "folder": str(_caches(said[able[0]])["folder"]), "key": str(own["key"])}


def _said(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    found = variables.get(SERVER)
    return found if isinstance(found, Mapping) else {}


def _caches(said: Mapping[str, Any]) -> Mapping[str, Any]:
    return said.get("caches") or {}


def _is_ready(said: Mapping[str, Any], key: str) -> bool:
    """Return whether the servers of a host are ready with caches of this key."""
    failed = said.get("failed") or said.get("unreachable")
    return not failed and bool(_caches(said).get("warm")) and _caches(said).get("key") == key
