# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a server reads tool calls and reasoning out of its model's answers, and with which of vLLM's parsers."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import answer_parsers, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import OFF, Wishes


def answer_options(draft: Draft, wishes: Wishes, chosen: Chosen, reference: str, config: dict[str, Any]) -> None:
    """Send the parsers of tool calls and of reasoning.

    Args:
        draft: gathers the decisions.
        wishes: what the user wants.
        chosen: the model.
        reference: the image, whose examples have chat templates.
        config: the server's options, which gets those of the parsers.
    """
    family = answer_parsers.family_of(chosen.shape.model_type if chosen.shape else "llama4" if chosen.llama4 else "")
    _tools(draft, wishes, family, versions.is_published(reference.rpartition(":")[0]), config)
    _reasoning(draft, wishes, family, config)


def _tools(
    draft: Draft, wishes: Wishes, family: answer_parsers.Family | None, published: bool, config: dict[str, Any]
) -> None:
    if wishes.tool_calling == OFF:
        draft.decide("tool_calling", None, "vllm_tool_calling: false")
        return
    if wishes.tool_calling is None and wishes.goals.as_published:
        return
    parser = wishes.tool_calling or (family.tools if family else "")
    if not parser:
        reason = "which parser reads this model's tool calls is not known: name it in vllm_tool_calling"
        draft.decide("tool_calling", None, reason)
        return
    template = family.template if family and family.tools == parser else ""
    if template and not published and wishes.tool_calling is None and "chat-template" not in wishes.extra_config:
        draft.decide(
            "tool_calling",
            None,
            f"{parser} needs the chat template {template}, which is known to be in vLLM's own images alone: set"
            " vllm_tool_calling, and chat-template in vllm_extra_config",
        )
        return
    config["enable-auto-tool-choice"] = True
    config["tool-call-parser"] = parser
    if template and published:
        config["chat-template"] = f"{answer_parsers.TEMPLATES}/{template}"
        draft.decide("chat_template", config["chat-template"], f"asks the model for tool calls as {parser} reads them")
    reason = "vllm_tool_calling" if wishes.tool_calling else "reads this family's tool calls; without it they get 400"
    draft.decide("tool_call_parser", parser, reason)
    draft.decide("enable_auto_tool_choice", True, "the model chooses when to call a tool, as clients expect")


def _reasoning(draft: Draft, wishes: Wishes, family: answer_parsers.Family | None, config: dict[str, Any]) -> None:
    if wishes.reasoning_parser == OFF:
        draft.decide("reasoning_parser", None, "vllm_reasoning_parser: false")
        return
    parser = wishes.reasoning_parser or (family.reasoning if family and not wishes.goals.as_published else "")
    if parser:
        config["reasoning-parser"] = parser
        reason = "vllm_reasoning_parser" if wishes.reasoning_parser else "parts this family's reasoning from its answer"
        draft.decide("reasoning_parser", parser, reason)
