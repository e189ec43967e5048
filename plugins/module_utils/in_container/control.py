# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder through which the host tells a running server things; its container mounts it read-only.

It holds the two programs that run inside (door.py, health_check.py), C(watchdog) (seconds for which the server may
hang, 0 for ever), C(keys.sha256) (the keys that it takes) and, while the server turns requests away, C(closed) (when it
takes them again by itself). Tuned tables of the MoE kernel have a folder of their own there, of which the name follows
from the tables, so that an old server that comes back finds those that it had.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CLOSED


class Control:
    """The control folder of one replica.

    Args:
        folder: its path on the host.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def tables(self, found: Mapping[str, Any]) -> dict[str, str]:
        """Return the texts of a plan's C(moe_tables) by their paths."""
        folder = os.path.join(self.folder, os.path.basename(str(found.get("folder") or "")))
        files: Mapping[str, str] = found.get("files") or {}
        return {os.path.join(folder, os.path.basename(name)): str(text) for name, text in files.items()}

    def close(self, seconds: float) -> None:
        """Tell the server to turn new requests away for `seconds`, or until `open`."""
        path = os.path.join(self.folder, CLOSED)
        write_file(path, f"{time.time() + seconds:.3f}\n", 0o644, variable="vllm_config_dir")

    def open(self) -> bool:
        """Tell the server to take requests again; return whether it turned them away.

        Where the file cannot be removed the door opens at the time in it.
        """
        closed = self.closed()
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.folder, CLOSED))
        return closed

    def closed(self) -> bool:
        """Return whether the server turns new requests away."""
        try:
            return time.time() < float(read_text(self.folder, CLOSED))
        except ValueError:
            return False

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
