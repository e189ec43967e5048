# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in a container of a serving image, on one of its GPUs: finds fast tilings of vLLM's Triton kernels for experts.

    python tune_moe_kernels.py FOLDER                 reads FOLDER/request.json, writes FOLDER/answer.json
    python tune_moe_kernels.py FOLDER --compile N OF  compiles one of so many shares, so that measuring waits for none

A program of one file. It measures the layer as vLLM runs it (`fused_experts`), with what vLLM would choose by itself
and with other tilings, and keeps one for a number of tokens only where its numbers agree and it is faster every time.

The request has `model` (as `vllm serve` is given it), `precision` (fp8 or bf16), `sizes` (of tensor parallelism),
`tokens`, `workers`, `tolerance` (the largest difference, as a share of the largest number), `margin` (the least gain,
as a share) and `rounds` (how often a finalist and vLLM's own choice are measured, in turns). The answer has `tables`,
each `name` (of the file, as vLLM looks for it), `table` and `provenance`, or `why` there is none.

The names of vLLM that it asks for are those of 0.32, and of vLLM's own benchmark of these kernels; arguments that
came or went between 0.12 and 0.33 are left out.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

Tiling = dict[str, int]
KEYS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
FINALISTS = 6
# What a process that compiles takes of the GPU's memory beside the weights: CUDA, and the inputs of a layer.
BESIDE_WEIGHTS = 4 << 30
# What may be called by several names in a model's configuration.
EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", "num_routed_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
INTERMEDIATE = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_hidden_size")
LARGEST_SHARED_MEMORY = 220 * 1024


class CannotTuneError(Exception):
    """There is nothing to tune, with the reason."""


# What the model is made of


def shape_of(config: Any) -> dict[str, Any]:
    """Return what the kernels depend on: `experts`, `chosen`, `intermediate`, `hidden`, `block_shape`.

    Args:
        config: the model's, as vLLM reads it.

    Raises:
        CannotTuneError: the model has no experts, or it is not known how large they are.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    experts = _first(text, EXPERTS)
    if not experts or experts < 2:
        raise CannotTuneError("the model has no experts, so there are no kernels of this kind")
    found = {
        "experts": experts,
        "chosen": _first(text, CHOSEN),
        "intermediate": _first(text, INTERMEDIATE),
        "hidden": _first(text, ("hidden_size",)),
    }
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise CannotTuneError(f"the model's config.json does not tell {', '.join(missing)} in words known here")
    quantization = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None) or {}
    block = quantization.get("weight_block_size") if isinstance(quantization, Mapping) else None
    return {**found, "block_shape": list(block) if block else None}


def _first(config: Any, names: Sequence[str]) -> int:
    for name in names:
        value = getattr(config, name, None)
        # Some say it for each layer.
        listed = value if isinstance(value, (list, tuple)) else [value]
        numbers = [entry for entry in listed if isinstance(entry, int) and not isinstance(entry, bool)]
        if numbers:
            return max(numbers)
    return 0


# Tilings


def tilings(bytes_each: int, block_shape: Sequence[int] | None = None) -> Iterator[Tiling]:
    """Yield every tiling that is worth a look.

    Args:
        bytes_each: size of a number in the GPU's shared memory.
        block_shape: of scales, if there is one for each block of weights; tiles are whole blocks then.
    """
    block_n, block_k = block_shape or (1, 1)
    sizes = ((16, 32, 64, 128), (32, 64, 128, 256), (64, 128, 256), (4, 8), (2, 3, 4, 5))
    for m, n, k, warps, stages in itertools.product(*sizes):
        too_large = (m * k + k * n) * bytes_each * stages > LARGEST_SHARED_MEMORY
        lopsided = (k == 64 and m < 64) or (n == 32 and m > 32) or (m <= 32 and n == 256 and warps == 4)
        if too_large or (lopsided and not block_shape) or n % block_n or k % block_k:
            continue
        for group in (1,) if m <= 32 else (1, 16):
            yield dict(zip(KEYS, (m, n, k, group, warps, stages)))


def fits(tiling: Tiling, tokens: int) -> bool:
    """Return whether a tiling is meant for about so many tokens."""
    least, most = {16: (1, 256), 32: (16, 512), 64: (48, 1 << 30), 128: (256, 1 << 30)}[tiling["BLOCK_SIZE_M"]]
    return least <= tokens <= most


# The kernels


class Layer:
    """The experts of one layer, with random weights, as vLLM's Triton kernels compute them.

    Args:
        shape: see shape_of; `intermediate` is that of one GPU.
        precision: fp8 or bf16.
        most: tokens at most.
    """

    def __init__(self, shape: Mapping[str, Any], precision: str, most: int) -> None:
        import torch
        from vllm.model_executor.layers.fused_moe import fused_moe, override_config

        self._torch, self._vllm, self._override = torch, fused_moe, override_config
        self._shape, self._dtype = shape, "fp8_w8a8" if precision == "fp8" else None
        self._device = torch.device("cuda")
        self._seeded = torch.Generator(device=self._device).manual_seed(0)
        experts, inner, hidden = shape["experts"], shape["intermediate"], shape["hidden"]
        self._w1, self._w2 = self._weights(experts, 2 * inner, hidden), self._weights(experts, hidden, inner)
        self._quantization = self._scales() if self._dtype else None
        self._x = self._random(most, hidden).to(torch.bfloat16)
        self._ids: dict[int, Any] = {}

    def file_name(self) -> str:
        """Return the name under which vLLM looks for the table of this layer on this GPU."""
        shape = self._shape
        name: str = self._vllm.get_config_file_name(
            shape["experts"], shape["intermediate"], self._dtype, shape["block_shape"]
        )
        return name

    def own_choice(self, tokens: int) -> Tiling:
        """Return what vLLM takes by itself."""
        shape = self._shape
        found = self._vllm.try_get_optimal_moe_config(
            tuple(self._w1.shape),
            tuple(self._w2.shape),
            shape["chosen"],
            self._dtype,
            tokens,
            block_shape=shape["block_shape"],
        )
        return dict(found)

    def run(self, tokens: int, tiling: Tiling) -> Any:
        """Return what the layer makes of so many tokens."""
        ids, weights = self._routed(tokens)
        more = {"quant_config": self._quantization} if self._quantization else {}
        # vLLM adds to the dictionary that it is given.
        with self._override(dict(tiling)):
            return self._vllm.fused_experts(self._x[:tokens], self._w1, self._w2, weights, ids, **more)

    def difference(self, one: Any, other: Any) -> float:
        """Return the largest difference of two results, as a share of the largest number of the second."""
        largest = other.float().abs().max().item()
        return float((one.float() - other.float()).abs().max().item() / (largest or 1.0))

    def microseconds(self, tokens: int, tiling: Tiling, repeat: int) -> float:
        """Return the shortest time of one run, of several replays of a CUDA graph."""
        torch = self._torch
        times: list[float] = []
        for _turn in range(2):
            self.run(tokens, tiling)
        torch.cuda.synchronize()
        inner = 10 if tokens <= 1024 else 3
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _turn in range(inner):
                self.run(tokens, tiling)
        for _turn in range(repeat):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1000 / inner)
        return min(times)

    def _random(self, *size: int) -> Any:
        return self._torch.randn(*size, device=self._device, generator=self._seeded, dtype=self._torch.float32) * 0.5

    def _weights(self, experts: int, rows: int, columns: int) -> Any:
        """Return random weights, made one expert at a time: all of them in full precision may not fit."""
        torch = self._torch
        kind = torch.float8_e4m3fn if self._dtype else torch.bfloat16
        weights = torch.empty(experts, rows, columns, device=self._device, dtype=kind)
        for number in range(experts):
            weights[number] = self._random(rows, columns).to(kind)
        return weights

    def _scales(self) -> Any:
        from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig

        torch, block = self._torch, self._shape["block_shape"]

        def filled(value: float, *size: int) -> Any:
            return torch.full(size, value, device=self._device, dtype=torch.float32)

        def of_weights(weights: Any) -> Any:
            experts, rows, columns = weights.shape
            return filled(0.02, experts, *((-(-rows // block[0]), -(-columns // block[1])) if block else ()))

        inputs = {} if block else {"a1_scale": filled(0.05, 1), "a2_scale": filled(0.05, 1)}
        return FusedMoEQuantConfig.make(
            quant_dtype=torch.float8_e4m3fn,
            w1_scale=of_weights(self._w1),
            w2_scale=of_weights(self._w2),
            block_shape=block,
            **inputs,
        )

    def _routed(self, tokens: int) -> Any:
        """Return which experts each token goes to, and with what weight; the same for the same number of tokens."""
        if tokens not in self._ids:
            torch, shape = self._torch, self._shape
            scores = torch.rand(tokens, shape["experts"], device=self._device, generator=self._seeded)
            ids = torch.topk(scores, shape["chosen"], dim=-1)[1].to(torch.int32)
            size = (tokens, shape["chosen"])
            weights = torch.full(size, 1.0 / shape["chosen"], device=self._device, dtype=torch.float32)
            self._ids[tokens] = (ids, weights)
        return self._ids[tokens]


# Search


def best_for(
    layer: Any, tokens: int, candidates: Sequence[Tiling], request: Mapping[str, Any]
) -> tuple[Tiling, dict[str, Any]]:
    """Return the tiling for a number of tokens, and what was measured of it.

    vLLM's own choice stays unless another one's numbers agree with its numbers, and it is faster by the margin in the
    median and in every round, in which both are measured in turns.
    """
    own = layer.own_choice(tokens)
    wanted = layer.run(tokens, own).clone()
    scores = []
    for tiling in candidates:
        if not fits(tiling, tokens):
            continue
        with contextlib.suppress(Exception):  # one that this GPU cannot run
            scores.append((layer.microseconds(tokens, tiling, 2), list(tiling.values())))
    rejected = 0
    before = layer.microseconds(tokens, own, 4)
    best, told = own, {"before_us": round(before, 1), "after_us": round(before, 1), "gain": 0.0, "difference": 0.0}
    for _score, values in sorted(scores)[:FINALISTS]:
        tiling = dict(zip(KEYS, values))
        difference = layer.difference(layer.run(tokens, tiling), wanted)
        if not difference <= request["tolerance"]:
            rejected += 1
            continue
        pairs = [
            (layer.microseconds(tokens, own, 4), layer.microseconds(tokens, tiling, 4))
            for _round in range(request["rounds"])
        ]
        before, after = (statistics.median(times) for times in zip(*pairs))
        gain = before / after - 1
        steady = all(theirs < ours for ours, theirs in pairs)
        if steady and gain >= request["margin"] and gain > told["gain"]:
            best = tiling
            told.update(before_us=round(before, 1), after_us=round(after, 1))
            told.update(gain=round(gain, 4), difference=round(difference, 5))
    told.update(tried=len(scores), rejected=rejected, kept=best is not own)
    return {key: int(best[key]) for key in KEYS if key in best}, told


def table_of(
    layer: Any, candidates: Sequence[Tiling], request: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the table of one layer, and what was measured, by number of tokens."""
    table, measured = {}, {}
    for number, tokens in enumerate(request["tokens"], 1):
        table[str(tokens)], measured[str(tokens)] = best_for(layer, tokens, candidates, request)
        told = measured[str(tokens)]
        say(
            f"{layer.file_name()}: {number} of {len(request['tokens'])}, {tokens} tokens:"
            f" {told['before_us']} us, {told['after_us']} us with the best tiling"
        )
    return table, measured


# The whole


def model_config(model: str) -> Any:
    """Return the model's configuration as vLLM reads it."""
    from vllm.transformers_utils.config import get_config

    return get_config(model, trust_remote_code=False)


def part_of(shape: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the shape that one GPU of several has."""
    if shape["intermediate"] % size:
        raise CannotTuneError(f"{shape['intermediate']} is no multiple of the tensor parallelism {size}")
    return {**shape, "intermediate": shape["intermediate"] // size}


@contextlib.contextmanager
def within_vllm() -> Iterator[None]:
    """Give vLLM's layers the settings that they ask for; some releases ask, none needs others than the defaults."""
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        yield


def workers_within(memory: int, request: Mapping[str, Any], shape: Mapping[str, Any]) -> int:
    """Return how many processes compile: as many as wanted, as far as each can hold a layer, and one at least.

    Args:
        memory: free bytes of the GPU.
        request: see the head of this file.
        shape: of one GPU's part of a layer.
    """
    numbers = shape["experts"] * 3 * shape["intermediate"] * shape["hidden"]
    room = memory // (numbers * _bytes(request) + BESIDE_WEIGHTS)
    return int(max(1, min(request["workers"], room)))


def compile_share(request: Mapping[str, Any], number: int, workers: int) -> None:
    """Run a share of the tilings at every number of tokens, so that all are in Triton's cache.

    Triton compiles a kernel anew where a size that it is given is no longer 1, or no longer a multiple of 16. Among
    these sizes are the number of tokens and what vLLM makes of that and of the number of experts, so nothing here is
    smaller than it will be.
    """
    shape = part_of(shape_of(model_config(request["model"])), request["sizes"][0])
    layer = Layer(shape, request["precision"], max(request["tokens"]))
    for tiling in list(tilings(_bytes(request), shape["block_shape"]))[number::workers]:
        for tokens in request["tokens"]:
            if fits(tiling, tokens):
                with contextlib.suppress(Exception):  # one that this GPU cannot run
                    layer.run(tokens, tiling)


def compile_all(folder: str, workers: int) -> float:
    """Compile the tilings in so many processes; return how long that took."""
    started = time.monotonic()
    command = [sys.executable, os.path.abspath(__file__), folder, "--compile"]
    shares = [
        subprocess.Popen([*command, str(number), str(workers)], stdout=subprocess.DEVNULL) for number in range(workers)
    ]
    for share in shares:
        share.wait()
    return time.monotonic() - started


def tune(folder: str, request: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Return the answer to a request."""
    import torch
    import triton
    import vllm

    shape = shape_of(model_config(request["model"]))
    candidates = list(tilings(_bytes(request), shape["block_shape"]))
    workers = workers_within(torch.cuda.mem_get_info()[0], request, part_of(shape, request["sizes"][0]))
    say(f"compiling {len(candidates)} tilings in {workers} processes")
    compiled_s = compile_all(folder, workers)
    tables = []
    for size in request["sizes"]:
        started = time.monotonic()
        layer = Layer(part_of(shape, size), request["precision"], max(request["tokens"]))
        table, measured = table_of(layer, candidates, request, say)
        major, minor = torch.cuda.get_device_capability()
        provenance = {
            "schema_version": 1,
            "cards": [torch.cuda.get_device_name()],
            "compute_capability": f"{major}.{minor}",
            "vllm": vllm.__version__,
            "triton": triton.__version__,
            "torch": torch.__version__,
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": request["model"],
            "precision": request["precision"],
            "tensor_parallel_size": size,
            "shape": part_of(shape, size),
            "tilings": len(candidates),
            **{name: request[name] for name in ("tolerance", "margin", "rounds")},
            "seconds": round(time.monotonic() - started + compiled_s / len(request["sizes"]), 1),
            "tokens": measured,
        }
        named = {**table, "triton_version": triton.__version__}
        tables.append({"name": layer.file_name(), "table": named, "provenance": provenance})
        del layer
        torch.cuda.empty_cache()
    return {"tables": tables}


def _bytes(request: Mapping[str, Any]) -> int:
    return 1 if request["precision"] == "fp8" else 2


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Answer the request in a folder, or compile a share of its tilings."""
    folder = arguments[0]
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as stream:
        request = json.load(stream)
    import torch

    try:
        if not torch.cuda.is_available():
            raise CannotTuneError("the container sees no GPU")
        with within_vllm():
            if "--compile" in arguments:
                compile_share(request, int(arguments[-2]), int(arguments[-1]))
                return
            answer = tune(folder, request, say)
    except CannotTuneError as error:
        answer = {"tables": [], "why": str(error)}
    part = os.path.join(folder, "answer.json.part")
    with open(part, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)
    os.replace(part, os.path.join(folder, "answer.json"))


if __name__ == "__main__":
    main(sys.argv[1:])
