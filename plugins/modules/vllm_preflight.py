# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_preflight, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_preflight
version_added: 0.1.0
short_description: Judge what would fail on a host later
description:
  - Compares what M(gpufleet.vllm.host_info) and M(gpufleet.vllm.gpu_info) told of a host with what the C(vllm_*)
    variables of the play wish for there, and returns everything that would fail, all at once.
  - Where the planner refuses, it plans again as if that were fixed, so that one refusal does not hide the next.
  - Runs on the controller and never contacts the host. The role P(gpufleet.vllm.preflight#role) uses all its stages.
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  stage:
    description:
      - V(ask) returns what M(gpufleet.vllm.host_info) should look for, V(judge) returns the findings, and V(enforce)
        fails when one of O(findings) is an error.
    type: str
    choices: [ask, judge, enforce]
    default: judge
  host_info:
    description:
      - What M(gpufleet.vllm.host_info) returned for this host.
    type: dict
    default: {}
  gpu_info:
    description:
      - What M(gpufleet.vllm.gpu_info) returned for this host. Without it the GPUs are judged by what the kernel tells.
    type: dict
    default: {}
  docker_host:
    description:
      - Address of the Docker engine.
    type: str
    default: unix:///var/run/docker.sock
  manage_engine:
    description:
      - Whether the role P(gpufleet.vllm.docker#role) may install or start an engine.
    type: bool
    default: true
  config_dir:
    description:
      - The variable C(vllm_config_dir).
    type: str
    default: ""
  state_dir:
    description:
      - The variable C(vllm_state_dir).
    type: str
    default: ""
  hf_home:
    description:
      - The variable C(vllm_hf_home).
    type: str
    default: ""
  cache_dir:
    description:
      - The variable C(vllm_cache_dir).
    type: str
    default: ""
  findings:
    description:
      - What an earlier task returned as RV(findings), with O(stage=enforce).
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Look at the host
  gpufleet.vllm.host_info:
    paths: [/var/lib/gpufleet]
    ports: [8000]
  register: host

- name: Judge it
  gpufleet.vllm.vllm_preflight:
    host_info: "{{ host }}"
  register: verdict

- name: Stop where something would fail
  gpufleet.vllm.vllm_preflight:
    stage: enforce
    findings: "{{ verdict.findings }}"
"""

RETURN = r"""
questions:
  description: What to ask of the host, as options of M(gpufleet.vllm.host_info).
  returned: with O(stage=ask)
  type: dict
  sample:
    image_reference: vllm/vllm-openai:v0.12.0
    image_alternatives: [vllm/vllm-openai:v0.26.0]
    registry: vllm/vllm-openai:v0.12.0
    hub: https://huggingface.co/nvidia/Llama-4-Scout-17B-16E-Instruct-FP8/resolve/main/config.json
    weights_paths:
      - /var/lib/gpufleet/huggingface/hub/models--nvidia--Llama-4-Scout-17B-16E-Instruct-FP8
findings:
  description: What was found, errors first.
  returned: with O(stage=judge)
  type: list
  elements: dict
  contains:
    name:
      description: The kind of finding.
      type: str
      sample: driver-too-old
    severity:
      description: V(error) (the deployment would fail), V(warning) (it would work, but badly or by luck) or V(info).
      type: str
      sample: error
    found:
      description: What was found.
      type: str
      sample: The driver is 570.172.08.
    needed:
      description: What is needed instead; empty when nothing is.
      type: str
      sample: driver 575 or newer (vllm_min_driver is 575)
    remedy:
      description: The command or variable that fixes it; empty when nothing needs fixing.
      type: str
      sample: Install driver 575 or newer and reboot, or set vllm_image_tag to a vLLM with an older CUDA.
    item:
      description: Which of several of that kind on one host; empty where there can be one only.
      type: str
      sample: ""
errors:
  description: How many of RV(findings) are errors.
  returned: with O(stage=judge)
  type: int
  sample: 1
orphans:
  description: What servers of this collection left on the GPUs, as M(gpufleet.vllm.vllm_orphans) takes it.
  returned: with O(stage=judge)
  type: list
  elements: dict
  sample:
    - {pid: 4242, gpu: 0, used_mib: 120000, replica: vllm-0, container: "", why: the container of vllm-0 is gone}
error:
  description: The refusal, with C(name) V(preflight-failed) and the findings in its C(details).
  returned: on failure
  type: dict
  sample: {"name": "preflight-failed", "details": {"findings": []}}
"""
