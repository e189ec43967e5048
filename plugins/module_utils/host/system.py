# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The operating system, processors, memory, clock, proxies and disks of a host."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import sys
import time
from typing import TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import platform_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import file_systems, is_below, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB

# What decides which kernels vLLM's CPU build has, and their names on Arm.
CPU_FLAGS = (
    "avx",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
CLOCK_UNSYNCHRONISED = 0x40


class DistributionInfo(TypedDict):
    """The Linux distribution, from /etc/os-release."""

    id: str
    version_id: str
    codename: str
    like: list[str]
    name: str


class PythonInfo(TypedDict):
    """The Python that ran the module."""

    executable: str
    version: str
    makes_environments: bool


class SystemInfo(TypedDict):
    """The operating system."""

    architecture: str
    platform: str
    kernel: str
    operating_system: str
    distribution: DistributionInfo
    init: str
    euid: int
    python: PythonInfo


class CpuInfo(TypedDict):
    """The processors."""

    count: int
    model: str
    flags: list[str]


class MemoryInfo(TypedDict):
    """The main memory."""

    total_mib: int
    available_mib: int


class SharedMemoryInfo(TypedDict):
    """The file system /dev/shm."""

    total_mib: int
    free_mib: int


class ClockInfo(TypedDict):
    """The clock. `synchronised` is None when the kernel does not tell."""

    synchronised: bool | None
    epoch: float
    ahead_seconds: float | None


class DiskInfo(TypedDict):
    """The file system that holds a path, or would hold it."""

    existing: str
    mount: str
    device: str
    device_number: int
    filesystem: str
    total_bytes: int
    free_bytes: int
    writable: bool


def system(root: str = "/") -> SystemInfo:
    """Return architecture, kernel, distribution, system Python, init system and effective user id."""
    machine = platform.machine()
    return {
        "architecture": machine,
        "platform": platform_of(machine),
        "kernel": platform.release(),
        "operating_system": platform.system(),
        "distribution": distribution(read_text(root, "etc/os-release")),
        "init": "systemd" if os.path.isdir(os.path.join(root, "run/systemd/system")) else _first_process(root),
        "euid": os.geteuid(),
        "python": {
            "executable": sys.executable,
            "version": platform.python_version(),
            "makes_environments": makes_environments(),
        },
    }


def distribution(os_release: str) -> DistributionInfo:
    """Return what the text of /etc/os-release tells."""
    release = dict(re.findall(r"^(\w+)=[\"']?(.*?)[\"']?$", os_release, re.MULTILINE))
    return {
        "id": release.get("ID", ""),
        "version_id": release.get("VERSION_ID", ""),
        "codename": release.get("VERSION_CODENAME", ""),
        "like": release.get("ID_LIKE", "").split(),
        "name": release.get("PRETTY_NAME", ""),
    }


def makes_environments() -> bool:
    """Return whether this Python can make a virtual environment with pip in it, and Ansible's pip module can run.

    Debian keeps ensurepip in a package of its own, and the module needs packaging or setuptools.
    """
    found = {name for name in ("ensurepip", "packaging", "setuptools") if importlib.util.find_spec(name)}
    return "ensurepip" in found and len(found) > 1


def _first_process(root: str) -> str:
    return read_text(root, "proc/1/comm").strip()


def cpu(root: str = "/") -> CpuInfo:
    """Return the processors that this host may use, their model and those instruction sets that matter here."""
    text = read_text(root, "proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    model_name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return {
        "count": len(os.sched_getaffinity(0)),
        "model": model_name.group(1).strip() if model_name else "",
        "flags": [flag for flag in CPU_FLAGS if flag in present],
    }


def memory(root: str = "/") -> MemoryInfo:
    """Return C(total_mib) and C(available_mib) of the host's memory."""
    values: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", read_text(root, "proc/meminfo"), re.MULTILINE))
    return {
        "total_mib": int(values["MemTotal"]) // 1024,
        "available_mib": int(values["MemAvailable"]) // 1024,
    }


def shared_memory(root: str = "/") -> SharedMemoryInfo:
    """Return C(total_mib) and C(free_mib) of /dev/shm."""
    state = os.statvfs(os.path.join(root, "dev/shm"))
    return {
        "total_mib": state.f_blocks * state.f_frsize // MIB,
        "free_mib": state.f_bavail * state.f_frsize // MIB,
    }


class _Timex(ctypes.Structure):
    """The head of the kernel's struct timex; the rest is only room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_char * 256),
    )


def clock(root: str = "/", asked_at: float | None = None) -> ClockInfo:
    """Return the host's idea of now.

    Args:
        root: the folder below which run is mounted.
        asked_at: the asker's idea of now, in seconds of the epoch.

    Returns:
        C(synchronised), None when the kernel does not tell, C(epoch) in seconds and C(ahead_seconds): how much the host
        is ahead of the asker, the question's way here included, or None.
    """
    synchronised: bool | None = None
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) >= 0:
        synchronised = not timex.status & CLOCK_UNSYNCHRONISED
    if os.path.exists(os.path.join(root, "run/systemd/timesync/synchronized")):
        synchronised = True
    now = time.time()
    ahead = None if asked_at is None else round(now - asked_at, 3)
    return {"synchronised": synchronised, "epoch": round(now, 3), "ahead_seconds": ahead}


def proxies() -> list[str]:
    """Return the names of the proxy variables that are set; their values may hold passwords."""
    return sorted(name for name in os.environ if name.lower() in PROXY_VARIABLES and os.environ[name])


def disk(path: str, root: str = "/") -> DiskInfo:
    """Return the room where a path is, or would be made.

    Returns:
        C(existing) (the path or its nearest existing parent), C(mount), C(device), C(filesystem), C(total_bytes),
        C(free_bytes) (what this user may use), C(writable) and C(device_number): paths with the same share their room.
    """
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    state = os.statvfs(existing)
    mount, device, filesystem = _mount(os.path.realpath(existing), root)
    return {
        "existing": existing,
        "mount": mount,
        "device": device,
        "device_number": os.stat(existing).st_dev,
        "filesystem": filesystem,
        "total_bytes": state.f_blocks * state.f_frsize,
        "free_bytes": state.f_bavail * state.f_frsize,
        "writable": os.access(existing, os.W_OK) and not state.f_flag & os.ST_RDONLY,
    }


def _mount(path: str, root: str) -> tuple[str, str, str]:
    """Return mount point, device and file system that hold a path: the longest mount point above it, mounted last."""
    best = ("/", "", "")
    for point, (filesystem, device) in file_systems(root).items():
        if is_below(path, point) and len(point) >= len(best[0]):
            best = (point, device, filesystem)
    return best
