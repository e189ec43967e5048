# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether GPUs have the memory that a server takes when it starts: asked of the driver, which may free it late.

vLLM refuses to start unless its share (gpu-memory-utilization) of a card's memory is free, and a stopped server's
memory is given back only when the last of its processes is gone. A host whose driver does not answer is not judged
here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import nvml

# The share that vLLM takes when none is configured: 0.90 at first, 0.92 in later releases.
DEFAULT_SHARE = 0.9
# The driver's own part of a card is not quite the same in NVML's and in CUDA's words.
SLACK_MIB = 512
PAUSE_S = 0.5

Probe = Callable[[], "list[dict[str, Any]]"]


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """What one server takes of one GPU.

    Attributes:
        replica: its name.
        gpu: index or UUID of the card.
        share: of the card's memory, 0 to 1.
    """

    replica: str
    gpu: str
    share: float

    def mib(self, gpu: dict[str, Any]) -> int:
        """Return the MiB that must be free on the card."""
        whole = int(gpu["memory_total_mib"]) - int(gpu["memory_reserved_mib"] or 0)
        return max(0, int(whole * self.share) - SLACK_MIB)


def needs(specs: Iterable[Spec]) -> list[MemoryNeed]:
    """Return what servers take of which GPUs; nothing for servers without any."""
    return [
        MemoryNeed(spec["name"], str(gpu), float(spec["config"].get("gpu-memory-utilization") or DEFAULT_SHARE))
        for spec in specs
        for gpu in spec["gpus"]
    ]


def check_others(wanted: Sequence[MemoryNeed], own_containers: Collection[str], probe: Probe = nvml.memory) -> None:
    """Check that GPUs will have the memory once our own servers are gone.

    Args:
        wanted: what the servers take.
        own_containers: ids of our containers; what their processes hold counts as free.
        probe: returns the GPUs as nvml.memory does.

    Raises:
        GpufleetError: C(gpu-memory-held), naming the processes of others. Memory whose holder the driver does not name
            is not held against the plan here.
    """
    for need, gpu in _pairs(wanted, probe()):
        others = [process for process in gpu["processes"] if process["container"] not in own_containers]
        held = sum(process["used_mib"] or 0 for process in others)
        whole = int(gpu["memory_total_mib"]) - int(gpu["memory_reserved_mib"] or 0)
        if held and whole - held < need.mib(gpu):
            raise held_error(need, {**gpu, "processes": others, "memory_free_mib": whole - held}, "")


def wait_until_free(
    wanted: Sequence[MemoryNeed],
    timeout: float,
    progress: Progress,
    *,
    probe: Probe = nvml.memory,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until GPUs have the memory that servers take.

    Args:
        wanted: what the servers take.
        timeout: seconds to wait at most.
        progress: told what is missing.
        probe: returns the GPUs as nvml.memory does.
        sleep: how to wait.
        clock: returns seconds.

    Raises:
        GpufleetError: C(gpu-memory-held), naming who holds it.
    """
    began = clock()
    while True:
        short = [(need, gpu) for need, gpu in _pairs(wanted, probe()) if gpu["memory_free_mib"] < need.mib(gpu)]
        if not short:
            return
        need, gpu = short[0]
        waited = clock() - began
        if waited >= timeout:
            raise held_error(need, gpu, f" after {waited:.0f} s (vllm_vram_timeout)")
        missing = f"{need.mib(gpu) - gpu['memory_free_mib']} MiB of GPU {gpu['index']} still held"
        progress.phase(f"{need.replica}: waiting for GPU memory", f"{missing} by {holders(gpu)}")
        sleep(PAUSE_S)


def _pairs(wanted: Sequence[MemoryNeed], gpus: Sequence[dict[str, Any]]) -> list[tuple[MemoryNeed, dict[str, Any]]]:
    """Return each need with its GPU; those of which the driver tells no memory are left out."""
    return [
        (need, gpu)
        for need in wanted
        for gpu in gpus
        if need.gpu in (str(gpu["index"]), gpu["uuid"])
        and None not in (gpu["memory_total_mib"], gpu["memory_free_mib"])
    ]


def holders(gpu: dict[str, Any]) -> str:
    """Return who holds a GPU's memory, in words."""
    named = [
        f"{process['name'] or 'a process'} (pid {process['pid']}, {process['used_mib'] or '?'} MiB)"
        for process in gpu["processes"]
    ]
    return ", ".join(named) or "a process that the driver does not name"


def held_error(need: MemoryNeed, gpu: dict[str, Any], waited: str) -> GpufleetError:
    """Return the error for a GPU whose memory somebody holds."""
    return GpufleetError(
        f"GPU {gpu['index']} ({gpu['name']}) has {gpu['memory_free_mib']} of {gpu['memory_total_mib']} MiB free"
        f"{waited}; replica {need.replica} takes {need.mib(gpu)} MiB (gpu-memory-utilization {need.share:g})."
        f" It is held by {holders(gpu)}.",
        name="gpu-memory-held",
        remedy="End that process, leave the GPU out with vllm_gpu_selection, or lower vllm_gpu_memory_utilization;"
        " raise vllm_vram_timeout if the driver was only slow to free the memory of a stopped server.",
        details={"gpu": gpu["index"], "free_mib": gpu["memory_free_mib"], "processes": gpu["processes"]},
    )
