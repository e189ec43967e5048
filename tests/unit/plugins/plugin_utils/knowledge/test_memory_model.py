# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory model against what vLLM 0.26 said of itself on one H200, and against its own arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import catalogue, memory_model
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.memory_model import ReplicaLoad

# The text part of Scout, which is what the recorded runs served.
TEXT = replace(catalogue.SCOUT.shape_for("fp8"), weights_gib=104.93, vision=False)
H200_MIB, H200_RESERVED_MIB = 143771, 612
RECORDED = ReplicaLoad(
    tensor_parallel_size=1,
    max_num_seqs=1024,
    max_num_batched_tokens=8192,
    utilisation=0.92,
    kv_dtype="fp8",
    version=(0, 26, 0),
)
H200 = memory_model.card_gib(H200_MIB, H200_RESERVED_MIB)


@pytest.mark.parametrize(
    ("seqs", "batched", "utilisation", "tokens", "kv", "activation"),
    [
        (1024, 8192, 0.92, 215548, 19.73, 3.30),
        (128, 8192, 0.92, 219808, 20.12, 2.76),
        # From here on deployed by the playbook; see tests/gpu/RESULTS.md.
        (1024, 8192, 0.92, 215560, 19.74, 3.30),
        (1024, 8192, 0.95, 261384, 23.93, 3.30),
        (1024, 16384, 0.92, 210608, 19.28, 3.76),
        (128, 8192, 0.92, 220340, 20.17, 2.78),
        (128, 16384, 0.92, 218104, 19.97, 2.97),
    ],
)
def test_it_reproduces_the_recorded_runs(
    seqs: int, batched: int, utilisation: float, tokens: int, kv: float, activation: float
) -> None:
    load = replace(RECORDED, max_num_seqs=seqs, max_num_batched_tokens=batched, utilisation=utilisation)
    found = memory_model.budget(TEXT, H200, load)
    assert found.tokens == pytest.approx(tokens, rel=0.03)
    assert found.kv == pytest.approx(kv, rel=0.03)
    assert found.activations == pytest.approx(activation, rel=0.05)


def test_it_reproduces_the_cache_at_a_higher_share() -> None:
    found = memory_model.budget(TEXT, H200, replace(RECORDED, utilisation=0.97))
    assert found.tokens == pytest.approx(291_908, rel=0.03)


def test_cuda_offers_what_the_recorded_run_saw() -> None:
    assert pytest.approx(139.8, abs=0.05) == H200
    assert memory_model.budget(TEXT, H200, RECORDED).share == pytest.approx(128.62, abs=0.05)


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [("fp8", 1, 98304), ("auto", 1, 196608), ("fp8", 2, 49152), ("fp8", 8, 12288), ("fp8", 40, 12288)],
)
def test_bytes_of_a_token(dtype: str, size: int, expected: int) -> None:
    assert memory_model.kv_bytes_per_token(TEXT, dtype, size) == expected


def test_latent_attention_is_not_divided() -> None:
    deepseek = replace(TEXT, latent=576, layers=61)
    assert memory_model.kv_bytes_per_token(deepseek, "bfloat16", 8) == 61 * 576 * 2


def test_graphs_come_on_top_before_0_21() -> None:
    later = memory_model.budget(TEXT, H200, RECORDED)
    earlier = memory_model.budget(TEXT, H200, replace(RECORDED, version=(0, 12, 0)))
    assert earlier.kv - later.kv == pytest.approx(0.41, abs=0.01)


def test_the_parts_add_up_to_the_share() -> None:
    found = memory_model.budget(TEXT, H200, RECORDED)
    parts = found.weights + found.activations + found.graphs + found.other + found.kv
    assert parts == pytest.approx(found.share)


def test_too_large_a_model_is_said_to_be() -> None:
    found = memory_model.budget(TEXT, memory_model.card_gib(81559), RECORDED)
    assert found.tokens == 0
    assert "more than there is" in found.as_sentence()


def test_a_window_of_local_layers_makes_room_for_long_requests() -> None:
    found = memory_model.budget(TEXT, H200, RECORDED)
    longest = memory_model.longest_request(TEXT, found, RECORDED)
    per_layer = 2 * 8 * 128
    window = 8192 + 2 * 8192
    needed = (36 * window + 12 * longest) * per_layer
    assert longest > found.tokens
    assert needed == pytest.approx(found.kv * GIB, rel=1e-5)


def test_0_12_keeps_every_layer_whole() -> None:
    load = replace(RECORDED, version=(0, 12, 0))
    found = memory_model.budget(TEXT, H200, load)
    assert memory_model.longest_request(TEXT, found, load) == found.tokens


def test_scout_has_no_tenth_million_of_tokens_on_one_h200() -> None:
    found = memory_model.budget(TEXT, H200, RECORDED)
    assert memory_model.longest_request(TEXT, found, RECORDED) < TEXT.max_position


@pytest.mark.parametrize(
    ("memory_mib", "seqs", "expected"),
    [
        (81559, 128, 0.95),
        (143771, 128, 0.95),
        (183359, 128, 0.95),
        (40960, 128, 0.91),
        # What sampling takes of many sequences is more on a small card.
        (81559, 1024, 0.92),
        (143771, 1024, 0.95),
    ],
)
def test_the_highest_utilisation_leaves_room(memory_mib: int, seqs: int, expected: float) -> None:
    card = memory_model.card_gib(memory_mib)
    load = replace(RECORDED, version=(0, 12, 0), max_num_seqs=seqs)
    share = memory_model.highest_utilisation(TEXT, card, load)
    assert share == expected
    sampling = seqs * TEXT.vocabulary * 20.7 / GIB
    assert card * (1 - share) >= 0.4 + memory_model.CONTEXT_GIB + max(memory_model.FRAGMENTS_GIB, sampling)


# What vLLM 0.26 expected of its graphs and what they took on H200s: TP, sequences, largest batch, whole ones too.
GRAPHS = [
    (1, 1024, 0, False, 51, 0.41, 0.71),
    (1, 1024, 0, True, 102, 0.81, 1.36),
    (2, 1024, 0, False, 51, 0.49, 0.71),
    (2, 806, 1024, True, 152, 2.60, 1.90),
]


@pytest.mark.parametrize(("size", "seqs", "capture", "whole", "number", "expected", "taken"), GRAPHS)
def test_graphs_take_what_was_measured(
    size: int, seqs: int, capture: int, whole: bool, number: int, expected: float, taken: float
) -> None:
    load = replace(RECORDED, tensor_parallel_size=size, max_num_seqs=seqs, capture=capture, whole_graphs=whole)
    assert len(memory_model.captured(load)) == number
    assert memory_model.expected_graph_gib(TEXT, load) == pytest.approx(expected, rel=0.04)
    assert memory_model.graph_gib(TEXT, load) == pytest.approx(taken, rel=0.08)


# With whole graphs: TP, sequences, largest batch, utilisation, tokens of KV cache that vLLM reported.
WHOLE = [
    (1, 1024, 0, 0.95, 256_912),
    (1, 1024, 0, 0.96, 272_192),
    (1, 1024, 0, 0.97, 287_456),
    (2, 806, 1024, 0.95, 1_609_216),
]


@pytest.mark.parametrize(("size", "seqs", "capture", "utilisation", "tokens"), WHOLE)
def test_the_cache_beside_whole_graphs(size: int, seqs: int, capture: int, utilisation: float, tokens: int) -> None:
    load = replace(
        RECORDED,
        tensor_parallel_size=size,
        max_num_seqs=seqs,
        capture=capture,
        whole_graphs=True,
        utilisation=utilisation,
    )
    assert memory_model.budget(TEXT, H200, load).tokens == pytest.approx(tokens, rel=0.01)


def test_the_sizes_that_divide_scout() -> None:
    assert memory_model.tensor_parallel_sizes(TEXT, 64) == [1, 2, 4, 8]
