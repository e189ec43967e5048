# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units of systemd that this collection writes, on hosts that systemd runs."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import remove_file, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command

SYSTEMD_FOLDER = "/run/systemd/system"
UNIT_FOLDER = "/etc/systemd/system"
UNIT_MODE = 0o644


def on_systemd() -> bool:
    """Return whether systemd runs this host."""
    return os.path.isdir(SYSTEMD_FOLDER)


@dataclass(frozen=True)
class Unit:
    """A unit of ours; what systemctl fails at raises GpufleetError.

    Attributes:
        name: with its kind.
        error: the name of that error.
        remedy: what else helps than its messages.
    """

    name: str
    error: str
    remedy: str = ""

    @property
    def path(self) -> str:
        """Where it is written."""
        return os.path.join(UNIT_FOLDER, self.name)

    def systemctl(self, *words: str) -> None:
        """Run systemctl for it, its name last."""
        remedy = f"Look at journalctl --unit {self.name}. {self.remedy}".strip()
        run_command(
            ["systemctl", *words, self.name],
            name=self.error,
            doing=f"systemctl {' '.join(words)} {self.name}",
            remedy=remedy,
        )

    def reload(self) -> None:
        """Have systemd know all units as they are."""
        run_command(["systemctl", "daemon-reload"], name=self.error, doing="systemctl daemon-reload")

    def write(self, text: str) -> None:
        """Write it, and have systemd know it if it changed."""
        if write_file(self.path, text, UNIT_MODE):
            self.reload()

    def remove(self) -> None:
        """End it and delete it; one that is not there is no error, and so is a host without systemd."""
        if not os.path.exists(self.path):
            return
        if on_systemd():
            self.systemctl("disable", "--now")
        remove_file(self.path)
        if on_systemd():
            self.reload()
