# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the NVIDIA driver of a host tells without NVML: the GPUs on the bus, the kernel module, its tools."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program

NVIDIA_PCI_VENDOR = "0x10de"
PCI_DISPLAY_CLASSES = ("0x0300", "0x0302")
PCI_BRIDGE_CLASS = ("0x0680",)


class KernelModuleInfo(TypedDict):
    """The loaded NVIDIA kernel module."""

    version: str
    open: bool


class ToolInfo(TypedDict):
    """A program; None when it is not installed."""

    path: str | None
    version: str | None


def kernel_module(root: str = "/") -> KernelModuleInfo | None:
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


def tool(name: str) -> ToolInfo:
    """Return C(path) and C(version) of a program, both None when it is not installed."""
    path = program_path(name)
    if path is None:
        return {"path": None, "version": None}
    try:
        done = run_program([path, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return {"path": path, "version": None}
    found = re.search(r"\d+\.\d+(?:\.\d+)*(?:-rc\.\d+)?", done.stdout + done.stderr)
    return {"path": path, "version": found.group(0) if found else None}
