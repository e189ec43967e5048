# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which option, variable and default exists in which vLLM, from 0.12 to 0.33.

The tables hold what the planner may send and what users still find in older guides. A test compares them with data
extracted from the parsers of the released wheels (tests/unit/data/vllm_parsers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int, int]

# The recipe's own requirement, and the driver that came with CUDA 13.0.
OLDEST_DRIVER = 575
OLDEST_DRIVER_CUDA_13 = 580

OLDEST: Version = (0, 12, 0)
NEWEST: Version = (0, 33, 0)


@dataclass(frozen=True)
class Span:
    """The vLLM versions that have something: from C(since) up to, but not including, C(until).

    C(instead) says what to use where it does not exist.
    """

    since: Version = OLDEST
    until: Version | None = None
    instead: str = ""

    def holds(self, version: Version) -> bool:
        """Return whether C(version) has it."""
        return self.since <= version and (self.until is None or version < self.until)


# Every option of `vllm serve` that the planner may send.
OPTIONS: dict[str, Span] = {
    "async-scheduling": Span(),
    "attention-backend": Span(since=(0, 13, 0), instead="VLLM_ATTENTION_BACKEND in vllm_environment"),
    "chat-template": Span(),
    "compilation-config": Span(),
    "dtype": Span(),
    "enable-auto-tool-choice": Span(),
    "enforce-eager": Span(),
    "gpu-memory-utilization": Span(),
    "hf-overrides": Span(),
    "host": Span(),
    "kv-cache-dtype": Span(),
    "language-model-only": Span(since=(0, 17, 0), instead='limit-mm-per-prompt: {"image": 0}'),
    "limit-mm-per-prompt": Span(),
    "max-cudagraph-capture-size": Span(),
    "max-model-len": Span(),
    "max-num-batched-tokens": Span(),
    "max-num-seqs": Span(),
    "moe-backend": Span(since=(0, 17, 0), instead="VLLM_USE_FLASHINFER_MOE_FP8 or _FP4 in vllm_environment"),
    "no-enable-prefix-caching": Span(),
    "port": Span(),
    "reasoning-parser": Span(),
    "served-model-name": Span(),
    "shutdown-timeout": Span(since=(0, 18, 0)),
    "tensor-parallel-size": Span(),
    "tool-call-parser": Span(),
}

# Options that guides of other versions name and that some of these versions refuse. Never sent.
GONE_OPTIONS: dict[str, Span] = {
    "cuda-graph-sizes": Span(until=(0, 13, 0), instead="cudagraph-capture-sizes"),
    "disable-log-requests": Span(until=(0, 17, 0), instead="nothing: requests are not logged by default"),
    "swap-space": Span(until=(0, 18, 0), instead="nothing: the engine does not swap any more"),
    "calculate-kv-scales": Span(until=(0, 33, 0), instead="a checkpoint with KV scales"),
}

# Every environment variable that the planner may send, for as long as it is the right way.
ENVIRONMENT: dict[str, Span] = {
    "VLLM_USE_FLASHINFER_MOE_FP8": Span(until=(0, 17, 0), instead="moe-backend"),
    "VLLM_USE_FLASHINFER_MOE_FP4": Span(until=(0, 17, 0), instead="moe-backend"),
    "VLLM_HAS_FLASHINFER_CUBIN": Span(),
    "VLLM_TUNED_CONFIG_FOLDER": Span(),
}

# Variables a user may still set: until when vLLM reads them.
READ_UNTIL: dict[str, Span] = {
    "VLLM_USE_FLASHINFER_MOE_FP8": Span(until=(0, 24, 0), instead="moe-backend in vllm_extra_config"),
    "VLLM_USE_FLASHINFER_MOE_FP4": Span(until=(0, 24, 0), instead="moe-backend in vllm_extra_config"),
    "VLLM_FLASHINFER_MOE_BACKEND": Span(until=(0, 24, 0), instead="moe-backend in vllm_extra_config"),
}

# Behaviour that changed on the way.
ASYNC_SCHEDULING_BY_DEFAULT = Span(since=(0, 14, 0))
FLASHINFER_MOE_BY_DEFAULT = Span(since=(0, 15, 0))
HYBRID_KV_CACHE_WITH_CHUNKED_ATTENTION = Span(since=(0, 14, 0))
NOOPS_ELIMINATED_BY_DEFAULT = Span(since=(0, 17, 0))
ALLREDUCE_FUSED_BY_DEFAULT = Span(since=(0, 20, 0))
CUDA_GRAPHS_IN_BUDGET = Span(since=(0, 21, 0))
# Before it an engine of one GPU lets PyTorch use every core for tiny tensors.
ONE_THREAD_BY_DEFAULT = Span(since=(0, 28, 0))
# FlashInfer decodes with TensorRT-LLM's kernel (XQA) on Hopper.
XQA_ON_HOPPER = Span(since=(0, 25, 0))
CPU_FP8_KV_CACHE = Span(since=(0, 33, 0))
CUDA_13 = Span(since=(0, 20, 0))
# Blocks of FP8 experts are cut smaller where they do not divide by the cards (fused_moe/oracle/fp8.py of 0.29.0).
FP8_EXPERTS_IN_SMALLER_BLOCKS = Span(since=(0, 29, 0))
# Its own kernels built for compute capability 10.3, given CUDA 13 (vllm #30484, #31150).
KERNELS_FOR_10_3 = Span(since=(0, 14, 0))


def parse(text: str) -> Version | None:
    """Return the version in a text such as C(0.12.0) or an image tag such as C(v0.12.0-aarch64), or None."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?!\d)", text.strip())
    if not found:
        return None
    return int(found.group(1)), int(found.group(2)), int(found.group(3) or 0)


def of_tag(tag: str, image: str | None = None) -> Version | None:
    """Return the vLLM that an image's tag tells of, or None.

    Others number their images in ways of their own, such as C(26.03-py3) and C(1.4.2).

    Args:
        tag: such as C(v0.12.0-aarch64).
        image: the image's repository; None for the collection's default.
    """
    found = parse(tag)
    if found is None or image is None or is_published(image):
        return found
    return found if found[0] == 0 and found >= OLDEST else None


def is_published(image: str) -> bool:
    """Return whether an image is vLLM's own release, or by its name a copy of it in another registry."""
    return image.rsplit("/", 1)[-1] == "vllm-openai"


def as_text(version: Version) -> str:
    """Return the version as vLLM writes it, such as C(0.12.0)."""
    return ".".join(str(part) for part in version)


def default_gpu_memory_utilization(version: Version) -> float:
    """Return the share of a card's memory that this vLLM plans with when it is not told."""
    return 0.92 if version >= (0, 20, 0) else 0.90


def cuda_of(version: Version, tag: str) -> str:
    """Return the CUDA in an image: the tag's own suffix tells, such as C(v0.19.1-cu130), or else the version."""
    found = re.search(r"-cu(\d\d)(\d)", tag)
    if found:
        return f"{found.group(1)}.{found.group(2)}"
    return "13.0" if CUDA_13.holds(version) else "12.9"


def oldest_driver(cuda: str, least: int = OLDEST_DRIVER) -> int:
    """Return the oldest major version of the driver for an image with that CUDA.

    Args:
        cuda: such as C(12.9).
        least: what the user takes at least; images with CUDA 13 need theirs all the same.
    """
    return max(OLDEST_DRIVER_CUDA_13, least) if cuda.startswith("13") else least
