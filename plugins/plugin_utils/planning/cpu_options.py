# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server on processors gets: small batches, and a share of main memory that it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Capacity
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import memory_model, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.sizing import no_capacity
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

# Settings that serve SmolLM2 well on two cores; larger ones warmed up for minutes.
CPU_BATCHED_TOKENS, CPU_SEQS, CPU_MODEL_LEN = 1024, 8, 1024
# Resident memory of the server before weights: Python, PyTorch and vLLM.
CPU_RUNTIME_GIB = 1.5
CPU_HIGHEST_UTILISATION = 0.9


def cpu_options(
    draft: Draft, host: Mapping[str, Any], wishes: Wishes, chosen: Chosen, version: versions.Version
) -> dict[str, Any]:
    """Return the options that a server on processors needs. The recipe's others are left out, with the reason."""
    dtype = "bfloat16" if chosen.precision == "bf16" else "float32"
    reason = "runs well on every processor; 16 bits (vllm_precision: bf16) pay with AMX only"
    draft.decide("dtype", dtype, "vllm_precision" if wishes.precision else reason)
    _check_kv_dtype(host, wishes, version)
    reason = "vllm_kv_cache_dtype" if wishes.kv_cache_dtype else "not sent: not every CPU build has an FP8 KV cache"
    draft.decide("kv_cache_dtype", wishes.kv_cache_dtype, reason)
    draft.decide("async_scheduling", None, "not sent: there is no GPU whose work could hide the scheduler's")
    draft.decide("prefix_caching", True, "on, as is vLLM's default; the recipe's benchmarks are for GPUs")
    batched = wishes.max_num_batched_tokens or CPU_BATCHED_TOKENS
    seqs = wishes.max_num_seqs or CPU_SEQS
    most = chosen.shape.max_position if chosen.shape else CPU_MODEL_LEN
    length = wishes.max_model_len or min(CPU_MODEL_LEN, most)
    config: dict[str, Any] = {
        "dtype": dtype,
        "max-num-batched-tokens": batched,
        "max-num-seqs": seqs,
        "max-model-len": length,
        "enforce-eager": True,
    }
    draft.decide(
        "enforce_eager",
        True,
        "the CPU image has no C++ compiler, which torch.compile needs on processors; without it the server also starts"
        " in a minute",
    )
    small = "small, so that warming up stays short"
    draft.decide(
        "max_num_batched_tokens", batched, "vllm_max_num_batched_tokens" if wishes.max_num_batched_tokens else small
    )
    draft.decide("max_num_seqs", seqs, "vllm_max_num_seqs" if wishes.max_num_seqs else small)
    draft.decide("max_model_len", length, "vllm_max_model_len" if wishes.max_model_len else small)
    if wishes.kv_cache_dtype:
        config["kv-cache-dtype"] = wishes.kv_cache_dtype
    config["gpu-memory-utilization"] = _utilisation(draft, host, wishes, chosen, config)
    return config


def _check_kv_dtype(host: Mapping[str, Any], wishes: Wishes, version: versions.Version) -> None:
    if not (wishes.kv_cache_dtype or "").startswith("fp8"):
        return
    flags = set(host.get("cpu_flags") or ())
    if versions.CPU_FP8_KV_CACHE.holds(version) and flags & {"avx512f", "amx_bf16", "amx_tile"}:
        return
    raise GpufleetError(
        f"vllm_kv_cache_dtype: {wishes.kv_cache_dtype} on processors needs vLLM"
        f" {versions.as_text(versions.CPU_FP8_KV_CACHE.since)} and AVX512 or AMX; this is vLLM"
        f" {versions.as_text(version)} and the processor has {'neither' if not flags else ', '.join(sorted(flags))}.",
        name="invalid-wishes",
        remedy="Leave it at auto with vllm_device: cpu.",
    )


def _needed_gib(chosen: Chosen, config: Mapping[str, Any]) -> float:
    """Return the GiB that a server on processors needs: runtime, weights and a KV cache for every sequence."""
    if chosen.shape is None:
        return CPU_RUNTIME_GIB * 2
    width = 2 if config["dtype"] == "bfloat16" else 4
    per_token = memory_model.kv_bytes_per_token(chosen.shape, str(config["dtype"]))
    cache = per_token * int(config["max-num-seqs"]) * int(config["max-model-len"]) / GIB
    return CPU_RUNTIME_GIB + chosen.shape.weights_gib * width / chosen.shape.dtype_bytes + cache


def _utilisation(
    draft: Draft, host: Mapping[str, Any], wishes: Wishes, chosen: Chosen, config: Mapping[str, Any]
) -> float:
    """Return the share of the host's memory: twice what the server needs, and never what is not there.

    It depends on the host's total memory only, so that a running server does not change its own plan.
    """
    if wishes.gpu_memory_utilization:
        draft.decide("gpu_memory_utilization", wishes.gpu_memory_utilization, "vllm_gpu_memory_utilization")
        return float(wishes.gpu_memory_utilization)
    total = float(host.get("memory_mib") or 0) / 1024
    if not total:
        draft.decide("gpu_memory_utilization", 0.25, "the host's memory is not known")
        return 0.25
    needs = _needed_gib(chosen, config) * (wishes.replicas or 1)
    if needs > total * CPU_HIGHEST_UTILISATION:
        raise GpufleetError(
            f"{chosen.name} needs {needs:.1f} GiB of memory; this host has {total:.1f} GiB.",
            name="does-not-fit",
            remedy="Choose a smaller vllm_model, or lower vllm_max_num_seqs, vllm_max_model_len or vllm_replicas.",
        )
    share = min(2 * needs, total * CPU_HIGHEST_UTILISATION) / (wishes.replicas or 1) / total
    share = max(0.01, round(math.floor(share * 100) / 100, 2))
    available = float(host.get("memory_available_mib") or 0) / 1024
    wanted = share * total * (wishes.replicas or 1)
    if available and wanted > available and not host.get("own_containers"):
        raise GpufleetError(
            f"{chosen.name} would reserve {wanted:.1f} GiB of this host's {total:.1f} GiB of memory; only"
            f" {available:.1f} GiB are available.",
            name="does-not-fit",
            remedy="Stop what uses the memory, choose a smaller vllm_model, or set vllm_gpu_memory_utilization"
            f" (at least {needs / (wishes.replicas or 1) / total:.2f}).",
        )
    draft.decide(
        "gpu_memory_utilization",
        share,
        f"{share * total:.1f} GiB of {total:.1f} GiB: twice the {needs:.1f} GiB that weights, runtime and the KV cache"
        " need (on processors the option means main memory)",
    )
    return share


def cpu_capacity(host: Mapping[str, Any], wishes: Wishes, chosen: Chosen, config: Mapping[str, Any]) -> Capacity:
    """Return what the memory model expects of one server on processors."""
    total = float(host.get("memory_mib") or 0) / 1024
    if chosen.shape is None or not total:
        return no_capacity(chosen.shape)
    width = 2 if config["dtype"] == "bfloat16" else 4
    weights = chosen.shape.weights_gib * width / chosen.shape.dtype_bytes
    cache = max(0.0, total * config["gpu-memory-utilization"] - CPU_RUNTIME_GIB - weights)
    tokens = int(cache * GIB / memory_model.kv_bytes_per_token(chosen.shape, str(config["dtype"])))
    length = min(wishes.expected_input_len + wishes.expected_output_len, config["max-model-len"])
    return {
        "weights_gib_per_gpu": round(weights, 2),
        "kv_cache_gib_per_gpu": round(cache, 2),
        "kv_cache_tokens": tokens,
        "max_concurrent_requests": max(1, min(tokens // length, config["max-num-seqs"])),
    }
