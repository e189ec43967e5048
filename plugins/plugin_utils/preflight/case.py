# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The case that preflight judges, and a few things that several of its checks ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Nothing
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import (
    DEFAULT_HOSTS,
    DaemonConfigInfo,
    EngineInfo,
    ImageInfo,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.boot import BootInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.nvidia import NvidiaInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import HostInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.reach import ReachInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.system import (
    ClockInfo,
    DiskInfo,
    MemoryInfo,
    SharedMemoryInfo,
    SystemInfo,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.look_ahead import Outlook
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

DEFAULT_ENGINE = DEFAULT_HOSTS


@dataclass(frozen=True)
class Case:
    """What a host is judged by.

    Attributes:
        host_info: what the module of that name told.
        gpu_info: what the module of that name told; empty when it was not asked.
        wishes: what the user wants.
        outlook: what came of planning.
        folders: C(hf_home), C(cache_dir), C(state_dir), C(config_dir) and C(ca_bundle).
        docker_host: address of the engine.
        manage_engine: whether the role docker may install or start one.
        orphans: see orphans.find.
        freed: whether the orphans alone keep the plan from being made.
    """

    host_info: HostInfo
    gpu_info: Mapping[str, Any]
    wishes: Wishes
    outlook: Outlook
    folders: Mapping[str, str]
    docker_host: str = DEFAULT_ENGINE[0]
    manage_engine: bool = True
    orphans: Sequence[Mapping[str, Any]] = ()
    freed: bool = False

    @property
    def refused(self) -> set[str]:
        """The names of what stands in the plan's way."""
        return self.outlook.names

    @property
    def described(self) -> bool:
        """Whether the inventory describes the cards, so that the host's own are not the matter."""
        return bool(self.wishes.gpus)

    @overload
    def part(self, name: Literal["system"]) -> SystemInfo | Nothing: ...

    @overload
    def part(self, name: Literal["memory"]) -> MemoryInfo | Nothing: ...

    @overload
    def part(self, name: Literal["shm"]) -> SharedMemoryInfo | Nothing: ...

    @overload
    def part(self, name: Literal["clock"]) -> ClockInfo | Nothing: ...

    @overload
    def part(self, name: Literal["engine"]) -> EngineInfo | Nothing: ...

    @overload
    def part(self, name: Literal["daemon_config"]) -> DaemonConfigInfo | Nothing: ...

    @overload
    def part(self, name: Literal["nvidia"]) -> NvidiaInfo | Nothing: ...

    @overload
    def part(self, name: Literal["boot"]) -> BootInfo | Nothing: ...

    @overload
    def part(self, name: Literal["image"]) -> ImageInfo | Nothing: ...

    @overload
    def part(self, name: Literal["disks"]) -> dict[str, DiskInfo]: ...

    @overload
    def part(self, name: Literal["reach"]) -> dict[str, ReachInfo]: ...

    def part(self, name: Any) -> Any:
        """Return a part of host_info, empty where it could not be told."""
        return self.host_info.get(name) or {}


def has_driver(host_info: HostInfo) -> bool:
    """Return whether there is any sign of a driver, so that it is worth while to ask it."""
    nvidia: NvidiaInfo | Nothing = host_info.get("nvidia") or {}
    return bool(nvidia.get("kernel_module") or nvidia.get("cards") or nvidia.get("device_files"))


def without_orphans(cards: Iterable[Mapping[str, Any]], left: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the cards as if the orphans had ended."""
    gone = {entry["pid"] for entry in left}
    found = []
    for gpu in cards:
        ended = [process for process in gpu.get("processes") or [] if process["pid"] in gone]
        stay = [process for process in gpu.get("processes") or [] if process["pid"] not in gone]
        used = (gpu.get("memory_used_mib") or 0) - sum(process.get("used_mib") or 0 for process in ended)
        found.append({**gpu, "processes": stay, "memory_used_mib": max(0, used)} if ended else dict(gpu))
    return found


def selected(cards: Iterable[Mapping[str, Any]], wishes: Wishes) -> list[Mapping[str, Any]]:
    """Return the cards that this deployment may use: who is on others is no matter of it."""
    if isinstance(wishes.gpu_selection, str):
        return list(cards)
    named = {str(name) for name in wishes.gpu_selection}
    return [gpu for gpu in cards if str(gpu["index"]) in named or gpu.get("uuid") in named]
