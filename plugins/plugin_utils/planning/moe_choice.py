# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kernels compute the experts of Llama 4, chosen on purpose: what vLLM takes by itself changed with 0.15.

Up to 0.14 it takes Triton where nothing is set. From 0.15 on it takes FlashInfer's kernels first: CUTLASS's on 9.0 and
12.0, TensorRT-LLM's on 10.x. A test compares this with what the selection code of each release's wheel does
(tests/unit/data/vllm_moe_backends.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

FP8_VARIABLE = "VLLM_USE_FLASHINFER_MOE_FP8"
FP4_VARIABLE = "VLLM_USE_FLASHINFER_MOE_FP4"
TRITON, TRTLLM = "triton", "flashinfer_trtllm"


def choose_moe_backend(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    capability: tuple[int, int],
    version: versions.Version,
    config: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """Put the choice into the options and variables, in the way that this vLLM understands, and tell why."""
    if chosen.precision == "fp4" and capability[0] == 10:
        _send(draft, config, environment, version, TRTLLM, FP4_VARIABLE, "1", "as in the recipe, for Blackwell")
    elif chosen.precision == "fp8" and not (chosen.shape and chosen.shape.static_fp8):
        draft.decide("moe_backend", None, "left to vLLM: what is known is of FP8 with static scales, one a tensor")
    elif chosen.precision == "fp8" and capability[0] == 10:
        _blackwell(draft, wishes, capability, version, config, environment)
    elif chosen.precision == "fp8":
        _triton(draft, capability, version, config, environment)


def _triton(
    draft: Draft,
    capability: tuple[int, int],
    version: versions.Version,
    config: dict[str, Any],
    environment: dict[str, str],
) -> None:
    card = "{}.{}".format(*capability)
    if not versions.FLASHINFER_MOE_BY_DEFAULT.holds(version):
        reason = f"vLLM {versions.as_text(version)} takes Triton's kernels on {card} where nothing is set"
        draft.decide("moe_backend", None, reason)
        return
    reason = (
        f"Triton's kernels: by itself vLLM takes FlashInfer's from CUTLASS on {card} from 0.15 on, which compile at"
        " start-up and have cost accuracy with these weights (vllm #31609, on 0.13)"
    )
    _send(draft, config, environment, version, TRITON, FP8_VARIABLE, "0", reason)


def _blackwell(
    draft: Draft,
    wishes: Wishes,
    capability: tuple[int, int],
    version: versions.Version,
    config: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """Take TensorRT-LLM's kernels where vLLM itself takes them or the recipe asks for them."""
    text = versions.as_text(version)
    first = versions.FLASHINFER_MOE_BY_DEFAULT.holds(version)
    # FlashInfer's kernels of 0.12 for 10.3 are CUTLASS's.
    as_published = wishes.goals.as_published and (capability == (10, 0) or version >= (0, 13, 0))
    if not first and not as_published:
        draft.decide(
            "moe_backend",
            None,
            f"vLLM {text} takes Triton's kernels where nothing is set, and FlashInfer's had cost accuracy by then (vllm"
            " #31609)",
        )
        return
    draft.warn(
        "FlashInfer's FP8 MoE kernels for Blackwell were not run by this collection, and similar ones have cost"
        " accuracy without a word (vllm #31609, #33532): run the accuracy check."
    )
    if first:
        reason = "TensorRT-LLM's kernels for Blackwell, which vLLM takes first on 10.x from 0.15 on"
    else:
        reason = "FlashInfer's kernels for Blackwell, as in the recipe"
    if first and not versions.OPTIONS["moe-backend"].holds(version):
        draft.decide("moe_backend", None, f"left to vLLM {text}: {reason}")
        return
    _send(draft, config, environment, version, TRTLLM, FP8_VARIABLE, "1", reason)


def _send(
    draft: Draft,
    config: dict[str, Any],
    environment: dict[str, str],
    version: versions.Version,
    backend: str,
    variable: str,
    value: str,
    reason: str,
) -> None:
    """Send a backend by the option where this vLLM has it, and by the variable before."""
    if versions.OPTIONS["moe-backend"].holds(version):
        config["moe-backend"] = backend
        draft.decide("moe_backend", backend, reason)
        return
    environment[variable] = value
    draft.decide("moe_backend", f"{variable}={value}", reason)


def runs_triton(version: versions.Version, config: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Return whether a server certainly computes experts in FP8 with static scales by Triton's kernels.

    Args:
        version: the vLLM in the image.
        config: the server's options, the user's among them.
        environment: its variables, the user's among them.
    """
    backend = str(config.get("moe-backend", "auto"))
    if backend != "auto":
        return backend == TRITON
    value = environment.get(FP8_VARIABLE, "").strip()
    if not versions.FLASHINFER_MOE_BY_DEFAULT.holds(version):
        return value in ("", "0")
    return value == "0" and versions.READ_UNTIL[FP8_VARIABLE].holds(version)
