# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How vLLM divides a card's memory, and how much of it is left for keys and values.

Calibrated against a run of vLLM 0.26 on one H200 with the text part of Llama 4 Scout in FP8: utilisation 0.92, 8192
batched tokens, weights 104.93 GiB, peak activation 3.3 GiB (2.76 GiB with max-num-seqs 128), CUDA graphs as below,
0.24 GiB outside PyTorch, 215,548 tokens of KV cache. All sizes here are GiB, all of one card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB, MIB
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Attention, Division, Shape

# Bytes of one element of the KV cache. "auto" is that of the model's weights before quantisation.
KV_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4}

# Driver memory that NVML counts and CUDA does not offer: 612 MiB on an H200.
RESERVED_MIB = 612
# The peak of the activations was measured on an H200 with vLLM 0.26 at 8192 and 16384 batched tokens, each with 128 and
# 1024 sequences: 2.78, 2.97, 3.30 and 3.76 GiB (tests/gpu/RESULTS.md). These terms give it within 4 %. The first, which
# does not grow with the batch, fits a copy of the embedding; what it really is we do not know.
LIVE_TENSORS = 4
ACTIVATION_BYTES = 2
WORKSPACE_GIB = 0.4
LOGIT_BYTES = 4
# The vision tower's pass over the largest batch of image tiles. Computed, not measured.
VISION_ACTIVATION_GIB = 0.5
OUTSIDE_TORCH_GIB = 0.24
# NCCL's and the custom all-reduce's buffers on each card of a replica with several. Estimated, not measured.
COMMUNICATION_GIB = 1.5
# Bytes of a token and layer in FP8 where attention is sparse: vLLM packs them in a format of its own, fp8_ds_mla.
SPARSE_FP8_BYTES = 656
# vLLM fills the vocabulary up to whole blocks, and each card gets as many tokens.
VOCABULARY_BLOCK = 64
# Experts in FP8 blocks that do not divide: newer releases cut the blocks down to these.
SMALLEST_FP8_BLOCK = 32
# CUDA graphs, measured on H200s with vLLM 0.26 (tests/gpu/RESULTS.md). What vLLM expects of them beforehand, which the
# KV cache pays, grows with the tokens of all that is captured: 0.41 and 0.81 GiB at TP 1, 0.49 and 2.60 at TP 2. What
# they then take grows with their number: 0.71 and 1.36, 0.71 and 1.90. Both are of 48 layers.
EXPECTED_GRAPH_GIB = {"one": 8.1e-7, "several": 9.4e-7}
GRAPH_GIB = 2.8e-4
DEFAULT_CAPTURE = 512
# What must stay free beside the engine's share: what the process takes besides (1.2 GiB measured), and fragments of the
# allocator or what sampling takes.
CONTEXT_GIB = 1.2
FRAGMENTS_GIB = 1.8
# Penalties, top-k and top-p of every sequence, which no start-up measures: 1024 of Llama 4's vocabulary took 4.0 GiB at
# most and more than 2.9 (0.96 served, 0.97 died). Bytes for each word of the vocabulary and sequence.
SAMPLING_BYTES = 20.7
# 0.99 did not start on an H200, 0.97 died, 0.96 was left with 266 MiB.
HIGHEST_UTILISATION = 0.95


@dataclass(frozen=True)
class ReplicaLoad:
    """What is asked of one replica: its parallelism and its batch.

    C(capture) is the largest batch for which CUDA graphs are captured, 0 for vLLM's own choice; C(whole_graphs) says
    whether batches that decode are captured as a whole as well as in pieces around attention.
    """

    tensor_parallel_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    utilisation: float
    kv_dtype: str
    version: versions.Version
    capture: int = 0
    whole_graphs: bool = False


@dataclass(frozen=True)
class Budget:
    """Where the memory of one card goes, in GiB. C(kv) is what is left for keys and values and may be negative.

    C(tokens) is the KV cache's size in tokens for the replica as a whole, for requests no longer than the window of
    local layers. A vLLM that keeps only that window reports more when max-model-len is longer. Where layers keep a
    state of each sequence, it is what is left beside that of one, C(state) GiB on each card.
    """

    card: float
    share: float
    weights: float
    activations: float
    graphs: float
    other: float
    kv: float
    tokens: int
    token_bytes: int = 0
    state: float = 0.0

    def held(self, length: int) -> int:
        """Return how many requests of C(length) tokens the KV cache holds, with the state that layers keep of each."""
        if not self.state:
            return self.tokens // length
        return max(0, int(self.kv * GIB / (length * self.token_bytes + self.state * GIB)))

    def as_sentence(self) -> str:
        """Return the sum as a person would write it down."""
        if self.kv < 0:
            left = f"{-self.kv:.1f} GiB more than there is, before any KV cache"
        else:
            left = f"which leaves {self.kv:.1f} GiB for a KV cache of {self.tokens} tokens"
        return (
            f"{self.share:.1f} GiB of {self.card:.1f} GiB per GPU may be used; weights take {self.weights:.1f},"
            f" activations {self.activations:.1f}, the rest {self.graphs + self.other:.1f}, {left}"
        )


def card_gib(memory_mib: int, reserved_mib: int | None = None) -> float:
    """Return the memory in GiB that CUDA offers of a card with C(memory_mib) by NVML."""
    return (memory_mib - (RESERVED_MIB if reserved_mib is None else reserved_mib)) * MIB / GIB


def kv_bytes_per_token(shape: Shape, kv_dtype: str, tensor_parallel_size: int = 1, local: bool | None = None) -> int:
    """Return the bytes that one token's keys and values take on each card.

    Keys and values are divided over at most as many cards as there are KV heads; latent attention is not divided.

    Args:
        shape: the model.
        kv_dtype: vllm_kv_cache_dtype; C(auto) is that of the weights before quantisation.
        tensor_parallel_size: cards of a replica.
        local: whether to count the layers that attend to a window alone, or all others alone; None for both.
    """
    width = KV_BYTES.get(kv_dtype, shape.dtype_bytes)
    kinds = [kind for kind in shape.kinds if local is None or bool(kind.window) == local]
    return sum(kind.layers * _kept(kind, width, tensor_parallel_size) for kind in kinds)


def _kept(kind: Attention, width: int, tensor_parallel_size: int) -> int:
    """Return the bytes that one layer keeps of a token on each card."""
    if kind.latent and kind.index:
        return (SPARSE_FP8_BYTES if width == 1 else kind.latent * width) + kind.index
    if kind.latent:
        return kind.latent * width
    heads = math.ceil(kind.kv_heads / min(tensor_parallel_size, kind.kv_heads))
    return heads * (kind.key + kind.value) * width


def state_gib(shape: Shape, tensor_parallel_size: int = 1) -> float:
    """Return the GiB that layers with a state keep of one sequence on each card."""
    return shape.state_bytes / tensor_parallel_size / GIB


def activation_gib(shape: Shape, load: ReplicaLoad) -> float:
    """Return the peak of the activations: a fixed part, the forward pass of a full batch, every sequence's logits."""
    embedding = shape.vocabulary * shape.hidden * ACTIVATION_BYTES / load.tensor_parallel_size
    batch = load.max_num_batched_tokens * LIVE_TENSORS * shape.hidden * ACTIVATION_BYTES
    logits = min(load.max_num_seqs, load.max_num_batched_tokens) * shape.vocabulary * LOGIT_BYTES
    vision = VISION_ACTIVATION_GIB if shape.vision else 0.0
    return (embedding + batch + logits) / GIB + WORKSPACE_GIB + vision


def captured(load: ReplicaLoad) -> list[int]:
    """Return the batch sizes for which vLLM captures a CUDA graph, those that are captured twice twice."""
    largest = min(load.capture or min(2 * load.max_num_seqs, DEFAULT_CAPTURE), load.max_num_batched_tokens)
    steps = (*(1, 2, 4), *range(8, 256, 8), *range(256, largest + 1, 16))
    sizes = [size for size in steps if size <= largest]
    return sizes + [size for size in sizes if load.whole_graphs and size <= load.max_num_seqs]


def expected_graph_gib(shape: Shape, load: ReplicaLoad) -> float:
    """Return what vLLM takes off the KV cache for CUDA graphs before it has captured any."""
    factor = EXPECTED_GRAPH_GIB["one" if load.tensor_parallel_size == 1 else "several"]
    return shape.layers * sum(captured(load)) * factor


def graph_gib(shape: Shape, load: ReplicaLoad) -> float:
    """Return the memory that the captured CUDA graphs take."""
    return shape.layers * len(captured(load)) * GRAPH_GIB


def sampling_gib(shape: Shape, load: ReplicaLoad) -> float:
    """Return what sampling takes at most when every sequence asks for penalties."""
    return load.max_num_seqs * shape.vocabulary * SAMPLING_BYTES / GIB


def budget(shape: Shape, card: float, load: ReplicaLoad) -> Budget:
    """Return where the memory of each card of a replica goes.

    Args:
        shape: the model.
        card: GiB that CUDA offers of one card.
        load: what is asked of the replica.
    """
    share = card * load.utilisation
    weights = shape.weights_gib / load.tensor_parallel_size
    activations = activation_gib(shape, load)
    # Before 0.21 the graphs come on top of the engine's share.
    graphs = expected_graph_gib(shape, load) if versions.CUDA_GRAPHS_IN_BUDGET.holds(load.version) else 0.0
    other = OUTSIDE_TORCH_GIB + (COMMUNICATION_GIB if load.tensor_parallel_size > 1 else 0.0)
    kv = share - weights - activations - graphs - other
    per_token = kv_bytes_per_token(shape, load.kv_dtype, load.tensor_parallel_size)
    state = state_gib(shape, load.tensor_parallel_size)
    tokens = max(0, int((kv - state) * GIB / per_token))
    return Budget(card, share, weights, activations, graphs, other, kv, tokens, per_token, state)


def longest_request(shape: Shape, found: Budget, load: ReplicaLoad) -> int:
    """Return the tokens of the longest single request that the KV cache can hold.

    A vLLM that keeps only the window of local layers needs less than the request's whole length there: the window and
    what is in flight, which asynchronous scheduling makes two batches.
    """
    hybrid = shape.local_layers and versions.HYBRID_KV_CACHE_WITH_CHUNKED_ATTENTION.holds(load.version)
    window = shape.local_window + 2 * load.max_num_batched_tokens
    if not hybrid or found.tokens <= window or shape.local_layers == shape.layers:
        return found.tokens
    local = kv_bytes_per_token(shape, load.kv_dtype, load.tensor_parallel_size, local=True)
    full = kv_bytes_per_token(shape, load.kv_dtype, load.tensor_parallel_size, local=False)
    return int(((found.kv - found.state) * GIB - window * local) / full)


def highest_utilisation(shape: Shape, card: float, load: ReplicaLoad) -> float:
    """Return the largest share of a card that leaves room for what vLLM does not count, rounded down to 0.01."""
    counted = expected_graph_gib(shape, load) if versions.CUDA_GRAPHS_IN_BUDGET.holds(load.version) else 0.0
    graphs = max(0.0, graph_gib(shape, load) - counted)
    share = (card - graphs - CONTEXT_GIB - max(FRAGMENTS_GIB, sampling_gib(shape, load))) / card
    return min(HIGHEST_UTILISATION, math.floor(share * 100) / 100)


def tensor_parallel_sizes(shape: Shape, cards: int, version: versions.Version = versions.NEWEST) -> list[int]:
    """Return the numbers of cards, ascending and at most C(cards), over which this vLLM can divide the model."""
    return [size for size in range(1, cards + 1) if not indivisible(shape, size, version)]


def divides(shape: Shape, size: int, version: versions.Version = versions.NEWEST) -> bool:
    """Return whether this vLLM can divide the model over C(size) cards."""
    return not indivisible(shape, size, version)


def indivisible(shape: Shape, size: int, version: versions.Version = versions.NEWEST) -> str:
    """Return what of the model this vLLM cannot divide over C(size) cards; empty where it can.

    KV heads are divided or repeated a whole number of times. Of what is quantised in blocks each card needs whole ones.
    """
    told = shape.division
    if shape.heads % size:
        return f"its {shape.heads} attention heads"
    for kind in shape.kinds:
        if not kind.latent and kind.kv_heads % size and size % kind.kv_heads:
            return f"its {kind.kv_heads} KV heads"
    if math.ceil(shape.vocabulary / VOCABULARY_BLOCK) * VOCABULARY_BLOCK % size:
        return f"its vocabulary of {shape.vocabulary} tokens in blocks of {VOCABULARY_BLOCK}"
    if shape.vision and told.vision_heads % size:
        return (
            f"the {told.vision_heads} heads of its vision tower (mm-encoder-tp-mode: data in vllm_extra_config makes"
            " it whole on each GPU, vllm_text_only leaves it out)"
        )
    for number in told.even or (() if told.experts else (shape.intermediate,)):
        if number % size:
            return f"a width of {number}"
    if told.groups != 1 and told.groups % size:
        return f"its {told.groups} groups of Mamba-2"
    for number in told.blocks if size > 1 else ():
        if told.block and number // size % told.block:
            return f"a width of {number} in whole blocks of {told.block} quantised weights"
    return next((what for number in told.experts if (what := _uneven_expert(told, number, size, version))), "")


def _uneven_expert(told: Division, width: int, size: int, version: versions.Version) -> str:
    """Return what of an expert C(size) cards cannot share; empty where they can."""
    part, block = width // size, told.expert_block
    if width % size:
        return f"experts of width {width}"
    if told.fp8_blocks and part % (block or 1) and versions.FP8_EXPERTS_IN_SMALLER_BLOCKS.holds(version):
        block = SMALLEST_FP8_BLOCK
    return f"experts of width {width} in whole blocks of {block} quantised weights" if block and part % block else ""
