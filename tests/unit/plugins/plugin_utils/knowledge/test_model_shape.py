# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models' sizes from their config.json, for families that differ in how they say it."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import look_at_model, snapshot
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import memory_model, model_shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import SCOUT, SCOUT_TEXT_FP8_GIB, Shape
from ansible_collections.gpufleet.vllm.tests.fakes.models import SCOUT_TEXT, config_of

FP8 = {"quant_method": "modelopt", "quant_algo": "FP8"}
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN3_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
GPT_OSS_20B: dict[str, Any] = {
    "model_type": "gpt_oss",
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "sliding_window": 128,
    "vocab_size": 201088,
}


NVFP4_GROUPS: dict[str, Any] = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
    }
}
MXFP4_GROUPS: dict[str, Any] = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "group_size": 32}}},
    }
}
BITSANDBYTES: dict[str, Any] = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "fp4",
}
PER_TENSOR = {"strategy": "tensor", "num_bits": 8, "type": "float", "dynamic": False}


def read(config: dict[str, Any], **more: Any) -> Any:
    found: Any = {"path": "/m", "config": config, **more}
    return model_shape.read(found)


def test_scout_is_what_the_catalogue_says() -> None:
    found = read({**SCOUT_TEXT, "quantization_config": FP8})
    known = SCOUT.shape_for("fp8")
    names = (
        "layers hidden heads kv_heads head_dim vocabulary intermediate max_position local_layers local_window precision"
    )
    assert {name: getattr(found, name) for name in names.split()} == {
        name: getattr(known, name) for name in names.split()
    }
    assert found.weights_gib == pytest.approx(SCOUT_TEXT_FP8_GIB, rel=0.01)


@pytest.mark.parametrize(("quantization", "gib"), [({"quant_algo": "NVFP4"}, 62), (None, 206)])
def test_other_precisions_of_scout_are_as_large_as_known(quantization: dict[str, Any] | None, gib: float) -> None:
    found = read({**SCOUT_TEXT, **({"quantization_config": quantization} if quantization else {})})
    assert found.weights_gib == pytest.approx(gib, rel=0.03)


def test_the_text_part_of_a_model_with_vision_counts() -> None:
    found = read({"model_type": "llama4", "text_config": SCOUT_TEXT, "vision_config": {}, "quantization_config": FP8})
    assert (found.layers, found.vision, found.precision) == (48, True, "fp8")


@pytest.mark.parametrize(
    ("config", "billions"), [(LLAMA_8B, 8.03), (QWEN3_30B_A3B, 30.5)], ids=["Llama 3.1 8B", "Qwen3 30B A3B"]
)
def test_counted_parameters_are_the_published_ones(config: dict[str, Any], billions: float) -> None:
    gib = read(config).weights_gib / model_shape.LOADED
    assert gib * GIB / 2 / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_index_beats_counting() -> None:
    found = read(LLAMA_8B, index_total_bytes=16 * 1024**3, total_bytes=1)
    assert found.weights_gib == pytest.approx(16 * 1.026)


@pytest.mark.parametrize(
    ("config", "width"),
    [(LLAMA_8B, 14336), (QWEN3_30B_A3B, 8 * 768), (SCOUT_TEXT, 16384), (GPT_OSS_20B, 4 * 2880)],
    ids=["dense", "experts", "experts and a shared one", "experts without a width of their own"],
)
def test_the_width_that_a_token_passes(config: dict[str, Any], width: int) -> None:
    assert read(config).intermediate == width


def test_sliding_layers_are_local() -> None:
    found = read(GPT_OSS_20B)
    assert (found.local_layers, found.local_window) == (12, 128)


def test_latent_attention() -> None:
    found = read({**LLAMA_8B, "kv_lora_rank": 512, "qk_rope_head_dim": 64})
    assert found.latent == 576


@pytest.mark.parametrize(
    ("config", "quantization", "precision"),
    [
        ({}, None, "bf16"),
        ({"torch_dtype": "float32"}, None, "fp32"),
        ({"torch_dtype": None, "dtype": "float32"}, None, "fp32"),
        ({"quantization_config": {"quant_method": "fp8"}}, None, "fp8"),
        ({"quantization_config": {"config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}}}}, None, "fp8"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, None, "fp4"),
        ({}, {"quantization": {"quant_algo": "NVFP4"}}, "fp4"),
        ({}, {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}, "fp4"),
        ({}, {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, "bf16"),
        ({}, {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}}, "fp8"),
        (NVFP4_GROUPS, None, "fp4"),
        (MXFP4_GROUPS, None, "mxfp4"),
        ({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}, None, "mxfp4"),
        ({"quantization_config": BITSANDBYTES}, None, "4-bit"),
        ({"quantization_config": {**BITSANDBYTES, "bnb_4bit_quant_type": "nf4"}}, None, "4-bit"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, None, "8-bit"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}, None, "4-bit"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, None, "8-bit"),
        ({"quantization_config": {"quant_algo": "W4A16_AWQ"}}, None, "4-bit"),
        ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, None, "fp8"),
        ({"quantization_config": {"config_groups": {"a": {"weights": {"num_bits": 4, "type": "int"}}}}}, None, "4-bit"),
    ],
)
def test_precision(config: dict[str, Any], quantization: dict[str, Any] | None, precision: str) -> None:
    assert read({**LLAMA_8B, **config}, quantization=quantization).precision == precision


@pytest.mark.parametrize(
    ("quantization", "static"),
    [
        (FP8, True),
        ({"quant_algo": "FP8_PB_WO"}, False),
        ({"quant_method": "fp8", "activation_scheme": "static"}, True),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, False),
        ({"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": [128, 128]}, False),
        ({"config_groups": {"a": {"weights": PER_TENSOR, "input_activations": PER_TENSOR}}}, True),
        (
            {"config_groups": {"a": {"weights": PER_TENSOR, "input_activations": {**PER_TENSOR, "dynamic": True}}}},
            False,
        ),
        ({"config_groups": {"a": {"weights": {**PER_TENSOR, "strategy": "channel"}}}}, False),
        ({"quant_algo": "NVFP4"}, False),
        ({}, False),
    ],
)
def test_static_scales_of_fp8(quantization: dict[str, Any], static: bool) -> None:
    assert read({**LLAMA_8B, "quantization_config": quantization}).static_fp8 is static


def test_mxfp4_has_the_size_of_its_bits() -> None:
    assert read({**GPT_OSS_20B, "quantization_config": {"quant_method": "mxfp4"}}).weights_gib == pytest.approx(
        12.8, 0.05
    )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"hidden_size": 5, "num_hidden_layers": 2}, "num_attention_heads"),
        ({"model_type": "resnet"}, "num_hidden_layers"),
        ({**LLAMA_8B, "layer_types": ["full_attention", "of_another_kind"]}, "of_another_kind"),
        ({**LLAMA_8B, "compress_ratios": [0, 4, 128]}, "compress_ratios"),
        ({**LLAMA_8B, "num_hidden_layers": "many"}, "many"),
        ({"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16}, "keeps keys"),
        ({**LLAMA_8B, "model_type": "xlm-roberta"}, "encodes"),
        ({**LLAMA_8B, "is_encoder_decoder": True}, "encodes"),
        ({**LLAMA_8B, "use_cla": True, "cla_share_factor": 2}, "cla_share_factor"),
        ({}, "num_hidden_layers"),
    ],
)
def test_what_cannot_be_told_is_unread_and_says_why(config: dict[str, Any], why: str) -> None:
    found = read(config, total_bytes=2 * GIB)
    assert isinstance(found, model_shape.Unread)
    assert why in found.why
    assert found.weights_gib == pytest.approx(2.052)


@pytest.mark.parametrize(
    ("told", "longest"),
    [
        ({"max_seq_length": 4096, "do_lower_case": False}, 4096),
        ({"max_seq_length": 4096}, 131072),
        ({"max_seq_length": None, "do_lower_case": False}, 131072),
    ],
)
def test_sentence_transformers_file_says_how_long_a_text_may_be(
    tmp_path: Path, told: dict[str, Any], longest: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(told))
    found = model_shape.read(look_at_model(str(tmp_path)))
    assert isinstance(found, Shape)
    assert found.max_position == longest


def test_hybrids_in_groups_have_attention_at_the_end_of_each() -> None:
    config = {
        "model_type": "bailing_hybrid",
        "hidden_size": 4096,
        "intermediate_size": 9216,
        "layer_group_size": 8,
        "num_hidden_layers": 34,
        "num_attention_heads": 32,
        "num_local_experts": None,
    }
    found = read(config)
    assert found.layers == 4 + 2
    assert memory_model.kv_bytes_per_token(found, "auto") == 6 * (512 + 64) * 2
    assert found.state_bytes == 28 * 32 * 128 * 128 * 2


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 16 / 128 + 4 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, 4 + 16 / 32 + 4 / 32),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, 8 + 16 / 128 + 8 / 128),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.127),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}}, 4.25),
    ],
)
def test_scales_and_zero_points_are_counted(quantization: dict[str, Any], bits: float) -> None:
    whole, found = read(LLAMA_8B), read({**LLAMA_8B, "quantization_config": quantization})
    embeddings = 2 * 128256 * 4096 * 2 / GIB * model_shape.LOADED
    assert found.weights_gib - embeddings == pytest.approx((whole.weights_gib - embeddings) * bits / 16, rel=1e-3)


def test_nvidias_fp8_in_blocks_has_a_fixed_side() -> None:
    found = read({**LLAMA_8B, "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}})
    assert found.division.block == 128


def test_a_vision_tower_is_divided_unless_it_is_left_out() -> None:
    found = read(config_of("zai-org/GLM-4.5V"))
    assert "12 heads of its vision tower" in memory_model.indivisible(found, 8)
    assert memory_model.divides(replace(found, vision=False), 8)
    intern = read(config_of("OpenGVLab/InternVL3-78B"))
    assert memory_model.divides(intern, 8)


@pytest.mark.parametrize("layers", [10770798394.0, 10**12, 10001])
@pytest.mark.parametrize("windows", [None, [4096, None]])
def test_a_nonsensical_number_of_layers_is_no_reason_to_take_all_memory(layers: float, windows: Any) -> None:
    config = {**config_of("mistralai/Pixtral-12B-2409 (params.json)"), "n_layers": layers, "sliding_window": windows}
    found = read(config)
    assert isinstance(found, model_shape.Unread)
    assert f"{int(layers)} layers" in found.why


@given(
    st.sampled_from(
        ["dim", "n_layers", "n_heads", "hidden_dim", "vision_encoder", "moe", "quantization", "sliding_window"]
    ),
    st.none()
    | st.integers(-3, 9)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.none() | st.integers(0, 2), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_no_params_json_breaks_a_plan(name: str, value: Any) -> None:
    found = read({**config_of("mistralai/Pixtral-12B-2409 (params.json)"), name: value})
    assert isinstance(found, (Shape, model_shape.Unread))


@given(
    st.dictionaries(
        st.sampled_from([*LLAMA_8B, "text_config", "layer_types", "sliding_window", "block_configs", "num_experts"]),
        st.none() | st.integers(-3, 9) | st.text(max_size=3) | st.lists(st.integers(0, 2), max_size=3) | st.just({}),
    )
)
@settings(max_examples=300, deadline=None)
def test_no_configuration_is_refused_for_what_is_in_it(changes: dict[str, Any]) -> None:
    found = read({**LLAMA_8B, **changes})
    assert isinstance(found, (Shape, model_shape.Unread))
    if isinstance(found, Shape):
        assert found.layers > 0
        assert memory_model.kv_bytes_per_token(found, "bfloat16") > 0


def test_maverick_without_an_index_has_experts_in_every_second_layer() -> None:
    maverick = {**SCOUT_TEXT, "interleave_moe_layer_step": 2, "num_local_experts": 128}
    assert read({**maverick, "quantization_config": FP8}).weights_gib == pytest.approx(
        373 * model_shape.LOADED, rel=0.02
    )


def test_a_folder_in_mistrals_own_format() -> None:
    params = {"dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 32768, "n_heads": 32, "n_kv_heads": 8}
    found = read({**params, "vocab_size": 131072})
    assert (found.layers, found.kv_heads, found.head_dim, found.max_position) == (40, 8, 128, 128000)
    moe = {"num_experts": 8, "num_experts_per_tok": 2}
    assert read({**params, "vocab_size": 131072, "moe": moe}).intermediate == 2 * 32768


def test_gemma_3_says_little_and_means_its_familys_defaults() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    found = read({"model_type": "gemma3", "text_config": {**text, "sliding_window": 1024}, "vision_config": {}})
    assert (found.heads, found.kv_heads, found.head_dim, found.vocabulary) == (8, 4, 256, 262208)
    assert (found.local_layers, found.local_window, found.vision) == (29, 1024, True)
    assert read({"model_type": "gemma3"}).layers == 26


def test_null_says_that_there_is_none_and_not_that_the_default_holds() -> None:
    found = read({**LLAMA_8B, "model_type": "mistral", "sliding_window": None})
    assert found.local_layers == 0
    assert read({**LLAMA_8B, "model_type": "mistral"}).local_layers == 32


@pytest.mark.parametrize(
    ("width", "old", "new"),
    [
        (768, [1, 2], [1, 2, 4, 8]),
        (1536, [1, 2, 4], [1, 2, 4, 8, 16]),
        (512, [1, 2, 4], [1, 2, 4, 8, 16]),
        (1408, [1], [1, 2, 4]),
        (1856, [], [1, 2]),
    ],
)
def test_experts_in_blocks_of_fp8(width: int, old: list[int], new: list[int]) -> None:
    config = {**QWEN3_30B_A3B, "moe_intermediate_size": width}
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = read({**config, "quantization_config": blocks})
    assert memory_model.tensor_parallel_sizes(found, 16, (0, 28, 0)) == old
    assert memory_model.tensor_parallel_sizes(found, 16, (0, 29, 0)) == new


def test_what_is_not_quantised_has_no_blocks() -> None:
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    dense = {**LLAMA_8B, "intermediate_size": 11008, "quantization_config": blocks}
    assert memory_model.tensor_parallel_sizes(read(dense), 8) == [1, 2]
    spared = {**blocks, "ignored_layers": ["re:.*mlp.down_proj"]}
    assert memory_model.tensor_parallel_sizes(read({**dense, "quantization_config": spared}), 8) == [1, 2, 4, 8]


def test_a_plain_folder_is_its_own_snapshot(tmp_path: Path) -> None:
    assert snapshot(str(tmp_path)) == str(tmp_path)


def test_the_snapshot_that_main_points_to(tmp_path: Path) -> None:
    for revision in ("aaa", "bbb"):
        folder = tmp_path / "snapshots" / revision
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("aaa\n")
    assert snapshot(str(tmp_path)) == str(tmp_path / "snapshots" / "aaa")


def test_a_folder_of_mistrals_own_format_is_whole(tmp_path: Path) -> None:
    params = {"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 128, "n_heads": 4, "n_kv_heads": 2}
    (tmp_path / "params.json").write_text(json.dumps({**params, "vocab_size": 100}))
    (tmp_path / "tekken.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "consolidated.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    # Of other files than vLLM loads.
    index = {"metadata": {"total_size": 999}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = look_at_model(str(tmp_path))
    assert (found["complete"], found["tokenizer"], found["missing_files"]) == (True, True, [])
    model_shape.check(found)
    read_shape = model_shape.read(found)
    assert isinstance(read_shape, Shape)
    assert (read_shape.layers, read_shape.kv_heads) == (2, 2)


def test_a_pointer_of_git_lfs_is_refused_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    found = look_at_model(str(tmp_path))
    assert (found["pointers"], found["complete"]) == (["tokenizer.json"], False)
    with pytest.raises(GpufleetError, match=r"tokenizer\.json") as caught:
        model_shape.check(found)
    assert (caught.value.name, "git lfs pull" in caught.value.remedy) == ("invalid-model-folder", True)


def test_weights_that_stand_there_twice_count_once() -> None:
    files = [{"name": "consolidated.safetensors", "size": 4 * GIB}, {"name": "model.safetensors", "size": 4 * GIB}]
    assert read(LLAMA_8B, safetensors=files, total_bytes=8 * GIB).weights_gib == pytest.approx(4 * 1.026)


def test_a_part_of_the_weights_is_not_taken_for_all() -> None:
    counted = read(LLAMA_8B).weights_gib
    assert read(LLAMA_8B, total_bytes=GIB, complete=False).weights_gib == counted


def test_host_info_looks_into_the_snapshot(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "aaa"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    found = look_at_model(str(tmp_path))
    assert (found["path"], found["config"]) == (str(folder), {"hidden_size": 8})


def test_a_snapshot_without_a_reference(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "ccc"
    folder.mkdir(parents=True)
    assert snapshot(str(tmp_path)) == str(tmp_path)
    (folder / "config.json").write_text("{}")
    assert snapshot(str(tmp_path)) == str(folder)


def test_a_revision_is_the_snapshot_that_it_leads_to(tmp_path: Path) -> None:
    """Branches and tags by the cache's own note of them, commits by themselves."""
    for commit in ("c1", "c2"):
        (tmp_path / "snapshots" / commit).mkdir(parents=True)
        (tmp_path / "snapshots" / commit / "config.json").write_text("{}")
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("c1")
    (tmp_path / "refs" / "v2").write_text("c2\n")
    found = [snapshot(str(tmp_path) + end) for end in ("", "/refs/v2", "/refs/c2", "/refs/v3")]
    assert found == [str(tmp_path / "snapshots" / name) for name in ("c1", "c2", "c2", "v3")]
