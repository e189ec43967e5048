# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The language model in a model's configuration: where it stands, under which names, and what its family assumes.

Families nest it differently and name the same number differently, and a repository leaves out what equals the family's
default. family_defaults.json has those, by tools/family_defaults.py.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Where a model of several parts keeps the configuration of its language model.
INNER = ("thinker_config", "text_config", "llm_config", "language_config", "language_model_config", "text_model_config")
# What a model that sees keeps the configuration of its eyes under.
VISION = (
    "vision_config",
    "vision_encoder",
    "vision_tower_config",
    "visual",
    "vit_config",
    "img_processor",
    "embd_layer",
)
# Towers that vLLM gives to each card as a whole, or fills up with heads that do nothing.
UNDIVIDED_TOWERS = ("intern", "gemma3n", "gemma4")
# No model has as many; each layer is looked at on its own, so that a nonsensical number would take all memory.
MOST_LAYERS = 10_000
# One number, under all the names that families give it, the most common first.
NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "model_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups"),
    "head_dim": ("head_dim", "kv_channels", "attention_head_dim", "hidden_size_per_head"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "dense": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "position": (
        *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
        *("max_sequence_length", "max_seq_length"),
    ),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "chosen_experts": (
        *("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k"),
    ),
    "expert": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
    "dense_first": ("first_k_dense_replace", "num_dense_layers"),
}
# Rotations that vLLM does not multiply the length by, because their repositories have it multiplied already.
MULTIPLIED = ("su", "longrope", "llama3")
# What Mistral's own format, params.json, calls the same.
MISTRAL = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "max_position_embeddings": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
    "sliding_window": "sliding_window",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "v_head_dim": "v_head_dim",
}
MISTRAL_MOE = {
    "num_experts": "num_local_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "expert_hidden_dim": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "first_k_dense_replace": "first_k_dense_replace",
}


@functools.lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    text = Path(__file__).with_name("family_defaults.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def in_transformers(model_type: str) -> bool:
    """Return whether Transformers itself, as of the release in family_defaults.json, has this family."""
    return model_type in _tables()["families"] or model_type in _tables()["inner"]


class TextConfig:
    """The configuration of a model's language model.

    Args:
        outer: the model's config.json, or its params.json in Mistral's format.
    """

    def __init__(self, outer: Mapping[str, Any]) -> None:
        self.outer = from_mistral(outer) if is_mistral(outer) else outer
        self.inner, self.family = _language_model(self.outer)
        self._defaults: Mapping[str, Any] = _tables()["families"].get(self.family, {})
        # The same few are asked for again for each layer.
        self._found: dict[tuple[str, ...], Any] = {}
        self._numbers: dict[str, int] = {}

    def get(self, *names: str) -> Any:
        """Return the value under the first of these names that has one; else the family's default, else the outer
        configuration's. What is null says that there is none, not that the default holds.
        """
        if names not in self._found:
            self._found[names] = self._look_for(names)
        return self._found[names]

    def _look_for(self, names: tuple[str, ...]) -> Any:
        for source in (self.inner, self._defaults, self.outer):
            known = [source[name] for name in names if name in source]
            if known:
                return next((value for value in known if value is not None), None)
        return None

    def number(self, what: str, otherwise: int = 0) -> int:
        """Return one of NAMES, or of the configuration's own names; of a list the largest.

        Raises:
            ValueError: so many layers are a mistake.
        """
        if what not in self._numbers:
            value = self.get(*NAMES.get(what, (what,)))
            if isinstance(value, (list, tuple)):
                value = max(value, default=0)
            self._numbers[what] = int(value) if value else 0
            if what in ("layers", "num_layers") and self._numbers[what] > MOST_LAYERS:
                raise ValueError(f"it tells {self._numbers[what]} layers")
        return self._numbers[what] or otherwise

    def needed(self, what: str) -> int:
        """Return one of NAMES that nothing can be said without.

        Raises:
            ValueError: it is not there; the text names it.
        """
        found = self.number(what)
        if found <= 0:
            raise ValueError(f"it tells no {' or '.join(NAMES[what][:2])}")
        return found

    def part(self, name: str) -> Mapping[str, Any]:
        """Return a nested configuration, empty where there is none."""
        value = self.get(name)
        return value if isinstance(value, Mapping) else {}

    def list_of(self, name: str) -> list[Any]:
        """Return a list, empty where there is none."""
        value = self.get(name)
        return list(value) if isinstance(value, (list, tuple)) else []

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        explicit = self.outer.get("tie_word_embeddings")
        return bool(self.get("tie_word_embeddings") if explicit is None else explicit)

    @property
    def dtype(self) -> str:
        """The type of unquantised weights."""
        found = self.get("dtype", "torch_dtype") or self.outer.get("dtype") or self.outer.get("torch_dtype")
        return str(found or "bfloat16").replace("torch.", "")

    @property
    def vision_heads(self) -> int:
        """The attention heads of the vision tower; 0 where it has none, or vLLM does not divide them."""
        tower = self.vision or {}
        found = tower.get("num_heads") or tower.get("num_attention_heads")
        whole = str(tower.get("model_type") or "").startswith(UNDIVIDED_TOWERS)
        return found if isinstance(found, int) and found > 0 and not whole else 0

    @property
    def longest(self) -> int:
        """The tokens of the longest request that vLLM lets the model have."""
        told = self.number("model_max_length")
        found = [self.number(name) for name in NAMES["position"] if self.number(name)]
        longest = told or min(found, default=2048)
        if "gemma3" in self.family or "gemma3" in str(self.outer.get("model_type")):
            return longest
        rope = self.part("rope_scaling") or self.part("rope_parameters")
        kinds = [kind for kind in rope.values() if isinstance(kind, Mapping)] or [rope]
        factor = 1.0
        for kind in kinds:
            name = str(kind.get("rope_type") or kind.get("type") or "")
            if name in MULTIPLIED or not isinstance(kind.get("factor"), (int, float)):
                continue
            factor = float(kind["factor"])
            if name == "yarn":
                longest = int(kind.get("original_max_position_embeddings") or longest)
        return int(longest * factor)

    @property
    def vision(self) -> Mapping[str, Any] | None:
        """The vision tower's configuration; empty where there is one that tells nothing, None where there is none."""
        holders = [self.outer, self.outer.get("thinker_config")]
        for holder in holders:
            for name in VISION:
                if isinstance(holder, Mapping) and isinstance(holder.get(name), Mapping):
                    found: Mapping[str, Any] = holder[name]
                    return found
        return None


def is_mistral(config: Mapping[str, Any]) -> bool:
    """Return whether this is the content of a params.json in Mistral's own format."""
    return "dim" in config and "n_layers" in config and "hidden_size" not in config


def from_mistral(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return Mistral's params.json under the names of config.json, as vLLM reads it."""
    config: dict[str, Any] = {new: params[old] for old, new in MISTRAL.items() if params.get(old) is not None}
    moe, quantization = _part(params, "moe"), _part(params, "quantization")
    config.update({new: moe[old] for old, new in MISTRAL_MOE.items() if moe.get(old) is not None})
    config.setdefault("max_position_embeddings", 128_000)
    config["model_type"] = "deepseek_v3" if config.get("kv_lora_rank") else "mixtral" if moe else "mistral"
    if isinstance(params.get("sliding_window"), list):
        windows, layers = params["sliding_window"], config.get("num_hidden_layers")
        config["sliding_window"] = next((window for window in windows if window), None)
        kinds = ["sliding_attention" if window else "full_attention" for window in windows]
        config["layer_types"] = (kinds * min(layers, MOST_LAYERS))[:layers] if isinstance(layers, int) else kinds
    else:
        config.setdefault("sliding_window", None)
    if _part(params, "vision_encoder"):
        config["vision_config"] = {"model_type": "pixtral", **params["vision_encoder"]}
    if quantization.get("qformat_weight") == "fp8_e4m3":
        static = "static" if quantization.get("qscheme_act") == "TENSOR" else "dynamic"
        config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": static}
    elif quantization:
        config["quantization_config"] = quantization
    return config


def _part(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = params.get(name)
    return value if isinstance(value, Mapping) else {}


def _language_model(outer: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the innermost configuration of a language model, and its family."""
    found, family = outer, str(outer.get("model_type") or "")
    holds: Mapping[str, str] = _tables()["inner"]
    while True:
        inner = next((found[name] for name in INNER if isinstance(found.get(name), Mapping) and found[name]), None)
        if inner is None:
            break
        family = str(inner.get("model_type") or holds.get(family) or family)
        found = inner
    # What holds a language model and says nothing of it at all means its defaults.
    if found is outer and family in holds and not any(name in outer for name in NAMES["hidden"]):
        family = holds[family]
    if isinstance(found.get("attn_config"), Mapping) and isinstance(found.get("ffn_config"), Mapping):
        # DBRX.
        attention, feed_forward = found["attn_config"], found["ffn_config"]
        chosen = {"num_kv_heads": attention.get("kv_n_heads"), "moe_intermediate_size": None}
        found = {**found, **feed_forward, **chosen, "intermediate_size": feed_forward.get("ffn_hidden_size")}
    return found, family
