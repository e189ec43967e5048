# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a replica cannot have the size that is asked for, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import gpus, memory_model, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

MOST_CARDS = 64


def too_few_gpus(asked: str, wanted: int, cards: Sequence[Gpu]) -> GpufleetError:
    """Return the error for a wish, C(asked), that needs C(wanted) GPUs."""
    return GpufleetError(
        f"{asked} needs {wanted} GPUs; {len(cards)} can be used here ({gpus.describe(cards)}).",
        name="too-few-gpus",
        remedy="Lower it or set it to auto, or free GPUs that others use.",
    )


def indivisible(wishes: Wishes, chosen: Chosen, shape: Shape, size: int, version: versions.Version) -> GpufleetError:
    """Return the error for a model that this vLLM cannot divide over C(size) cards."""
    valid = memory_model.tensor_parallel_sizes(shape, MOST_CARDS, version)
    what = memory_model.indivisible(shape, size, version)
    asked = f"vllm_tensor_parallel_size: {size}" if wishes.tensor_parallel_size else f"Tensor parallelism {size}"
    return GpufleetError(
        f"{asked} does not divide {chosen.name}: {what}, by the rules of vLLM {versions.as_text(version)}.",
        name="invalid-tensor-parallel-size",
        remedy=f"Set it to auto or to one of {', '.join(map(str, valid))}."
        if valid
        else "Choose another vllm_model, one that is not quantised in blocks, or a newer vLLM in vllm_image_tag.",
    )


def size_unknown(chosen: Chosen) -> GpufleetError:
    """Return the error for a model of which nothing is known."""
    asked = f" ({chosen.why})" if chosen.why else ""
    why = f"its configuration could not be read, neither on the host nor at the hub{asked}"
    remedy = (
        "Let the controller or the host reach the hub (a mirror as HF_ENDPOINT and a proxy as HTTPS_PROXY in"
        " vllm_environment, a token in vllm_hf_token), or put the model on the host"
    )
    if chosen.source["kind"] == "path":
        why = f"{chosen.source['location']} on the host was not looked into"
        remedy = "Plan with the host in reach and its folder in place (without vllm_gpus)"
    return GpufleetError(
        f"Nothing is known of the size of {chosen.name}: {why}.",
        name="model-size-unknown",
        remedy=f"{remedy}. Or size it yourself: vllm_tensor_parallel_size and vllm_max_model_len.",
    )


def how_to_get(enough: int, wishes: Wishes, cards: Sequence[Gpu]) -> str:
    """Return the end of a sentence that says what to change so that a replica gets C(enough) GPUs."""
    if enough > len(cards):
        return f"; this host has {len(cards)}."
    if wishes.replicas and wishes.replicas * enough > len(cards):
        return f": set vllm_replicas to auto or to at most {len(cards) // enough}."
    return ": set vllm_tensor_parallel_size to auto."
