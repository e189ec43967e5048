# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel tells in /proc and /sys. Every path is below C(root), which is C(/) on a real host."""

from __future__ import annotations

import os
import re
import shutil

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def read_text(*parts: str) -> str:
    """Return the text of the file at the joined path; empty when it is missing or cannot be read."""
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def list_folder(*parts: str) -> list[str]:
    """Return the names in the folder at the joined path, sorted; empty when it is missing or cannot be read."""
    try:
        return sorted(os.listdir(os.path.join(*parts)))
    except OSError:
        return []


def program_name(command: str) -> str:
    """Return the bare name of the program in a command line, without its folder and arguments.

    Process titles may carry whole command lines, and those carry API keys and tokens.
    """
    words = re.split(r"[\s\0]+", command.strip("\0 \t\r\n"), maxsplit=1)
    return os.path.basename(words[0])


def process_fields(pid: int, root: str = "/") -> list[str]:
    """Return the fields of a process's stat from the third on; empty when there is no such process.

    The second one is the program's name in brackets, which may itself hold brackets and spaces.
    """
    return read_text(root, "proc", str(pid), "stat").rpartition(")")[2].split()


def start_of_process(pid: int, root: str = "/") -> str:
    """Return when a process began, in the kernel's ticks since the boot; empty when that cannot be told."""
    fields = process_fields(pid, root)
    return fields[19] if len(fields) > 19 else ""


def container_id(pid: int, root: str = "/") -> str:
    """Return the id of the container that the process runs in (64 hexadecimal digits), or an empty text."""
    found = re.findall(r"[0-9a-f]{64}", read_text(root, "proc", str(pid), "cgroup"))
    return found[-1] if found else ""


def program_path(name: str) -> str | None:
    """Return where a program is, looking also where only root's search path leads; None when it is not installed."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), SYSTEM_PATH)))


def file_systems(root: str = "/") -> dict[str, tuple[str, str]]:
    """Return what is mounted: mount point to file system and device; of several at one point the last."""
    found = {}
    for line in read_text(root, "proc/self/mountinfo").splitlines():
        fields, _dash, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), fields.split()[4])
        filesystem, device = rest.split()[:2]
        found[point] = (filesystem, device)
    return found


def is_below(path: str, folder: str) -> bool:
    """Return whether a path is a folder or something in it, by their names alone."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
