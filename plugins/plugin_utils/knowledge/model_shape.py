# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sizes of any model, from its config.json and the index of its safetensors files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import ModelInfo
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Shape

# Weights on the card against the sum of their tensors: 104.93 GiB reported for 102.29 GiB of Scout in FP8.
LOADED = 1.026
# Bits of one quantised weight, with its scales.
BITS = {"fp8": 8.0, "fp4": 4.5, "mxfp4": 4.25, "4-bit": 4.5, "8-bit": 8.0}
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def check(found: ModelInfo) -> None:
    """Refuse a folder on the host that vLLM could not serve.

    Args:
        found: what the module host_info returned as C(model).

    Raises:
        GpufleetError: C(no-model-folder) or C(invalid-model-folder).
    """
    folder = found.get("path", "")
    if found.get("exists") is False:
        raise GpufleetError(
            f"vllm_model: the folder {folder} does not exist on this host.",
            name="no-model-folder",
            remedy="Put the model there, or set vllm_model to the folder that has its config.json.",
        )
    if not found.get("config"):
        raise GpufleetError(
            f"vllm_model: {folder} is not a model's folder: {found.get('config_error') or 'it has no config.json.'}",
            name="invalid-model-folder",
            remedy="Set vllm_model to the folder that has the model's config.json and safetensors files.",
        )
    missing = found.get("missing_files") or []
    if missing:
        raise GpufleetError(
            f"vllm_model: {folder} lacks {len(missing)} of the files that its index names, such as {missing[0]}.",
            name="invalid-model-folder",
            remedy="Copy the model again; an interrupted download leaves such a folder.",
        )


def shape(found: ModelInfo) -> Shape:
    """Return the sizes of the model that the module host_info found.

    Args:
        found: its C(model): C(config), C(quantization) (hf_quant_config.json), C(index_total_bytes) and C(total_bytes),
            all but the first optional.

    Raises:
        GpufleetError: C(invalid-model-folder) when config.json lacks a number that every decoder has.
    """
    outer: Any = found["config"]
    config = outer.get("text_config") or outer
    quantization = (
        outer.get("quantization_config") or config.get("quantization_config") or found.get("quantization") or {}
    )
    tensors = found.get("index_total_bytes") or found.get("total_bytes") or 0
    try:
        return _shape(config, outer, quantization, int(tensors))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise GpufleetError(
            f"The config.json in {found.get('path') or 'the model folder'} does not describe a decoder: {error}",
            name="invalid-model-folder",
            remedy="Set vllm_model to a model that vLLM can generate text with.",
        ) from error


def _shape(config: Mapping[str, Any], outer: Mapping[str, Any], quantization: Mapping[str, Any], tensors: int) -> Shape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    layers = int(config["num_hidden_layers"])
    dtype = str(config.get("dtype") or config.get("torch_dtype") or outer.get("torch_dtype") or "bfloat16")
    precision = _precision(quantization, dtype)
    local, window = _local_layers(config, layers)
    if tensors:
        weights, source = tensors / GIB * LOADED, "the size of its safetensors files and 2.6 % for loading"
    else:
        weights, source = _computed_gib(config, precision, dtype), "computed from config.json; there are no weights"
    return Shape(
        model_type=str(config.get("model_type") or outer.get("model_type") or "unknown"),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        intermediate=_active_width(config),
        max_position=int(config.get("max_position_embeddings") or 2048),
        weights_gib=round(weights, 3),
        weights_source=source,
        precision=precision,
        local_layers=local,
        local_window=window,
        latent=int(config.get("kv_lora_rank") or 0) + int(config.get("qk_rope_head_dim") or 0)
        if config.get("kv_lora_rank")
        else 0,
        dtype_bytes=DTYPE_BYTES.get(dtype.replace("torch.", ""), 2),
        vision="vision_config" in outer,
        static_fp8=precision == "fp8" and _is_static(quantization),
        experts=_experts(config),
        expert_width=int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 0),
    )


def _precision(quantization: Mapping[str, Any], dtype: str) -> str:
    """Return C(fp8), C(fp4) for NVFP4 alone, C(mxfp4), C(4-bit) or C(8-bit) for other integers, or the dtype."""
    entries = list(_entries(quantization))
    words = " ".join(value.lower() for _key, value in entries if isinstance(value, str))
    weights = [_kind(value) for key, value in entries if key == "weights" and isinstance(value, Mapping)]
    options = dict(entries)
    if "nvfp4" in words or "fp4" in weights:
        return "fp4"
    if options.get("load_in_4bit") is True:
        return "4-bit"
    if "fp4" in words or "mxfp4" in weights:
        return "mxfp4"
    if "fp8" in words or "float8" in words or "fp8" in weights:
        return "fp8"
    bits = {str(options.get(name)) for name in ("bits", "w_bit", "nbits")}
    if bits & {"2", "3", "4"} or "4-bit" in weights or re.search(r"\b(int4|w4a\d+)", words):
        return "4-bit"
    if "8" in bits or options.get("load_in_8bit") is True or "8-bit" in weights or re.search(r"\b(int8|w8a\d+)", words):
        return "8-bit"
    return "fp32" if dtype.endswith("float32") else "bf16"


def _entries(quantization: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every key and value that tells of the weights: not of the KV cache, nor of what is left as it is."""
    for key, value in quantization.items():
        if "kv_cache" in key or key in ("input_activations", "output_activations"):
            continue
        yield key, value
        if isinstance(value, Mapping):
            yield from _entries(value)


def _kind(weights: Mapping[str, Any]) -> str:
    """Return the precision in compressed-tensors' description of weights."""
    bits = weights.get("num_bits")
    if weights.get("type") == "float":
        return {4: "fp4" if weights.get("group_size") == 16 else "mxfp4", 8: "fp8"}.get(bits or 0, "")
    return f"{bits}-bit" if bits in (4, 8) else ""


def _is_static(quantization: Mapping[str, Any]) -> bool:
    """Return whether FP8 weights are known to have one scale a tensor, and one that is fixed for its input."""
    options = dict(_entries(quantization))
    if options.get("quant_algo"):
        return str(options["quant_algo"]).upper() == "FP8"
    if options.get("quant_method") == "fp8":
        return options.get("activation_scheme") == "static" and not options.get("weight_block_size")
    groups = [group for group in (quantization.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    return bool(groups) and all(
        (group.get("weights") or {}).get("strategy") == "tensor"
        and (group.get("input_activations") or {}).get("strategy") == "tensor"
        and (group.get("input_activations") or {}).get("dynamic") is False
        for group in groups
    )


def _active_width(config: Mapping[str, Any]) -> int:
    """Return the width of the feed-forward part that one token passes: its experts and the shared ones."""
    dense = int(config.get("intermediate_size") or 4 * int(config["hidden_size"]))
    chosen = int(config.get("num_experts_per_tok") or 0)
    if not _experts(config) or not chosen:
        return dense
    expert = int(config.get("moe_intermediate_size") or dense)
    return chosen * expert + _shared_width(config, expert)


def _experts(config: Mapping[str, Any]) -> int:
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(name):
            return int(config[name])
    return 0


def _shared_width(config: Mapping[str, Any], expert: int) -> int:
    if str(config.get("model_type", "")).startswith("llama4"):
        return expert
    if config.get("shared_expert_intermediate_size"):
        return int(config["shared_expert_intermediate_size"])
    return int(config.get("n_shared_experts") or 0) * expert


def _local_layers(config: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """Return how many layers attend to a window only, and its length in tokens."""
    chunk, window = config.get("attention_chunk_size"), config.get("sliding_window")
    kinds = config.get("layer_types")
    if kinds:
        local = sum(1 for kind in kinds if kind in ("chunked_attention", "sliding_attention"))
        return (local, int(chunk or window or 0)) if local and (chunk or window) else (0, 0)
    if chunk:
        # Llama 4 without a list: every fourth layer attends to everything.
        return layers - layers // int(config.get("no_rope_layer_interval") or 4), int(chunk)
    return 0, 0


def _computed_gib(config: Mapping[str, Any], precision: str, dtype: str) -> float:
    """Return the GiB of the weights by counting parameters; embeddings, head and router stay unquantised."""
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    dense = int(config.get("intermediate_size") or 4 * hidden)
    experts = _experts(config)
    expert = int(config.get("moe_intermediate_size") or dense)
    feed_forward = 3 * hidden * (experts * expert + _shared_width(config, expert) if experts else dense)
    embeddings = int(config["vocab_size"]) * hidden * (1 if config.get("tie_word_embeddings") else 2)
    width = DTYPE_BYTES.get(dtype.replace("torch.", ""), 2)
    bits = BITS.get(precision, width * 8)
    return (layers * (attention + feed_forward) * bits / 8 + embeddings * width) / GIB * LOADED
