# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a vLLM server for a completion and check its answer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_completion
short_description: Ask a vLLM server for a completion and check its answer
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - The basic test of a server, one completion of a short prompt, and, if asked, of a chat message.
  - Fails unless the answer is well-formed and not empty, which takes a text, a reason for its end and token counts that
    add up.
  - Connections that fail and answers of the 500s are tried again O(retries) times.
options:
  url:
    description:
      - Base address of the server. A trailing C(/v1) is ignored.
    type: str
    default: http://127.0.0.1:8000
  model:
    description:
      - Model to ask, by the name under which it is served. The first one that the server names when left out.
    type: str
    default: ""
  prompt:
    description:
      - What to complete.
    type: str
    default: San Francisco is a
  max_tokens:
    description:
      - The most tokens that the answer may have.
    type: int
    default: 20
  temperature:
    description:
      - Sampling temperature; V(0) always takes the likeliest token.
    type: float
    default: 0
  chat:
    description:
      - Send O(prompt) as a chat message, too. The model needs a chat template for that.
      - With V(auto) a server that refuses it because there is none passes, and RV(no_chat) says so.
    type: str
    choices: ['auto', 'true', 'false']
    default: 'false'
  endpoints:
    description:
      - Check /health, /version and /metrics, too, and with O(api_key) that a request without it is refused.
      - With V(all) each must be there, as with vLLM. With V(offered) those that another server lacks are left out.
    type: str
    choices: [none, offered, all]
    default: none
  api_key:
    description:
      - Key of the server, sent as bearer token.
    type: str
    default: ""
  timeout:
    description:
      - Seconds to wait for each answer.
    type: float
    default: 60
  retries:
    description:
      - Further attempts after the first where the cause may pass.
    type: int
    default: 2
  ca_path:
    description:
      - CA bundle to check the server's certificate with, on the host where the module runs.
    type: path
  validate_certs:
    description:
      - Whether to check the server's certificate.
    type: bool
    default: true
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
requirements:
  - requests
"""

EXAMPLES = r"""
- name: Ask the server of this host
  gpufleet.vllm.vllm_completion:
    url: http://127.0.0.1:8000

- name: Ask for one model, with a key, by completion and by chat
  gpufleet.vllm.vllm_completion:
    url: https://inference.example.com
    model: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    api_key: "{{ vllm_api_key }}"
    chat: true
"""

RETURN = r"""
text:
  description: What the model wrote.
  returned: success
  type: str
  sample: " vibrant and eclectic city that offers something for everyone."
finish_reason:
  description: Why the text ends, V(length) or V(stop).
  returned: success
  type: str
  sample: length
usage:
  description: Tokens counted by the server.
  returned: success
  type: dict
  contains:
    prompt_tokens:
      description: Tokens of the prompt.
      type: int
    completion_tokens:
      description: Tokens of the answer.
      type: int
    total_tokens:
      description: Their sum.
      type: int
  sample: {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
model:
  description: The model that answered.
  returned: success
  type: str
  sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
models:
  description: Every model that the server serves.
  returned: success
  type: list
  elements: str
  sample: [nvidia/Llama-4-Scout-17B-16E-Instruct-FP8]
latency_s:
  description: Seconds from the request to the whole answer.
  returned: success
  type: float
  sample: 0.412
curl:
  description: Command that repeats the request; it takes the key from the variable C(VLLM_API_KEY) of the shell.
  returned: success
  type: str
  sample: >-
    curl -sS http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json'
    -d '{"model": "m", "prompt": "San Francisco is a", "max_tokens": 20, "temperature": 0}'
chat:
  description: The same for the chat message, C(text), C(finish_reason), C(usage), C(model), C(latency_s) and C(curl).
  returned: success and O(chat) is not V(false), unless RV(no_chat) says why not
  type: dict
no_chat:
  description: Why there is no RV(chat).
  returned: success and O(chat=auto), where the model has no chat template
  type: str
  sample: no chat template
endpoints:
  description:
    - C(healthy), C(version), C(load) (from /metrics), and C(refuses_without_key), which is null without O(api_key).
  returned: success and O(endpoints) is not V(none)
  type: dict
  sample: {"healthy": true, "version": "0.12.0", "load": {"requests_running": 0}, "refuses_without_key": true}
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(not-ready) (nothing listens), V(server-unreachable), V(timeout), V(unauthorized), V(model-not-served),
      V(server-error), V(malformed-answer), V(empty-answer), V(key-not-enforced) and V(url-invalid).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import RECIPE_PROMPT, Server
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.endpoints import check_endpoints, lacks_chat_template

ARGUMENTS: dict[str, Any] = {
    "url": {"type": "str", "default": "http://127.0.0.1:8000"},
    "model": {"type": "str", "default": ""},
    "prompt": {"type": "str", "default": RECIPE_PROMPT},
    "max_tokens": {"type": "int", "default": 20, "no_log": False},
    "temperature": {"type": "float", "default": 0},
    "chat": {"type": "str", "choices": ["auto", "true", "false"], "default": "false"},
    "endpoints": {"type": "str", "choices": ["none", "offered", "all"], "default": "none"},
    "api_key": {"type": "str", "default": "", "no_log": True},
    "timeout": {"type": "float", "default": 60},
    "retries": {"type": "int", "default": 2},
    "ca_path": {"type": "path"},
    "validate_certs": {"type": "bool", "default": True},
}


def work(params: dict[str, Any]) -> dict[str, Any]:
    """Ask the server and return the module's result."""
    server = Server(
        params["url"],
        api_key=params["api_key"],
        timeout=params["timeout"],
        verify=params["validate_certs"] and (params["ca_path"] or True),
        retries=params["retries"],
    )
    models = server.models()
    question = (server.pick(models, params["model"]), params["prompt"], params["max_tokens"], params["temperature"])
    result = {"changed": False, "models": models, **server.complete(*question).as_result()}
    if params["chat"] != "false":
        try:
            result["chat"] = server.chat(*question).as_result()
        except GpufleetError as error:
            if params["chat"] != "auto" or not lacks_chat_template(error):
                raise
            result["no_chat"] = "no chat template"
    if params["endpoints"] != "none":
        result["endpoints"] = check_endpoints(server, params["api_key"], required=params["endpoints"] == "all")
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("requests")
    module.run(lambda: work(module.params))


if __name__ == "__main__":
    main()
