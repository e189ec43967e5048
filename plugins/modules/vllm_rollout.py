# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_rollout, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_rollout
version_added: 0.1.0
short_description: Decide which hosts of a fleet are changed when, and whether to go on
description:
  - The steps of a rolling change that need no host. V(arrange) puts the hosts in an order and cuts it into batches,
    V(note) keeps what became of one host, V(judge) tells whether to go on, and V(tell) says how it ended.
  - What is known of a rollout is kept in files below O(state_dir), one for each host, so that one that was interrupted
    goes on where it stopped. When it has ended, they are replaced by C(last.json).
  - Kinds of plan are mixed, so that every kind comes up early. Hosts whose turn an interrupted run had begun come
    first.
  - Runs on the controller; the role P(gpufleet.vllm.rollout#role) uses it.
author:
  - gpufleet contributors (@gpufleet)
attributes:
  check_mode:
    support: full
    description: In check mode nothing is kept.
  diff_mode:
    support: N/A
    description: Only its own notes change.
  idempotent:
    support: full
    description: The same step with the same state has the same result.
options:
  step:
    description:
      - What to do.
    type: str
    required: true
    choices: [arrange, note, judge, tell]
  state_dir:
    description:
      - Folder on the controller for what is known of the rollout.
    type: str
    required: true
  hosts:
    description:
      - For V(arrange), the hosts that answered, each with C(plan) (what the inventory wishes for it), C(changes) (why
        its servers would be replaced, empty for nothing to do) and C(error) (why it cannot be changed).
    type: dict
    default: {}
  all_hosts:
    description:
      - For V(arrange), every host of the rollout; those that are not among O(hosts) were not reachable.
    type: list
    elements: str
    default: []
  batches:
    description:
      - For V(arrange), numbers of hosts, or shares of all that are to be changed such as V(10%), of which each gives
        one host at least. The last one counts for all further batches. The first batch is the canary.
    type: list
    elements: raw
    default: []
  max_failures:
    description:
      - For V(arrange), how many hosts may fail, as a number or a share such as V(5%), before the rollout is stopped.
        A canary that fails always stops it.
    type: raw
    default: 0
  host:
    description:
      - For V(note), the host.
    type: str
    default: ""
  state:
    description:
      - For V(note), what became of it.
    type: str
    choices: [begun, done, failed, rolled-back]
  why:
    description:
      - For V(note), why it failed.
    type: str
    default: ""
  before:
    description:
      - For V(note), what the host had, kept the first time only; C(deployment) is the id in its history.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Arrange the rollout
  gpufleet.vllm.vllm_rollout:
    step: arrange
    state_dir: reports/rollout
    hosts: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, ['prepared']))) }}"
    all_hosts: "{{ ansible_play_hosts_all }}"
    batches: [1, 10%, 30%, 100%]
  run_once: true
  register: rollout
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: for V(arrange) and V(tell)
  type: list
  elements: str
  sample: ["200 hosts: 200 to change in 4 batches (1, 20, 60, 119)"]
order:
  description: The hosts to change, in the order of their turns.
  returned: for V(arrange)
  type: list
  elements: str
  sample: [gpu-001, gpu-002]
serial:
  description: The sizes of the batches, as a play's C(serial) takes them.
  returned: for V(arrange) and V(judge)
  type: list
  elements: int
  sample: [1, 20, 60, 119]
canaries:
  description: The hosts of the first batch of the whole rollout.
  returned: for V(arrange)
  type: list
  elements: str
  sample: [gpu-001]
done:
  description: Hosts that this rollout had changed before it was interrupted.
  returned: for V(arrange)
  type: list
  elements: str
  sample: []
same:
  description: Hosts on which there is nothing to do.
  returned: for V(arrange)
  type: list
  elements: str
  sample: []
refused:
  description: Hosts that cannot be changed, with the reason.
  returned: for V(arrange)
  type: dict
  sample: {}
not_reached:
  description: Hosts that did not answer.
  returned: for V(arrange)
  type: list
  elements: str
  sample: []
stop:
  description: Why the rollout does not begin or go on; empty when it does.
  returned: for V(arrange), V(judge) and V(tell)
  type: str
  sample: ""
bring_back:
  description: Hosts that a stopped rollout has changed.
  returned: for V(arrange) and V(judge)
  type: list
  elements: str
  sample: []
before:
  description: What the host had before the rollout.
  returned: for V(note)
  type: dict
  sample: {"deployment": 20261122-165501}
canary:
  description: Whether the host is one of the canaries.
  returned: for V(note)
  type: bool
  sample: false
failed_hosts:
  description: Hosts that failed.
  returned: for V(tell)
  type: list
  elements: str
  sample: []
left:
  description: Hosts whose turn has not come or not ended.
  returned: for V(tell)
  type: list
  elements: str
  sample: []
"""
