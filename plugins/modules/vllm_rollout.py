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
  - The steps of a rolling change that need no host. V(describe) puts into words what the preparation of a host found.
    V(arrange) puts the hosts in an order and cuts it into batches, V(note) keeps what became of one host,
    V(check_gates) says whether a canary was held against anything, V(judge) tells whether to go on, and V(tell) says
    how it ended. V(way_back) tells how far a host goes back to be as it was before the last rollout.
  - What is known of a rollout is kept in files below O(state_dir), one for each host, so that one that was interrupted
    goes on where it stopped. When it has ended, they are replaced by C(last.json), but for hosts that failed and could
    not be brought back.
  - Kinds of plan are mixed, so that every kind comes up early. First come hosts whose turn an earlier run had begun, or
    that it left without requests, and then those that do not serve.
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
    choices: [describe, arrange, note, check_gates, judge, tell, way_back]
  state_dir:
    description:
      - Folder on the controller for what is known of the rollout.
    type: str
    required: true
  hosts:
    description:
      - For V(arrange), the hosts that answered, each with C(plan) (what the inventory wishes for it), C(changes) (why
        its servers would be replaced, empty for nothing to do) and C(error) (why it cannot be changed).
      - It may also have C(serves) (whether a server of it serves now), C(note) (what people should know), and C(gates),
        which is what its verification would be held against, as C(floors), C(limits) and C(baseline_for).
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
  left_by:
    description:
      - For V(arrange), who has left a host out of the router, as a list for each host. Such a host has its turn
        whatever is to be changed.
    type: dict
    default: {}
  routed:
    description:
      - For V(arrange), whether there is a router, so that hosts that are not in O(left_by) get requests. Then an
        earlier rollout that another playbook has brought to its end is over, and a new one begins.
    type: bool
    default: false
  stages:
    description:
      - For V(arrange) and V(check_gates), stages of the verification of a canary.
    type: list
    elements: str
    default: []
  baseline_dir:
    description:
      - For V(arrange), folder on the controller with stored benchmarks.
    type: str
    default: ""
  require_gates:
    description:
      - For V(arrange), change nothing where a canary would be held against nothing. For V(check_gates), fail where it
        was.
    type: bool
    default: false
  host:
    description:
      - For V(note) and V(way_back), the host.
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
      - For V(note) at the beginning of a turn, what the host has until then, of V(describe). Where that is what an
        interrupted turn of this rollout has made, what the host had before that turn is kept.
    type: dict
    default: {}
  settled:
    description:
      - For V(note) at the beginning of a turn, whether the host gets requests. Then O(before) counts in any case.
    type: bool
    default: false
  after:
    description:
      - For V(note), what the host has now, as O(before).
    type: dict
    default: {}
  out:
    description:
      - For V(note), whether the router keeps requests from the host from now on.
    type: bool
    default: false
  undoes:
    description:
      - For V(note) in a rollback, the O(state_dir) of the rollout that it takes back. The turn of a host that is back
        is over there.
    type: str
    default: ""
  ungated:
    description:
      - For V(note), stages whose figures were held against nothing.
    type: list
    elements: str
    default: []
  plan:
    description:
      - For V(describe), the plan that the host is to serve; empty for a host that goes back.
    type: dict
    default: {}
  info:
    description:
      - For V(describe) and V(way_back), what M(gpufleet.vllm.vllm_server_info) returned.
    type: dict
    default: {}
  rehearsed:
    description:
      - For V(describe), what M(gpufleet.vllm.vllm_server) returned in check mode; empty for a host that stays as it is.
    type: dict
    default: {}
  floors:
    description:
      - For V(describe), the lowest acceptable scores by precision, task and metric; those of the precision C(any) count
        for each.
    type: dict
    default: {}
  tasks:
    description:
      - For V(describe), the tasks of lm_eval that are run.
    type: list
    elements: str
    default: []
  limits:
    description:
      - For V(describe), the figures of the benchmark that have a floor or a ceiling.
    type: list
    elements: str
    default: []
  accuracy:
    description:
      - For V(check_gates), the results of M(gpufleet.vllm.vllm_accuracy), one for each server.
    type: list
    elements: dict
    default: []
  performance:
    description:
      - For V(check_gates), the results of M(gpufleet.vllm.vllm_benchmark), one for each server.
    type: list
    elements: dict
    default: []
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
  description:
    - What the host had before the rollout, C(deployment) (its id in the host's history) and C(baseline_for), the parts
      by which a stored benchmark of it is found.
  returned: for V(describe) and V(note)
  type: dict
  sample: {"deployment": 20261122-165501}
changes:
  description: Why servers would be replaced, and which would be removed.
  returned: for V(describe)
  type: list
  elements: str
  sample: ["config.max-num-seqs: 256 -> 128"]
serves:
  description: Whether a server of the host serves.
  returned: for V(describe)
  type: bool
  sample: true
gates:
  description: What the verification of the host would be held against, C(floors), C(limits) and C(baseline_for).
  returned: for V(describe) with O(plan)
  type: dict
  sample: {"floors": [gsm8k], "limits": [], "baseline_for": {}}
ungated:
  description: Stages that had nothing to hold the results of a canary against.
  returned: for V(check_gates)
  type: list
  elements: str
  sample: [accuracy had no floor]
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
to:
  description: The deployment to go back to; empty for the last that served something else than what runs.
  returned: for V(way_back)
  type: str
  sample: 20261122-165501
stays:
  description: Whether there is nothing to go back from; RV(to) is what the host serves.
  returned: for V(way_back)
  type: bool
  sample: false
why:
  description: What people should know of that.
  returned: for V(way_back)
  type: str
  sample: goes back to what it served before the rollout that began at 2026-11-22T16:55:01+00:00
"""
