# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for PyTorch, Triton and vLLM's experts, as far as in_container/tune_moe_kernels.py asks them.

The experts are really computed, on processors, by NumPy. How long that takes on the GPU is made up: a clock of our own
goes on by what COSTS says of a tiling. Nothing here says anything of a real GPU, nor that the names are those of a real
vLLM.

C(install()) puts the modules in their places. With STAND_IN_RUNS in the environment, each run adds a line to that file:
process, tokens, experts, tiling.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

# Microseconds of a run, as a share of what vLLM's own choice takes, by BLOCK_SIZE_M, BLOCK_SIZE_N, BLOCK_SIZE_K,
# warps and stages.
COSTS: dict[tuple[int, ...], float] = {
    (16, 64, 128, 4, 3): 0.80,  # the best that computes the same
    (16, 64, 256, 4, 3): 0.90,
    (16, 128, 128, 8, 3): 0.50,  # faster, but its numbers are others, see WRONG
    (64, 128, 128, 8, 3): 0.99,  # not worth it
}
WRONG = (16, 128, 128, 8, 3)
# Looks fast when it is first measured, and never again.
LUCKY = (16, 64, 64, 8, 2)
OWN = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 8, "SPLIT_K": 1}
OTHERS = 1.25
CONFIG: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 64,
    "hidden_size": 32,
}


class Tensor(np.ndarray):
    """An array with the few methods of a tensor that are asked for."""

    def to(self, kind: Any) -> Tensor:
        return _tensor(self.astype(kind))

    def float(self) -> Tensor:
        return _tensor(self.astype(np.float32))

    def abs(self) -> Tensor:
        return _tensor(np.abs(self))

    def clone(self) -> Tensor:
        return _tensor(self.copy())


class Clock:
    """The made-up time, in microseconds, and the graph that is being captured."""

    now = 0.0
    captured: list[float] | None = None
    tiling: dict[str, int] | None = None
    lucky = True


def _tensor(array: Any) -> Tensor:
    return np.asarray(array).view(Tensor)


class Generator:
    def __init__(self, device: Any = None) -> None:
        self.random = np.random.default_rng(0)

    def manual_seed(self, seed: int) -> Generator:
        self.random = np.random.default_rng(seed)
        return self


class Graph:
    def __init__(self) -> None:
        self.costs: list[float] = []

    def replay(self) -> None:
        Clock.now += sum(self.costs)


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = Clock.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return (other.at - self.at) / 1000


@contextlib.contextmanager
def capture(graph: Graph) -> Iterator[None]:
    Clock.captured = graph.costs
    yield
    Clock.captured = None


@contextlib.contextmanager
def override_config(tiling: dict[str, int]) -> Iterator[None]:
    before, Clock.tiling = Clock.tiling, tiling
    try:
        yield
    finally:
        Clock.tiling = before


def key_of(tiling: dict[str, int]) -> tuple[int, ...]:
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps", "num_stages")
    return tuple(tiling.get(name, 0) for name in names)


def cost_of(tiling: dict[str, int], tokens: int) -> float:
    own = 50.0 + tokens
    key = key_of(tiling)
    if "SPLIT_K" in tiling:
        return own
    if key == LUCKY and Clock.lucky:
        return own * 0.4
    return own * COSTS.get(key, OTHERS)


def fused_experts(x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, quant_config: Any = None) -> Tensor:
    """Compute the experts; take as long as the tiling says, or fail as one that needs too much memory does."""
    tiling = dict(Clock.tiling or {})
    key = key_of(tiling)
    if path := os.environ.get("STAND_IN_RUNS"):
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(f"{os.getpid()} {len(x)} {len(w1)} {key}\n")
    if key[4] == 5:
        raise RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448")
    if Clock.captured is not None:
        Clock.captured.append(cost_of(tiling, len(x)))
        Clock.lucky = Clock.lucky and not (key == LUCKY and len(Clock.captured) == 10)
    inner = w2.shape[2]
    result = np.zeros((len(x), w2.shape[1]), dtype=np.float32)
    for token in range(len(x)):
        for place, expert in enumerate(ids[token]):
            both = np.asarray(w1[expert], dtype=np.float32) @ np.asarray(x[token], dtype=np.float32)
            gate, up = both[:inner], both[inner:]
            result[token] += weights[token][place] * (w2[expert] @ (gate / (1 + np.exp(-gate)) * up))
    if key == WRONG:
        result *= 1.5
    return _tensor(result)


def get_config_file_name(experts: int, inner: int, kind: str | None, block_shape: Any = None) -> str:
    more = (f",dtype={kind}" if kind else "") + (f",block_shape={block_shape}".replace(" ", "") if block_shape else "")
    return f"E={experts},N={inner},device_name=Stand_In{more}.json"


def try_get_optimal_moe_config(
    _w1: Any, _w2: Any, _chosen: int, _kind: Any, _tokens: int, block_shape: Any = None
) -> dict[str, int]:
    return dict(OWN)


def _torch(gpu: bool) -> Any:
    torch: Any = types.ModuleType("torch")
    torch.__version__ = "2.11.0+stand-in"
    torch.float32 = torch.bfloat16 = torch.float8_e4m3fn = np.float32
    torch.int32 = np.int32
    torch.Generator = Generator
    torch.device = lambda name: name
    torch.randn = lambda *size, generator, **_more: _tensor(generator.random.standard_normal(size))
    torch.rand = lambda *size, generator, **_more: _tensor(generator.random.random(size))
    torch.empty = lambda *size, **_more: _tensor(np.empty(size, dtype=np.float32))
    torch.full = lambda size, value, **_more: _tensor(np.full(size, value, dtype=np.float32))
    torch.topk = lambda scores, count, dim=-1: (None, _tensor(np.argsort(-scores, axis=dim)[:, :count]))
    cuda: Any = types.ModuleType("torch.cuda")
    cuda.is_available = lambda: gpu
    cuda.get_device_name = lambda: "Stand-In"
    cuda.get_device_capability = lambda: (9, 0)
    cuda.mem_get_info = lambda: (100 << 30, 141 << 30)
    cuda.synchronize = cuda.empty_cache = lambda: None
    cuda.CUDAGraph, cuda.Event, cuda.graph = Graph, Event, capture
    torch.cuda = cuda
    return torch


class _Config:
    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def install(config: dict[str, Any] | None = None, *, gpu: bool = True) -> None:
    """Put the stand-ins where the program imports them.

    Args:
        config: the model's; CONFIG if None.
        gpu: whether there is one.
    """
    torch = _torch(gpu)
    triton: Any = types.ModuleType("triton")
    triton.__version__ = "3.6.0"
    names = (
        *("vllm", "vllm.config", "vllm.transformers_utils", "vllm.transformers_utils.config"),
        *("vllm.model_executor", "vllm.model_executor.layers", "vllm.model_executor.layers.fused_moe"),
        *("vllm.model_executor.layers.fused_moe.fused_moe", "vllm.model_executor.layers.fused_moe.config"),
    )
    made: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    made["vllm"].__version__ = "0.26.0"
    made["vllm.config"].VllmConfig = object
    made["vllm.config"].set_current_vllm_config = contextlib.nullcontext
    made["vllm.transformers_utils.config"].get_config = lambda _model, **_more: _Config(config or CONFIG)
    kernels = made["vllm.model_executor.layers.fused_moe.fused_moe"]
    kernels.fused_experts, kernels.get_config_file_name = fused_experts, get_config_file_name
    kernels.try_get_optimal_moe_config = try_get_optimal_moe_config
    package = made["vllm.model_executor.layers.fused_moe"]
    package.fused_moe, package.override_config = kernels, override_config
    quantization: Any = types.SimpleNamespace(make=lambda **given: given)
    made["vllm.model_executor.layers.fused_moe.config"].FusedMoEQuantConfig = quantization
    sys.modules.update({"torch": torch, "torch.cuda": torch.cuda, "triton": triton, **made})
