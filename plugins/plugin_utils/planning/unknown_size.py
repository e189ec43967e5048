# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many GPUs a replica gets of a model whose layers are not known."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.size_refusals import (
    MOST_CARDS,
    how_to_get,
    size_unknown,
    too_few_gpus,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

# Of what a card may use, the most that weights take where nothing else is known of a model.
WEIGHTS_SHARE = 0.85


def choose_size(draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], share: float) -> int:
    """Return the tensor parallel size: as the user says, or by the size of the weights.

    Args:
        draft: gathers the decisions.
        wishes: what the user wants.
        chosen: the model.
        cards: the GPUs that may be used, all alike.
        share: GiB of each that may be used.

    Raises:
        GpufleetError: C(model-size-unknown), C(too-few-gpus) or C(does-not-fit).
    """
    size = wishes.tensor_parallel_size or 0
    if size * (wishes.replicas or 1) > len(cards):
        raise too_few_gpus(f"vllm_tensor_parallel_size: {size}", size * (wishes.replicas or 1), cards)
    reason = "vllm_tensor_parallel_size"
    if not size and chosen.unread is None:
        raise size_unknown(chosen)
    if not size:
        size, reason = _by_weights(wishes, chosen, cards, share)
    why = chosen.unread.why if chosen.unread else "its configuration could not be read"
    draft.warn(
        f"The memory of {chosen.name} was not checked: {why}. Set vllm_tensor_parallel_size, vllm_max_model_len and"
        " vllm_max_num_seqs yourself if the server does not start."
    )
    draft.decide("tensor_parallel_size", size, reason)
    if chosen.unread and chosen.unread.weights_gib:
        draft.decide("weights", f"{chosen.unread.weights_gib:.2f} GiB", chosen.unread.weights_source)
    return size


def _by_weights(wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], share: float) -> tuple[int, str]:
    """Return the fewest cards that hold the weights with room for the rest, a power of two, and why."""
    weights = chosen.unread.weights_gib if chosen.unread else 0.0
    if not weights:
        return 1, "1, because the model's size is not known"
    most = len(cards) // (wishes.replicas or 1)
    sizes = [2**power for power in range(MOST_CARDS.bit_length())]
    size = next((size for size in sizes if weights / size <= share * WEIGHTS_SHARE), 0)
    if 0 < size <= most:
        return size, f"the weights of {weights:.1f} GiB take at most {WEIGHTS_SHARE:.0%} of what each GPU may use"
    raise GpufleetError(
        f"{chosen.name} ({chosen.precision}, {weights:.1f} GiB of weights) does not fit {most} x {cards[0].name}.",
        name="does-not-fit",
        remedy=f"It needs {size} GPUs of this kind together{how_to_get(size, wishes, cards)}"
        if size
        else "No number of these GPUs holds it.",
        details={"gpus_needed": size or None, "weights_gib": weights, "kv_cache_gib": None},
    )
