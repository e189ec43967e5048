# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of vLLM's parsers reads the tool calls and the reasoning of which family of models.

Here are the families whose parser follows from their C(model_type); others, such as Qwen's, write tool calls in several
ways. A test compares the names with those that each release's wheel registers (vllm_answer_parsers.json).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Where vLLM's own images have the examples of its repository.
TEMPLATES = "/vllm-workspace/examples"


@dataclass(frozen=True)
class Family:
    """The parsers of a family.

    Attributes:
        model_type: pattern of the family's name in config.json.
        tools: the parser of its tool calls.
        template: file of the chat template that asks for them in this form; empty where the model's own does.
        reasoning: the parser of its reasoning; empty for models that do not reason.
    """

    model_type: str
    tools: str
    template: str = ""
    reasoning: str = ""


FAMILIES = (
    Family(r"llama4(_text)?", "llama4_pythonic", "tool_chat_template_llama4_pythonic.jinja"),
    Family(r"gpt_oss", "openai", reasoning="openai_gptoss"),
)


def family_of(model_type: str) -> Family | None:
    """Return the family of a model, or None where its parsers are not known."""
    return next((family for family in FAMILIES if re.fullmatch(family.model_type, model_type)), None)
