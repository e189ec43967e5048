# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in a container of a serving image, on all GPUs of a host: whether they remember, and how fast they are.

    python accept_gpus.py FOLDER                    reads FOLDER/request.json, writes FOLDER/answer.json
    python accept_gpus.py FOLDER --rank N WORLD     one of the processes that add up numbers together

A program of one file; it needs torch alone. Without a GPU it does the same on the processor, in small.

The request has `device` (cuda or cpu), `tests` (of memory, bandwidth, gemm, allreduce), `memory_share` (of what is free
on a GPU), `cpu_mib`, `repeats` and `port`. The answer has `gpus`, each `index`, `name`, `uuid`, `figures` and `errors`
(test to what went wrong), and `allreduce`, with `world` and `figures` or `error`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any, Callable

PATTERNS = (0x55555555, -0x55555556, 0x0F0F0F0F, -1)
CHUNK_MIB = 256
MIB = 1 << 20
COPY_MIB, CPU_COPY_MIB = 1024, 32
SIDE, CPU_SIDE = 8192, 384
REDUCE_MIB, CPU_REDUCE_MIB = 256, 4
# Without GPUs there is one processor, and so two processes to add up with.
CPU_WORLD = 2
REDUCE_S = 300


def _synchronize(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _seconds(torch: Any, device: str, call: Callable[[], Any], repeats: int) -> float:
    """Return the median of how long a call takes, after one to warm up."""
    call()
    times = []
    for _run in range(repeats):
        _synchronize(torch, device)
        began = time.perf_counter()
        call()
        _synchronize(torch, device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def memory(torch: Any, device: str, request: dict[str, Any]) -> dict[str, float]:
    """Write patterns over the memory that is free, and count what does not come back."""
    free = torch.cuda.mem_get_info(device)[0] * request["memory_share"] if device != "cpu" else request["cpu_mib"] * MIB
    size = min(CHUNK_MIB, request["cpu_mib"]) * MIB if device == "cpu" else CHUNK_MIB * MIB
    chunks = [torch.empty(size // 4, dtype=torch.int32, device=device) for _chunk in range(max(1, int(free // size)))]
    wrong = 0
    for pattern in PATTERNS:
        for chunk in chunks:
            chunk.fill_(pattern)
        wrong += sum(int((chunk != pattern).sum()) for chunk in chunks)
    # Each place its own number, so that one that is written in another's place is found.
    for number, chunk in enumerate(chunks):
        torch.arange(chunk.numel(), dtype=torch.int32, device=device, out=chunk)
        chunk.add_(number)
    for number, chunk in enumerate(chunks):
        chunk.sub_(number)
        wrong += int((chunk != torch.arange(chunk.numel(), dtype=torch.int32, device=device)).sum())
    return {"memory_gib": round(len(chunks) * size / 2**30, 2), "memory_errors": wrong}


def bandwidth(torch: Any, device: str, request: dict[str, Any]) -> dict[str, float]:
    """Copy within the memory: each byte is read and written."""
    size = (CPU_COPY_MIB if device == "cpu" else COPY_MIB) * MIB
    one = torch.ones(size, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    took = _seconds(torch, device, lambda: other.copy_(one), request["repeats"])
    return {"bandwidth_gbs": round(2 * size / took / 1e9, 1)}


def gemm(torch: Any, device: str, request: dict[str, Any]) -> dict[str, float]:
    """Multiply matrices, in bfloat16 on a GPU; the result is compared with the sum that it has to be."""
    side, kind = (CPU_SIDE, torch.float32) if device == "cpu" else (SIDE, torch.bfloat16)
    ones = torch.ones(side, side, dtype=kind, device=device)
    product = ones @ ones
    if not bool((product == side).all()):
        raise ArithmeticError(f"a product of ones is not {side} everywhere")
    one = torch.randn(side, side, dtype=kind, device=device)
    other = torch.randn(side, side, dtype=kind, device=device)
    took = _seconds(torch, device, lambda: one @ other, request["repeats"])
    return {"gemm_tflops": round(2 * side**3 / took / 1e12, 3)}


TESTS: dict[str, Callable[[Any, str, dict[str, Any]], dict[str, float]]] = {
    "memory": memory,
    "bandwidth": bandwidth,
    "gemm": gemm,
}


def look_at(torch: Any, device: str, index: int, request: dict[str, Any]) -> dict[str, Any]:
    """Return what one GPU is, and how it did; one that fails a test goes on with the next."""
    name, uuid = "processor", ""
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        name, uuid = str(properties.name), str(getattr(properties, "uuid", ""))
    found: dict[str, Any] = {"index": index, "name": name, "uuid": uuid, "figures": {}, "errors": {}}
    for test in (test for test in TESTS if test in request["tests"]):
        try:
            found["figures"].update(TESTS[test](torch, device, request))
        except Exception as error:  # whatever a broken card does
            found["errors"][test] = f"{type(error).__name__}: {str(error)[:300]}"
        if device != "cpu":
            torch.cuda.empty_cache()
        sys.stdout.write(f"GPU {index}: {test} done\n")
        sys.stdout.flush()
    return found


def add_up(torch: Any, rank: int, world: int, request: dict[str, Any]) -> dict[str, float]:
    """Add up numbers with the other processes; return the figures of the slowest of them."""
    import torch.distributed as together

    on_gpus = request["device"] != "cpu"
    device = f"cuda:{rank}" if on_gpus else "cpu"
    if on_gpus:
        torch.cuda.set_device(device)
    together.init_process_group("nccl" if on_gpus else "gloo", rank=rank, world_size=world)
    size = (REDUCE_MIB if on_gpus else CPU_REDUCE_MIB) * MIB
    numbers = torch.full((size // 4,), float(rank + 1), dtype=torch.float32, device=device)
    together.all_reduce(numbers)
    if not bool((numbers == world * (world + 1) / 2).all()):
        raise ArithmeticError("the sum is wrong")
    took = torch.tensor(
        [_seconds(torch, device, lambda: together.all_reduce(numbers), request["repeats"])], device=device
    )
    together.all_reduce(took, op=together.ReduceOp.MAX)
    together.destroy_process_group()
    # As nccl-tests count it, so that it can be compared whatever the number of GPUs.
    return {"allreduce_gbs": round(size / float(took) * 2 * (world - 1) / world / 1e9, 2)}


def all_reduce(folder: str, world: int, request: dict[str, Any]) -> dict[str, Any]:
    """Run a process for each GPU; return what they found together."""
    surroundings = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
    ranks = [
        subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), folder, "--rank", str(rank), str(world)],
            env=surroundings,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = []
    deadline = time.monotonic() + REDUCE_S
    for rank in ranks:
        try:
            said.append(rank.communicate(timeout=max(deadline - time.monotonic(), 1.0))[1])
        except subprocess.TimeoutExpired:
            for other in ranks:
                other.kill()
            return {"world": world, "error": f"not done after {REDUCE_S} s"}
    if any(rank.returncode for rank in ranks):
        lines = [line for text in said for line in text.splitlines() if "Error" in line]
        return {"world": world, "error": (lines or ["a process ended"])[0][:300]}
    with open(os.path.join(folder, "allreduce.json"), encoding="utf-8") as stream:
        return {"world": world, "figures": json.load(stream)}


def main(folder: str, *rank_of: str) -> None:
    """Do what the request says."""
    import torch

    with open(os.path.join(folder, "request.json"), encoding="utf-8") as stream:
        request = json.load(stream)
    if rank_of:
        rank, world = int(rank_of[1]), int(rank_of[2])
        figures = add_up(torch, rank, world, request)
        if rank == 0:
            write(folder, "allreduce.json", figures)
        return
    on_gpus = request["device"] != "cpu"
    count = torch.cuda.device_count() if on_gpus else 1
    devices = [f"cuda:{index}" for index in range(count)] if on_gpus else ["cpu"]
    gpus = [look_at(torch, device, index, request) for index, device in enumerate(devices)]
    world = count if on_gpus else CPU_WORLD
    wanted = "allreduce" in request["tests"] and world > 1
    together = all_reduce(folder, world, request) if wanted else {}
    write(folder, "answer.json", {"torch": str(torch.__version__), "gpus": gpus, "allreduce": together})


def write(folder: str, name: str, document: Any) -> None:
    """Write a file as a whole."""
    path = os.path.join(folder, name)
    with open(path + "~", "w", encoding="utf-8") as stream:
        json.dump(document, stream)
    os.replace(path + "~", path)


if __name__ == "__main__":
    main(*sys.argv[1:])
