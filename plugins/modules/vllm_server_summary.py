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
  - Prints one line a replica, those that do not serve first, and the cause and remedy for those that died.
  - With C(-v) it also prints the C(docker run) line that repeats each replica by hand.
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
not_serving:
  description: Each replica that does not serve, as C(host/replica).
  returned: always
  type: list
  elements: str
  sample: []
"""
