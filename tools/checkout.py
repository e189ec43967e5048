# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that make up this checkout, and copies of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def known_to_git(root: Path = ROOT) -> list[str]:
    """Return the files of a checkout that are committed or would be, and are there; paths below C(root).

    Raises:
        subprocess.CalledProcessError: when git does not tell, with what it said.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [name for name in listing.split("\0") if name and (root / name).is_file()]


def copy_to(folder: Path, root: Path = ROOT) -> None:
    """Copy these files of a checkout to the folder, and remove everything else there.

    Raises:
        subprocess.CalledProcessError: as known_to_git.
    """
    names = known_to_git(root)
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, folder / name)
