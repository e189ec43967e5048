# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vLLM server offers besides completions, and what it lacks."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.answers import malformed
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import Server


def check_endpoints(server: Server, api_key: str, *, required: bool) -> dict[str, Any]:
    """Check what a vLLM server offers besides completions.

    Args:
        server: the server.
        api_key: the key that it was given, or `""`.
        required: whether all of it must be there, as with vLLM; otherwise what another server lacks is left out.

    Returns:
        `healthy`, `version`, `load` (as parse_metrics returns it) and `refuses_without_key` (None without a key).

    Raises:
        GpufleetError: what is wrong with an endpoint, `metrics-missing`, or `key-not-enforced`.
    """
    found: dict[str, Any] = {"healthy": None, "version": "", "load": {}, "refuses_without_key": None}
    try:
        server.request("GET", "/health")
        found["healthy"] = True
        found["version"] = str(server.json("GET", "/version")["version"])
        found["load"] = server.metrics()
    except (GpufleetError, KeyError, TypeError) as error:
        if required and isinstance(error, GpufleetError):
            raise
        if required:
            raise malformed("/version", "it names no version", str(error)) from error
    if required and "requests_running" not in found["load"]:
        raise malformed("/metrics", "it does not tell how many requests are running", found["load"])
    if api_key:
        found["refuses_without_key"] = _refuses_without_key(server)
    return found


def _refuses_without_key(server: Server) -> bool:
    try:
        Server(server.url, timeout=server.timeout, verify=server.verify).request("GET", "/v1/models")
    except GpufleetError as error:
        if error.name == "unauthorized":
            return True
        raise
    raise GpufleetError(
        f"{server.url}/v1 answers without an API key, though vllm_api_key is set.",
        name="key-not-enforced",
        remedy="Deploy again, so that the server is started with the key (VLLM_API_KEY); whoever reaches the port can"
        " use it until then.",
    )


def lacks_chat_template(error: GpufleetError) -> bool:
    """Return whether a server refused a chat message because its model has no chat template."""
    refused = error.name == "server-error" and error.details.get("status") == 400
    return refused and re.search(r"chat.?template", error.evidence, re.IGNORECASE) is not None
