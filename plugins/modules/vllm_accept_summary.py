# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_accept_summary, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_accept_summary
version_added: 0.2.0
short_description: Show what the test of a fleet's GPUs found
description:
  - Prints what each GPU does, and names those that are slow or broken. A GPU is compared with the median of those of
    its name in the whole fleet, where there are three at least, and with what such a card is known to reach.
  - Runs on the controller; use it with C(run_once).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  hosts:
    description:
      - Host names to what M(gpufleet.vllm.vllm_accept) returned there; of a host that failed, its C(msg) alone.
    type: dict
    required: true
  tolerance:
    description:
      - Share of the median by which a GPU may be slower.
    type: float
    default: 0.1
"""

EXAMPLES = r"""
- name: Show the fleet
  gpufleet.vllm.vllm_accept_summary:
    hosts: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'accepted'))) }}"
  run_once: true
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: always
  type: list
  elements: str
  sample: ["2 of 2 hosts accepted"]
failed:
  description: Hosts that are not accepted, each with the reason.
  returned: always
  type: dict
  sample: {"gpu-07": "GPU 3 (NVIDIA H200) is slow: 512 TFLOP/s, the fleet's median is 741"}
slow:
  description: GPUs that are slow, by host and name.
  returned: always
  type: list
  elements: str
  sample: ["gpu-07 GPU 3 (NVIDIA H200)"]
medians:
  description: For each name of a card the median of each figure, where there are three cards at least.
  returned: always
  type: dict
  sample: {"NVIDIA H200": {"gemm_tflops": 741.2}}
"""
