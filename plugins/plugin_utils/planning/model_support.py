# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the vLLM in the image can serve a model's architecture, by the registries of the releases' wheels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import model_classes, text_config, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.versions import Version
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen, config_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

# Of other names vLLM makes the implementation itself, from that of the language model.
JUDGED = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def check_support(draft: Draft, host: Mapping[str, Any], wishes: Wishes, chosen: Chosen, version: Version) -> None:
    """Refuse an architecture that this vLLM surely does not serve, and warn of one that it may not.

    What it does not implement itself it tries to run by Transformers' implementation, or by the repository's own code
    where that is trusted.

    Args:
        draft: gathers the decisions.
        host: see planner.plan.
        wishes: what the user wants.
        chosen: the model.
        version: the vLLM in the image.

    Raises:
        GpufleetError: C(architecture-not-supported).
    """
    config = config_of(host)
    if "hf-overrides" in wishes.extra_config or not isinstance(config.get("architectures"), list):
        return
    trusted = str(wishes.extra_config.get("trust-remote-code", "")).lower() in ("true", "1")
    _check_architecture(draft, wishes, chosen, config, version, trusted)
    _check_code(draft, chosen, config, version, trusted)


def _check_architecture(
    draft: Draft, wishes: Wishes, chosen: Chosen, config: Mapping[str, Any], version: Version, trusted: bool
) -> None:
    names = [str(name) for name in config["architectures"]]
    judged = bool(names) and all(name.endswith(JUDGED) for name in names)
    own = str(wishes.extra_config.get("model-impl") or "auto") in ("auto", "vllm")
    if not (judged and own) or any(model_classes.implements(name, version) is not False for name in names):
        return
    elsewhere = next((found for name in names if (found := model_classes.where_to_find(name, version))), "")
    has_none = (
        f"vLLM {versions.as_text(version)} has no implementation of {names[0]}, the architecture of {chosen.name}"
    )
    remedy = f"Set vllm_image_tag to a vLLM that has one: {elsewhere}." if elsewhere else ""
    if not text_config.in_transformers(str(config.get("model_type") or "")) and not trusted:
        raise GpufleetError(
            f"{has_none}, and Transformers has none either.",
            name="architecture-not-supported",
            remedy=remedy
            or "Set vllm_image_tag to a newer vLLM if there is one that has it. If the repository brings its own code"
            " that you trust, set trust-remote-code: true in vllm_extra_config to try that.",
        )
    other = "the repository's own code" if trusted else "that of Transformers"
    draft.warn(f"{has_none}: it tries {other}, which is slower where it works at all. {remedy}".rstrip())


def _check_code(draft: Draft, chosen: Chosen, config: Mapping[str, Any], version: Version, trusted: bool) -> None:
    """Warn of a configuration that only the repository's own code can read."""
    brings = config.get("auto_map")
    family = str(config.get("model_type") or "")
    if trusted or not isinstance(brings, Mapping) or "AutoConfig" not in brings:
        return
    if text_config.in_transformers(family) or model_classes.reads(family, version) is not False:
        return
    draft.warn(
        f"The configuration of {chosen.name} (model_type {family}) is read by code in its repository, which vLLM runs"
        " only with trust-remote-code: true in vllm_extra_config. Set that if you trust it; the server does not start"
        " without."
    )
