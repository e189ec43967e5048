# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_plan_summary, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_plan_summary
version_added: 0.1.0
short_description: Show the plans of a whole fleet on one page
description:
  - Prints a table in which hosts with the same plan share a row, then the hosts that were refused, then each warning
    once with the hosts it is about.
  - With C(-v) it also prints every decision of each kind of plan with its reason.
  - Runs on the controller; use it with C(run_once).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  plans:
    description:
      - Host names to what M(gpufleet.vllm.vllm_plan) returned as C(plan), or, where it failed, as C(error).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Plan each host
  gpufleet.vllm.vllm_plan:
  register: __vllm_planned
  ignore_errors: true

- name: Show the fleet
  gpufleet.vllm.vllm_plan_summary:
    plans: "{{ dict(ansible_play_hosts_all | zip(__vllm_plans)) }}"
  vars:
    __vllm_results: "{{ ansible_play_hosts_all | map('extract', hostvars, '__vllm_planned') }}"
    __vllm_plans: "{{ __vllm_results | map('dict2items') | map('selectattr', 'key', 'in', ['plan', 'error'])
      | map('map', attribute='value') | map('first') }}"
  run_once: true
"""

RETURN = r"""
table:
  description: The lines of the table, the refusals and the warnings.
  returned: always
  type: list
  elements: str
  sample: ["500 hosts: 2 kinds of plan"]
reasons:
  description: For each kind of plan, every decision with its reason.
  returned: always
  type: list
  elements: str
  sample: ["gpu-[001:480]:", "  precision = fp8: compute capability 9.0 has no NVFP4"]
"""
