# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many GPUs a replica gets, how large its batch and its longest request are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Capacity
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import catalogue, memory_model, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.memory_model import Budget, ReplicaLoad
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.levers import with_graphs, without_chunks
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.size_refusals import (
    MOST_CARDS,
    how_to_get,
    indivisible,
    too_few_gpus,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.unknown_size import choose_size
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

RECIPE_BATCHED_TOKENS = 8192
DEFAULT_MODEL_LEN = 32768
# vLLM's own max-num-seqs for cards of 70 GiB and more, and for smaller ones.
DEFAULT_SEQS_LARGE, DEFAULT_SEQS_SMALL, LARGE_CARD_GIB = 1024, 256, 70


@dataclass(frozen=True)
class Sizing:
    """What one replica gets: its cards and its batch. None leaves a value to vLLM."""

    load: ReplicaLoad
    max_model_len: int | None
    max_num_seqs: int | None
    utilisation: float | None
    budget: Budget | None


def size_replica(
    draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], version: versions.Version
) -> Sizing:
    """Choose tensor parallelism, batch, utilisation and longest request of a replica.

    Args:
        draft: gathers the decisions.
        wishes: what the user wants.
        chosen: the model.
        cards: the GPUs that may be used, all alike.
        version: the vLLM in the image.

    Raises:
        GpufleetError: C(does-not-fit), C(too-few-gpus), C(invalid-tensor-parallel-size) or C(invalid-max-model-len).
    """
    card = min(memory_model.card_gib(gpu.memory_mib, gpu.reserved_mib) for gpu in cards)
    load = ReplicaLoad(
        tensor_parallel_size=1,
        max_num_seqs=_starting_seqs(wishes, card),
        max_num_batched_tokens=wishes.max_num_batched_tokens or RECIPE_BATCHED_TOKENS,
        utilisation=wishes.gpu_memory_utilization or versions.default_gpu_memory_utilization(version),
        kv_dtype=_kv_dtype(wishes, chosen),
        version=version,
    )
    if chosen.shape is None:
        load = replace(load, tensor_parallel_size=choose_size(draft, wishes, chosen, cards, card * load.utilisation))
        return Sizing(load, wishes.max_model_len, wishes.max_num_seqs, wishes.gpu_memory_utilization, None)
    shape = _as_loaded(wishes, chosen.shape)
    _check_length(wishes, shape)
    load = with_graphs(wishes, shape, load)
    load = _tensor_parallelism(draft, wishes, chosen, shape, cards, card, _filled(wishes, load))
    load = _utilisation(draft, wishes, shape, card, load)
    load, seqs = _sequences(draft, wishes, shape, card, load)
    found = memory_model.budget(shape, card, load)
    length = _model_len(draft, wishes, shape, found, load)
    draft.decide("weights", f"{shape.weights_gib:.2f} GiB", shape.weights_source)
    draft.decide("kv_cache", f"{found.tokens} tokens", _kv_cache_reason(shape, found, load))
    sent = load.utilisation if wishes.gpu_memory_utilization or wishes.goals.fill else None
    return Sizing(load, length, seqs, sent, found)


def _as_loaded(wishes: Wishes, shape: Shape) -> Shape:
    """Return the model as vLLM loads it on GPUs.

    Weights of 32 bits are loaded in 16 unless the user wishes otherwise, with expert parallelism each card has whole
    experts, and each has a whole vision tower where the user wishes so.
    """
    if wishes.extra_config.get("mm-encoder-tp-mode") == "data":
        shape = replace(shape, division=replace(shape.division, vision_heads=0))
    if str(wishes.extra_config.get("enable-expert-parallel", "")).lower() in ("true", "1"):
        shape = replace(shape, division=replace(shape.division, even=shape.division.even or (shape.heads,), experts=()))
    if shape.precision != "fp32" or str(wishes.extra_config.get("dtype") or "auto") in ("float32", "float"):
        return shape
    source = f"{shape.weights_source}; vLLM loads weights of 32 bits in 16"
    return replace(shape, weights_gib=round(shape.weights_gib / 2, 3), dtype_bytes=2, weights_source=source)


def _kv_cache_reason(shape: Shape, found: Budget, load: ReplicaLoad) -> str:
    per_token = memory_model.kv_bytes_per_token(shape, load.kv_dtype, load.tensor_parallel_size)
    reason = f"{found.as_sentence()} of {per_token} bytes per GPU"
    if shape.state_bytes:
        reason += f", and {memory_model.state_gib(shape, load.tensor_parallel_size):.3f} GiB for each sequence's state"
    if shape.local_layers:
        reason += f"; {shape.local_layers} of {shape.layers} layers attend to {shape.local_window} tokens only"
    return reason


def _check_length(wishes: Wishes, shape: Shape) -> None:
    longer = wishes.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0").lower() not in ("", "0", "false")
    if (
        wishes.max_model_len
        and wishes.max_model_len > shape.max_position
        and not (longer or "hf-overrides" in wishes.extra_config)
    ):
        raise GpufleetError(
            f"vllm_max_model_len: {wishes.max_model_len} is longer than the {shape.max_position} tokens that the model"
            " was made for.",
            name="invalid-max-model-len",
            remedy=f"Set it to auto or to at most {shape.max_position}.",
        )


def _starting_seqs(wishes: Wishes, card: float) -> int:
    if wishes.max_num_seqs:
        return wishes.max_num_seqs
    default = DEFAULT_SEQS_LARGE if card >= LARGE_CARD_GIB else DEFAULT_SEQS_SMALL
    return min(wishes.goals.sequences or default, wishes.max_num_batched_tokens or RECIPE_BATCHED_TOKENS)


def _kv_dtype(wishes: Wishes, chosen: Chosen) -> str:
    return wishes.kv_cache_dtype or ("fp8" if chosen.fp8_kv else "auto")


def _filled(wishes: Wishes, load: ReplicaLoad) -> ReplicaLoad:
    """Return the load with the largest share of a card there is, where the profile fills it."""
    if not wishes.goals.fill or wishes.gpu_memory_utilization:
        return load
    return replace(load, utilisation=memory_model.HIGHEST_UTILISATION)


def _utilisation(draft: Draft, wishes: Wishes, shape: Shape, card: float, load: ReplicaLoad) -> ReplicaLoad:
    default = _default_utilisation(load)
    if wishes.gpu_memory_utilization:
        draft.decide("gpu_memory_utilization", wishes.gpu_memory_utilization, "vllm_gpu_memory_utilization")
        safe = memory_model.highest_utilisation(shape, card, load)
        if wishes.gpu_memory_utilization > safe:
            draft.warn(
                f"vllm_gpu_memory_utilization: {wishes.gpu_memory_utilization} is above {safe}, the most that the"
                " memory model finds safe for these GPUs: the server may run out of memory while it works."
            )
        return load
    if not wishes.goals.fill:
        draft.decide("gpu_memory_utilization", None, f"left to vLLM {versions.as_text(load.version)}: {default}")
        return load
    # As many sequences as the filled cache would hold; sampling needs memory for each.
    held = _held(shape, card, load, wishes.expected_input_len + wishes.expected_output_len)
    seqs = wishes.max_num_seqs or max(1, min(held, load.max_num_batched_tokens))
    highest = max(default, memory_model.highest_utilisation(shape, card, replace(load, max_num_seqs=seqs)))
    left = card * (1 - highest)
    draft.decide(
        "gpu_memory_utilization",
        highest,
        f"raised from vLLM's {default}: {left:.1f} GiB of {card:.1f} GiB stay free for CUDA's context, fragments of the"
        f" allocator, sampling and what else vLLM does not count; never above {memory_model.HIGHEST_UTILISATION}",
    )
    return replace(load, utilisation=highest)


def _profile_size(
    wishes: Wishes, precision: str, shape: Shape, card: float, load: ReplicaLoad, cards: int
) -> tuple[int, str]:
    """Return the tensor parallel size that the profile asks for, and why."""
    sizes = wishes.goals.sizes_for(precision)
    size = max((size for size in sizes if size <= cards), default=sizes[0])
    if sizes == (1,):
        return 1, f"profile {wishes.profile}: TP 1 gives the most throughput per GPU"
    if len(sizes) > 1:
        several = " or ".join(str(size) for size in sizes)
        return size, f"profile {wishes.profile}: TP {several}, as many as the host has"
    if wishes.goals.fill:
        alone, shared = (memory_model.budget(shape, card, replace(load, tensor_parallel_size=n)) for n in (1, size))
        return size, (
            f"profile {wishes.profile}: TP {size} for {precision}; the KV cache holds {shared.tokens // size} tokens a"
            f" GPU against {alone.tokens} at TP 1"
        )
    return size, f"profile {wishes.profile}: TP {size}"


def _tensor_parallelism(
    draft: Draft, wishes: Wishes, chosen: Chosen, shape: Shape, cards: Sequence[Gpu], card: float, load: ReplicaLoad
) -> ReplicaLoad:
    most = len(cards) // wishes.replicas if wishes.replicas else len(cards)
    if most < 1:
        raise too_few_gpus(f"vllm_replicas: {wishes.replicas}", wishes.replicas or 1, cards)
    if wishes.tensor_parallel_size:
        size, reason = _wished_size(wishes, chosen, shape, cards, load), "vllm_tensor_parallel_size"
        if not _fits(shape, card, replace(load, tensor_parallel_size=size), wishes):
            raise _does_not_fit(wishes, chosen, shape, cards, card, replace(load, tensor_parallel_size=size))
        draft.decide("tensor_parallel_size", size, reason)
        return replace(load, tensor_parallel_size=size)
    wanted, reason = _profile_size(wishes, chosen.precision, shape, card, load, most)
    sizes = memory_model.tensor_parallel_sizes(shape, most, load.version)
    if not sizes:
        raise indivisible(wishes, chosen, shape, 1, load.version)
    start = max(size for size in sizes if size <= wanted)
    if start < wanted:
        what = memory_model.indivisible(shape, wanted, load.version) if wanted <= most else ""
        why = f"{wanted} does not divide {what}" if what else f"only {most} GPU(s) are there for a replica"
        reason += f"; here {start}, because {why}"
    for size in (size for size in sizes if size >= start):
        larger = replace(load, tensor_parallel_size=size)
        if not _fits(shape, card, larger, wishes):
            continue
        if size > start:
            small = memory_model.budget(shape, card, replace(load, tensor_parallel_size=start))
            reason += f"; raised to {size}, because at {start} {small.as_sentence()}, and {_needs(wishes)}"
        draft.decide("tensor_parallel_size", size, reason)
        return larger
    raise _does_not_fit(wishes, chosen, shape, cards, card, replace(load, tensor_parallel_size=sizes[-1]))


def _wished_size(wishes: Wishes, chosen: Chosen, shape: Shape, cards: Sequence[Gpu], load: ReplicaLoad) -> int:
    size = wishes.tensor_parallel_size or 1
    if not memory_model.divides(shape, size, load.version):
        raise indivisible(wishes, chosen, shape, size, load.version)
    wanted = size * (wishes.replicas or 1)
    if wanted > len(cards):
        asked = f"vllm_tensor_parallel_size: {size}"
        if wishes.replicas:
            asked += f" with vllm_replicas: {wishes.replicas}"
        raise too_few_gpus(asked, wanted, cards)
    return size


def _needs(wishes: Wishes) -> str:
    if wishes.max_model_len:
        return f"vllm_max_model_len needs {wishes.max_model_len} tokens"
    return f"one expected request needs {_needed_tokens(wishes)} tokens"


def _needed_tokens(wishes: Wishes) -> int:
    return wishes.max_model_len or wishes.expected_input_len + wishes.expected_output_len


def _fits(shape: Shape, card: float, load: ReplicaLoad, wishes: Wishes) -> bool:
    found = memory_model.budget(shape, card, load)
    return found.kv > 0 and memory_model.longest_request(shape, found, load) >= _needed_tokens(wishes)


def _does_not_fit(
    wishes: Wishes, chosen: Chosen, shape: Shape, cards: Sequence[Gpu], card: float, load: ReplicaLoad
) -> GpufleetError:
    found = memory_model.budget(shape, card, load)
    size = load.tensor_parallel_size
    enough = next(
        (
            larger
            for larger in memory_model.tensor_parallel_sizes(shape, MOST_CARDS, load.version)
            if _fits(shape, card, replace(load, tensor_parallel_size=larger), wishes)
        ),
        None,
    )
    if enough and enough > size:
        remedy = f"It needs {enough} GPUs of this kind together (tensor parallelism {enough})"
        remedy += how_to_get(enough, wishes, cards)
    else:
        remedy = "No number of these GPUs holds it."
    if wishes.gpu_memory_utilization and wishes.gpu_memory_utilization < _default_utilisation(load):
        remedy += f" vllm_gpu_memory_utilization: {wishes.gpu_memory_utilization} leaves the rest of each GPU unused."
    if wishes.max_model_len and found.tokens > 0:
        fitting = memory_model.longest_request(shape, found, load)
        remedy += f" At this size the longest request that fits is {fitting} tokens (vllm_max_model_len)."
    if chosen.precision != "fp4" and wishes.model is None and cards[0].generation == "blackwell":
        remedy += " FP4 weights are smaller: vllm_precision: fp4."
    return GpufleetError(
        f"{chosen.name} ({chosen.precision}, {shape.weights_gib:.1f} GiB of weights) does not fit {size} x"
        f" {cards[0].name}: {found.as_sentence()}, and {_needs(wishes)}.",
        name="does-not-fit",
        remedy=remedy,
        details={"gpus_needed": enough, "weights_gib": shape.weights_gib, "kv_cache_gib": round(found.kv, 2)},
    )


def _default_utilisation(load: ReplicaLoad) -> float:
    return versions.default_gpu_memory_utilization(load.version)


def _sequences(
    draft: Draft, wishes: Wishes, shape: Shape, card: float, load: ReplicaLoad
) -> tuple[ReplicaLoad, int | None]:
    """Choose max-num-seqs; None leaves it to vLLM."""
    length = wishes.expected_input_len + wishes.expected_output_len
    held = _held(shape, card, load, length)
    lengths = f"{wishes.expected_input_len} + {wishes.expected_output_len} tokens"
    if wishes.max_num_seqs:
        draft.decide("max_num_seqs", wishes.max_num_seqs, f"vllm_max_num_seqs; the KV cache holds {held} of {lengths}")
        if wishes.max_num_seqs > held:
            draft.warn(
                f"vllm_max_num_seqs: {wishes.max_num_seqs} is more than the {held} requests of {lengths} that the KV"
                " cache holds: beyond that, requests wait or are preempted and computed again."
            )
        return load, wishes.max_num_seqs
    if wishes.goals.sequences is None and not wishes.goals.fill:
        return _left_to_vllm(draft, wishes, shape, load, held, lengths)
    if wishes.goals.sequences is None:
        for _round in range(3):
            load = replace(load, max_num_seqs=max(1, min(held, load.max_num_batched_tokens)))
            load = with_graphs(wishes, shape, load)
            held = _held(shape, card, load, length)
        draft.decide("max_num_seqs", load.max_num_seqs, f"what the KV cache holds of requests of {lengths}")
        return load, load.max_num_seqs
    wanted = wishes.goals.sequences
    seqs = max(1, min(wanted, held))
    reason = f"profile {wishes.profile}: {wanted}"
    if seqs < wanted:
        reason += f"; lowered, because the KV cache holds {held} requests of {lengths}"
    draft.decide("max_num_seqs", seqs, reason)
    return with_graphs(wishes, shape, replace(load, max_num_seqs=seqs)), seqs


def _left_to_vllm(
    draft: Draft, wishes: Wishes, shape: Shape, load: ReplicaLoad, held: int, lengths: str
) -> tuple[ReplicaLoad, int | None]:
    """Leave max-num-seqs to vLLM, but where it may not start with its own."""
    if shape.state_bytes and held < load.max_num_seqs:
        seqs = max(1, held)
        draft.decide(
            "max_num_seqs",
            seqs,
            f"the KV cache holds {held} of {lengths}; with vLLM's own {load.max_num_seqs} it may not start, because it"
            " wants room for the state of every sequence",
        )
        return replace(load, max_num_seqs=seqs), seqs
    as_told = ", as in the recipe" if wishes.goals.as_published else ""
    draft.decide(
        "max_num_seqs",
        None,
        f"left to vLLM ({load.max_num_seqs}){as_told}; the KV cache holds {held} requests of {lengths}",
    )
    if held < load.max_num_seqs:
        draft.warn(
            f"vLLM takes {load.max_num_seqs} requests at once unless vllm_max_num_seqs is set; the KV cache holds"
            f" fewer of {lengths} (see the plan's capacity). More concurrency, such as the 512 of the recipe's"
            " benchmark, waits in the queue or is preempted."
        )
    return load, None


def _held(shape: Shape, card: float, load: ReplicaLoad, length: int) -> int:
    return memory_model.budget(shape, card, load).held(length)


def _model_len(draft: Draft, wishes: Wishes, shape: Shape, found: Budget, load: ReplicaLoad) -> int:
    # Without chunks every layer keeps the whole request.
    longest = found.tokens if without_chunks(wishes, shape) else memory_model.longest_request(shape, found, load)
    if wishes.max_model_len:
        length, reason = wishes.max_model_len, f"vllm_max_model_len; up to {longest} tokens fit"
    else:
        length, reason = _safe_model_len(wishes, shape, longest)
    if shape.model_type.startswith("llama4") and length > catalogue.SCOUT_TEMPERATURE_TUNING_ABOVE:
        draft.warn(
            f"max-model-len {length} is above {catalogue.SCOUT_TEMPERATURE_TUNING_ABOVE}: vLLM then turns attention"
            " temperature tuning on, which changes the model's answers once a request has 8192 tokens."
        )
    wanted = wishes.expected_input_len + wishes.expected_output_len
    if wanted > length:
        draft.warn(
            f"Requests of vllm_expected_input_len + vllm_expected_output_len = {wanted} tokens are longer than"
            f" max-model-len {length} and will be refused."
        )
    draft.decide("max_model_len", length, reason)
    return length


def _safe_model_len(wishes: Wishes, shape: Shape, longest: int) -> tuple[int, str]:
    wanted = wishes.expected_input_len + wishes.expected_output_len
    length = min(max(DEFAULT_MODEL_LEN, wanted), shape.max_position, longest)
    if length == longest and length > 1024:
        length = length // 1024 * 1024
    reason = f"the model's own {shape.max_position} is the most it allows; {longest} tokens fit the KV cache"
    if length == DEFAULT_MODEL_LEN and shape.model_type.startswith("llama4"):
        reason += f"; above {DEFAULT_MODEL_LEN} attention temperature tuning would change the answers"
    elif length == DEFAULT_MODEL_LEN:
        reason += f"; {DEFAULT_MODEL_LEN} serves most requests"
    elif length == wanted:
        reason += f"; the requests expected need {wanted}"
    return length, reason


def capacity(wishes: Wishes, sizing: Sizing) -> Capacity:
    """Return the plan's C(capacity): what the memory model expects of one replica."""
    found = sizing.budget
    if found is None:
        return no_capacity(None)
    length = wishes.expected_input_len + wishes.expected_output_len
    if sizing.max_model_len:
        length = min(length, sizing.max_model_len)
    return {
        "weights_gib_per_gpu": round(found.weights, 2),
        "kv_cache_gib_per_gpu": round(found.kv, 2),
        "kv_cache_tokens": found.tokens,
        "max_concurrent_requests": max(1, min(found.held(length), sizing.load.max_num_seqs)),
    }


def no_capacity(shape: Shape | None) -> Capacity:
    """Return a C(capacity) of unknowns."""
    return {
        "weights_gib_per_gpu": round(shape.weights_gib, 2) if shape else None,
        "kv_cache_gib_per_gpu": None,
        "kv_cache_tokens": None,
        "max_concurrent_requests": None,
    }
