# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a router take out replicas with sick GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_gpu_watch
short_description: Make a router take out replicas with sick GPUs
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs a program beside the router that asks each replica every few seconds how its GPUs are, and takes out those
    with a sick one, see M(gpufleet.vllm.vllm_gpu_health). It keeps to the rule of M(gpufleet.vllm.router_backend),
    so that no more than O(max_unavailable) of the hosts get no requests, and those that are left can carry what runs.
  - A replica is put back once its GPUs have been well for O(recovered). What a person has put back stays in service
    until something else is found. A replica that tells nothing of its GPUs is left as it is.
options:
  state:
    description:
      - V(absent) ends the program; what it has taken out stays out.
    type: str
    choices: [present, absent]
    default: present
  max_unavailable:
    description:
      - How many hosts of the router may get no requests at once, a number or a percentage.
    type: str
    default: "1"
  interval:
    description:
      - Seconds between two rounds.
    type: int
    default: 10
  recovered:
    description:
      - Seconds for which the GPUs of a replica have to be well before it is put back.
    type: int
    default: 300
  directory:
    description:
      - Folder of the router's files.
    type: path
    default: /etc/gpufleet-router
  run_dir:
    description:
      - Folder of its sockets.
    type: path
    default: /run/gpufleet-router
  state_dir:
    description:
      - Folder of what it keeps over a reboot.
    type: path
    default: /var/lib/gpufleet-router
  log_file:
    description:
      - Where messages go when there is no systemd.
    type: path
    default: /var/log/gpufleet-router.log
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Take out replicas with sick GPUs
  gpufleet.vllm.router_gpu_watch:
    max_unavailable: 10%
"""

RETURN = r"""
error:
  description: The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.shares import share_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.admission import VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.gpu_watch_service import ensure_watch, remove_watch

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "max_unavailable": {"type": "str", "default": "1"},
    "interval": {"type": "int", "default": 10},
    "recovered": {"type": "int", "default": 300},
    "directory": {"type": "path", "default": "/etc/gpufleet-router"},
    "run_dir": {"type": "path", "default": "/run/gpufleet-router"},
    "state_dir": {"type": "path", "default": "/var/lib/gpufleet-router"},
    "log_file": {"type": "path", "default": "/var/log/gpufleet-router.log"},
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Bring the program to the wanted state; return the task's result."""
    params = module.params
    if params["state"] == "absent":
        return remove_watch(params["directory"], params["run_dir"], check=module.check_mode)
    share_of(params["max_unavailable"], 1, VARIABLE, least=1)
    settings = {name: params[name] for name in ("directory", "run_dir", "state_dir", "max_unavailable", "interval")}
    settings["recovered_s"] = params["recovered"]
    return ensure_watch(settings, params["log_file"], check=module.check_mode)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
