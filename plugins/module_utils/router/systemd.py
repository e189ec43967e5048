# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The units of the router, on hosts that systemd runs."""

from __future__ import annotations

import os

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command

SYSTEMD_FOLDER = "/run/systemd/system"
UNIT_FOLDER = "/etc/systemd/system"
UNIT_MODE = 0o644


def on_systemd() -> bool:
    """Return whether systemd runs this host."""
    return os.path.isdir(SYSTEMD_FOLDER)


def systemctl(unit: str, *words: str) -> str:
    """Run systemctl for a unit, its name last.

    Raises:
        GpufleetError: C(router-not-started).
    """
    return run_command(
        ["systemctl", *words, unit],
        name="router-not-started",
        doing=f"systemctl {' '.join(words)} {unit}",
        remedy=f"Look at journalctl --unit {unit}.",
    )


def write_unit(unit: str, text: str) -> None:
    """Write a unit, and have systemd know it if it changed."""
    if write_file(os.path.join(UNIT_FOLDER, unit), text, UNIT_MODE):
        _reload()


def remove_unit(unit: str) -> None:
    """End a unit and delete it; one that is not there is no error."""
    path = os.path.join(UNIT_FOLDER, unit)
    if os.path.exists(path):
        systemctl(unit, "disable", "--now")
        os.unlink(path)
        _reload()


def _reload() -> None:
    run_command(["systemctl", "daemon-reload"], name="router-not-started", doing="systemctl daemon-reload")
