# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a router as users do, by OpenAI's and Anthropic's own libraries, and prints what they made of its answers.

It runs in an environment of its own (tests/requirements-clients.txt), with the router's address and a key.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic
import openai


def main() -> None:
    """Ask, and print a JSON object."""
    url, key, model = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    messages: Any = [{"role": "user", "content": "hello"}]
    stream = client.chat.completions.create(model=model, messages=messages, stream=True)
    by_anthropic = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
    found = {
        "models": [entry.id for entry in client.models.list()],
        "model": client.models.retrieve(model).id,
        "chat": client.chat.completions.create(model=model, messages=messages).choices[0].message.content,
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
        "embedding": client.embeddings.create(model=model, input="x", encoding_format="float").data[0].embedding,
        "message": by_anthropic.messages.create(model=model, max_tokens=9, messages=messages).content[0].text,
        "no model": error_of(lambda: client.models.retrieve("org/no-model")),
        "wrong key": error_of(openai.OpenAI(base_url=f"{url}/v1", api_key="no", max_retries=0).models.list),
        "no endpoint": error_of(client.files.list),
        "no vLLM endpoint": error_of(lambda: client.audio.transcriptions.create(model=model, file=("a.wav", b"x"))),
    }
    print(json.dumps(found))


def error_of(ask: Any) -> list[Any]:
    """Return the class and the message of the error that asking ends with."""
    try:
        ask()
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        return [type(error).__name__, body.get("message") or error.message]
    return []


if __name__ == "__main__":
    main()
