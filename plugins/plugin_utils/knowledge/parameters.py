# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many weights a model has, counted from its configuration, for want of the sizes of its files."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import attention
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.layer_kinds import (
    BOTH,
    DENSE,
    FULL,
    MOE,
    STATE,
    TWICE,
    WINDOW,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.quantization import Entries, bits_of, spares
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.text_config import TextConfig

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Feed-forward parts of two matrices instead of three.
PLAIN = frozenset(
    {
        *(
            "nemotron",
            "nemotron_h",
            "gpt2",
            "gpt_bigcode",
            "gptj",
            "gpt_neox",
            "gpt_neo",
            "falcon",
            "starcoder2",
            "phi",
        ),
        *("opt", "bloom", "mpt", "persimmon", "stablelm_epoch", "codegen", "RefinedWeb", "RefinedWebModel"),
    }
)
# What such a part is called by: these are not gated.
PLAIN_ACTIVATIONS = ("relu2", "xielu")
LLAMA4 = ("llama4", "llama4_text")


@dataclass(frozen=True)
class FeedForward:
    """The widths of a model's feed-forward parts; 0 for what it does not have."""

    dense: int
    expert: int
    experts: int
    chosen: int
    shared: int

    @property
    def active(self) -> int:
        """The width that one token passes: its experts and the shared ones, or the dense part."""
        return self.chosen * self.expert + self.shared if self.experts and self.chosen else self.dense


def feed_forward(config: TextConfig) -> FeedForward:
    """Return the widths of the feed-forward parts."""
    dense, experts = _dense(config), config.number("experts")
    if not experts:
        dense = config.number("shared_intermediate_size") or dense if config.family == "granitemoehybrid" else dense
        return FeedForward(dense, 0, 0, 0, 0)
    expert = config.number("expert") or dense
    if config.family in LLAMA4:
        return FeedForward(config.number("intermediate_size_mlp", dense), dense, experts, _chosen(config), dense)
    dense = config.number("dense_intermediate_size") or dense
    if config.family == "arctic":
        # Beside its experts each layer has a dense part as wide as the residual stream.
        dense = config.needed("hidden")
    return FeedForward(dense, expert, experts, _chosen(config), _shared(config, expert))


def _dense(config: TextConfig) -> int:
    """Return the width of the dense part. LFM2's first releases tell one that is to be cut to two thirds."""
    block = config.number("block_ff_dim")
    if not block:
        told = config.number("dense", 4 * config.needed("hidden"))
        # Qwen's first models tell the width of both gated matrices together.
        return told // 2 if config.family == "qwen" else told
    if config.get("block_auto_adjust_ff_dim") is False:
        return block
    cut = int(float(config.get("block_ffn_dim_multiplier") or 1) * int(2 * block / 3))
    multiple = config.number("block_multiple_of", 256)
    return math.ceil(cut / multiple) * multiple


def _chosen(config: TextConfig) -> int:
    return config.number("chosen_experts")


def _shared(config: TextConfig, expert: int) -> int:
    """Return the width of the shared experts together."""
    for name in ("shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size"):
        if config.number(name):
            return config.number(name) * (config.number("shared_experts", 1) if name.endswith("size") else 1)
    one = config.number("moe_shared_expert_intermediate_size") or expert
    return config.number("shared_experts") * one


def counted_bytes(
    config: TextConfig, mixed: Sequence[str], fed: Sequence[str], quantised: Entries, precision: str
) -> float:
    """Return the bytes of all weights; embeddings, head and router stay unquantised.

    Args:
        config: the model's.
        mixed: what layer_kinds.mixers found.
        fed: what layer_kinds.feed_forwards found.
        quantised: entries of the model's quantisation, empty for none.
        precision: what quantization.precision_of found.
    """
    wide = DTYPE_BYTES.get(config.dtype, 2)
    narrow = bits_of(quantised, precision, wide * 8) / 8
    found, layers = feed_forward(config), len(mixed)
    dense, experts, shared = _feed_forward_weights(config, found, fed)
    only_experts = precision == "mxfp4" and config.get("quant_method") is None and config.family == "gpt_oss"

    def bytes_of(*words: str) -> float:
        return wide if only_experts or spares(quantised, layers, *words) else narrow

    total = sum(_mixer_weights(config, number, kind) for number, kind in enumerate(mixed)) + _shared_blocks(config)
    kinds = ("self_attn", "mixer", "attention", "linear_attn")
    mixers = total * bytes_of(*kinds)
    parts = mixers + dense * bytes_of("mlp.gate_proj", "mlp.(gate", "mlp\\.(gate") + experts * narrow
    parts += shared * bytes_of("shared_expert")
    return parts + (_embeddings(config) + _routers(config, found, fed)) * wide + _vision(config) * 2


def _embeddings(config: TextConfig) -> int:
    hidden = config.needed("hidden")
    inner = config.number("embedding_size") or config.number("word_embed_proj_dim") or hidden
    matrices = config.needed("vocabulary") * inner * (1 if config.tied else 2)
    each_layer = config.number("vocab_size_per_layer_input") * config.number("hidden_size_per_layer_input")
    return matrices + each_layer * config.number("layers")


def _routers(config: TextConfig, found: FeedForward, fed: Sequence[str]) -> int:
    return sum(kind == MOE for kind in fed) * found.experts * config.needed("hidden")


def _feed_forward_weights(config: TextConfig, found: FeedForward, fed: Sequence[str]) -> tuple[int, int, int]:
    """Return the weights of dense parts, of experts and of shared experts, of all layers together."""
    hidden = config.needed("hidden")
    plain = config.family in PLAIN or config.get("mlp_hidden_act", "hidden_act") in PLAIN_ACTIVATIONS
    matrices = 2 if plain else 3
    moe, dense_layers = sum(kind == MOE for kind in fed), sum(kind == DENSE for kind in fed)
    blocks = config.list_of("block_configs")
    if blocks:
        dense = matrices * hidden * sum(_nemotron_width(block.get("ffn") or {}, hidden) for block in blocks)
    elif has_both(config):
        dense = matrices * hidden * found.dense * len(fed)
    else:
        dense = matrices * hidden * found.dense * dense_layers
    latent = config.number("moe_latent_size") or config.number("routed_expert_hidden_size")
    experts = moe * (_experts_width(config, found) * matrices * (latent or hidden) + 2 * latent * hidden)
    return dense, experts, moe * matrices * hidden * found.shared


def has_both(config: TextConfig) -> bool:
    """Return whether layers have a dense part beside their experts."""
    names = ("enable_moe_block", "residual_moe", "parallel_attn_mlp_res")
    return any(config.get(name) for name in names) or config.family in TWICE


def _experts_width(config: TextConfig, found: FeedForward) -> int:
    """Return the widths of all experts of a layer together; ERNIE's for images are narrower than those for text."""
    counts, widths = config.list_of("moe_num_experts"), config.list_of("moe_intermediate_size")
    return sum(map(operator.mul, counts, widths)) if counts and widths else found.experts * found.expert


def _nemotron_width(block: Mapping[str, Any], hidden: int) -> int:
    if block.get("no_op"):
        return 0
    if block.get("intermediate_size"):
        return int(block["intermediate_size"])
    if block.get("replace_with_linear"):
        return hidden // 3
    return math.ceil(2 * float(block.get("ffn_mult") or 0) * hidden / 3 / 256) * 256


def _mixer_weights(config: TextConfig, number: int, kind: str) -> int:
    weights, hidden = 0, config.needed("hidden")
    if config.family == "zamba2":
        adapter = config.number("adapter_rank") * (hidden + 2 * config.number("dense", 4 * hidden))
        return _state_weights(config) + (hidden * hidden + adapter) * (kind == BOTH)
    if kind in (FULL, WINDOW, BOTH):
        weights += _latent_weights(config) if attention.latent_width(config) else _head_weights(config, number, kind)
    if kind in (STATE, BOTH):
        weights += _state_weights(config)
    return weights


def _head_weights(config: TextConfig, number: int, kind: str) -> int:
    hidden, heads = config.needed("hidden"), attention.query_heads(config)
    kv_heads, key, value = attention.widths(config, number, kind)
    queries = heads * key * (2 if config.get("attn_output_gate") else 1)
    if config.family == "qwen3_next":
        queries = heads * key * 2
    shared = config.number("num_kv_shared_layers")
    if number >= config.number("layers") - shared and shared:
        kv_heads = 0
    return hidden * (queries + kv_heads * (key + value) + heads * value)


def _shared_blocks(config: TextConfig) -> int:
    """Return the weights of Zamba2's blocks of attention and a dense part, which several layers share."""
    if config.family != "zamba2":
        return 0
    hidden, wide = config.needed("hidden"), config.number("attention_hidden_size") or 2 * config.needed("hidden")
    one = 3 * wide * wide + wide * hidden + 3 * hidden * config.number("dense", 4 * hidden)
    return config.number("num_mem_blocks", 1) * one


def _latent_weights(config: TextConfig) -> int:
    hidden, heads = config.needed("hidden"), config.needed("heads")
    nope, rope = config.number("qk_nope_head_dim"), config.number("qk_rope_head_dim")
    rank, value = config.number("kv_lora_rank"), config.number("v_head_dim")
    narrow = config.number("q_lora_rank")
    queries = (hidden * narrow + narrow * heads * (nope + rope)) if narrow else hidden * heads * (nope + rope)
    keys = hidden * (rank + rope) + rank * heads * (nope + value)
    gate = heads * value * hidden if config.get("mla_use_output_gate") else 0
    indexer = config.number("index_head_dim") * (config.number("index_n_heads") * narrow + hidden)
    return queries + keys + heads * value * hidden + indexer + gate


def _state_weights(config: TextConfig) -> int:
    """Return the weights of one layer with a state."""
    hidden = config.needed("hidden")
    linear, mamba = config.part("linear_attn_config"), attention.mamba2(config)
    if config.number("linear_num_value_heads"):
        keys = config.number("linear_key_head_dim") * config.number("linear_num_key_heads")
        heads = config.number("linear_num_value_heads")
        values = config.number("linear_value_head_dim") * heads
        return hidden * (2 * keys + 2 * values + 2 * heads) + values * hidden
    if linear.get("num_heads"):
        wide, head = int(linear["num_heads"]) * int(linear["head_dim"]), int(linear["head_dim"])
        gate = hidden * wide if linear.get("use_full_rank_gate") else hidden * head + head * wide
        return 4 * hidden * wide + gate + hidden * head + head * wide + hidden * int(linear["num_heads"])
    if mamba:
        wide = mamba["heads"] * mamba["head"]
        return hidden * (2 * wide + 2 * mamba["groups"] * mamba["state"] + mamba["heads"]) + wide * hidden
    wide = attention.mamba1_width(config)
    if wide:
        state, rank = config.number("mamba_d_state"), math.ceil(hidden / 16)
        told = config.get("mamba_dt_rank")
        rank = int(told) if isinstance(told, int) else rank
        return 3 * hidden * wide + wide * (2 * rank + 3 * state)
    if config.number("conv_L_cache"):
        return 4 * hidden * hidden
    heads = config.needed("heads") * (config.number("head_dim") or hidden // config.needed("heads"))
    return 5 * hidden * heads


def _vision(config: TextConfig) -> int:
    """Return the weights of a vision tower by its layers alone; 0 where there is none or it tells too little."""
    tower = config.vision or {}
    wide = next((tower[name] for name in ("embed_dim", "hidden_size", "width", "vt_hidden_size") if tower.get(name)), 0)
    depths = ("num_hidden_layers", "depth", "layers", "vt_num_hidden_layers")
    deep = next((tower[name] for name in depths if tower.get(name)), 0)
    if not isinstance(wide, int) or not isinstance(deep, int):
        return 0
    inner = tower.get("intermediate_size") or tower.get("vt_intermediate_size")
    inner = inner or int(wide * (tower.get("mlp_ratio") or 4))
    gated = tower.get("hidden_act") == "silu" or tower.get("model_type") == "pixtral"
    return deep * (4 * wide * wide + (3 if gated else 2) * wide * int(inner))
