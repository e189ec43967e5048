# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extract what transformers assumes where a model's config.json says nothing, from the release's own wheel.

    python3 tools/family_defaults.py 5.24.0

A repository leaves out what equals its family's default, most of all in the nested configuration of a model with
vision. The wheel (13 MB) is downloaded from the package index into a temporary folder; each configuration class is read
as text and never imported. Of every class with a model_type the defaults that the planner reads are written to
plugins/plugin_utils/knowledge/family_defaults.json, and for a class that holds a language model, that one's model_type.
Only the standard library is needed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "plugins" / "plugin_utils" / "knowledge" / "family_defaults.json"
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WANTED = (
    *LAYERS,
    *("hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "n_heads", "num_heads"),
    *("num_key_value_heads", "num_kv_heads", "n_head_kv", "head_dim", "attention_head_dim", "v_head_dim"),
    *("global_head_dim", "num_global_key_value_heads", "num_kv_shared_layers"),
    *("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim", "index_n_heads"),
    *("vocab_size", "intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size", "intermediate_size_mlp"),
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok"),
    *("num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", "n_shared_experts", "num_shared_experts"),
    *("shared_expert_intermediate_size", "shared_intermediate_size", "moe_num_shared_experts"),
    *("moe_shared_expert_intermediate_size", "first_k_dense_replace", "num_dense_layers", "decoder_sparse_step"),
    *("interleave_moe_layer_step", "expert_layer_period", "expert_layer_offset", "moe_layer_start_index"),
    *("attn_layer_period", "attn_layer_offset", "full_attention_interval", "sliding_window"),
    *("use_sliding_window", "sliding_window_pattern", "attention_chunk_size", "no_rope_layer_interval"),
    *("max_position_embeddings", "n_positions", "tie_word_embeddings", "hidden_act"),
    *("mamba_expand", "mamba_d_state", "mamba_d_conv", "mamba_d_head", "mamba_n_heads", "mamba_n_groups"),
    *(
        "mamba_d_ssm",
        "mamba_num_heads",
        "mamba_head_dim",
        "ssm_state_size",
        "conv_kernel",
        "n_groups",
        "conv_L_cache",
        "expand",
    ),
    *("linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads"),
    *("linear_value_head_dim", "vocab_size_per_layer_input", "hidden_size_per_layer_input"),
)
PARTS = ("sub_configs", "sub_configs_defaults")
INNER = ("text_config", "thinker_config", "llm_config", "language_config")


def main(arguments: list[str]) -> int:
    """Write the table of one release; return the exit status."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*download, "--dest", folder, f"transformers=={arguments[0]}"], check=True)
        families, inner = read_wheel(next(Path(folder).glob("*.whl")))
    head = {"transformers": arguments[0], "made_by": "tools/family_defaults.py"}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    parts = [_table("families", families), _table("inner", inner)]
    TARGET.write_text("{\n" + "\n".join(lines) + "\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    print(f"{len(families)} families in {TARGET}")
    return 0


def _table(name: str, rows: dict[str, Any]) -> str:
    found = [f"    {json.dumps(key)}: {json.dumps(rows[key], sort_keys=True)}" for key in sorted(rows)]
    return f"  {json.dumps(name)}: {{\n" + ",\n".join(found) + "\n  }"


def read_wheel(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the defaults of each family, and the family of the language model that a family holds."""
    families: dict[str, dict[str, Any]] = {}
    types: dict[str, str] = {}
    holds: dict[str, str] = {}
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if "/models/" in name and "/configuration_" in name]
        for name in sorted(names):
            classes = [node for node in ast.parse(wheel.read(name)).body if isinstance(node, ast.ClassDef)]
            seen: dict[str, dict[str, Any]] = {}
            for entry in classes:
                values = _values(entry)
                for base in entry.bases:
                    values = {**seen.get(getattr(base, "id", ""), {}), **values}
                seen[entry.name] = values
                family = values.get("model_type")
                if not family:
                    continue
                types[entry.name] = family
                defaults = {key: values[key] for key in WANTED if values.get(key) is not None}
                if any(key in defaults for key in LAYERS) and "vocab_size" in defaults:
                    families[family] = defaults
                held = next((values["parts"][key] for key in INNER if values.get("parts", {}).get(key)), "")
                if held:
                    holds[family] = held
    # Either the name of a class or already that of a family.
    inner = {family: types.get(name, name) for family, name in holds.items()}
    return families, {family: name for family, name in inner.items() if name in families or name in inner}


def _values(entry: ast.ClassDef) -> dict[str, Any]:
    """Return the constants that a class sets, and which class each of its parts has."""
    found: dict[str, Any] = {}
    for node in entry.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name, value = node.target.id, node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        else:
            continue
        if name in PARTS and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            found["parts"] = {key.value: _kind(kind) for key, kind in pairs if isinstance(key, ast.Constant)}
        elif isinstance(value, ast.Constant):
            found[name] = value.value
    return found


def _kind(node: ast.expr) -> str:
    """Return the class of a part, or the model_type that it is given; empty where neither is written out."""
    if isinstance(node, ast.Name):
        return node.id
    given = {keyword.arg: keyword.value for keyword in node.keywords} if isinstance(node, ast.Call) else {}
    family = given.get("model_type")
    return str(family.value) if isinstance(family, ast.Constant) else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
