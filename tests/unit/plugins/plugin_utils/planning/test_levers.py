# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes servers faster: when each lever is sent, in which form, and what leaves it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import answer_parsers, moe_tables, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes
from ansible_collections.gpufleet.vllm.tests.fakes.models import SCOUT_TEXT

DATA = Path(__file__).parents[3] / "data"
PARSERS: dict[str, Any] = json.loads((DATA / "vllm_answer_parsers.json").read_text(encoding="utf-8"))["releases"]
TEXT_MODEL = {**SCOUT_TEXT, "architectures": ["Llama4ForCausalLM"], "quantization_config": {"quant_algo": "FP8"}}
NESTED = '{"text_config": {"attention_chunk_size": null}}'
FLAT = '{"attention_chunk_size": null}'
SHORT: dict[str, Any] = {"max_model_len": 8192}
FULL: dict[str, Any] = {"profile": "max_throughput", **SHORT}
TEMPLATE = "/vllm-workspace/examples/tool_chat_template_llama4_pythonic.jinja"


def plan(card: str = "NVIDIA H200", count: int = 2, host: dict[str, Any] | None = None, **wished: Any) -> Any:
    given = {"accept_license": True, "gpus": [{"name": card, "count": count}], **wished}
    return planner.plan(host or {}, wishes.read({f"vllm_{name}": value for name, value in given.items()}))


def sent(document: Any, name: str) -> Any:
    """Return an option (with dashes before) or a variable of the first replica."""
    replica = document["replicas"][0]
    return replica["config"].get(name[2:]) if name.startswith("--") else replica["environment"].get(name)


def reason(document: Any, field: str) -> str:
    return " ".join(decision["reason"] for decision in document["decisions"] if decision["field"] == field)


NO_FLASHINFER = {"--attention-backend": None, "VLLM_HAS_FLASHINFER_CUBIN": None}
# wishes -> what is sent
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "short requests need no chunks": (FULL, {"--hf-overrides": NESTED}),
    "a model of text alone has the other layout": (
        {**FULL, "model": "/srv/scout", "host": {"model_config": TEXT_MODEL}},
        {"--hf-overrides": FLAT},
    ),
    "longer requests keep them": ({"profile": "max_throughput", "max_model_len": 8193}, {"--hf-overrides": None}),
    "so do those of which nothing is said": ({"profile": "max_throughput"}, {"--hf-overrides": None}),
    "the recipe has no levers": (
        {**SHORT, "profile": "recipe", "image_tag": "v0.26.0", "max_num_seqs": 800},
        {
            "--hf-overrides": None,
            "--max-cudagraph-capture-size": None,
            "OMP_NUM_THREADS": None,
            "VLLM_TUNED_CONFIG_FOLDER": None,
            "--tool-call-parser": None,
        },
    ),
    "an override of one's own wins": (
        {**FULL, "extra_config": {"hf-overrides": {"rope_theta": 1}}},
        {"--hf-overrides": '{"rope_theta":1}'},
    ),
    "whole graphs off": ({**FULL, "levers_off": ["whole-graphs"]}, {"--hf-overrides": None}),
    "graphs as large as the batch": (FULL, {"--max-cudagraph-capture-size": 1024}),
    "not for small batches": ({**SHORT, "profile": "balanced"}, {"--max-cudagraph-capture-size": None}),
    "just above the limit": ({**SHORT, "max_num_seqs": 513}, {"--max-cudagraph-capture-size": 768}),
    "never beyond a batch's tokens": (
        {**SHORT, "max_num_seqs": 600, "max_num_batched_tokens": 700},
        {"--max-cudagraph-capture-size": 700},
    ),
    "sizes off": ({**FULL, "levers_off": ["graph-sizes"]}, {"--max-cudagraph-capture-size": None}),
    "sizes of one's own": (
        {**FULL, "extra_config": {"max-cudagraph-capture-size": 256}},
        {"--max-cudagraph-capture-size": 256},
    ),
    "a compilation of one's own": (
        {**FULL, "extra_config": {"compilation-config": {"cudagraph_capture_sizes": [1, 2]}}},
        {"--max-cudagraph-capture-size": None},
    ),
    "a compilation of one's own that says nothing of graphs": (
        {**FULL, "extra_config": {"compilation-config": {"pass_config": {"fuse_allreduce_rms": False}}}},
        {"--max-cudagraph-capture-size": 1024},
    ),
    "one thread before 0.28": (SHORT, {"OMP_NUM_THREADS": "1"}),
    "vLLM's own choice from 0.28 on": ({"image_tag": "v0.28.0"}, {"OMP_NUM_THREADS": None}),
    "threads of one's own": ({"environment": {"OMP_NUM_THREADS": 4}}, {"OMP_NUM_THREADS": "4"}),
    "threads off": ({"levers_off": "threads"}, {"OMP_NUM_THREADS": None}),
    "full batches read the FP8 KV cache of Hopper by FlashInfer": (
        FULL,
        {"--attention-backend": "FLASHINFER", "VLLM_HAS_FLASHINFER_CUBIN": "1"},
    ),
    "attention is left to vLLM in smaller ones": ({**SHORT, "profile": "balanced"}, NO_FLASHINFER),
    "attention in chunks was not measured": ({"profile": "max_throughput"}, NO_FLASHINFER),
    "nor was a KV cache of 16 bits": ({**FULL, "kv_cache_dtype": "bfloat16"}, NO_FLASHINFER),
    "0.24 does not decode so": ({**FULL, "image_tag": "v0.24.0"}, NO_FLASHINFER),
    "nor is Blackwell's choice ours": ({**FULL, "card": "NVIDIA B200"}, NO_FLASHINFER),
    "attention off": ({**FULL, "levers_off": ["attention-backend"]}, NO_FLASHINFER),
    "a backend of one's own": (
        {**FULL, "extra_config": {"attention-backend": "TRITON_ATTN"}},
        {"--attention-backend": "TRITON_ATTN", "VLLM_HAS_FLASHINFER_CUBIN": None},
    ),
    "a backend of one's own by its variable": (
        {**FULL, "environment": {"VLLM_ATTENTION_BACKEND": "TRITON_ATTN"}},
        NO_FLASHINFER,
    ),
    "attention by FlashInfer brings what it needs": (
        {**SHORT, "profile": "balanced", "attention_backend": "FLASHINFER"},
        {"--attention-backend": "FLASHINFER", "VLLM_HAS_FLASHINFER_CUBIN": "1"},
    ),
    "which 0.24 does not decode with": (
        {"image_tag": "v0.24.0", "attention_backend": "FLASHINFER"},
        {"--attention-backend": "FLASHINFER", "VLLM_HAS_FLASHINFER_CUBIN": None},
    ),
    "text only": ({"text_only": True}, {"--language-model-only": True, "--limit-mm-per-prompt": None}),
    "text only before 0.17": (
        {"text_only": True, "image_tag": "v0.16.0"},
        {"--language-model-only": None, "--limit-mm-per-prompt": '{"image":0}'},
    ),
    "tool calls are read": (
        {},
        {"--enable-auto-tool-choice": True, "--tool-call-parser": "llama4_pythonic", "--chat-template": TEMPLATE},
    ),
    "or not": ({"tool_calling": False}, {"--enable-auto-tool-choice": None, "--tool-call-parser": None}),
    "or by another parser, with the model's own template": (
        {"tool_calling": "llama4_json"},
        {"--tool-call-parser": "llama4_json", "--chat-template": None},
    ),
    "another image may not have the template": (
        {"image": "team/serving", "image_tag": "v0.26.0"},
        {"--tool-call-parser": None, "--chat-template": None},
    ),
    "a reasoning parser by its name": ({"reasoning_parser": "qwen3"}, {"--reasoning-parser": "qwen3"}),
    "no reasoning parser for Llama 4": ({}, {"--reasoning-parser": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_sent(case: str) -> None:
    wished, expected = CASES[case]
    document = plan(**wished)
    assert {name: sent(document, name) for name in expected} == expected


@pytest.mark.parametrize("lever", wishes.LEVERS)
def test_a_lever_that_is_off_says_so(lever: str) -> None:
    document = plan(**FULL, levers_off=[lever])
    assert sum(f"vllm_levers_off: {lever}" in decision["reason"] for decision in document["decisions"]) == 1


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("levers_off", ["whole-graph"], "did you mean whole-graphs?"),
        ("levers_off", {"a": 1}, "it must be a list of whole-graphs"),
        ("tool_calling", True, "llama4_pythonic"),
        ("attention_backend", "flashinfer", "such as FLASHINFER"),
        ("text_only", "perhaps", "it must be true or false"),
    ],
)
def test_wishes_that_are_not_valid(variable: str, value: Any, text: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        plan(**{variable: value})
    assert f"vllm_{variable}" in caught.value.message
    assert text in caught.value.message


def test_max_throughput_plans_what_was_measured_to_be_best() -> None:
    """10,231 output tokens/s at TP 2 on two H200 with all levers (tests/gpu/RESULTS.md); of a model without vision."""
    document = plan(
        **FULL, model="/srv/scout", host={"model_config": TEXT_MODEL}, extra_config={"load-format": "dummy"}
    )
    expected = {
        "--tensor-parallel-size": 2,
        "--max-cudagraph-capture-size": 1024,
        "--hf-overrides": FLAT,
        "--moe-backend": "triton",
        "--gpu-memory-utilization": 0.95,
        "OMP_NUM_THREADS": "1",
    }
    assert {name: sent(document, name) for name in expected} == expected
    assert list(document["moe_tables"]["files"]) == ["E=16,N=4096,device_name=NVIDIA_H200,dtype=fp8_w8a8.json"]
    # 785 requests of 2048 tokens fitted the cache, of 1,609,216 tokens.
    assert document["capacity"]["max_concurrent_requests"] == pytest.approx(785, rel=0.03)


def test_the_vision_tower_makes_room_for_requests() -> None:
    whole, texts = (plan(profile="max_throughput", count=1, text_only=only) for only in (False, True))
    weights = [document["capacity"]["weights_gib_per_gpu"] for document in (whole, texts)]
    tokens = [document["capacity"]["kv_cache_tokens"] for document in (whole, texts)]
    assert weights[0] - weights[1] == pytest.approx(1.62)
    assert tokens[1] - tokens[0] == pytest.approx(17_700 + 0.5 * 2**30 / 98304, rel=0.02)


def test_a_model_without_a_tower_has_none_to_leave_out() -> None:
    document = plan(model="/srv/scout", host={"model_config": TEXT_MODEL}, text_only=True, count=1)
    assert sent(document, "--language-model-only") is None
    assert "no vision tower" in reason(document, "text_only")


# card, wishes, the width of the table that the server gets; 0 for none
TABLES: dict[str, tuple[str, dict[str, Any], int]] = {
    "an H200 at TP 1": ("NVIDIA H200", {"tensor_parallel_size": 1}, 8192),
    "two at TP 2": ("NVIDIA H200", {"tensor_parallel_size": 2}, 4096),
    "nobody measured TP 4": ("NVIDIA H200", {"tensor_parallel_size": 4, "count": 4}, 0),
    "an H200 NVL is another card, though vLLM takes one for the other": ("NVIDIA H200 NVL", {"count": 1}, 0),
    "an H100 too": ("NVIDIA H100 80GB HBM3", {}, 0),
    "Blackwell uses other kernels": ("NVIDIA B200", {"precision": "fp8"}, 0),
    "another Triton": ("NVIDIA H200", {"image_tag": "v0.33.0"}, 0),
    "an older one": ("NVIDIA H200", {"image_tag": "v0.19.1"}, 0),
    "the oldest with the same": ("NVIDIA H200", {"image_tag": "v0.20.2"}, 4096),
    "the user's kernels": ("NVIDIA H200", {"extra_config": {"moe-backend": "flashinfer_cutlass"}}, 0),
    "kernels left to vLLM": ("NVIDIA H200", {"extra_config": {"moe-backend": "auto"}}, 0),
    "16 bits": ("NVIDIA H200", {"precision": "bf16"}, 0),
    "experts spread over the cards": ("NVIDIA H200", {"extra_config": {"enable-expert-parallel": True}}, 0),
    "a folder of the user's own": ("NVIDIA H200", {"environment": {"VLLM_TUNED_CONFIG_FOLDER": "/x"}}, 0),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_go_where_they_belong(case: str) -> None:
    card, wished, width = TABLES[case]
    document = plan(card, **wished)
    tables, folder = document["moe_tables"], sent(document, moe_tables_variable())
    if not width:
        assert tables is None
        assert folder in (None, "/x")
        return
    assert list(tables["files"]) == [f"E=16,N={width},device_name=NVIDIA_H200,dtype=fp8_w8a8.json"]
    assert folder == f"/etc/vllm/control/{tables['folder']}"
    text = json.loads(next(iter(tables["files"].values())))
    assert text.pop("triton_version") == "3.6.0"
    assert set(text) >= {"1", "128", "8192"}
    assert "measured on NVIDIA H200 with vLLM 0.26.0" in reason(document, "moe_tables")


def moe_tables_variable() -> str:
    return "VLLM_TUNED_CONFIG_FOLDER"


H100_NAME = "E=16,N=4096,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8.json"
TILE = '{"1": {"BLOCK_SIZE_M": 16}}'
ABOUT = json.dumps({"cards": ["NVIDIA H100 80GB HBM3"], "vllm": "0.26.1"})


def beside(name: str) -> str:
    return name.removesuffix(".json") + moe_tables.PROVENANCE


def test_a_table_of_the_folder_is_used_on_its_card_and_release() -> None:
    files = {H100_NAME: TILE, beside(H100_NAME): ABOUT}
    document = plan("NVIDIA H100 80GB HBM3", host={"moe_tables": files})
    assert document["moe_tables"]["files"] == {H100_NAME: TILE}
    others: list[dict[str, Any]] = [{"card": "NVIDIA H200"}, {"card": "NVIDIA H100 80GB HBM3", "image_tag": "v0.25.0"}]
    for other in others:
        elsewhere = plan(host={"moe_tables": files}, **other)["moe_tables"]
        assert elsewhere is None or H100_NAME not in elsewhere["files"]


def test_a_table_of_the_folder_beats_ours() -> None:
    name = "E=16,N=4096,device_name=NVIDIA_H200,dtype=fp8_w8a8.json"
    files = {name: TILE, beside(name): json.dumps({"cards": ["NVIDIA H200"], "vllm": "0.26.0"})}
    assert plan(host={"moe_tables": files})["moe_tables"]["files"] == {name: TILE}


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({H100_NAME: TILE}, "there is no"),
        ({H100_NAME: TILE, beside(H100_NAME): "{}"}, "no vllm, or no cards"),
        ({H100_NAME: "[]", beside(H100_NAME): ABOUT}, "it is no table"),
        ({"notes.json": "{}"}, "its name is none"),
    ],
)
def test_a_table_that_says_too_little_is_told(files: dict[str, str], text: str) -> None:
    document = plan("NVIDIA H100 80GB HBM3", host={"moe_tables": files})
    assert document["moe_tables"] is None
    assert any("vllm_moe_tables_dir" in warning and text in warning for warning in document["warnings"])


@pytest.mark.parametrize("release", PARSERS)
def test_every_release_has_the_parsers_that_are_sent(release: str) -> None:
    for family in answer_parsers.FAMILIES:
        assert family.tools in PARSERS[release]["tools"]
        assert not family.reasoning or family.reasoning in PARSERS[release]["reasoning"]


def test_own_tables_are_whole() -> None:
    assert {(table.experts, table.width) for table in moe_tables.own()} == {(16, 8192), (16, 4096)}
    for table in moe_tables.own():
        assert table.span.holds((0, 26, 0))
        assert not table.span.holds(versions.NEWEST)
        assert "x 1.2" in table.source
