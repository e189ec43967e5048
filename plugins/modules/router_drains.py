# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell a router what the others know of drained hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_drains
version_added: 0.2.0
short_description: Tell a router what the others know of drained hosts
author: gpufleet contributors (@gpufleet)
description:
  - Every drain is made at all routers that run. One that was down then learns of it here, and likewise of hosts that
    were put back meanwhile.
  - Run it first at all routers without O(others), and then with what it returned there. What was said last of a host
    counts, by the clocks of the routers' hosts.
options:
  others:
    description:
      - What the module returned as RV(marks) at each router.
    type: list
    elements: dict
    default: []
  in_step:
    description:
      - Whether O(others) has all routers, so that from now on this one knows what they know. That holds until HAProxy
        is started anew. With a shared address, a router of which that is not so leaves it to others.
    type: bool
    default: false
  run_dir:
    description:
      - Folder of HAProxy's sockets.
    type: path
    default: /run/gpufleet-router
  state_dir:
    description:
      - Folder of what is kept over a reboot, the same as that of M(gpufleet.vllm.router_server).
    type: path
    default: /var/lib/gpufleet-router
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Ask each router what is drained
  gpufleet.vllm.router_drains:
  register: drains

- name: Have each of them know what the others do
  gpufleet.vllm.router_drains:
    others: "{{ groups['router'] | map('extract', hostvars) | map(attribute='drains.marks') }}"
    in_step: true
"""

RETURN = r"""
marks:
  description: For each host that was ever drained, C(owner), C(replicas), C(reason), C(run) and C(at).
  returned: success
  type: dict
  sample: {"gpu-01": {"owner": "person", "replicas": ["gpu-01:vllm-0"], "reason": "", "run": "", "at": 1790000000.0}}
hosts:
  description: Hosts that are drained here, or put back, as the others have them.
  returned: success
  type: list
  elements: str
  sample: [gpu-01]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(router-not-running), V(router-not-answering), V(router-refused), V(busy) and V(write-failed).
  returned: failure
  type: dict
"""

import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_exchange import (
    as_data,
    missed,
    newest,
    take_over,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.shared_address import in_step_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.state_folder import state_folder

ARGUMENTS: dict[str, Any] = {
    "others": {"type": "list", "elements": "dict", "default": []},
    "in_step": {"type": "bool", "default": False},
    "run_dir": {"type": "path", "default": "/run/gpufleet-router"},
    "state_dir": {"type": "path", "default": "/var/lib/gpufleet-router"},
}


def work(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Take over what others know, and return the module's result."""
    run_dir = params["run_dir"]
    folder = state_folder(params["state_dir"], run_dir, check=check)
    marks, others = DrainMarks(folder), newest(params["others"])
    hosts = sorted(missed(marks.everyone(), others))
    flag = in_step_file(run_dir)
    steps = params["in_step"] and not os.path.exists(flag)
    before = as_data(marks.everyone())
    if not check:
        if hosts:
            take_over(Master(os.path.join(run_dir, MASTER_SOCKET), folder), marks, others)
        if steps:
            write_file(flag, "", 0o644)
    diff = [_difference(host, before.get(host), others[host].as_data()) for host in hosts]
    return {"changed": bool(hosts or steps), "hosts": hosts, "marks": as_data(marks.everyone()), "diff": diff}


def _difference(host: str, before: Any, after: dict[str, Any]) -> dict[str, str]:
    """Return what changes of a host, for Ansible's diff."""
    texts = [", ".join((data or {}).get("replicas") or []) or "nothing" for data in (before, after)]
    return {"before_header": host, "after_header": host, "before": f"{texts[0]}\n", "after": f"{texts[1]}\n"}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module.params, module.check_mode))


if __name__ == "__main__":
    main()
