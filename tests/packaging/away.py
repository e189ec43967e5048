# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-core's programs away from this checkout, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))


def ansible(
    program: str, *arguments: str, folder: Path, collections: Path | None = None, status: int = 0, **settings: str
) -> str:
    """Run a program of ansible-core away from this checkout and return what it printed.

    Args:
        program: its name.
        arguments: given to it.
        folder: where it runs.
        collections: folder in which it finds collections.
        status: with which it must end.
        settings: of Ansible, by the names of their environment variables.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHONPATH"))}
    environment |= {"ANSIBLE_NOCOLOR": "1", "HOME": str(folder), **settings}
    if collections:
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(collections)
    command = [str(BIN / program), *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == status, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout
