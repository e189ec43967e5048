# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test the GPUs of a host before they serve."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_accept
short_description: Test the GPUs of a host before they serve
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs a program in a throw-away container of the serving image, on all GPUs of the plan. It writes patterns over the
    free memory and reads them back, copies within the memory, multiplies matrices in bfloat16, and has the GPUs add up
    numbers together (NCCL).
  - On a host whose plan has no GPU it does the same on the processor, in small, and two processes add up together.
  - A host on which a server of the deployment runs is refused. The GPUs have to be free.
options:
  plan:
    description:
      - The plan of the host.
    type: dict
    required: true
  image:
    description:
      - Reference of the image, which the host has.
    type: str
    required: true
  tests:
    description:
      - What to do.
    type: list
    elements: str
    choices: [memory, bandwidth, gemm, allreduce]
    default: [memory, bandwidth, gemm, allreduce]
  memory_share:
    description:
      - Share of a GPU's free memory that is tested.
    type: float
    default: 0.9
  cpu_mib:
    description:
      - MiB of memory that are tested where there is no GPU.
    type: int
    default: 64
  repeats:
    description:
      - How often each thing is measured; the median counts.
    type: int
    default: 20
  timeout:
    description:
      - Seconds after which it is ended.
    type: int
    default: 1800
  volumes:
    description:
      - Further mounts of containers with GPUs, as V(docker run --volume) takes them.
    type: list
    elements: str
    default: []
  work_dir:
    description:
      - Folder of the host for what the container reads and writes; one run at a time.
    type: path
    default: /var/lib/gpufleet/verify
  container_prefix:
    description:
      - What the container's name begins with.
    type: str
    default: vllm
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
  - gpufleet.vllm.common.docker
"""

EXAMPLES = r"""
- name: Test the GPUs
  gpufleet.vllm.vllm_accept:
    plan: "{{ vllm_plan }}"
    image: "{{ vllm_plan.image.reference }}"
"""

RETURN = r"""
gpus:
  description:
    - For each GPU C(index) in the plan's order, C(name), C(uuid), C(figures) (C(memory_gib) and C(memory_errors) (words
      of 32 bits), C(bandwidth_gbs), C(gemm_tflops)) and C(errors) (test to what went wrong).
  returned: success
  type: list
  elements: dict
  sample: [{"index": 0, "name": "processor", "uuid": "", "figures": {"bandwidth_gbs": 9.1}, "errors": {}}]
allreduce:
  description: How many GPUs added up together, C(world), and C(figures) or C(error); empty with one GPU alone.
  returned: success
  type: dict
  sample: {"world": 2, "figures": {"allreduce_gbs": 0.4}}
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 61.5
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(servers-running), V(acceptance-failed), V(job-too-slow), V(image-missing), V(busy), V(name-taken),
      V(interrupted) and V(engine-error).
  returned: failure
  type: dict
"""

import time
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import DOCKER_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import acceptance
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import resolve_image

# Nothing leaves the container, which has no network but its own.
PORT = 29500
ARGUMENTS: dict[str, Any] = {
    "plan": {"type": "dict", "required": True},
    "image": {"type": "str", "required": True},
    "tests": {
        "type": "list",
        "elements": "str",
        "choices": list(acceptance.TESTS),
        "default": list(acceptance.TESTS),
    },
    "memory_share": {"type": "float", "default": 0.9},
    "cpu_mib": {"type": "int", "default": 64},
    "repeats": {"type": "int", "default": 20},
    "timeout": {"type": "int", "default": 1800},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "work_dir": {"type": "path", "default": "/var/lib/gpufleet/verify"},
    "container_prefix": {"type": "str", "default": "vllm"},
    **DOCKER_ARGUMENTS,
}


def work(params: dict[str, Any]) -> dict[str, Any]:
    """Run the tests; return the module's result."""
    started = time.monotonic()
    plan = params["plan"]
    client = connect(params["docker_host"], params["docker_timeout"])
    acceptance.check_idle(client, params["container_prefix"])
    image = resolve_image(client, params["image"])
    options = ServerOptions(
        image=params["image"],
        image_id=image.id,
        model_source=plan["model_source"],
        device=plan["device"],
        gpu_access=plan["gpu_access"],
        network_mode="host",
        hf_home="",
        cache_dir="",
        config_dir="/etc/gpufleet",
        python_path=image.python_path,
        volumes=tuple(params["volumes"]),
    )
    request = {name: params[name] for name in ("tests", "memory_share", "cpu_mib", "repeats")}
    request.update(device="cuda" if plan["device"] == "cuda" else "cpu", port=PORT)
    with jobs.work_folder(params["work_dir"], "vllm_accept", client) as folder:
        job = acceptance.job_of(plan, options, folder, f"{params['container_prefix']}-accept")
        answer = acceptance.accept(client, job, folder, request, params["timeout"])
    return {
        "changed": False,
        "gpus": answer["gpus"],
        "allreduce": answer["allreduce"],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: work(module.params))


if __name__ == "__main__":
    main()
