# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a server faster without changing its answers: each a decision with its reason, left out by its name.

The names are those of C(vllm_levers_off). The profile C(recipe) has none of them, as the recipe has none. What was
measured of them on H200s is in tests/gpu/RESULTS.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import MoeTables
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONTROL_PATH
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import (
    catalogue,
    memory_model,
    moe_tables,
    versions,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.memory_model import ReplicaLoad
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.moe_choice import runs_triton
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

CHUNK = "attention_chunk_size"
TABLES_VARIABLE = "VLLM_TUNED_CONFIG_FOLDER"
CUBIN_VARIABLE = "VLLM_HAS_FLASHINFER_CUBIN"
# Options of the user's own by which he decides on graphs himself.
OWN_GRAPHS = ("cudagraph-capture-sizes", "cuda-graph-sizes", "enforce-eager", "max-cudagraph-capture-size")
CAPTURE_STEP = 256


def is_on(wishes: Wishes, name: str) -> bool:
    """Return whether a lever is used, by its name in C(vllm_levers_off)."""
    return name not in wishes.levers_off and not wishes.goals.as_published


def _attends_in_chunks(shape: Shape) -> bool:
    return shape.model_type.startswith("llama4") and shape.local_layers > 0


def without_chunks(wishes: Wishes, shape: Shape) -> bool:
    """Return whether attention in chunks is left out, which is the same while no request is longer than a chunk."""
    short = wishes.max_model_len is not None and wishes.max_model_len <= shape.local_window
    free = "hf-overrides" not in wishes.extra_config
    return _attends_in_chunks(shape) and short and free and is_on(wishes, "whole-graphs")


def with_graphs(wishes: Wishes, shape: Shape, load: ReplicaLoad) -> ReplicaLoad:
    """Return the load with what is captured in CUDA graphs."""
    whole = not _attends_in_chunks(shape) or without_chunks(wishes, shape)
    own = any(option in wishes.extra_config for option in OWN_GRAPHS)
    own = own or "cudagraph" in str(wishes.extra_config.get("compilation-config", ""))
    sent = bool(wishes.max_num_seqs or wishes.goals.sequences or wishes.goals.fill)
    capture = 0
    if load.max_num_seqs > memory_model.DEFAULT_CAPTURE and sent and not own and is_on(wishes, "graph-sizes"):
        capture = min(-(-load.max_num_seqs // CAPTURE_STEP) * CAPTURE_STEP, load.max_num_batched_tokens)
    return replace(load, whole_graphs=whole, capture=capture)


def graph_options(draft: Draft, wishes: Wishes, shape: Shape, load: ReplicaLoad, config: dict[str, Any]) -> None:
    """Send what makes vLLM capture whole CUDA graphs, for every batch that decodes."""
    if _attends_in_chunks(shape) and not wishes.goals.as_published:
        _chunks(draft, wishes, shape, config)
    if load.capture:
        config["max-cudagraph-capture-size"] = load.capture
        draft.decide(
            "max_cudagraph_capture_size",
            load.capture,
            f"max-num-seqs is {load.max_num_seqs}, and vLLM captures graphs for {memory_model.DEFAULT_CAPTURE}"
            " sequences at most: larger batches would run without",
        )
    elif load.max_num_seqs > memory_model.DEFAULT_CAPTURE and "graph-sizes" in wishes.levers_off:
        draft.decide("max_cudagraph_capture_size", None, "vllm_levers_off: graph-sizes")


def _chunks(draft: Draft, wishes: Wishes, shape: Shape, config: dict[str, Any]) -> None:
    if without_chunks(wishes, shape):
        override: dict[str, Any] = {CHUNK: None}
        config["hf-overrides"] = json.dumps({"text_config": override} if shape.vision else override)
        draft.decide(
            "hf_overrides",
            config["hf-overrides"],
            f"no request is longer than a chunk of {shape.local_window} tokens (vllm_max_model_len), so attention in"
            " chunks computes the same as without, and chunks keep vLLM from capturing whole CUDA graphs",
        )
        return
    if "whole-graphs" in wishes.levers_off:
        reason = "vllm_levers_off: whole-graphs"
    elif "hf-overrides" in wishes.extra_config:
        return
    else:
        reason = (
            f"attention in chunks of {shape.local_window} tokens stays, and with it CUDA graphs in pieces:"
            f" vllm_max_model_len of at most {shape.local_window} makes them whole"
        )
    draft.decide("hf_overrides", None, reason)


def threads(draft: Draft, wishes: Wishes, version: versions.Version, environment: dict[str, str]) -> None:
    """Keep PyTorch from using every core for tiny tensors."""
    text = versions.as_text(version)
    if wishes.goals.as_published:
        return
    if versions.ONE_THREAD_BY_DEFAULT.holds(version):
        draft.decide("OMP_NUM_THREADS", None, f"vLLM {text} chooses PyTorch's threads itself")
    elif not is_on(wishes, "threads"):
        draft.decide("OMP_NUM_THREADS", None, "vllm_levers_off: threads")
    else:
        environment["OMP_NUM_THREADS"] = "1"
        reason = (
            f"vLLM {text} at TP 1 lets PyTorch use every core for tiny tensors (13 processors measured for nothing)"
        )
        draft.decide("OMP_NUM_THREADS", "1", reason)


def attention(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    card: Gpu,
    load: ReplicaLoad,
    config: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """Send the attention backend that is wished for or was measured to be faster, and what it needs."""
    fp8_on_hopper = card.compute_capability == (9, 0) and load.kv_dtype.startswith("fp8")
    xqa = fp8_on_hopper and versions.XQA_ON_HOPPER.holds(load.version)
    backend, reason = wishes.attention_backend, "vllm_attention_backend"
    if not backend and xqa and not _own_attention(wishes) and not wishes.goals.as_published:
        backend, reason = _faster_attention(wishes, chosen, load)
        if not backend:
            draft.decide("attention_backend", None, reason)
    if not backend:
        return
    config["attention-backend"] = backend
    draft.decide("attention_backend", backend, reason)
    if backend == "FLASHINFER" and xqa:
        environment[CUBIN_VARIABLE] = "1"
        draft.decide(CUBIN_VARIABLE, "1", "without it vLLM asks NVIDIA's file server before it decodes with XQA")


def _own_attention(wishes: Wishes) -> bool:
    return "attention-backend" in wishes.extra_config or "VLLM_ATTENTION_BACKEND" in wishes.environment


def _faster_attention(wishes: Wishes, chosen: Chosen, load: ReplicaLoad) -> tuple[str | None, str]:
    """Return FlashInfer's backend where it was measured, or None; and why."""
    if "attention-backend" in wishes.levers_off:
        return None, "vllm_levers_off: attention-backend"
    if chosen.llama4 and load.whole_graphs and wishes.goals.fill:
        return "FLASHINFER", (
            "it reads an FP8 KV cache on Hopper 1.6 times as fast as FlashAttention 3: x 1.16 to 1.18 output tokens/s"
            " while full batches decode at TP 2. It compiles kernels with the image's nvcc at the first start, for two"
            " minutes"
        )
    return None, (
        "left to vLLM. vllm_attention_backend: FLASHINFER decodes faster on Hopper with an FP8 KV cache: x 1.05 output"
        " tokens/s at TP 1, x 1.16 to 1.18 at TP 2 in full batches. It was measured with Llama 4 without attention in"
        " chunks, where max_throughput takes it by itself"
    )


def text_only(draft: Draft, wishes: Wishes, chosen: Chosen, version: versions.Version) -> Chosen:
    """Return the model as its memory counts: without the vision tower where texts alone are served."""
    if not wishes.text_only:
        return chosen
    if chosen.shape and not chosen.shape.vision:
        draft.decide("text_only", None, "vllm_text_only: the model has no vision tower")
        return chosen
    option = "language-model-only" if versions.OPTIONS["language-model-only"].holds(version) else "limit-mm-per-prompt"
    if not chosen.llama4 or chosen.shape is None:
        draft.decide("text_only", option, "vllm_text_only; how large its vision tower is, is not known")
        return chosen
    left = chosen.shape.weights_gib - catalogue.SCOUT_VISION_GIB
    reason = f"vllm_text_only: the vision tower's {catalogue.SCOUT_VISION_GIB} GiB are left out"
    draft.decide("text_only", option, reason)
    return replace(chosen, shape=replace(chosen.shape, weights_gib=round(left, 3), vision=False))


def text_only_options(wishes: Wishes, chosen: Chosen, version: versions.Version, config: dict[str, Any]) -> None:
    """Send what leaves the vision tower out, in the way that this vLLM understands."""
    if not wishes.text_only or (chosen.shape and not chosen.shape.vision):
        return
    if versions.OPTIONS["language-model-only"].holds(version):
        config["language-model-only"] = True
    else:
        config["limit-mm-per-prompt"] = '{"image":0}'


def tuned_tables(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    cards: Sequence[Gpu],
    load: ReplicaLoad,
    server: tuple[Mapping[str, Any], dict[str, str]],
    files: Mapping[str, str],
) -> MoeTables | None:
    """Give a server the tuned table of its card, where it certainly uses the kernel that the table is for.

    Args:
        draft: gathers the decisions.
        wishes: what the user wants.
        chosen: the model.
        cards: the GPUs.
        load: what is asked of a replica.
        server: its options and variables, the user's among them; the folder's variable is added.
        files: names and texts of the files in C(vllm_moe_tables_dir).

    Returns:
        The files that the server needs, or None.
    """
    config, environment = server
    shape = chosen.shape
    if wishes.goals.as_published or not shape or not shape.experts or not shape.static_fp8:
        return None
    if TABLES_VARIABLE in environment or not runs_triton(load.version, config, environment):
        return None
    if "moe-tables" in wishes.levers_off:
        draft.decide("moe_tables", None, "vllm_levers_off: moe-tables")
        return None
    further, problems = moe_tables.of_folder(files)
    for problem in problems:
        draft.warn(problem)
    wanted = shape.experts, shape.expert_width // load.tensor_parallel_size
    names = {card.name for card in cards}
    found = moe_tables.find([*further, *moe_tables.own()], names, load.version, wanted)
    if config.get("enable-expert-parallel") or found is None:
        draft.decide(
            "moe_tables",
            None,
            f"there is no tuned table for {' and '.join(sorted(names))}, vLLM {versions.as_text(load.version)} and"
            f" {wanted[0]} experts of width {wanted[1]}; vLLM's own or its default is used",
        )
        return None
    content = {found.name: found.text}
    folder = "moe-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    environment[TABLES_VARIABLE] = f"{CONTROL_PATH}/{folder}"
    draft.decide("moe_tables", found.name, found.source)
    return {"folder": folder, "files": content}
