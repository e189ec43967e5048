# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of a host's GPUs a plan may use, and how they are put together into replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import catalogue

# Memory in use without any process to show for it that still counts as idle: the driver's and a display's.
IDLE_MIB = 2048
# Cards of one name whose memory differs by less than this share are the same for a plan.
SAME_MEMORY = 0.02

FABRIC_LOGS = "`nvidia-smi -q` (Fabric) and `journalctl -u nvidia-fabricmanager`"

WHY_WHOLE = {
    "MIG slice": "Slices of a card cannot work together, and each process sees one of them alone",
    "vGPU": "It shares a card with other machines in turns, and vGPUs have no NVLink between each other",
}
UNSUPPORTED = {
    (8, 0): "Ampere has no FP8 arithmetic, and its memory holds neither FP8 nor FP4 weights well",
    (8, 6): "Ampere has no FP8 arithmetic",
    (8, 7): "Ampere has no FP8 arithmetic",
    (8, 9): "Ada cards have no NVLink and at most 48 GB, too little for Llama 4 Scout at a sensible size",
}


@dataclass(frozen=True)
class Gpu:
    """One graphics card as a plan sees it. C(memory_mib) is by NVML; C(uuid) is empty when it was not probed."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_mib: int
    uuid: str = ""
    reserved_mib: int | None = None
    mig: bool = False
    peers: tuple[int, ...] | None = None
    used_by: str = ""
    error: str = ""
    limited: bool = False
    unified: bool = False

    @property
    def capability(self) -> str:
        """The compute capability as CUDA writes it."""
        return "{}.{}".format(*self.compute_capability)

    @property
    def generation(self) -> str:
        """The architecture that the recipe has settings for, or C(unsupported)."""
        major = self.compute_capability[0]
        if self.compute_capability == (9, 0):
            return "hopper"
        return "blackwell" if major in (10, 12) else "unsupported"


@dataclass
class Selection:
    """The GPUs of one kind that a plan may use, and what is to be said about the others."""

    gpus: list[Gpu]
    warnings: list[str] = field(default_factory=list)
    reason: str = ""


def from_probe(
    gpus: Iterable[dict[str, Any]], own_containers: Iterable[str] = (), host_memory_mib: int = 0
) -> list[Gpu]:
    """Return the GPUs that the module gpu_info found.

    Args:
        gpus: its C(gpus).
        own_containers: ids of this collection's containers on the host; what they hold is not in use by others.
        host_memory_mib: the host's main memory, in which GPUs without memory of their own work; 0 where it is unknown.
    """
    own = set(own_containers)
    return [_from_probe(gpu, own, host_memory_mib) for gpu in gpus]


def _from_probe(gpu: dict[str, Any], own: set[str], host_memory_mib: int) -> Gpu:
    known = catalogue.card(str(gpu.get("name") or ""))
    unified = not gpu.get("memory_total_mib") and known is not None and known.unified
    major, _dot, minor = str(gpu.get("compute_capability") or "0.0").partition(".")
    return Gpu(
        index=int(gpu["index"]),
        name=str(gpu.get("name") or "unknown"),
        compute_capability=(int(major), int(minor or 0)),
        memory_mib=host_memory_mib if unified else int(gpu.get("memory_total_mib") or 0),
        uuid=str(gpu.get("uuid") or ""),
        reserved_mib=0 if unified else gpu.get("memory_reserved_mib"),
        mig=bool(gpu.get("mig_mode")),
        peers=tuple(gpu.get("peers") or ()),
        used_by=_used_by(gpu, own),
        error=str(gpu.get("error") or _fabric_error(gpu.get("fabric"))),
        limited=fabric_limited(gpu.get("fabric")),
        unified=unified,
    )


def _used_by(gpu: dict[str, Any], own: set[str]) -> str:
    """Return who else uses the GPU, as text; empty when none does or one of our own servers does."""
    processes = gpu.get("processes") or []
    if any(process.get("container") in own for process in processes if process.get("container")):
        return ""
    if processes:
        return ", ".join(
            f"{process.get('name') or 'a process'} (pid {process['pid']}, {process.get('used_mib') or '?'} MiB)"
            for process in processes
        )
    if own:
        # Some drivers name no process of a container; then what runs here as ours is the likely holder.
        return ""
    used = int(gpu.get("memory_used_mib") or 0)
    return f"{used} MiB held by a process that the driver does not name" if used > IDLE_MIB else ""


def fabric_fault(fabric: Mapping[str, Any] | None) -> str:
    """Return why a GPU's NVLink fabric cannot be used, such as C(in-progress); empty where it can, or where there is
    none.
    """
    if not fabric:
        return ""
    if fabric.get("state") != "completed":
        return str(fabric.get("state"))
    if fabric.get("status") not in (None, "", "success"):
        return f"completed with the error {fabric['status']}"
    return "unhealthy" if fabric.get("health") == "unhealthy" else ""


def _fabric_error(fabric: Mapping[str, Any] | None) -> str:
    fault = fabric_fault(fabric)
    if not fault:
        return ""
    fix = f"see {FABRIC_LOGS}" if (fabric or {}).get("state") == "completed" else "start nvidia-fabricmanager"
    return f"its NVLink fabric is {fault}: {fix}"


def fabric_limited(fabric: Mapping[str, Any] | None) -> bool:
    """Return whether a GPU's NVLink fabric works with a part of its links or bandwidth."""
    return (fabric or {}).get("health") == "limited-capacity"


def from_inventory(entries: Sequence[dict[str, Any]]) -> list[Gpu]:
    """Return the GPUs that the inventory promises in C(vllm_gpus).

    Raises:
        GpufleetError: C(invalid-wishes) when an entry names no known card and does not describe it either, or a part of
            a card.
    """
    found: list[Gpu] = []
    for entry in entries:
        name = str(entry.get("name", "NVIDIA GPU"))
        part = catalogue.part_of_a_card(name)
        if part:
            raise GpufleetError(
                f"vllm_gpus: {name!r} is a {part}: a part of a card. {WHY_WHOLE[part]}.",
                name="mig-enabled" if part == "MIG slice" else "unsupported-gpu",
                remedy="Describe whole cards, as in {name: NVIDIA H200, count: 8}.",
            )
        known = catalogue.card(name)
        capability = entry.get("compute_capability") or (known.compute_capability if known else "")
        memory = entry.get("memory_mib") or (known.memory_mib if known else 0)
        if not capability or not memory:
            raise GpufleetError(
                f"vllm_gpus: {name!r} is not a card that the catalogue knows.",
                name="invalid-wishes",
                remedy="Give its compute_capability and memory_mib, as in {name: NVIDIA H200,"
                ' compute_capability: "9.0", memory_mib: 143771, count: 8}.',
            )
        major, _dot, minor = str(capability).partition(".")
        count, unified = int(entry.get("count", 1)), bool(known and known.unified)
        if unified and count > 1:
            raise GpufleetError(
                f"vllm_gpus: {count} x {name!r} on one host: it works in the host's own memory, and a host has one.",
                name="invalid-wishes",
                remedy="Write a host in the inventory for each, with count: 1.",
            )
        for _number in range(count):
            found.append(Gpu(len(found), name, (int(major), int(minor or 0)), int(memory), unified=unified))
    return found


def select(gpus: Sequence[Gpu], wish: str | Sequence[int | str]) -> Selection:
    """Return the GPUs of one kind that the plan may use.

    Args:
        gpus: all GPUs of the host, at least one.
        wish: C(free) leaves out what others use, C(all) wants every GPU, a list names indexes or UUIDs.

    Raises:
        GpufleetError: C(unknown-gpu), C(unsupported-gpu), C(mig-enabled), C(gpu-memory-unknown), C(gpu-in-use),
            C(gpu-lost) or C(mixed-gpus).
    """
    strict = wish != "free"
    chosen = list(gpus) if isinstance(wish, str) else [_named(gpus, name) for name in wish]
    warnings: list[str] = []
    chosen = _without_failed(chosen, strict, warnings)
    chosen = _supported(chosen, strict, warnings)
    _refuse_mig(chosen)
    _refuse_parts(chosen, not isinstance(wish, str), warnings)
    _refuse_without_memory(chosen)
    chosen = _without_used(chosen, strict, warnings)
    chosen = _uniform(chosen, strict, warnings)
    if any(gpu.compute_capability[0] == 12 for gpu in chosen):
        warnings.append(
            f"{chosen[0].name} has compute capability {chosen[0].capability}: its kernels differ from those of 10.x,"
            " for which the recipe was made. FlashInfer's MoE kernels and the fused all-reduce stay off; verify"
            " accuracy and performance before relying on it."
        )
    if chosen[0].unified:
        warnings.append(
            f"{chosen[0].name} works in the host's own memory, of which the operating system and all other programs"
            " need a part: lower vllm_gpu_memory_utilization where the server does not find what it asks for free."
        )
    limited = [gpu for gpu in chosen if gpu.limited]
    if limited:
        warnings.append(
            f"GPU {_names(limited)}: the NVLink fabric has limited capacity, so tensor parallelism is slower there;"
            f" see {FABRIC_LOGS}."
        )
    reason = f"{len(chosen)} of {len(gpus)} GPU(s): {describe(chosen)}"
    return Selection(chosen, warnings, reason)


def describe(gpus: Sequence[Gpu]) -> str:
    """Return the cards as C(8 x NVIDIA H200), several kinds joined by C(and)."""
    return " and ".join(f"{count} x {name}" for name, count in Counter(gpu.name for gpu in gpus).items())


def _names(gpus: Sequence[Gpu]) -> str:
    return ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)


def _named(gpus: Sequence[Gpu], name: int | str) -> Gpu:
    for gpu in gpus:
        if str(name) == str(gpu.index) or (gpu.uuid and name == gpu.uuid):
            return gpu
    raise GpufleetError(
        f"vllm_gpu_selection names the GPU {name!r}, which this host does not have.",
        name="unknown-gpu",
        remedy=f"It has {_names(gpus)}.",
    )


def _without_failed(gpus: list[Gpu], strict: bool, warnings: list[str]) -> list[Gpu]:
    failed = [gpu for gpu in gpus if gpu.error]
    good = [gpu for gpu in gpus if not gpu.error]
    for gpu in failed:
        if strict or not good:
            raise GpufleetError(
                f"GPU {gpu.index} cannot be used: {gpu.error}",
                name="gpu-lost",
                remedy="Reset or repair it, or name the others in vllm_gpu_selection.",
            )
        warnings.append(f"GPU {gpu.index} is left out: {gpu.error}")
    return good


def _supported(gpus: list[Gpu], strict: bool, warnings: list[str]) -> list[Gpu]:
    other = [gpu for gpu in gpus if gpu.generation == "unsupported"]
    good = [gpu for gpu in gpus if gpu.generation != "unsupported"]
    if other and (strict or not good):
        first = other[0]
        older = "older than Hopper" if first.compute_capability < (9, 0) else "not known to this collection"
        why = UNSUPPORTED.get(first.compute_capability, f"it is {older}")
        raise GpufleetError(
            f"GPU {_names(other)}: compute capability {first.capability} is not supported: {why}.",
            name="unsupported-gpu",
            remedy="Use Hopper (9.0) or Blackwell (10.x, 12.0) GPUs, or set vllm_device: cpu for a small model.",
        )
    if other:
        warnings.append(f"GPU {_names(other)} left out: compute capability {other[0].capability} is not supported.")
    return good


def _refuse_mig(gpus: Sequence[Gpu]) -> None:
    divided = [gpu for gpu in gpus if gpu.mig]
    if not divided:
        return
    off = " && ".join(f"nvidia-smi -i {gpu.index} -mig 0" for gpu in divided)
    raise GpufleetError(
        f"GPU {_names(divided)}: MIG is on. {WHY_WHOLE['MIG slice']}, so plans are made for whole cards.",
        name="mig-enabled",
        remedy=f"Turn it off when nothing uses the card: {off} (then reset the GPU or reboot), or name only the other"
        " GPUs in vllm_gpu_selection.",
    )


def _refuse_parts(gpus: Sequence[Gpu], named: bool, warnings: list[str]) -> None:
    """Refuse what is a part of a card by its name: slices, and vGPUs unless the user names them himself."""
    found = [gpu for gpu in gpus if catalogue.part_of_a_card(gpu.name)]
    if not found:
        return
    slices = [gpu for gpu in found if catalogue.part_of_a_card(gpu.name) == "MIG slice"]
    if slices:
        raise GpufleetError(
            f"GPU {_names(slices)} is a MIG slice. {WHY_WHOLE['MIG slice']}.",
            name="mig-enabled",
            remedy="Give the host, or the machine on it, whole cards, or name whole ones in vllm_gpu_selection.",
        )
    text = f"GPU {_names(found)} is a vGPU. {WHY_WHOLE['vGPU']}."
    if not named:
        raise GpufleetError(
            text,
            name="unsupported-gpu",
            remedy="Give the machine whole GPUs (PCI passthrough). To try it with this one all the same, name it in"
            f" vllm_gpu_selection: {[gpu.index for gpu in found]}.",
        )
    warnings.append(f"{text} It was not tried; vllm_gpu_selection asks for it.")


def _refuse_without_memory(gpus: Sequence[Gpu]) -> None:
    unknown = [gpu for gpu in gpus if gpu.memory_mib <= 0]
    if unknown:
        first = unknown[0]
        raise GpufleetError(
            f"The driver tells no memory of GPU {_names(unknown)}.",
            name="gpu-memory-unknown",
            remedy="Describe the host's GPUs with their memory, as in vllm_gpus:"
            f' [{{name: {first.name}, compute_capability: "{first.capability}", memory_mib: 122000, count: 1}}].',
        )


def _without_used(gpus: list[Gpu], strict: bool, warnings: list[str]) -> list[Gpu]:
    used = [gpu for gpu in gpus if gpu.used_by]
    good = [gpu for gpu in gpus if not gpu.used_by]
    if used and (strict or not good):
        raise GpufleetError(
            "In use by others: " + "; ".join(f"GPU {gpu.index} by {gpu.used_by}" for gpu in used) + ".",
            name="gpu-in-use",
            remedy="Stop those processes, or set vllm_gpu_selection: free to use only idle GPUs, or to a list of GPUs.",
        )
    warnings.extend(f"GPU {gpu.index} left out: in use by {gpu.used_by}." for gpu in used)
    return good


def _uniform(gpus: list[Gpu], strict: bool, warnings: list[str]) -> list[Gpu]:
    """Return the largest group of alike cards; on a mixed host the others are left out or the plan is refused."""
    kinds: list[list[Gpu]] = []
    for gpu in gpus:
        for kind in kinds:
            if _alike(kind[0], gpu):
                kind.append(gpu)
                break
        else:
            kinds.append([gpu])
    kinds.sort(key=lambda kind: -sum(gpu.memory_mib for gpu in kind))
    if len(kinds) > 1:
        others = [gpu for kind in kinds[1:] for gpu in kind]
        if strict:
            raise GpufleetError(
                f"The GPUs differ: {describe(gpus)}. One plan serves one kind.",
                name="mixed-gpus",
                remedy="Name one kind's GPUs in vllm_gpu_selection, such as"
                f" {[gpu.index for gpu in kinds[0]]} or {[gpu.index for gpu in kinds[1]]}.",
            )
        warnings.append(
            f"Mixed host: GPU {_names(others)} left out, the plan uses {describe(kinds[0])}."
            " Name the others in vllm_gpu_selection to use them instead."
        )
    return kinds[0]


def _alike(one: Gpu, other: Gpu) -> bool:
    return (
        one.name == other.name
        and one.compute_capability == other.compute_capability
        and abs(one.memory_mib - other.memory_mib) <= SAME_MEMORY * one.memory_mib
    )


def groups(gpus: Sequence[Gpu], size: int, count: int) -> list[list[Gpu]]:
    """Return C(count) groups of C(size) GPUs each, NVLink neighbours together where the host has any.

    Args:
        gpus: at least C(size) x C(count) GPUs.
        size: GPUs in one group.
        count: groups wanted.
    """
    islands = _islands(gpus)
    found = [island[at : at + size] for island in islands for at in range(0, len(island) - size + 1, size)]
    found.sort(key=lambda group: group[0].index)
    taken = {gpu.index for group in found for gpu in group}
    rest = [gpu for island in islands for gpu in island if gpu.index not in taken]
    found += [rest[at : at + size] for at in range(0, len(rest) - size + 1, size)]
    return found[:count]


def linked(group: Sequence[Gpu]) -> bool | None:
    """Return whether every GPU of the group reaches every other over NVLink; None when they were not probed."""
    if any(gpu.peers is None for gpu in group):
        return None
    indexes = {gpu.index for gpu in group}
    return all(indexes - {gpu.index} <= set(gpu.peers or ()) for gpu in group)


def _islands(gpus: Sequence[Gpu]) -> list[list[Gpu]]:
    """Return the GPUs parted into sets that NVLink connects, each in the order of the index."""
    left = {gpu.index: gpu for gpu in gpus}
    if all(gpu.peers is None for gpu in gpus):
        return [sorted(gpus, key=lambda gpu: gpu.index)]
    islands = []
    while left:
        reached = [left.pop(min(left))]
        for gpu in reached:
            near = [index for index in gpu.peers or () if index in left]
            reached += [left.pop(index) for index in near]
        islands.append(sorted(reached, key=lambda gpu: gpu.index))
    return islands
