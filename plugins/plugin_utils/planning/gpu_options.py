# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options and environment that a plan gives to `vllm serve`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import levers
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.answer_options import answer_options
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.extra_options import warnings
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen, has_dummy_weights
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.moe_choice import choose_moe_backend
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.sizing import Sizing
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

RECIPE_COMPILATION = '{"pass_config":{"fuse_allreduce_rms":true,"eliminate_noops":true}}'
CONTAINER_PORT = 8000


def cuda_options(
    draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu], sizing: Sizing, reference: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the configuration and the environment that every replica on GPUs has; C(reference) is the image."""
    load, version = sizing.load, sizing.load.version
    config: dict[str, Any] = {}
    if load.kv_dtype != "auto":
        config["kv-cache-dtype"] = load.kv_dtype
    draft.decide("kv_cache_dtype", config.get("kv-cache-dtype"), _kv_reason(wishes, chosen))
    if cards[0].compute_capability[0] == 10 and chosen.llama4:
        _compilation(draft, config, version)
    _async_scheduling(draft, wishes, config, version)
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
    if chosen.llama4:
        choose_moe_backend(draft, wishes, chosen, cards[0].compute_capability, version, config, environment)
    if chosen.shape:
        levers.graph_options(draft, wishes, chosen.shape, load, config)
    levers.threads(draft, wishes, version, environment)
    levers.attention(draft, wishes, chosen, cards[0], load, config, environment)
    levers.text_only_options(wishes, chosen, version, config)
    answer_options(draft, wishes, chosen, reference, config)
    return finish_options(draft, wishes, chosen, version, config, environment)


def _kv_reason(wishes: Wishes, chosen: Chosen) -> str:
    if wishes.kv_cache_dtype:
        return "vllm_kv_cache_dtype"
    if chosen.fp8_kv:
        return "the recipe's fp8 halves the KV cache of a token against 16 bits"
    return "left to vLLM: the recipe's fp8 is for Llama 4"


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


def _async_scheduling(draft: Draft, wishes: Wishes, config: dict[str, Any], version: versions.Version) -> None:
    """Turn it on as the recipe does; vLLM refuses it beside some options where it is asked for by name."""
    extra = wishes.extra_config
    if versions.ASYNC_SCHEDULING_BY_DEFAULT.holds(version):
        reason = f"vLLM {versions.as_text(version)} turns it on itself where the other options allow it"
        draft.decide("async_scheduling", None, reason)
        return
    against = [option for option in extra if option.split(".")[0] == "speculative-config"]
    if str(extra.get("distributed-executor-backend", "")) == "ray":
        against.append("distributed-executor-backend: ray")
    if against:
        reason = f"vLLM {versions.as_text(version)} may not start with it and {against[0]} of vllm_extra_config"
        draft.decide("async_scheduling", None, reason)
        return
    config["async-scheduling"] = True
    draft.decide("async_scheduling", True, "hides the scheduler's work behind the GPU's, as in the recipe")


def _prefix_caching(draft: Draft, wishes: Wishes, config: dict[str, Any]) -> None:
    if not wishes.goals.as_published:
        draft.decide("prefix_caching", True, "on, as is vLLM's default: repeated prompts are not computed again")
        return
    config["no-enable-prefix-caching"] = True
    draft.decide("prefix_caching", False, "off, as in the recipe")
    draft.warn(
        f"Profile {wishes.profile} turns prefix caching off, which helps synthetic benchmarks only. For real traffic"
        " set vllm_profile to another profile, or vllm_extra_config: {enable-prefix-caching: true}."
    )


def finish_options(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    version: versions.Version,
    config: dict[str, Any],
    environment: dict[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Add what every server has and the user's own options, which win."""
    draft.decide("model_source", chosen.source["kind"], f"served from {chosen.source['location']}")
    if chosen.names != (chosen.source["argument"],):
        config["served-model-name"] = chosen.name if len(chosen.names) == 1 else list(chosen.names)
    if versions.OPTIONS["shutdown-timeout"].holds(version) and wishes.drain_timeout:
        config["shutdown-timeout"] = wishes.drain_timeout
        draft.decide("shutdown_timeout", wishes.drain_timeout, "vllm_drain_timeout: running requests may finish")
    if has_dummy_weights(wishes):
        draft.warn("load-format dummy: the weights are random and the answers mean nothing.")
    if wishes.offline:
        environment["HF_HUB_OFFLINE"] = "1"
        draft.decide("HF_HUB_OFFLINE", "1", "vllm_offline: the server does not try to reach the hub")
    for option, value in wishes.extra_config.items():
        span = versions.OPTIONS.get(option) or versions.GONE_OPTIONS.get(option)
        if span and not span.holds(version):
            raise GpufleetError(
                f"vllm_extra_config: vLLM {versions.as_text(version)} has no {option}.",
                name="unknown-option",
                remedy=f"Use {span.instead}.",
            )
        config.pop(option[3:] if option.startswith("no-") else f"no-{option}", None)
        config[option] = value
        draft.decide(option, value, "vllm_extra_config")
    for text in warnings(wishes.extra_config, wishes.environment):
        draft.warn(text)
    for name, value in wishes.environment.items():
        read = versions.READ_UNTIL.get(name)
        if read and not read.holds(version):
            draft.warn(f"vllm_environment: vLLM {versions.as_text(version)} does not read {name}; use {read.instead}.")
        environment[name] = value
    return config, environment


def listen(wishes: Wishes, number: int) -> dict[str, Any]:
    """Return where the server listens: inside its own network, or on the host itself."""
    if wishes.network_mode == "host":
        return {"host": wishes.host, "port": wishes.port + number}
    return {"host": "0.0.0.0", "port": CONTAINER_PORT}  # noqa: S104  the container's own network; published on host
