# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_verify_targets, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_verify_targets
version_added: 0.2.0
short_description: Decide which servers of a host a verification tries, and with what
description:
  - These are the replicas of the plan that was applied, or the server at O(url).
  - Runs on the controller; the role P(gpufleet.vllm.verify#role) uses it before its stages.
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  plan:
    description:
      - The plan that was applied, as M(gpufleet.vllm.vllm_server_info) returns it. Not read where O(url) is given.
    type: dict
    default: {}
  gpu_info:
    description:
      - What M(gpufleet.vllm.gpu_info) returned.
    type: dict
    default: {}
  host_info:
    description:
      - What M(gpufleet.vllm.host_info) returned. Its C(ca_bundle) is the file of authorities where O(ca_bundle) is
        V(auto).
    type: dict
    default: {}
  url:
    description:
      - Base address of a server to verify instead of the plan's.
    type: str
    default: ""
  url_ca:
    description:
      - File of the host with the authorities to trust with O(url).
    type: str
    default: ""
  ca_bundle:
    description:
      - File of the host with the authorities that containers trust; V(auto) for the one that pip trusts there.
    type: str
    default: ""
  image:
    description:
      - Image in which the stages run; empty for the plan's.
    type: str
    default: ""
  served_model_name:
    description:
      - Name of the model of the server at O(url), or a list of its names.
    type: raw
    default: ""
  environment:
    description:
      - Variables of the containers in which the server at O(url) is measured.
    type: dict
    default: {}
  floors:
    description:
      - The lowest acceptable scores by precision, task and metric; those of the precision C(any) count for each.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Read what is deployed
  gpufleet.vllm.vllm_server_info:
  register: info

- name: Decide what to verify
  gpufleet.vllm.vllm_verify_targets:
    plan: "{{ info.plan }}"
  register: decided

- name: Ask each server for a completion
  gpufleet.vllm.vllm_completion:
    url: "{{ item.url }}"
    model: "{{ item.model }}"
  loop: "{{ decided.targets }}"
"""

RETURN = r"""
targets:
  description:
    - The servers, each with C(name), C(url), C(model), C(gpus) (indices on the host), C(environment), C(concurrency)
      (how many requests it takes at once, as a list), C(max_model_len) (0 where it is not a number), C(hardware) and
      C(plan). By the last two its figures are compared with those of others.
  returned: always
  type: list
  elements: dict
  sample:
    - name: vllm-0
      url: http://127.0.0.1:8000
      model: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
      gpus: [0]
      environment: {}
      concurrency: [512]
      max_model_len: 131072
      hardware: {gpus: [NVIDIA H200], driver: 580.159.04}
      plan:
        profile: recipe
        precision: fp8
        vllm_version: 0.12.0
        tensor_parallel_size: 1
        config: {max-model-len: 131072}
        environment: {}
plan:
  description: The plan; empty with O(url).
  returned: always
  type: dict
  sample: {}
image:
  description: Image in which the stages run; empty where none is known.
  returned: always
  type: str
  sample: vllm/vllm-openai:deploy
model_source:
  description: Where the plan's model is; empty with O(url).
  returned: always
  type: dict
  sample: {kind: hub, location: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8}
ca_path:
  description: File of the host with the authorities by which a server's certificate is checked; empty for the system's.
  returned: always
  type: str
  sample: ""
ca_bundle:
  description: File of the host with the authorities that containers trust; empty for none.
  returned: always
  type: str
  sample: /etc/ssl/certs/ca-certificates.crt
floors:
  description: The lowest acceptable scores, by task and metric.
  returned: always
  type: dict
  sample: {gsm8k: {"exact_match,strict-match": 0.8779}}
gpus:
  description: Names of all GPUs of the host.
  returned: always
  type: list
  elements: str
  sample: [NVIDIA H200]
driver:
  description: Version of the driver; empty without GPUs.
  returned: always
  type: str
  sample: 580.159.04
"""
