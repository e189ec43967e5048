# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_tune, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_tune
version_added: 0.2.0
short_description: Decide which settings a sweep measures on a host, and tell which win
description:
  - The steps of a sweep that need no host. V(arrange) plans the candidates and says how long they take, V(note) keeps
    what was found of one, and V(report) writes the report and the winner's variables. V(stopped) and V(started) keep
    whether the host's own servers are stopped for it, V(look) tells whether they are, and V(kernels) whether a plan has
    kernels that can be tuned.
  - What was found is kept in a file below O(state_dir), a folder for each host, so that a sweep that was interrupted
    goes on where it stopped. A candidate whose server did not start is kept with its diagnosis.
  - Runs on the controller; the role P(gpufleet.vllm.tune#role) uses it.
author:
  - gpufleet contributors (@gpufleet)
attributes:
  check_mode:
    support: full
    description: In check mode nothing is kept.
  diff_mode:
    support: N/A
    description: Only its own notes and reports change.
  idempotent:
    support: full
    description: The same step with the same state has the same result.
options:
  step:
    description:
      - What to do.
    type: str
    required: true
    choices: [arrange, kernels, stopped, look, started, note, report]
  state_dir:
    description:
      - Folder on the controller for what is found.
    type: str
    required: true
  settings:
    description:
      - For V(arrange) and V(report), what is looked for and how it is measured, the role's variables C(vllm_goal) and
        C(vllm_tune_*) as C(goal), C(sizes), C(sequences), C(tokens), C(levers), C(concurrency), C(waves), C(input_len),
        C(output_len), C(runs), C(timeout), C(max_candidates), C(margin) and C(again).
    type: dict
    default: {}
  plan:
    description:
      - The plan of the host by its inventory.
    type: dict
    default: {}
  gpu_info:
    description:
      - What M(gpufleet.vllm.gpu_info) returned.
    type: dict
    default: {}
  host_info:
    description:
      - What M(gpufleet.vllm.host_info) returned.
    type: dict
    default: {}
  info:
    description:
      - For V(arrange), what M(gpufleet.vllm.vllm_server_info) returned.
    type: dict
    default: {}
  ca_bundle:
    description:
      - For V(arrange), C(vllm_ca_bundle).
    type: str
    default: ""
  prefix:
    description:
      - For V(arrange), what the names of candidates' containers begin with.
    type: str
    default: vllm-tune
  can_drain:
    description:
      - For V(arrange), whether the host may be stopped though it serves.
    type: bool
    default: false
  arranged:
    description:
      - For V(report), what V(arrange) returned.
    type: dict
    default: {}
  candidate:
    description:
      - For V(note), the candidate, as V(arrange) returned it.
    type: dict
    default: {}
  server:
    description:
      - For V(note), what M(gpufleet.vllm.vllm_server) returned for it.
    type: dict
    default: {}
  benchmarks:
    description:
      - For V(note), what M(gpufleet.vllm.vllm_benchmark) returned for it, an entry for each load.
    type: list
    elements: dict
    default: []
  failure:
    description:
      - For V(note), the result of the task that failed for it, where one did.
    type: dict
    default: {}
  secrets:
    description:
      - Texts that must not be in the report.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Decide what to measure
  gpufleet.vllm.vllm_tune:
    step: arrange
    state_dir: reports/tune
    settings: "{{ settings }}"
    plan: "{{ vllm_plan }}"
    info: "{{ servers }}"
  register: arranged
"""

RETURN = r"""
candidates:
  description: With V(arrange), every candidate, C(name), C(digest), C(variables), C(plan), C(target) and C(loads).
  returned: success
  type: list
  elements: dict
  sample: [{"name": "TP 2, sequences 256", "digest": "0c37c43dd3a0f8f9", "loads": [64, 128, 256], "done": false}]
open:
  description: With V(arrange), those of them that are not measured yet.
  returned: success
  type: list
  elements: dict
  sample: []
refused:
  description: With V(arrange), combinations that the planner refuses, C(name) and C(why).
  returned: success
  type: list
  elements: dict
  sample: [{"name": "TP 1", "why": "The weights do not fit."}]
serves:
  description: With V(arrange) and V(kernels), whether the host served before.
  returned: success
  type: bool
  sample: true
ca_bundle:
  description: With V(arrange), file of the host with the authorities that containers get; empty for none.
  returned: success
  type: str
  sample: ""
timeout:
  description: With V(arrange), seconds for the start of a candidate, and for each load.
  returned: success
  type: int
  sample: 1800
runs:
  description: With V(arrange), how often each load is measured.
  returned: success
  type: int
  sample: 1
input_len:
  description: With V(arrange), tokens of each prompt.
  returned: success
  type: int
  sample: 1024
output_len:
  description: With V(arrange), tokens of each answer.
  returned: success
  type: int
  sample: 1024
why:
  description: With V(kernels), why there are none to tune; empty where there may be.
  returned: success
  type: str
  sample: its servers run on processors
sizes:
  description: With V(kernels), the sizes of tensor parallelism to tune for.
  returned: success
  type: list
  elements: int
  sample: [1, 2]
stopped:
  description: With V(look), whether the host's own servers are stopped for a sweep.
  returned: success
  type: bool
  sample: false
winner:
  description: With V(report), C(name) and C(variables) of the candidate that wins; empty where none does.
  returned: success
  type: dict
  sample: {"name": "TP 2, sequences 256", "variables": {"vllm_tensor_parallel_size": 2, "vllm_max_num_seqs": 256}}
report:
  description: With V(report), path of the page.
  returned: success
  type: str
  sample: /home/me/reports/tune/gpu-01/tune.html
group_vars:
  description: With V(report), path of the file with the winner's variables; empty where none wins.
  returned: success
  type: str
  sample: /home/me/reports/tune/gpu-01/group_vars.yml
unfinished:
  description: With V(report), names of the candidates that were not measured.
  returned: success
  type: list
  elements: str
  sample: []
lines:
  description: What was shown.
  returned: success
  type: list
  elements: str
  sample: ["[gpu-01] 6 candidates; looked for: the most output tokens/s"]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(host-serves), V(cannot-be-put-back), V(too-many-candidates),
      V(tune-state-unreadable), V(tune-not-written), V(invalid-wishes) and those of M(gpufleet.vllm.vllm_plan).
  returned: failure
  type: dict
"""
