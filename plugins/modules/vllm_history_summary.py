# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_history_summary."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_history_summary
version_added: 0.1.0
short_description: Show the last deployments of a whole fleet
description:
  - Prints one line a deployment that a host remembers, the newest first, with the id by which to go back to it.
  - With C(-v) it also prints why those failed that did.
  - Runs on the controller; use it with C(run_once).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  deployments:
    description:
      - Host names to what M(gpufleet.vllm.vllm_server_info) returned as C(deployments).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show what each host remembers
  gpufleet.vllm.vllm_history_summary:
    deployments: "{{ dict(ansible_play_hosts | zip(__found)) }}"
  vars:
    __found: "{{ ansible_play_hosts | map('extract', hostvars, ['info', 'deployments']) }}"
  run_once: true
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: always
  type: list
  elements: str
  sample: ["gpu-01  20261122-165501  m  0.12.0  vllm/vllm-openai:v0.12.0 (1700a9d57cad)  current"]
errors:
  description: Why those failed that did.
  returned: always
  type: list
  elements: str
  sample: []
"""
