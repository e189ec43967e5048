# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has of NVIDIA's software, without asking NVML."""

from __future__ import annotations

import os
import stat
from typing import TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import predates_toolkit
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import (
    PCI_BRIDGE_CLASS,
    KernelModuleInfo,
    ToolInfo,
    kernel_module,
    nvidia_pci_devices,
    tool,
)


class CardInfo(TypedDict):
    """A GPU that the loaded driver drives."""

    pci_bus_id: str
    name: str
    uuid: str


class PersistenceInfo(TypedDict):
    """The persistence daemon."""

    running: bool


class NvidiaInfo(TypedDict):
    """What there is of NVIDIA's devices, driver and tools."""

    pci_devices: list[str]
    nvswitches: int
    kernel_module: KernelModuleInfo | None
    cards: list[CardInfo]
    device_files: list[str]
    device_files_unlinked: list[str]
    cdi_specs: list[str]
    container_toolkit: ToolInfo
    docker_predates_toolkit: bool
    fabric_manager: FabricManagerInfo
    persistence_daemon: PersistenceInfo


def nvidia(root: str = "/") -> NvidiaInfo:
    """Return what there is of NVIDIA's driver and tools, without asking the driver: that is gpu_info's part."""
    devices = [name for name in list_folder(root, "dev") if name.startswith("nvidia")]
    specs = [
        os.path.join("/", folder, name)
        for folder in ("etc/cdi", "var/run/cdi")
        for name in list_folder(root, folder)
        if name.endswith((".yaml", ".yml", ".json"))
    ]
    running = _running_programs(root)
    return {
        "pci_devices": nvidia_pci_devices(root),
        "nvswitches": len(nvidia_pci_devices(root, PCI_BRIDGE_CLASS)),
        "kernel_module": kernel_module(root),
        "cards": nvidia_cards(root),
        "device_files": devices,
        "device_files_unlinked": [name for name in devices if not _linked(os.path.join(root, "dev"), name)],
        "cdi_specs": specs,
        "container_toolkit": tool("nvidia-ctk"),
        "docker_predates_toolkit": predates_toolkit(root),
        # The kernel keeps 15 characters of a program's name.
        "fabric_manager": {**tool("nv-fabricmanager"), "running": "nv-fabricmanager"[:15] in running},
        "persistence_daemon": {"running": "nvidia-persistenced"[:15] in running},
    }


def nvidia_cards(root: str = "/") -> list[CardInfo]:
    """Return C(pci_bus_id), C(name) and C(uuid) of the GPUs that the loaded driver drives, in the order of the bus."""
    folder = os.path.join(root, "proc/driver/nvidia/gpus")
    cards: list[CardInfo] = []
    for bus in list_folder(folder):
        lines = [line.partition(":") for line in read_text(folder, bus, "information").splitlines()]
        about = {name.strip(): value.strip() for name, _colon, value in lines}
        cards.append({"pci_bus_id": bus, "name": about.get("Model", ""), "uuid": about.get("GPU UUID", "")})
    return cards


def _linked(folder: str, name: str) -> bool:
    """Return whether a device file has its link in /dev/char, where systemd looks for it; others need none."""
    state = os.stat(os.path.join(folder, name))
    number = f"{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}"
    return not stat.S_ISCHR(state.st_mode) or os.path.exists(os.path.join(folder, "char", number))


def _running_programs(root: str) -> set[str]:
    return {read_text(root, "proc", pid, "comm").strip() for pid in list_folder(root, "proc") if pid.isdigit()}


class FabricManagerInfo(ToolInfo):
    """The fabric manager, and whether it runs."""

    running: bool
