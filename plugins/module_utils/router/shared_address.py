# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The address that several routers share: what this host has of it, and what it could have it on."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import KEEPALIVED_CONFIG
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.security import own_addresses

CONFIGURED = re.compile(r"virtual_ipaddress\s*\{\s*(\S+?)/(\d+)\s")


def interface_addresses() -> list[dict[str, Any]]:
    """Return the addresses of this host: C(interface), C(address), C(prefix_length); none where C(ip) is not there."""
    program = program_path("ip")
    if program is None:
        return []
    try:
        shown = run_program([program, "-json", "address"], capture_output=True, check=True)
        links = json.loads(shown.stdout or "[]")
    except (OSError, ValueError, subprocess.CalledProcessError):
        return []
    return [
        {"interface": link["ifname"], "address": entry["local"], "prefix_length": entry["prefixlen"]}
        for link in links
        for entry in link.get("addr_info") or []
        if "local" in entry and entry.get("scope") == "global"
    ]


def shared_address(directory: str) -> str:
    """Return the address that keepalived is configured to share; empty for none."""
    found = CONFIGURED.search(read_text(directory, KEEPALIVED_CONFIG))
    return found[1] if found else ""


def shared_state(directory: str, run_dir: str) -> dict[str, Any]:
    """Return the shared address, whether this host has it now, and whether its router knows what is drained."""
    address = shared_address(directory)
    if not address:
        return {}
    in_step = os.path.exists(in_step_file(run_dir))
    return {"address": address, "held": address in own_addresses(), "in_step": in_step}


def in_step_file(run_dir: str) -> str:
    """Return the file that is there once this router knows what the others do; gone whenever HAProxy starts."""
    return os.path.join(run_dir, "in-step")
