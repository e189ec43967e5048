# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel tells in /proc and /sys. Every path is below C(root), which is C(/) on a real host."""

from __future__ import annotations

import os
import re
import shutil
from typing import Any

NVIDIA_PCI_VENDOR = "0x10de"
PCI_DISPLAY_CLASSES = ("0x0300", "0x0302")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PCI_BRIDGE_CLASS = ("0x0680",)


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


def container_id(pid: int, root: str = "/") -> str:
    """Return the id of the container that the process runs in (64 hexadecimal digits), or an empty text."""
    found = re.findall(r"[0-9a-f]{64}", read_text(root, "proc", str(pid), "cgroup"))
    return found[-1] if found else ""


def kernel_module(root: str = "/") -> dict[str, Any] | None:
    """Return C(version) and C(open) of the loaded NVIDIA kernel module, or None when none is loaded."""
    text = read_text(root, "proc/driver/nvidia/version")
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", text)
    return {"version": found.group(1), "open": "Open Kernel Module" in text} if found else None


def nvidia_minors(root: str = "/") -> dict[str, int]:
    """Return the number N of the device file /dev/nvidiaN of each GPU, by its UUID; nothing where no driver tells it.

    It need not be the index by which NVML names the GPU.
    """
    folder = os.path.join(root, "proc/driver/nvidia/gpus")
    minors = {}
    for name in list_folder(folder):
        text = read_text(folder, name, "information")
        uuid = re.search(r"^GPU UUID:\s*(GPU-\S+)", text, re.MULTILINE)
        minor = re.search(r"^Device Minor:\s*(\d+)", text, re.MULTILINE)
        if uuid and minor:
            minors[uuid.group(1)] = int(minor.group(1))
    return minors


def nvidia_pci_devices(root: str = "/", classes: tuple[str, ...] = PCI_DISPLAY_CLASSES) -> list[str]:
    """Return the PCI bus ids of NVIDIA's devices of these classes, in order, as C(0000:1b:00.0).

    With or without a driver; by default the GPUs, with C(PCI_BRIDGE_CLASS) the NVSwitches.
    """
    folder = os.path.join(root, "sys/bus/pci/devices")
    return [
        name
        for name in list_folder(folder)
        if read_text(folder, name, "vendor").strip() == NVIDIA_PCI_VENDOR
        and read_text(folder, name, "class").startswith(classes)
    ]


def program_path(name: str) -> str | None:
    """Return where a program is, looking also where only root's search path leads; None when it is not installed."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), SYSTEM_PATH)))
