# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring weights that a host lacks from other hosts of the fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_weights_copy
short_description: Bring weights that a host lacks from other hosts of the fleet
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Fetches what the host's Hugging Face cache lacks of a model from hosts that M(gpufleet.vllm.vllm_weights_share) has
    give it away, several files at once and from several hosts. A host that is still fetching itself is asked for what
    it has by then.
  - Every file is compared with the hash by which the hub knows it (SHA-256, or git's id of a small file). A file that
    is something else is thrown away and fetched from another host.
  - A connection that breaks is tried again, with another host too, and a file goes on where it stopped.
  - What no host gives is no error. RV(models) says what is left for M(gpufleet.vllm.vllm_model) to fetch from the hub,
    and what is whole by then is not fetched again.
options:
  model:
    description:
      - Name of the model at the hub.
    type: str
    required: true
  hf_home:
    description:
      - Folder on the host with the Hugging Face cache.
    type: path
    default: /var/lib/gpufleet/huggingface
  run_dir:
    description:
      - Folder with this host's key, as of M(gpufleet.vllm.vllm_weights_share).
    type: path
    default: /run/gpufleet-weights
  members:
    description:
      - Hosts of the fleet. What M(gpufleet.vllm.vllm_weights_share) said on them becomes O(sources), without that of
        this host. Read by the action plugin alone.
    type: list
    elements: str
    default: []
  sources:
    description:
      - What M(gpufleet.vllm.vllm_weights_share) said on hosts that give weights away, each with its name as C(host).
    type: list
    elements: dict
    default: []
  connections:
    description:
      - How many files are fetched at once.
    type: int
    default: 4
  stall_timeout:
    description:
      - Seconds without a further byte after which the rest is left to the hub; 0 for never.
    type: float
    default: 900
  timeout:
    description:
      - Seconds for all of it; 0 for no deadline.
    type: float
    default: 14400
  lock_timeout:
    description:
      - Seconds to wait for another run that fetches into O(hf_home); V(-1) waits as long as O(timeout).
    type: int
    default: 0
extends_documentation_fragment:
  - gpufleet.vllm.common.model_cache
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.progress
"""

EXAMPLES = r"""
- name: Bring Scout's weights from the hosts that have them
  gpufleet.vllm.vllm_weights_copy:
    model: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    members: "{{ ansible_play_hosts }}"
"""

RETURN = r"""
models:
  description: The repositories of which something was missing.
  returned: success
  type: list
  elements: dict
  contains:
    repository:
      description: Its name.
      type: str
    bytes:
      description: Bytes that came from other hosts.
      type: int
    hosts:
      description: Bytes by the host that they came from.
      type: dict
    left:
      description: What is left for the hub, and why; empty where all is there.
      type: str
  sample:
    - repository: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
      bytes: 109860012345
      hosts: {gpu-01: 60129542144, gpu-03: 49730470201}
      left: ""
failures:
  description: What went wrong with which host.
  returned: success
  type: list
  elements: str
  sample: ["gpu-02: 3f1c0a2b4d5e is not what the hub has"]
msg:
  description: The same for people.
  returned: success
  type: str
phases:
  description: The phases that the work went through and how many seconds each took.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "weights of nvidia/Llama-4-Scout-17B-16E-Instruct-FP8 from the fleet", "seconds": 212.4}]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(disk-full), V(busy) and V(write-failed).
  returned: failure
  type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import PROGRESS_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import format_bytes, listed
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cached import left_to_the_server
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.from_fleet import Fleet, fetch_from_fleet
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.receiving import Source
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings, lock_timeout
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import wants_of

ARGUMENTS: dict[str, Any] = {
    "model": {"type": "str", "required": True},
    "config": {"type": "dict", "default": {}},
    "hf_home": {"type": "path", "default": "/var/lib/gpufleet/huggingface"},
    "environment": {"type": "dict", "default": {}},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "run_dir": {"type": "path", "default": "/run/gpufleet-weights"},
    "members": {"type": "list", "elements": "str", "default": []},
    "sources": {"type": "list", "elements": "dict", "default": []},
    "connections": {"type": "int", "default": 4},
    "stall_timeout": {"type": "float", "default": 900},
    "timeout": {"type": "float", "default": 14400},
    "lock_timeout": {"type": "int", "default": 0},
    **PROGRESS_ARGUMENTS,
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Fetch what is missing, and return the module's result."""
    params = module.params
    environment = {str(name): str(value) for name, value in params["environment"].items()}
    around = Surroundings(
        "",
        params["hf_home"],
        environment=environment,
        volumes=params["volumes"],
        timeout=params["timeout"],
        stall_timeout=params["stall_timeout"],
        lock_timeout=lock_timeout(params["lock_timeout"], params["timeout"]),
    )
    if left_to_the_server(params["config"], environment, around.cache):
        return {"changed": False, "models": [], "failures": [], "msg": "", "phases": []}
    serving = [one for one in params["sources"] if one.get("serves")]
    fleet = Fleet(
        sources=[
            Source(str(one["host"]), str(one["address"]), int(one["port"]), str(one["host_key"]), whole=False)
            for one in serving
        ],
        models={str(one["host"]): one.get("models") or [] for one in serving},
        folder=params["run_dir"],
        connections=params["connections"],
    )
    progress = Progress(params["progress_file"])
    wants = wants_of(params["model"], params["config"])
    try:
        result = fetch_from_fleet(wants, around, fleet, progress, check=module.check_mode)
    except OSError as error:
        raise write_failed(around.cache.folder, error, around.cache.variable) from error
    return {**result, "msg": told(result["models"], result["failures"]), "phases": progress.finish()}


def told(models: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> str:
    """Return what came from where, for people."""
    lines = []
    for model in models:
        parts = sorted(model["hosts"].items(), key=lambda item: -item[1])
        hosts = listed([f"{host} ({format_bytes(came)})" for host, came in parts], most=4)
        came = f"{format_bytes(model['bytes'])} from {hosts}" if parts else "nothing from other hosts"
        rest = f"; {model['left']}, which the hub is asked for" if model["left"] else ""
        lines.append(f"Weights of {model['repository']}: {came}{rest}.")
    if failures:
        lines.append(f"Not in order: {'; '.join(failures)}.")
    return " ".join(lines)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
