# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_preflight_summary, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_preflight_summary
version_added: 0.1.0
short_description: Show what preflight found on a whole fleet
description:
  - Prints one line for each kind of finding with the hosts that it hits, errors first.
  - With C(-v) it also prints every host's findings in full.
  - Runs on the controller; use it with C(run_once).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  findings:
    description:
      - Host names to what M(gpufleet.vllm.vllm_preflight) returned as C(findings); V(null) for a host that was not
        reached.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the fleet
  gpufleet.vllm.vllm_preflight_summary:
    findings: "{{ dict(ansible_play_hosts | zip(__found)) }}"
  run_once: true
  vars:
    __found: "{{ ansible_play_hosts | map('extract', hostvars, ['verdict', 'findings']) }}"
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: always
  type: list
  elements: str
  sample: ["Preflight of 500 hosts: 12 with errors, 488 fit"]
details:
  description: Every host's findings in full.
  returned: always
  type: list
  elements: str
  sample: ["gpu-01 error driver-too-old: The driver is 570.172.08."]
"""
