# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_plans, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_plans
version_added: 0.2.0
short_description: Plan a whole fleet in one task and show it on one page
description:
  - Plans every host of O(hosts) by its own variables, as M(gpufleet.vllm.vllm_plan) does for one, in one task. For
    hundreds of hosts a task for each would take more time than the planning.
  - Prints a table in which hosts with the same plan share a row, then the hosts that were refused, then each warning
    once with the hosts it is about. With C(-v) it also prints every decision of each kind of plan with its reason.
  - A host that C(vllm_gpus) describes is planned without contact. The role C(preflight) has to have probed the GPUs of
    others; O(look_only) says which these are.
  - Where C(vllm_target_requests) of a host asks for it, the table ends with whether the hosts of a model hold that many
    requests at once, and how many hosts of each kind would.
  - Writes each plan as C(<inventory_hostname>.json) into the folder that C(vllm_plan_dir) of the host names.
  - A host without a plan does not fail the task; it is in RV(refused).
  - Runs on the controller; use it with C(run_once).
author:
  - gpufleet contributors (@gpufleet)
attributes:
  check_mode:
    support: full
    description: Can run in check mode; then no file is written, and hosts that were not probed are left out.
  diff_mode:
    support: full
    description: Shows how the files in C(vllm_plan_dir) change.
  idempotent:
    support: full
    description: The same hosts and variables give the same plans.
options:
  hosts:
    description:
      - Names of the hosts to plan.
    type: list
    elements: str
    required: true
  look_only:
    description:
      - Only return RV(probe), and plan nothing.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Plan the fleet
  gpufleet.vllm.vllm_plans:
    hosts: "{{ ansible_play_hosts }}"
  run_once: true
  register: __plans
"""

RETURN = r"""
probe:
  description: The hosts of which no variable describes the GPUs.
  returned: when O(look_only) is set
  type: list
  elements: str
  sample: []
table:
  description: The lines of the table, the refusals and the warnings.
  returned: unless O(look_only) is set
  type: list
  elements: str
  sample: ["500 hosts: 2 kinds of plan"]
reasons:
  description: For each kind of plan, every decision with its reason.
  returned: unless O(look_only) is set
  type: list
  elements: str
  sample: ["gpu-[001:480]:", "  precision = fp8: compute capability 9.0 has no NVFP4"]
refused:
  description: The hosts without a plan, with the reason.
  returned: unless O(look_only) is set
  type: dict
  sample: {}
capacity:
  description: For each model with C(vllm_target_requests), whether its hosts hold that many requests at once.
  returned: unless O(look_only) is set
  type: list
  elements: dict
  contains:
    target_requests:
      description: The requests at once that are wanted, the largest value where the hosts differ.
      type: int
      sample: 2000
    targets:
      description: Every value that the hosts have.
      type: list
      elements: int
      sample: [2000]
    expected_lengths:
      description: Tokens of prompt and answer of a request, each pair that the hosts have.
      type: list
      elements: list
      sample: [[1024, 1024]]
    names:
      description: The names that all servers answer to, or else the first one of each.
      type: list
      elements: str
      sample: [scout]
    shared_name:
      description: Whether all servers answer to one name.
      type: bool
      sample: true
    hosts:
      description: How many hosts with a plan serve the model.
      type: int
      sample: 20
    without_plan:
      description: How many hosts of the play have no plan and are not counted.
      type: int
      sample: 0
    holds:
      description: Requests at once that all of them hold.
      type: int
      sample: 10240
    max_unavailable:
      description: C(vllm_max_unavailable).
      type: str
      sample: 25%
    out_at_once:
      description: How many hosts that means.
      type: int
      sample: 5
    holds_during_change:
      description: Requests at once that the others hold while those that hold most are out.
      type: int
      sample: 7680
    enough:
      description: Whether all hosts hold what is wanted.
      type: bool
      sample: true
    enough_during_change:
      description: Whether the others do while a change has hosts out.
      type: bool
      sample: true
    kinds:
      description: The kinds of host, the most frequent first.
      type: list
      elements: dict
      contains:
        which:
          description: The hosts.
          type: list
          elements: str
          sample: [h200-01, h200-02]
        holds:
          description: Requests at once of one such host, null where its plan does not know.
          type: int
          sample: 512
        needed:
          description: How many of such hosts alone hold what is wanted.
          type: int
          sample: 4
        needed_during_change:
          description: How many of them alone do during a change as well, null where 10,000 are too few.
          type: int
          sample: 6
        further:
          description: How many more of them the hosts of the inventory need.
          type: int
          sample: 0
        further_during_change:
          description: The same, for a change as well.
          type: int
          sample: 0
plan_files:
  description: The files that have the plans.
  returned: unless O(look_only) is set
  type: list
  elements: str
  sample: [plans/gpu-01.json]
"""
