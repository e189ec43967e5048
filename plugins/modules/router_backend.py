# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the replicas of a host out of the router, or back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_backend
short_description: Take the replicas of a host out of the router, or back
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs on a host of the router and speaks to the running HAProxy; the configuration stays as it is.
  - A drained replica gets no new request. Those that it has go on, long streams too, also those of connections from
    before the configuration was last loaded. The module waits for their end.
  - What was set stays when the configuration is loaded again and when HAProxy is started again, as long as O(run_dir)
    is there, which a reboot empties.
options:
  hosts:
    description:
      - Hosts whose replicas are meant, by their names in the inventory.
    type: list
    elements: str
    required: true
    aliases: [host]
  replicas:
    description:
      - Names of those replicas, as the hosts' plans have them, such as V([vllm-0, vllm-1]). No other is set or waited
        for. Left out, all are meant that the router has of the hosts.
      - One that the router does not have is told in RV(unknown) and not waited for. A plan may have replicas that
        the router gets only when the playbook C(gpufleet.vllm.router) runs.
    type: list
    elements: str
  state:
    description:
      - V(drain) sends no new request and waits until the running ones have ended.
      - V(maint) does so, too, and stops the health checks.
      - V(ready) takes the replicas back and waits until their health checks pass.
    type: str
    choices: [ready, drain, maint]
    required: true
  owner:
    description:
      - Who drains the replicas for a while, such as V(deploy), to put them back itself. Those it has drained are noted
        beside HAProxy's sockets until they are put back, or drained by anyone else.
      - With it, V(ready) takes back those alone. A run after one that was interrupted so finds what that one left, and
        leaves what was drained on purpose.
    type: str
    default: ""
  timeout:
    description:
      - Seconds to wait at most. What is left then is told in RV(sessions_left) and RV(not_up).
    type: int
    default: 60
  run_dir:
    description:
      - Folder of HAProxy's sockets.
    type: path
    default: /run/gpufleet-router
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Send nothing new to gpu-01, and wait up to five minutes for what runs there
  gpufleet.vllm.router_backend:
    host: gpu-01
    state: drain
    timeout: 300
  delegate_to: lb-01

- name: Take it back
  gpufleet.vllm.router_backend:
    host: gpu-01
    state: ready
  delegate_to: lb-01

- name: Take back those of its replicas that its plan still has
  gpufleet.vllm.router_backend:
    host: gpu-01
    replicas: [vllm-0, vllm-1]
    state: ready
  delegate_to: lb-01

- name: Take back what an interrupted deployment has left drained
  gpufleet.vllm.router_backend:
    hosts: "{{ ansible_play_hosts }}"
    state: ready
    owner: deploy
  delegate_to: lb-01
  run_once: true
"""

RETURN = r"""
servers:
  description:
    - For each replica, by its name in HAProxy, C(state) (ready, drain or maint), C(status) (HAProxy's word), and
      C(sessions), the requests that it has.
    - Empty when the router has no replica of the hosts.
  returned: success
  type: dict
  sample: {"gpu-01:vllm-0": {"state": "drain", "status": "DRAIN", "sessions": 0}}
hosts:
  description: Hosts with a replica whose state was changed.
  returned: success
  type: list
  elements: str
  sample: [gpu-01]
unknown:
  description: Replicas of O(replicas) that the router does not have, by their names in HAProxy.
  returned: success
  type: list
  elements: str
  sample: ["gpu-01:vllm-2"]
sessions_left:
  description: Requests that had not ended in time.
  returned: success
  type: int
  sample: 0
not_up:
  description: Replicas whose health check did not pass in time; of V(ready) alone.
  returned: success
  type: list
  elements: str
  sample: []
others_ready:
  description: Replicas of other hosts that the router can send requests to meanwhile.
  returned: success
  type: int
  sample: 15
waited_s:
  description: Seconds waited.
  returned: success
  type: float
  sample: 12.4
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(router-not-running), V(router-not-answering), V(router-refused), V(busy) and V(write-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import STATES, Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.state_change import Selection, change_for

ARGUMENTS: dict[str, Any] = {
    "hosts": {"type": "list", "elements": "str", "required": True, "aliases": ["host"]},
    "replicas": {"type": "list", "elements": "str"},
    "state": {"type": "str", "choices": list(STATES), "required": True},
    "owner": {"type": "str", "default": ""},
    "timeout": {"type": "int", "default": 60},
    "run_dir": {"type": "path", "default": "/run/gpufleet-router"},
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Set the state, wait, and return the module's result."""
    params = module.params
    master, marks = Master(f"{params['run_dir']}/{MASTER_SOCKET}"), DrainMarks(params["run_dir"])
    selection = Selection(params["hosts"], params["replicas"], params["state"], params["owner"])
    change = change_for(selection, master.servers(), marks)
    if module.check_mode:
        return change.as_result(change.servers(), 0.0)
    return change.as_result(*change.apply(master, marks, params["timeout"]))


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
