# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Times vLLM's attention kernels alone, in decode, on an FP8 KV cache as vLLM lays it out: how fast each reads it.

python3 tests/gpu/attention_kernels.py           in vLLM's image, on a free GPU (run.sh kernels)
python3 tests/gpu/attention_kernels.py --build   only compiles what FlashInfer needs at Scout's shapes on Hopper

Decode attention reads every key and value once and does little else, so its floor is the bytes of the KV cache over
the GPU's bandwidth. Each kernel's answer is compared with one computed in float32.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

GROUP = 5
HEAD = 128
MAX_MODEL_LEN = 8192
SCALE = HEAD**-0.5
# Requests at once, their mean length, KV heads of a GPU: one request per group at TP 1, what TP 1 and TP 2 hold.
SHAPES = ((8, 1536, 8), (125, 1536, 8), (806, 1100, 4), (806, 1536, 4))
# How the tokens and heads of a page follow one another, and tokens of a page; the first is vLLM's own choice.
LAYOUTS = (("NHD", 16), ("HND", 16), ("NHD", 64), ("HND", 64))
REPEATS, ROUNDS = 10, 7
WORKSPACE_BYTES = 128 << 20


@dataclass
class Step:
    """A decode step's requests: their queries and one layer of the KV cache."""

    layout: str
    page: int
    heads: int
    raw: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor
    query: torch.Tensor

    @property
    def bytes_read(self) -> int:
        """Return the bytes of keys and values that the step must read."""
        return int(self.lengths.sum()) * self.heads * 2 * HEAD

    def by_token(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values as (page, token, head, element), whatever the layout."""
        pages = self.raw if self.layout == "NHD" else self.raw.transpose(1, 2)
        return pages[..., :HEAD], pages[..., HEAD:]

    def as_laid_out(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values in the order in which they lie."""
        return self.raw[..., :HEAD], self.raw[..., HEAD:]


def fp8_noise(shape: tuple[int, ...]) -> torch.Tensor:
    """Return random FP8 numbers: one random block repeated, in memory of its own."""
    total = math.prod(shape)
    block = torch.randn(min(total, 1 << 24), device="cuda").to(torch.float8_e4m3fn).view(torch.uint8)
    out = torch.empty(total, dtype=torch.uint8, device="cuda")
    for start in range(0, total, len(block)):
        part = out[start : start + len(block)]
        part.copy_(block[: len(part)])
    return out.view(torch.float8_e4m3fn).view(shape)


def make_step(requests: int, length: int, heads: int, layout: str, page: int) -> Step:
    """Return random requests of 0.8 to 1.2 times that length, whose pages are strewn over the cache."""
    torch.manual_seed(1)
    lengths = torch.randint(int(0.8 * length), int(1.2 * length), (requests,), dtype=torch.int32)
    used = [math.ceil(int(n) / page) for n in lengths]
    order = torch.randperm(sum(used), dtype=torch.int32)
    table = torch.zeros(requests, MAX_MODEL_LEN // page, dtype=torch.int32)
    start = 0
    for row, count in enumerate(used):
        table[row, :count] = order[start : start + count]
        start += count
    shape = (sum(used), page, heads, 2 * HEAD) if layout == "NHD" else (sum(used), heads, page, 2 * HEAD)
    query = torch.randn(requests, heads * GROUP, HEAD, device="cuda", dtype=torch.bfloat16)
    return Step(layout, page, heads, fp8_noise(shape), table.cuda(), lengths.cuda(), query)


def wrong_by(step: Step, out: torch.Tensor) -> float:
    """Return how far the first and the last request's answers are from float32's, relative to their size."""
    worst = 0.0
    for row in (0, len(step.lengths) - 1):
        length = int(step.lengths[row])
        pages = step.table[row, : math.ceil(length / step.page)].long()
        keys, values = (part[pages].float().flatten(0, 1)[:length] for part in step.by_token())
        keys, values = (part.repeat_interleave(GROUP, dim=1) for part in (keys, values))
        scores = torch.einsum("hd,nhd->hn", step.query[row].float(), keys) * SCALE
        right = torch.einsum("hn,nhd->hd", scores.softmax(-1), values)
        worst = max(worst, float((out[row].float() - right).norm() / right.norm()))
    return worst


def flash_attention(step: Step, out: torch.Tensor, splits: int) -> Callable[[], object]:
    """FlashAttention 3 as vLLM's FLASH_ATTN calls it: FP8 queries and a schedule made beforehand."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

    requests = len(step.lengths)
    starts = torch.arange(requests + 1, dtype=torch.int32, device="cuda")
    query = step.query.to(torch.float8_e4m3fn)
    keys, values = step.by_token()
    one = torch.ones(1, device="cuda").expand(requests, step.heads)
    schedule = get_scheduler_metadata(
        batch_size=requests,
        max_seqlen_q=1,
        max_seqlen_k=int(step.lengths.max()),
        num_heads_q=step.heads * GROUP,
        num_heads_kv=step.heads,
        headdim=HEAD,
        cache_seqlens=step.lengths,
        qkv_dtype=torch.float8_e4m3fn,
        cu_seqlens_q=starts,
        page_size=step.page,
        causal=True,
        window_size=(-1, -1),
        num_splits=splits,
    )
    return lambda: flash_attn_varlen_func(
        q=query,
        k=keys,
        v=values,
        out=out,
        cu_seqlens_q=starts,
        max_seqlen_q=1,
        seqused_k=step.lengths,
        max_seqlen_k=MAX_MODEL_LEN,
        softmax_scale=SCALE,
        causal=True,
        window_size=[-1, -1],
        block_table=step.table,
        softcap=0,
        scheduler_metadata=schedule,
        fa_version=3,
        q_descale=one,
        k_descale=one,
        v_descale=one,
        num_splits=splits,
    )


def triton_attention(step: Step, out: torch.Tensor) -> Callable[[], object]:
    """Return vLLM's own kernel in Triton as its TRITON_ATTN calls it."""
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention
    from vllm.v1.kv_cache_interface import KVQuantMode

    requests, few, segments = len(step.lengths), 128 // step.heads, 16
    starts = torch.arange(requests + 1, dtype=torch.int32, device="cuda")
    query = step.query.to(torch.float8_e4m3fn)
    keys, values = step.by_token()
    one = torch.ones(1, device="cuda")
    partial = torch.empty(few, step.heads * GROUP, segments, HEAD, device="cuda")
    largest, sums = (torch.empty(few, step.heads * GROUP, segments, device="cuda") for _rest in range(2))
    return lambda: unified_attention(
        q=query,
        k=keys,
        v=values,
        out=out,
        cu_seqlens_q=starts,
        max_seqlen_q=1,
        seqused_k=step.lengths,
        max_seqlen_k=MAX_MODEL_LEN,
        softmax_scale=SCALE,
        causal=True,
        window_size=(-1, -1),
        block_table=step.table,
        softcap=0,
        q_descale=one,
        k_descale=one.expand(requests, step.heads),
        v_descale=one.expand(requests, step.heads),
        seq_threshold_3D=few,
        num_par_softmax_segments=segments,
        softmax_segm_output=partial,
        softmax_segm_max=largest,
        softmax_segm_expsum=sums,
        kv_quant_mode=KVQuantMode.FP8_PER_TENSOR,
    )


def xqa(step: Step, out: torch.Tensor) -> Callable[[], object]:
    """Return TensorRT-LLM's XQA, which vLLM's FLASHINFER decodes with on Hopper: queries in 16 bits."""
    from flashinfer.decode import trtllm_batch_decode_with_kv_cache

    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    return lambda: trtllm_batch_decode_with_kv_cache(
        query=step.query,
        kv_cache=step.as_laid_out(),
        workspace_buffer=workspace,
        block_tables=step.table,
        seq_lens=step.lengths,
        max_seq_len=MAX_MODEL_LEN,
        bmm1_scale=SCALE,
        bmm2_scale=1.0,
        window_left=-1,
        out=out,
        kv_layout=step.layout,
        backend="xqa",
        q_len_per_req=1,
    )


KERNELS: dict[str, Callable[[Step, torch.Tensor], Callable[[], object]]] = {
    "FLASH_ATTN, up to 32 splits": lambda step, out: flash_attention(step, out, 32),
    "FLASH_ATTN, one split": lambda step, out: flash_attention(step, out, 1),
    "TRITON_ATTN": triton_attention,
    "FLASHINFER (XQA)": xqa,
}


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median time of a call, from replays of a CUDA graph of several."""
    for _again in range(3):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _again in range(REPEATS):
            work()
    times: list[float] = []
    for _again in range(ROUNDS):
        before, after = (torch.cuda.Event(enable_timing=True) for _again in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) / REPEATS)
    return statistics.median(times)


def bandwidth() -> float:
    """Return TB/s, read and written, of a kernel that does nothing else."""
    source = torch.zeros(1 << 28, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    return 2 * 4 * len(source) / milliseconds(lambda: torch.bitwise_not(source, out=target)) / 1e9


def measured(step: Step) -> Iterator[str]:
    """Yield a line for each kernel."""
    for name, make in KERNELS.items():
        out = torch.full_like(step.query, math.nan)
        try:
            work = make(step, out)
            work()
            wrong = wrong_by(step, out)
            time = milliseconds(work)
        except Exception as error:  # one that cannot run must not keep the others from it
            torch.cuda.synchronize()
            yield f"  {name:28} failed: {' '.join(str(error).split())[:200]}"
            continue
        rate = step.bytes_read / time / 1e9
        yield f"  {name:28} {1000 * time:8.1f} us  {rate:5.2f} TB/s  wrong by {wrong:.4f}"


def build() -> int:
    """Compile FlashInfer's kernels, without a GPU, as a server on Hopper will look for them."""
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    from flashinfer.jit.attention.modules import gen_batch_prefill_module
    from flashinfer.jit.xqa import gen_xqa_module

    fp8, bf16 = torch.float8_e4m3fn, torch.bfloat16
    specs = [gen_xqa_module(bf16, fp8, page, HEAD, GROUP, False, bf16, 1) for page in (16, 64)]
    specs.append(gen_batch_prefill_module("fa3", fp8, fp8, bf16, torch.int32, HEAD, HEAD, 0, False, False, False))
    failed = 0
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = {pool.submit(spec.build, False): spec for spec in specs}
        for done in concurrent.futures.as_completed(running):
            error = done.exception()
            failed += error is not None
            print(f"{running[done].name}: {'built' if error is None else str(error)[-1500:]}", flush=True)
    return failed


def main() -> int:
    """Print the table."""
    if sys.argv[1:] == ["--build"]:
        return build()
    print(f"{torch.cuda.get_device_name()}, a kernel that only copies moves {bandwidth():.2f} TB/s")
    for layout, page in LAYOUTS:
        for requests, length, heads in SHAPES:
            torch.cuda.empty_cache()
            step = make_step(requests, length, heads, layout, page)
            print(
                f"{layout}, pages of {page}: {requests} requests of about {length} tokens, {heads} KV heads:"
                f" {step.bytes_read / 1e9:.3f} GB"
            )
            for line in measured(step):
                print(line, flush=True)
            del step
    return 0


if __name__ == "__main__":
    sys.exit(main())
