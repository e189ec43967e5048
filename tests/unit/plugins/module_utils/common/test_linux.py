# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel tells, read from small trees of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import linux
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import driver
from ansible_collections.gpufleet.vllm.tests.unit.conftest import write_below

CONTAINER = "3f" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\nGCC version:",
            {"version": "535.54.03", "open": False},
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root)\n",
            {"version": "580.159.04", "open": True},
        ),
        ("something else entirely", None),
        (None, None),
    ],
)
def test_kernel_module(tmp_path: Path, text: str | None, expected: dict[str, object] | None) -> None:
    if text is not None:
        write_below(tmp_path, "proc/driver/nvidia/version", text)
    assert driver.kernel_module(str(tmp_path)) == expected


def test_the_numbers_of_device_files_by_uuid(tmp_path: Path) -> None:
    text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 33\nGPU UUID: \t %s\nDevice Minor: \t %d\nGPU Excluded:\t No\n"
    for bus, uuid, minor in (("0000:1b:00.0", "GPU-a", 1), ("0000:9b:00.0", "GPU-b", 0)):
        write_below(tmp_path, f"proc/driver/nvidia/gpus/{bus}/information", text % (uuid, minor))
    write_below(tmp_path, "proc/driver/nvidia/gpus/0000:ff:00.0/information", "Model: ?\n")
    assert driver.nvidia_minors(str(tmp_path)) == {"GPU-a": 1, "GPU-b": 0}
    assert driver.nvidia_minors(str(tmp_path / "elsewhere")) == {}


def test_nvidia_pci_devices_are_gpus_of_nvidia_in_order(tmp_path: Path) -> None:
    devices = {
        "0000:9b:00.0": ("0x10de", "0x030200"),
        "0000:1b:00.0": ("0x10de", "0x030000"),
        "0000:05:00.0": ("0x10de", "0x068000"),
        "0000:1b:00.1": ("0x10de", "0x040300"),
        "0000:00:02.0": ("0x8086", "0x030000"),
    }
    for name, (vendor, kind) in devices.items():
        write_below(tmp_path, f"sys/bus/pci/devices/{name}/vendor", vendor + "\n")
        write_below(tmp_path, f"sys/bus/pci/devices/{name}/class", kind + "\n")
    assert driver.nvidia_pci_devices(str(tmp_path)) == ["0000:1b:00.0", "0000:9b:00.0"]
    assert driver.nvidia_pci_devices(str(tmp_path), driver.PCI_BRIDGE_CLASS) == ["0000:05:00.0"]


def test_a_host_without_pci_has_no_devices(tmp_path: Path) -> None:
    assert driver.nvidia_pci_devices(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/opt/conda/bin/python3 train.py --token hf_secret", "python3"),
        ("python3\0-m\0vllm\0--api-key\0sk-secret\0", "python3"),
        ("VLLM::EngineCore", "VLLM::EngineCore"),
        ("  /usr/bin/nvidia-smi\n", "nvidia-smi"),
        ("", ""),
    ],
)
def test_program_name_leaves_arguments_out(command: str, name: str) -> None:
    assert linux.program_name(command) == name


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", CONTAINER),
        (f"12:memory:/docker/{CONTAINER}\n1:cpu:/docker/{CONTAINER}\n", CONTAINER),
        ("0::/user.slice/user-1000.slice\n", ""),
        (None, ""),
    ],
)
def test_container_id(tmp_path: Path, cgroup: str | None, expected: str) -> None:
    if cgroup is not None:
        write_below(tmp_path, "proc/17/cgroup", cgroup)
    assert linux.container_id(17, str(tmp_path)) == expected
