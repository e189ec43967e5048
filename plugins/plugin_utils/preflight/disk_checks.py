# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much room a deployment takes on a host's disks, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import NOTHING, Nothing, Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import is_below
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import CONTAINERD_CONFIG, EngineInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import HostInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.system import DiskInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import WeightsInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import HubCache, hub_cache, hub_folder
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ERROR, WARNING, Finding

# Estimates, unpacked. The CPU image was 2.3 GiB with vLLM 0.32.0; the published CUDA images were not measured.
CUDA_IMAGE_GIB = 30.0
CPU_IMAGE_GIB = 4.0
CACHE_GIB = 2.0
# What the containerd image store keeps of an image besides, packed as it came; not measured either.
PACKED_SHARE = 0.4
LOG_GIB = 0.5
HUB_WEIGHTS_MARGIN = 1.02


@dataclass(frozen=True)
class DiskNeed:
    """Room that something takes.

    C(certain) tells whether a deployment without it fails; a cache that does not fit only costs time.
    """

    what: str
    path: str
    gib: float
    variable: str
    certain: bool = True


def disk_needs(plan: Plan | None, host_info: HostInfo, wishes: Wishes, folders: Mapping[str, str]) -> list[DiskNeed]:
    """Return what still has to be put on the host's disks.

    Args:
        plan: the plan, or None when there is none: then only the image is counted.
        host_info: what the module host_info told.
        wishes: what the user wants.
        folders: C(hf_home) and C(cache_dir).
    """
    found = []
    engine: EngineInfo | Nothing = host_info.get("engine") or NOTHING
    image_dir = engine.get("image_dir")
    source = plan["image"]["source"] if plan else wishes.image_source or ("build" if wishes.device == "cpu" else "pull")
    if image_dir and not host_info.get("image") and source != "present":
        size = wishes.image_size_gib or (CPU_IMAGE_GIB if wishes.device == "cpu" else CUDA_IMAGE_GIB)
        found.append(_image(image_dir, engine, size))
    found += _weights(plan, host_info, hub_cache(folders["hf_home"], wishes.environment, wishes.volumes))
    replicas = len(plan["replicas"]) if plan else 1
    if image_dir:
        containers = engine.get("containers") or []
        running = sum(bool(container.get("ours")) for container in containers)
        logs = LOG_GIB * max(0, replicas - running)
        found.append(
            DiskNeed(
                "logs",
                engine.get("root_dir") or image_dir,
                logs,
                "vllm_log_max_size and vllm_log_max_files",
                certain=False,
            )
        )
    cache: DiskInfo | Nothing = (host_info.get("disks") or {}).get(folders["cache_dir"]) or {}
    if cache and cache.get("existing") != folders["cache_dir"]:
        found.append(DiskNeed("compile caches", folders["cache_dir"], CACHE_GIB, "vllm_cache_dir", certain=False))
    return [need for need in found if need.gib > 0]


def _image(image_dir: str, engine: EngineInfo | Nothing, size: float) -> DiskNeed:
    """Return the room that an image takes; the containerd image store keeps it packed as well."""
    root_dir = engine.get("root_dir") or image_dir
    in_root = is_below(image_dir, root_dir)
    setting = "Docker's data-root in /etc/docker/daemon.json" if in_root else f"root in {CONTAINERD_CONFIG}"
    return DiskNeed("image", image_dir, size if image_dir == root_dir else size * (1 + PACKED_SHARE), setting)


def weights_of(plan: Plan, host_info: HostInfo, hub: str) -> WeightsInfo | Nothing:
    """Return what host_info found of the plan's weights; empty when it did not look.

    Args:
        plan: the plan.
        host_info: what the module host_info told.
        hub: folder of the server's cache of the hub, see hub_cache.
    """
    source = plan["model_source"]
    revision = str(plan["replicas"][0]["config"].get("revision") or "")
    folder = source["mount"] if source["kind"] == "pypi" else hub_folder(hub, source["location"], revision)
    return next((entry for entry in host_info.get("weights") or [] if entry["folder"] == folder), {})


def _weights(plan: Plan | None, host_info: HostInfo, cache: HubCache) -> list[DiskNeed]:
    if plan is None or plan["model_source"]["kind"] not in ("hub", "pypi"):
        return []
    there = weights_of(plan, host_info, cache.folder)
    if there.get("complete"):
        return []
    per_gpu = plan["capacity"]["weights_gib_per_gpu"]
    if per_gpu is None or _dummy(plan):
        return []
    size = per_gpu * plan["replicas"][0]["tensor_parallel_size"] * HUB_WEIGHTS_MARGIN
    missing = size - (there.get("total_bytes") or 0) / GIB
    if plan["model_source"]["kind"] == "pypi":
        return [DiskNeed("weights", plan["model_source"]["mount"], missing, "vllm_state_dir")]
    # Of a cache that is no folder of the host the disk is not known.
    return [DiskNeed("weights", cache.path, missing, cache.variable)] if cache.folder else []


def _dummy(plan: Plan) -> bool:
    return str(plan["replicas"][0]["config"].get("load-format", "")) == "dummy"


def disk_findings(wanted: Sequence[DiskNeed], disks: Mapping[str, DiskInfo]) -> list[Finding]:
    """Return a finding for each file system that is too small for all that has to go there together.

    Args:
        wanted: see disk_needs.
        disks: host_info's C(disks).
    """
    by_disk: dict[Any, list[DiskNeed]] = {}
    for need in wanted:
        disk = _disk_of(need.path, disks)
        if disk:
            by_disk.setdefault(disk["device_number"], []).append(need)
    found = []
    for group in by_disk.values():
        place: DiskInfo | Nothing = _disk_of(group[0].path, disks) or {}
        free = place["free_bytes"] / GIB
        total, certain = sum(need.gib for need in group), sum(need.gib for need in group if need.certain)
        if free < total:
            found.append(_too_small(place, free, total, group, ERROR if free < certain else WARNING))
    return found


def _disk_of(path: str, disks: Mapping[str, DiskInfo]) -> DiskInfo | None:
    """Return the disk of a path, or of the longest path above it that was looked at."""
    above = [name for name in disks if path == name or path.startswith(name.rstrip("/") + "/")]
    return disks[max(above, key=len)] if above else None


def _too_small(
    disk: DiskInfo | Nothing, free: float, total: float, group: Sequence[DiskNeed], severity: str
) -> Finding:
    parts = ", ".join(f"{need.what} {need.gib:.1f} in {need.path}" for need in group)
    movable = " or ".join(dict.fromkeys(need.variable for need in group))
    return Finding(
        "disk-full",
        severity,
        f"{free:.1f} GiB are free on {disk['mount']} ({disk['filesystem']} on {disk['device']}).",
        f"{total:.1f} GiB ({parts})",
        f"Free room there (`docker image prune` removes unused images), or use another disk: {movable}.",
        item=str(disk["mount"]),
    )


def unwritable(paths: Iterable[str], disks: Mapping[str, DiskInfo]) -> list[Finding]:
    """Return a finding for each path below which nothing can be written."""
    return [
        Finding(
            "not-writable",
            ERROR,
            f"{path} cannot be written: {disks[path]['existing']} is read-only, or not root's to write.",
            "a folder that can be written",
            f"Make {disks[path]['mount']} writable (mount -o remount,rw {disks[path]['mount']}), or set another folder:"
            " vllm_config_dir, vllm_state_dir, vllm_hf_home or vllm_cache_dir.",
            item=path,
        )
        for path in paths
        if path in disks and not disks[path]["writable"]
    ]
