# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd starts when the host boots, as far as servers need it to come back."""

from __future__ import annotations

import hashlib
import os
from typing import TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program

ENGINE, FABRIC_MANAGER, PERSISTENCE = "docker.service", "nvidia-fabricmanager.service", "nvidia-persistenced.service"
DEVICE_FILES, START = "gpufleet-device-files.service", "gpufleet-start-servers.timer"
UNITS = (ENGINE, FABRIC_MANAGER, PERSISTENCE, DEVICE_FILES, START)
# What the role vllm writes (tasks/boot.yml).
FILES = (
    "/usr/local/sbin/gpufleet-make-device-files",
    "/usr/local/sbin/gpufleet-start-servers",
    f"/etc/systemd/system/{DEVICE_FILES}",
    "/etc/systemd/system/gpufleet-start-servers.service",
    f"/etc/systemd/system/{START}",
)
TIMEOUT_S = 20


class BootInfo(TypedDict):
    """Units and their state in systemd's words, empty for one that is not there; the role's files and their SHA-256."""

    units: dict[str, str]
    files: dict[str, str]


def boot(root: str = "/") -> BootInfo | None:
    """Return what is started at boot; None where there is no systemd.

    Raises:
        OSError, subprocess.SubprocessError: systemd cannot be asked.
    """
    if not os.path.isdir(os.path.join(root, "run/systemd/system")):
        return None
    command = ["systemctl", "show", "--property=Id,UnitFileState", *UNITS]
    shown = run_program(command, check=True, capture_output=True, timeout=TIMEOUT_S).stdout
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in shown.split("\n\n")]
    states = {block.get("Id", ""): block.get("UnitFileState", "") for block in blocks}
    return {
        "units": {unit: states.get(unit, "") for unit in UNITS},
        "files": {path: _digest(os.path.join(root, path.lstrip("/"))) for path in FILES},
    }


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except FileNotFoundError:
        return ""
