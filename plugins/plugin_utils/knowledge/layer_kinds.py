# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each layer of a model does: how it mixes tokens, and through which feed-forward part they go."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.text_config import TextConfig

# How a layer mixes tokens: attention to everything or to a window; a state of fixed size, as Mamba's and linear
# attention's; both at once; or not at all.
FULL, WINDOW, STATE, BOTH, NONE = "full", "window", "state", "both", "none"
# The feed-forward part.
DENSE, MOE, NO_FEED_FORWARD = "dense", "moe", "none"

WORDS = {
    **dict.fromkeys(
        ("full_attention", "attention", "full", "global", "global_attention", "deepseek_sparse_attention", "f"), FULL
    ),
    **dict.fromkeys(("sliding_attention", "chunked_attention", "sliding_window", "local", "local_attention"), WINDOW),
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "conv", "recurrent", "m", "linear", "kda", "gdn"), STATE),
    **dict.fromkeys(("moe", "mlp", "-", "e"), NONE),
    "hybrid": BOTH,
    "*": FULL,
}
# Families that mix windows in without a list, by the length of the pattern whose last layer attends to everything.
WINDOW_PATTERNS = {
    **dict.fromkeys(("gemma2", "gpt_oss", "vaultgemma"), 2),
    **dict.fromkeys(("gemma3_text", "gemma3", "gemma4_text"), 6),
    **dict.fromkeys(("gemma3n_text", "gemma3n"), 5),
    **dict.fromkeys(("cohere2", "exaone4", "olmo3", "afmoe"), 4),
}
# Families of which the configuration names a window that vLLM gives to no layer.
WITHOUT_WINDOW = frozenset({"jamba", "bamba", "nemotron_h", "phimoe", "minimax_m2", "persimmon"})
LLAMA4_INTERVAL = 4
# Families of which every layer keeps a state, and none keys and values.
ONLY_STATES = frozenset({"mamba", "mamba2", "falcon_mamba"})
# Families of which a layer has two attentions and two dense parts, and experts beside the first of these.
TWICE = frozenset({"longcat_flash", "longcat_flash_ngram"})
# Encoders, which vLLM runs without a cache, and pairs of an encoder and a decoder.
ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert", "gte"),
        *("jina_embeddings_v3", "modernbert", "mpnet", "new", "nomic_bert", "roberta", "xlm-roberta"),
        *("bart", "mbart", "mt5", "t5", "umt5", "whisper"),
    }
)


def mixers(config: TextConfig) -> list[str]:
    """Return how each layer mixes tokens.

    Raises:
        ValueError: the configuration has no number of layers, or a way to mix that is not known here.
    """
    if config.family in ENCODERS or config.get("is_encoder_decoder") is True:
        raise ValueError("it encodes, and keeps no keys and values as a decoder does")
    shared = "cla_share_factor" if config.get("use_cla") else ""
    unknown = next((name for name in ("compress_ratios", shared) if name and config.get(name) not in (None, 1)), "")
    if unknown:
        raise ValueError(f"how much its cache keeps of a token ({unknown}) is not known here")
    if config.family in ONLY_STATES:
        return [STATE] * config.needed("layers")
    if config.family in TWICE:
        # Transformers counts attentions as layers, and the repository the layers that hold two of them.
        return [FULL] * (2 * config.number("num_layers") or config.needed("layers"))
    for read in (_named, _of_blocks, _by_index, _by_period):
        found = read(config)
        if found:
            return found
    return _by_window(config, config.needed("layers"))


def _named(config: TextConfig) -> list[str]:
    """Read a list, or a text, with a word for each layer."""
    pattern = config.get("hybrid_override_pattern", "layers_block_type", "layer_types", "block_types")
    if not isinstance(pattern, (list, tuple, str)) or not pattern:
        return []
    layers = config.number("layers") or len(pattern)
    words = [str(word).lower() for word in pattern]
    unknown = sorted({word for word in words if word not in WORDS})
    if unknown:
        raise ValueError(f"layers of the kind {unknown[0]!r} are not known here")
    found = (words * layers)[:layers] if config.get("block_types") else words[:layers]
    return _without_windows([WORDS[word] for word in found], config)


def _without_windows(found: list[str], config: TextConfig) -> list[str]:
    """Return every layer's mixer; where no window is told, local attention is attention to everything."""
    return found if window(config) else [FULL if kind == WINDOW else kind for kind in found]


def _of_blocks(config: TextConfig) -> list[str]:
    """Read Nemotron's blocks, some of which have no attention."""
    found = []
    for block in config.list_of("block_configs"):
        attention = block.get("attention") if isinstance(block, dict) else None
        if not isinstance(attention, dict):
            return []
        absent = attention.get("no_op") or attention.get("replace_with_linear")
        found.append(NONE if absent else FULL)
    return found


def _by_index(config: TextConfig) -> list[str]:
    """Read which layers have full attention, by their numbers or by ones and zeros."""
    layers = config.number("layers")
    types = config.list_of("attn_type_list") or config.list_of("decoder_attention_types")
    if types:
        return [FULL if kind == 1 else STATE for kind in types[:layers]]
    pattern = config.list_of("hybrid_layer_pattern")
    if pattern:
        return [WINDOW if kind else FULL for kind in pattern[:layers]]
    linear = config.part("linear_attn_config")
    if linear.get("full_attn_layers"):
        # Counted from one.
        return [FULL if number + 1 in linear["full_attn_layers"] else STATE for number in range(layers)]
    full = config.get("attn_layer_indices", "full_attn_idxs")
    if isinstance(full, (list, tuple)):
        # In FalconH1's way every layer has both, and in Zamba's the attention is beside the state.
        return [FULL if number in full else STATE for number in range(layers)]
    return [BOTH] * layers if config.family == "falcon_h1" else []


def _by_period(config: TextConfig) -> list[str]:
    """Read that every so many layers one has full attention, between layers with a state."""
    layers = config.number("layers")
    period, offset = config.number("attn_layer_period"), config.number("attn_layer_offset")
    if period:
        return [FULL if number % period == offset else STATE for number in range(layers)]
    group = config.number("layer_group_size")
    if group > 1 and config.family.startswith("bailing"):
        whole = layers // group * group
        return [FULL if (number + 1) % group == 0 or number >= whole else STATE for number in range(layers)]
    interval = config.number("full_attention_interval")
    if interval and config.number("linear_num_value_heads"):
        return [STATE if (number + 1) % interval else FULL for number in range(layers)]
    return []


def _by_window(config: TextConfig, layers: int) -> list[str]:
    """Read which layers attend to a window only."""
    if not window(config):
        return [FULL] * layers
    if chunk(config):
        rope = config.list_of("no_rope_layers")
        interval = config.number("no_rope_layer_interval", LLAMA4_INTERVAL)
        if rope:
            return [WINDOW if kind else FULL for kind in rope[:layers]]
        return [WINDOW if (number + 1) % interval else FULL for number in range(layers)]
    told = config.get("sliding_window_pattern", "layer_switch")
    if isinstance(told, str):
        return [WINDOW if told[number % len(told)].upper() == "L" else FULL for number in range(layers)]
    pattern = int(told or 0) or WINDOW_PATTERNS.get(config.family, 0)
    if config.family == "qwen2" or config.get("use_sliding_window") is True:
        first = config.number("max_window_layers")
        return [WINDOW if number >= first else FULL for number in range(layers)]
    return [FULL if pattern and (number + 1) % pattern == 0 else WINDOW for number in range(layers)]


def chunk(config: TextConfig) -> int:
    """Return the tokens of a chunk that local layers attend to; 0 where attention is not in chunks.

    MiMo V2 names one and does not use it (vLLM takes it out).
    """
    return 0 if config.list_of("hybrid_layer_pattern") else config.number("attention_chunk_size")


def window(config: TextConfig) -> int:
    """Return the tokens that local layers attend to; 0 where no layer is local."""
    if chunk(config):
        return chunk(config)
    if config.get("use_sliding_window") is False or config.family in WITHOUT_WINDOW:
        return 0
    found = config.number("sliding_window") or config.number("sliding_window_size")
    return found if found < config.longest else 0


def feed_forwards(config: TextConfig, mixed: list[str]) -> list[str]:
    """Return what each layer's feed-forward part is.

    Args:
        config: the model's.
        mixed: what `mixers` found.
    """
    pattern = config.get("hybrid_override_pattern", "layers_block_type")
    if pattern and config.family.startswith("nemotron"):
        words = {"-": DENSE, "mlp": DENSE, "e": MOE, "moe": MOE}
        return [words.get(str(word).lower(), NO_FEED_FORWARD) for word in pattern]
    layers = len(mixed)
    if config.family in TWICE:
        return [MOE, DENSE] * (layers // 2)
    if config.family == "zamba2":
        # Its dense part belongs to the blocks that layers share.
        return [NO_FEED_FORWARD] * layers
    if not config.number("experts"):
        return [DENSE] * layers
    listed = _listed(config)
    if listed:
        return [MOE if number in listed else DENSE for number in range(layers)]
    return [MOE if _is_moe(config, number, layers) else DENSE for number in range(layers)]


def _is_moe(config: TextConfig, number: int, layers: int) -> bool:
    """Return whether the layer of this number, from zero, has experts."""
    kinds = config.list_of("mlp_layer_types")
    if kinds:
        return bool(kinds[number] == "sparse")
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, (list, tuple)):
        return bool(frequency[number])
    if number < config.number("dense_first") or number in config.list_of("mlp_only_layers"):
        return False
    start, end = config.number("moe_layer_start_index"), config.number("moe_layer_end_index", layers - 1)
    if not start <= number <= (end if end >= 0 else layers + end):
        return False
    period = config.number("expert_layer_period")
    if period:
        return number % period == config.number("expert_layer_offset")
    if isinstance(frequency, int) and frequency > 1:
        return number % frequency == 0
    steps = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval", "moe_layer_frequency")
    step = next((config.number(name) for name in steps if config.number(name)), 1)
    return (number + 1) % step == 0


def _listed(config: TextConfig) -> list[int]:
    """Return the numbers of the layers with experts where the configuration lists them."""
    listed: Any = config.get("moe_layers", "moe_layers_enum")
    if isinstance(listed, str):
        listed = [part for part in listed.split(",") if part.strip()]
    return [int(number) for number in listed] if isinstance(listed, (list, tuple)) else []
