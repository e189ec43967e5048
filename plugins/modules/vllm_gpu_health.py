# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a host look after its GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_gpu_health
short_description: Make a host look after its GPUs
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Installs a small program that reads through NVML and from the kernel's log how the GPUs are, and has a timer of
    systemd run it. It writes metrics for node_exporter, what C(status) shows, and for each server what is wrong with
    its own GPUs, which the server tells to a router that asks.
  - A host has one program for all its deployments. Where there is no systemd nothing is installed, and RV(installed) is
    false.
options:
  state:
    description:
      - V(absent) takes the deployment out, and with the last one the program.
    type: str
    choices: [present, absent]
    default: present
  deployment:
    description:
      - What tells the deployment from others of its host, the prefix of its containers.
    type: str
    default: vllm
  config_dir:
    description:
      - Folder of the servers' configuration, which has C(plan.json) and the folders of their doors.
    type: path
    default: /etc/gpufleet
  action:
    description:
      - What is to happen to a server with a sick GPU. V(none) only tells it. With V(drain) routers take it out, if
        their rule for capacity allows it.
    type: str
    choices: [none, drain]
    default: none
  interval:
    description:
      - Seconds between two looks.
    type: int
    default: 30
  textfile_dir:
    description:
      - Folder of node_exporter's textfile collector, for the metrics. Empty for none.
    type: str
    default: /var/lib/prometheus/node-exporter
  repaired:
    description:
      - Take the events of the GPUs so far for dealt with, so that they make none sick any more. They are counted on.
        Does nothing where the program is not installed.
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Look after the GPUs
  gpufleet.vllm.vllm_gpu_health:
    action: drain
"""

RETURN = r"""
installed:
  description: Whether the program is on the host afterwards.
  returned: success
  type: bool
  sample: true
error:
  description: The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import health_service

SHORTEST_S = 10
ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "deployment": {"type": "str", "default": "vllm"},
    "config_dir": {"type": "path", "default": "/etc/gpufleet"},
    "action": {"type": "str", "choices": list(health_service.ACTIONS), "default": "none"},
    "interval": {"type": "int", "default": 30},
    "textfile_dir": {"type": "str", "default": "/var/lib/prometheus/node-exporter"},
    "repaired": {"type": "bool", "default": False},
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Bring the program to the wanted state; return the task's result."""
    params, check = module.params, module.check_mode
    if params["interval"] < SHORTEST_S:
        raise GpufleetError(
            f"vllm_gpu_health_interval is {params['interval']}: a look takes a host more than it is worth.",
            name="invalid-wishes",
            remedy=f"Set it to {SHORTEST_S} or more.",
        )
    if params["repaired"]:
        return health_service.take_for_repaired(check)
    own = health_service.Deployment(params["deployment"], params["config_dir"], params["action"])
    return health_service.ensure(
        own,
        wanted=params["state"] == "present",
        interval=params["interval"],
        textfile=params["textfile_dir"],
        check=check,
    )


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
