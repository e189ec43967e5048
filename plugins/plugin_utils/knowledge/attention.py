# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What attention keeps of every token, and layers with a state of every sequence, from a model's configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import layer_kinds
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Attention
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.layer_kinds import BOTH, FULL, STATE, WINDOW
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.text_config import TextConfig

# Families whose checkpoints have a latent that vLLM unfolds to whole heads again.
WITHOUT_LATENT = frozenset({"minicpm3", "plm"})
# An indexer of sparse attention keeps one key of 8 bits a token, with a scale of 4 bytes for each 128 elements.
INDEX_GROUP, INDEX_SCALE_BYTES = 128, 4
STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def attention_kinds(config: TextConfig, mixed: Sequence[str]) -> tuple[Attention, ...]:
    """Return the kinds of attention layers that keep keys and values, each with the number of its layers.

    Args:
        config: the model's.
        mixed: what layer_kinds.mixers found.

    Raises:
        ValueError: a number is missing.
    """
    own = len(mixed) - config.number("num_kv_shared_layers")
    found = Counter(
        _attention(config, number, kind) for number, kind in enumerate(mixed[:own]) if kind in (FULL, WINDOW, BOTH)
    )
    return tuple(Attention(layers, *kind) for kind, layers in found.items())


def _attention(config: TextConfig, number: int, kind: str) -> tuple[int, int, int, int, int, int]:
    """Return C(kv_heads), C(key), C(value), C(window), C(latent) and C(index) of one layer."""
    window = layer_kinds.window(config) if kind == WINDOW else 0
    latent = latent_width(config)
    if latent:
        return 1, latent, 0, window, latent, _index_bytes(config, number)
    heads, key, value = widths(config, number, kind)
    return heads, key, value, window, 0, 0


def latent_width(config: TextConfig) -> int:
    """Return the elements that latent attention keeps of a token and layer; 0 for every other attention."""
    rank = config.number("kv_lora_rank")
    return rank + config.number("qk_rope_head_dim") if rank and config.family not in WITHOUT_LATENT else 0


def _index_bytes(config: TextConfig, number: int) -> int:
    """Return the bytes that a layer's indexer keeps of a token; layers between may share that of an earlier one."""
    width = config.number("index_head_dim")
    kinds = config.list_of("indexer_types")
    if not width or (kinds and kinds[number] == "shared"):
        return 0
    return width + width // INDEX_GROUP * INDEX_SCALE_BYTES


def widths(config: TextConfig, number: int, kind: str) -> tuple[int, int, int]:
    """Return a layer's KV heads and the widths of its keys and values."""
    heads = query_heads(config)
    key = config.number("head_dim") or config.needed("hidden") // heads
    value = config.number("v_head_dim") or key
    kv_heads = _kv_heads(config, number, heads)
    if kind == WINDOW and config.number("swa_num_key_value_heads"):
        kv_heads = config.number("swa_num_key_value_heads")
        key, value = config.number("swa_head_dim", key), config.number("swa_v_head_dim", value)
    elif kind != WINDOW and config.number("global_head_dim"):
        kv_heads = config.number("num_global_key_value_heads") or kv_heads
        key = value = config.number("global_head_dim")
    if min(kv_heads, key, value) <= 0:
        raise ValueError("its heads have no width")
    return kv_heads, key, value


def query_heads(config: TextConfig) -> int:
    """Return the heads for queries."""
    return config.number("num_query_heads") or config.needed("heads")


def _kv_heads(config: TextConfig, number: int, heads: int) -> int:
    listed = config.list_of("num_key_value_heads_per_layer") or config.list_of("num_key_value_heads")
    if listed:
        return int(listed[number] or 0) or heads
    blocks: Any = config.list_of("block_configs")
    if blocks:
        return heads // int(blocks[number]["attention"].get("n_heads_in_group") or 1)
    one_for_all = config.get("multi_query") and config.get("new_decoder_architecture") is not True
    if one_for_all:
        return 1
    if config.get("multi_query_attention") is False:
        return heads
    return config.number("kv_heads") or heads


def state_bytes(config: TextConfig, mixed: Sequence[str]) -> int:
    """Return the bytes that all layers with a state keep of one sequence, whatever its length.

    They are divided over the cards. The convolution's part has the weights' type, the rest its own where it is told.
    """
    layers = sum(kind in (STATE, BOTH) for kind in mixed)
    if not layers:
        return 0
    wide = STATE_BYTES.get(config.dtype, 2)
    told = str(config.get("mamba_ssm_cache_dtype", "mamba_ssm_dtype") or config.dtype)
    state_width = STATE_BYTES.get(told, wide)
    for read in (_delta_net, _kimi, _mamba2, _mamba1, _convolution):
        found = read(config)
        if found:
            convolution, state = found
            # Kimi's state is kept in 32 bits.
            return layers * (convolution * wide + state * (4 if read is _kimi else state_width))
    heads = query_heads(config)
    head = config.number("head_dim") or config.needed("hidden") // heads
    return layers * heads * head * head * wide


def _delta_net(config: TextConfig) -> tuple[int, int] | None:
    value_heads = config.number("linear_num_value_heads")
    if not value_heads:
        return None
    key, value = config.number("linear_key_head_dim"), config.number("linear_value_head_dim")
    width = 2 * key * config.number("linear_num_key_heads") + value * value_heads
    return (config.number("linear_conv_kernel_dim", 4) - 1) * width, value_heads * value * key


def _kimi(config: TextConfig) -> tuple[int, int] | None:
    linear = config.part("linear_attn_config")
    if not linear.get("num_heads"):
        return None
    heads, head = int(linear["num_heads"]), int(linear["head_dim"])
    return (int(linear.get("short_conv_kernel_size") or 4) - 1) * 3 * heads * head, heads * head * head


def mamba2(config: TextConfig) -> Mapping[str, int] | None:
    """Return the numbers of Mamba-2 layers: C(heads), C(head), C(state), C(groups) and C(kernel); None without them."""
    heads = config.number("mamba_num_heads") or config.number("mamba_n_heads") or config.number("n_mamba_heads")
    if not heads:
        return None
    wide = config.number("mamba_d_ssm") or _inner_width(config)
    told = config.get("mamba_head_dim", "mamba_d_head", "mamba_headdim")
    return {
        "heads": heads,
        "head": int(told) if isinstance(told, int) else wide // heads,
        "state": config.number("ssm_state_size") or config.number("mamba_d_state") or config.number("state_size"),
        "groups": config.number("n_groups") or config.number("mamba_n_groups") or config.number("mamba_ngroups", 1),
        "kernel": config.number("conv_kernel") or config.number("mamba_d_conv", 4),
    }


def _mamba2(config: TextConfig) -> tuple[int, int] | None:
    found = mamba2(config)
    if not found:
        return None
    width = found["heads"] * found["head"]
    convolution = (found["kernel"] - 1) * (width + 2 * found["groups"] * found["state"])
    return convolution, width * found["state"]


def _inner_width(config: TextConfig) -> int:
    return (config.number("mamba_expand") or config.number("expand", 2)) * config.needed("hidden")


def mamba1_width(config: TextConfig) -> int:
    """Return the width of Mamba-1 layers; 0 without them."""
    return _inner_width(config) if config.number("mamba_d_state") and not mamba2(config) else 0


def _mamba1(config: TextConfig) -> tuple[int, int] | None:
    width = mamba1_width(config)
    if not width:
        return None
    return (config.number("mamba_d_conv", 4) - 1) * width, width * config.number("mamba_d_state")


def _convolution(config: TextConfig) -> tuple[int, int] | None:
    """LFM2's layers keep the end of a short convolution."""
    kernel = config.number("conv_L_cache")
    return ((kernel - 1) * config.needed("hidden"), 0) if kernel else None
