# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of `vllm serve` that a variable of this collection sets."""

from __future__ import annotations

# Options of `vllm serve` that have a variable of their own, and options that must not be set by hand.
OPTIONS_WITH_VARIABLE = {
    "api-key": "vllm_api_key",
    "config": "vllm_extra_config",
    "data-parallel-size": "vllm_replicas",
    "device-ids": "vllm_gpu_selection",
    "dtype": "vllm_precision",
    "gpu-memory-utilization": "vllm_gpu_memory_utilization",
    "hf-token": "vllm_hf_token",
    "host": "vllm_host",
    "kv-cache-dtype": "vllm_kv_cache_dtype",
    "max-model-len": "vllm_max_model_len",
    "max-num-batched-tokens": "vllm_max_num_batched_tokens",
    "max-num-seqs": "vllm_max_num_seqs",
    "model": "vllm_model",
    "port": "vllm_port",
    "served-model-name": "vllm_served_model_name",
    "shutdown-timeout": "vllm_drain_timeout",
    "tensor-parallel-size": "vllm_tensor_parallel_size",
}
