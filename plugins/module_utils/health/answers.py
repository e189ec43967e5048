# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Completions that a vLLM server answers: what is in them, and what is wrong with those that are not right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

BODY_SHOWN = 300


@dataclass(frozen=True)
class Answer:
    """One checked completion.

    Attributes:
        text: what the model wrote.
        finish_reason: `length`, `stop`, …
        usage: `prompt_tokens`, `completion_tokens` and `total_tokens`.
        model: the name under which the server answered.
        latency: seconds from the request to the whole answer.
        curl: the command that repeats the request; it reads the key from `$VLLM_API_KEY`.
    """

    text: str
    finish_reason: str
    usage: dict[str, int]
    model: str
    latency: float
    curl: str

    def as_result(self) -> dict[str, Any]:
        """Return the answer as values of a task's result."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "model": self.model,
            "latency_s": round(self.latency, 3),
            "curl": self.curl,
        }


def message_text(message: dict[str, Any]) -> Any:
    """Return what a chat message says: its content or, where a reasoning parser has put all of it aside, that."""
    texts = [message.get(key) for key in ("content", "reasoning", "reasoning_content")]
    return next((text for text in texts if isinstance(text, str) and text.strip()), texts[0])


def check_choice(path: str, document: Any, text_of: Callable[[dict[str, Any]], Any]) -> tuple[str, str]:
    """Return text and finish reason of the first choice.

    Raises:
        GpufleetError: `malformed-answer` when there is none, `empty-answer` when its text is blank.
    """
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise malformed(path, "it has no choices", document)
    text, finish_reason = text_of(choices[0]), choices[0].get("finish_reason")
    if text is not None and not isinstance(text, str):
        raise malformed(path, "the text of its first choice is no text", document)
    if not isinstance(finish_reason, str) or not finish_reason:
        raise malformed(path, "its first choice has no finish_reason", document)
    if not (text or "").strip():
        raise GpufleetError(
            f"{path} answered with an empty text (finish_reason {finish_reason}).",
            name="empty-answer",
            remedy="A model that stops at once often lacks its chat template or got the wrong weights; try another"
            " prompt, and look at the server's log.",
            evidence=excerpt(document),
        )
    return str(text), finish_reason


def check_usage(path: str, document: dict[str, Any], max_tokens: int) -> dict[str, int]:
    """Return the token counts of an answer.

    Raises:
        GpufleetError: `malformed-answer` when they are missing or contradict each other or `max_tokens`.
    """
    usage = document.get("usage")
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    prompt, completion, total = (
        count if isinstance(count, int) and not isinstance(count, bool) else -1 for count in counts or [None] * 3
    )
    if min(prompt, completion, total) < 0:
        raise malformed(path, "its usage has no token counts", document)
    if prompt + completion != total:
        raise malformed(path, f"its usage does not add up: {prompt} + {completion} is not {total}", document)
    if not 0 < completion <= max_tokens:
        raise malformed(path, f"it counts {completion} completion tokens where 1 to {max_tokens} are right", document)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def excerpt(document: Any) -> str:
    """Return the beginning of an answer, for evidence."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    return text[:BODY_SHOWN]


def malformed(path: str, problem: str, document: Any) -> GpufleetError:
    """Return the error for an answer that is not what the API promises."""
    return GpufleetError(
        f"The answer of {path} is malformed: {problem}.",
        name="malformed-answer",
        remedy="Check that vLLM itself answers at this address, and not a proxy or another service.",
        evidence=excerpt(document),
    )
