# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vllm_orphans: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_orphans
version_added: 0.1.0
short_description: End what servers of this collection left on GPUs
description:
  - Ends processes whose container died or is gone, and removes containers of this collection that no deployment wants.
  - Each is proved to be ours again at the moment it is ended - a container by its label; a process by its container or
    by the configuration mounted in it, and by no container engine looking after it any more. If one does not, the
    module fails and ends nothing. Processes of others are never ended.
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.docker
options:
  orphans:
    description:
      - What to end, as M(gpufleet.vllm.vllm_preflight) returned it in C(orphans).
    type: list
    elements: dict
    required: true
    suboptions:
      pid:
        description:
          - The process.
        type: int
        required: true
      container:
        description:
          - Name of the container that runs it; empty when that died or is gone.
        type: str
        default: ""
      gpu:
        description:
          - Index of the GPU whose memory it holds.
        type: int
      used_mib:
        description:
          - Memory that it holds there, in MiB.
        type: int
      replica:
        description:
          - The server that it belonged to.
        type: str
      why:
        description:
          - Why it is taken for left over.
        type: str
  drain_timeout:
    description:
      - Seconds between asking to end and killing.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Judge the host
  gpufleet.vllm.vllm_preflight:
    host_info: "{{ host }}"
    gpu_info: "{{ gpus }}"
  register: verdict

- name: End what our servers left
  gpufleet.vllm.vllm_orphans:
    orphans: "{{ verdict.orphans }}"
"""

RETURN = r"""
containers:
  description: Names of the containers that were removed.
  returned: success
  type: list
  elements: str
  sample: [old-0]
processes:
  description: Ids of the processes that were ended.
  returned: success
  type: list
  elements: int
  sample: [4242]
gone:
  description: Names and ids of those that had ended by themselves.
  returned: success
  type: list
  elements: str
  sample: []
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import DOCKER_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import engine
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.reclaim import reclaim

ARGUMENTS: dict[str, Any] = {
    "orphans": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "pid": {"type": "int", "required": True},
            "container": {"type": "str", "default": ""},
            "gpu": {"type": "int"},
            "used_mib": {"type": "int"},
            "replica": {"type": "str"},
            "why": {"type": "str"},
        },
    },
    "drain_timeout": {"type": "int", "default": 60},
    **DOCKER_ARGUMENTS,
}


def end_orphans(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """End the orphans and return the module's result."""
    docker_host, timeout = params["docker_host"], max(params["docker_timeout"], params["drain_timeout"] + 30)
    result = reclaim(
        params["orphans"],
        lambda: connect(docker_host, timeout),
        lambda: engine(docker_host)["containers"],
        drain_timeout=params["drain_timeout"],
        check=check_mode,
    )
    held = [*result["containers"], *(f"process {pid}" for pid in result["processes"])]
    return {**result, "diff": {"before": "".join(f"{name}\n" for name in held), "after": ""}}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: end_orphans(module.params, module.check_mode))


if __name__ == "__main__":
    main()
