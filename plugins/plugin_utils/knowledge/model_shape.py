# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sizes of any model, from its config.json and the index of its safetensors files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import ModelInfo
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import layer_kinds, parameters, quantization
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.attention import (
    attention_kinds,
    latent_width,
    mamba1_width,
    mamba2,
    query_heads,
    state_bytes,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Attention, Division, Shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.parameters import DTYPE_BYTES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.text_config import TextConfig

# Weights on the card against the sum of their tensors: 104.93 GiB reported for 102.29 GiB of Scout in FP8.
LOADED = 1.026
# Groups of experts' 4-bit weights that kernels can halve down to these.
SMALLEST_GROUP = 32


@dataclass(frozen=True)
class Unread:
    """What is known of a model whose layers cannot be told from its configuration.

    Attributes:
        why: what is missing, or not known here.
        model_type: the family, as far as it is told.
        precision: of its weights.
        weights_gib: of all cards together; 0.0 where nothing tells it.
        weights_source: where that number comes from.
        vision: whether a vision tower comes with it.
    """

    why: str
    model_type: str
    precision: str
    weights_gib: float
    weights_source: str
    vision: bool = False


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
    pointers = found.get("pointers") or []
    if pointers:
        raise GpufleetError(
            f"vllm_model: {folder} lacks {len(pointers)} file(s) that git-lfs has not fetched, such as {pointers[0]}.",
            name="invalid-model-folder",
            remedy=f"Run `git lfs pull` in {folder}, or fetch the model with `hf download`.",
        )
    if not found.get("config"):
        raise GpufleetError(
            f"vllm_model: {folder} is not a model's folder: {found.get('config_error') or 'it has no config.json.'}",
            name="invalid-model-folder",
            remedy="Set vllm_model to the folder that has the model's config.json (or params.json of Mistral's own"
            " format) and safetensors files.",
        )
    missing = found.get("missing_files") or []
    if missing:
        raise GpufleetError(
            f"vllm_model: {folder} lacks {len(missing)} of the files that its index names, such as {missing[0]}.",
            name="invalid-model-folder",
            remedy="Copy the model again; an interrupted download leaves such a folder.",
        )


def read(found: ModelInfo) -> Shape | Unread:
    """Return the sizes of a model, or what is known of one whose layers cannot be told.

    Args:
        found: what the module host_info returned as C(model), or was read at the hub: C(config), C(quantization)
            (hf_quant_config.json), C(sentence_length), C(index_total_bytes) and C(total_bytes), all but the first
            optional.
    """
    config = TextConfig(found.get("config") or {})
    quantised = quantization.entries_of(_quantization(config, found))
    precision = quantization.precision_of(quantised, config.dtype)
    weights, source = _files_gib(found)
    try:
        shape = _shape(config, quantised, precision, weights, source)
        return replace(shape, max_position=found.get("sentence_length") or shape.max_position)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError, AttributeError, OverflowError) as error:
        why = str(error) or type(error).__name__
        family = config.family or "unknown"
        return Unread(why, family, precision, round(weights, 3), source, vision=config.vision is not None)


def _quantization(config: TextConfig, found: ModelInfo) -> Mapping[str, Any]:
    for holder in (config.outer, config.inner):
        for name in ("quantization_config", "compression_config"):
            if isinstance(holder.get(name), Mapping) and holder[name]:
                told: Mapping[str, Any] = holder[name]
                return told
    return found.get("quantization") or {}


def _files_gib(found: ModelInfo) -> tuple[float, str]:
    """Return the GiB of the weights by their files, 0.0 where there are none to tell, and where the number is from."""
    files = found.get("safetensors") or []
    # Mistral's own files stand beside the same weights under other names; vLLM loads one of the two.
    others = sum(entry["size"] for entry in files if not entry["name"].startswith("consolidated"))
    total = found.get("total_bytes") if found.get("complete", True) else 0
    tensors = found.get("index_total_bytes") or (others if others and total else total) or 0
    where = f" at the hub (commit {found['at_hub'][:12]})" if found.get("at_hub") else ""
    return tensors / GIB * LOADED, f"the size of its safetensors files{where} and 2.6 % for loading"


def _shape(config: TextConfig, quantised: quantization.Entries, precision: str, weights: float, source: str) -> Shape:
    mixed = layer_kinds.mixers(config)
    fed = layer_kinds.feed_forwards(config, mixed)
    kinds = attention_kinds(config, mixed)
    if not kinds:
        raise ValueError("no layer of it keeps keys and values")
    if not weights:
        counted = parameters.counted_bytes(config, mixed, fed, quantised, precision)
        weights, source = counted / GIB * LOADED, "computed from its configuration; no sizes of weights are known"
    widths = parameters.feed_forward(config)
    hidden, heads = config.needed("hidden"), query_heads(config)
    local = [kind for kind in kinds if kind.window]
    plain = all(kind == _first_alike(kinds, kind) for kind in kinds) and not any(kind.index for kind in kinds)
    return Shape(
        model_type=config.family or "unknown",
        layers=sum(kind.layers for kind in kinds),
        hidden=hidden,
        heads=heads,
        kv_heads=config.number("kv_heads", heads) if kinds[0].latent else max(kind.kv_heads for kind in kinds),
        head_dim=config.number("head_dim") or hidden // heads,
        vocabulary=config.needed("vocabulary"),
        intermediate=widths.active,
        max_position=config.longest,
        weights_gib=round(weights, 3),
        weights_source=source,
        precision=precision,
        local_layers=sum(kind.layers for kind in local),
        local_window=max((kind.window for kind in local), default=0),
        latent=latent_width(config),
        dtype_bytes=DTYPE_BYTES.get(config.dtype, 2),
        vision=config.vision is not None,
        static_fp8=precision == "fp8" and quantization.is_static(quantised),
        attention=() if plain else kinds,
        state_bytes=state_bytes(config, mixed),
        division=replace(_division(config, mixed, fed, quantised, precision), vision_heads=config.vision_heads),
        experts=widths.experts,
        expert_width=widths.expert if widths.experts else 0,
    )


def _first_alike(kinds: Sequence[Attention], kind: Attention) -> Attention:
    """Return a kind with the widths of the first: a shape says that in one number."""
    first = kinds[0]
    return Attention(kind.layers, first.kv_heads, first.key, first.key * (not first.latent), kind.window, first.latent)


def _division(
    config: TextConfig, mixed: Sequence[str], fed: Sequence[str], quantised: quantization.Entries, precision: str
) -> Division:
    """Return what tensor parallelism divides beside heads: feed-forward parts, states, and blocks of quantisation."""
    found = parameters.feed_forward(config)
    dense = found.dense if layer_kinds.DENSE in fed or parameters.has_both(config) else 0
    expert, shared = (found.expert, found.shared) if layer_kinds.MOE in fed else (0, 0)
    stateful = any(kind in (layer_kinds.STATE, layer_kinds.BOTH) for kind in mixed)
    states, groups = _states(config) if stateful else ((), 1)
    even = tuple(sorted({number for number in (dense, shared, *states) if number}))
    experts = (expert,) if expert else ()
    block, group = quantization.fp8_block(quantised), quantization.group(quantised)
    if precision == "fp8" and block:
        inputs = _quantised_inputs(config, mixed, quantised, dense, shared)
        return Division(even, groups, inputs, block, experts, block, fp8_blocks=True)
    if precision in ("fp4", "4-bit", "8-bit") and group:
        inputs = _quantised_inputs(config, mixed, quantised, dense, shared)
        return Division(even, groups, inputs, group, experts, min(group, SMALLEST_GROUP))
    return Division(even, groups, experts=experts)


def _states(config: TextConfig) -> tuple[tuple[int, ...], int]:
    """Return what of layers with a state is divided, and the groups of Mamba-2."""
    mamba, linear = mamba2(config), config.part("linear_attn_config")
    if config.number("linear_num_value_heads"):
        return (config.number("linear_num_key_heads"), config.number("linear_num_value_heads")), 1
    if linear.get("num_heads"):
        return (int(linear["num_heads"]),), 1
    if mamba:
        return (mamba["heads"],), mamba["groups"]
    return (mamba1_width(config) or config.needed("hidden"),), 1


def _quantised_inputs(
    config: TextConfig, mixed: Sequence[str], quantised: quantization.Entries, dense: int, shared: int
) -> tuple[int, ...]:
    """Return the widths that go into a quantised matrix whose rows tensor parallelism divides."""
    layers, heads = len(mixed), query_heads(config)
    value = config.number("v_head_dim") or config.number("head_dim") or config.needed("hidden") // heads
    states = config.number("linear_num_value_heads") * config.number("linear_value_head_dim")
    parts = (
        (heads * value, ("o_proj", "self_attn", "attention")),
        (states, ("linear_attn",)),
        (dense, ("mlp.down_proj", "mlp\\.(gate", "mlp.(gate")),
        (shared, ("shared_expert",)),
    )
    return tuple(width for width, words in parts if width and not quantization.spares(quantised, layers, *words))
