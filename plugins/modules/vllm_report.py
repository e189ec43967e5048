# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_report
version_added: 0.1.0
short_description: Write the report of a verification run over all hosts
description:
  - Writes C(report.html), one file that needs nothing else and opens offline, and C(report.json), and prints a summary.
  - Both hold what was deployed and why, start-up phases, accuracy against its floors, throughput against latency, the
    servers that differ from their equals, and failures first.
  - Plots are drawn by matplotlib on the controller, as pictures inside the page without any script. Where it is not
    installed, the report has only its tables, and says so.
  - Runs on the controller; use it with C(run_once). It does not fail when the verification did, so that what follows
    can; see C(failed_hosts).
  - Where no stage has a result, nothing was verified. Then every host is among C(failed_hosts), and the files of an
    earlier run are left as they are.
author:
  - gpufleet contributors (@gpufleet)
options:
  hosts:
    description:
      - Host names to what role C(gpufleet.vllm.verify) found there, an empty one for a host that was not reached.
    type: dict
    required: true
  report_dir:
    description:
      - Folder on the controller, made if it is not there.
    type: str
    required: true
  outlier_tolerance:
    description:
      - Servers that were measured alike are named when their throughput is off the median by more than this share.
    type: float
    default: 0.1
  tags:
    description:
      - The tags that the run was asked for, told where nothing was verified.
    type: list
    elements: str
    default: []
  keep_earlier:
    description:
      - Print the summary alone and leave the files of an earlier run as they are, as for a run of one small stage.
    type: bool
    default: false
  secrets:
    description:
      - Texts that must not be in the report, should a server or program have repeated one.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: In check mode nothing is written.
  diff_mode:
    support: N/A
    description: Reports are results, not state.
  idempotent:
    support: N/A
    description: A report is written anew each time.
notes:
  - Needs matplotlib on the controller for plots.
"""

EXAMPLES = r"""
- name: Write the report
  gpufleet.vllm.vllm_report:
    hosts: "{{ dict(ansible_play_hosts_all | zip(found)) }}"
    report_dir: reports
    secrets: ["{{ vllm_api_key }}"]
  vars:
    found: "{{ ansible_play_hosts_all | map('extract', hostvars, '__verify_outcome') | map('default', {}) }}"
  run_once: true
"""

RETURN = r"""
verdict:
  description: V(passed), V(failed) or V(nothing verified).
  returned: always
  type: str
  sample: passed
failed_hosts:
  description: Hosts whose verification failed, each with the reason; all of them where nothing was verified.
  returned: always
  type: dict
  sample: {"gpu-02": "1 gate failed: gsm8k exact_match,strict-match = 0.8512 ± 0.0098, floor 0.8779"}
report:
  description: Path of the page; empty when it was not written.
  returned: always
  type: str
  sample: /home/me/reports/report.html
summary:
  description: The lines that were printed.
  returned: always
  type: list
  elements: str
  sample: ["Verification passed on all 12 hosts"]
"""
