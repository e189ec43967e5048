# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_server_summary."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_server_summary
version_added: 0.1.0
short_description: Show what the servers of a whole fleet are doing
description:
  - Prints what is wrong first. That is each replica that does not serve, with the cause and remedy if it died, the
    hosts that differ from what the inventory wishes, those to which a router sends nothing, and those that could not
    be looked at or were not reached. Those that serve are told, too, alike ones of a large fleet in one line.
  - With C(-v) it also prints the C(docker run) line that repeats each replica by hand, and the last deployments.
  - Runs on the controller; use it with C(run_once).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  servers:
    description:
      - Host names to what M(gpufleet.vllm.vllm_server_info) returned as C(servers).
    type: dict
    required: true
  drift:
    description:
      - Host names to how what they run differs from what the inventory wishes, as a list of texts.
    type: dict
    default: {}
  deployments:
    description:
      - Host names to what M(gpufleet.vllm.vllm_server_info) returned as C(deployments).
    type: dict
    default: {}
  all_hosts:
    description:
      - Every host that was asked; those that are not among O(servers) were not reached.
    type: list
    elements: str
    default: []
  errors:
    description:
      - Host names to why what runs there could not be looked at; a host with an empty text could. These are told with
        their cause, whatever O(servers) says of them.
    type: dict
    default: {}
  routers:
    description:
      - Hosts of routers to what M(gpufleet.vllm.router_backend) returned of all hosts. Replicas to which one sends
        nothing are told, drained ones and those whose health check does not pass alike, and so is one that could not
        be asked.
    type: dict
    default: {}
  plans:
    description:
      - Host names to what M(gpufleet.vllm.vllm_server_info) returned as C(plan). A replica of a plan that has no
        container should serve and does not.
    type: dict
    default: {}
  gpu_health:
    description:
      - Host names to what M(gpufleet.vllm.vllm_server_info) returned as C(gpu_health). What is wrong with GPUs is told
        with its remedy.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show the fleet
  gpufleet.vllm.vllm_server_summary:
    servers: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, ['info', 'servers']))) }}"
  run_once: true
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: always
  type: list
  elements: str
  sample: ["1 of 1 replicas serving on 1 host", "gpu-01  vllm-0  serving, model m, up 2 h 5 min"]
docker_run:
  description: The C(docker run) line of each replica.
  returned: always
  type: list
  elements: str
  sample: ["gpu-01 vllm-0: docker run --detach --name vllm-0 vllm/vllm-openai:deploy serve"]
details:
  description: What C(-v) prints, the C(docker run) lines and the last deployments of each host.
  returned: always
  type: list
  elements: str
  sample: ["gpu-01 vllm-0: docker run --detach --name vllm-0 vllm/vllm-openai:deploy serve"]
differing:
  description: Hosts that differ from what the inventory wishes.
  returned: always
  type: list
  elements: str
  sample: []
not_looked_at:
  description: Hosts that answered, but on which it could not be seen what runs.
  returned: always
  type: list
  elements: str
  sample: []
not_reached:
  description: Hosts that did not answer.
  returned: always
  type: list
  elements: str
  sample: []
not_serving:
  description: Each replica that does not serve, as C(host/replica).
  returned: always
  type: list
  elements: str
  sample: []
sick_gpus:
  description: Hosts with a sick GPU.
  returned: always
  type: list
  elements: str
  sample: []
should_serve:
  description:
    - What does not serve though it should, each with the reason. That is each replica that does not serve or has no
      container, and each that serves but gets no requests from a router, unless it was drained. A router that could
      not be asked is one, too.
  returned: always
  type: list
  elements: str
  sample: ["gpu-03/vllm-1: dead"]
without_requests:
  description: Hosts with a replica to which a router sends nothing.
  returned: always
  type: list
  elements: str
  sample: []
"""
