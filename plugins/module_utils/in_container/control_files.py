# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in a control folder (control.py) before its server starts: the programs that run inside."""

from __future__ import annotations

import inspect
import os

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import door, health_check
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import DOOR_MODULE, HEALTH_PROGRAM

WATCHDOG = "watchdog"


def control_files(folder: str, watchdog: int) -> dict[str, str]:
    """Return the texts of the files by their paths.

    Args:
        folder: the control folder of one replica.
        watchdog: seconds for which the server may hang; 0 for ever.
    """
    texts = {
        f"{DOOR_MODULE}.py": inspect.getsource(door),
        HEALTH_PROGRAM: inspect.getsource(health_check),
        WATCHDOG: f"{watchdog}\n",
    }
    return {os.path.join(folder, name): text for name, text in texts.items()}
