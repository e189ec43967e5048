# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tune the Triton kernels of a model's experts on a GPU of the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_moe_tables
short_description: Tune the Triton kernels of a model's experts on a GPU of the host
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - vLLM computes the experts of a model by Triton kernels in tiles, whose best shape depends on the GPU, on the sizes
    of the experts and on the number of tokens. It takes them from a table, and guesses where it has none.
  - Makes such tables in a throw-away container of the serving image, on the first GPU of the plan, in minutes. Several
    processes compile the tilings, one measures them.
  - A tiling is kept for a number of tokens only where the numbers that it computes agree with those of vLLM's own
    choice (O(tolerance)), and it is faster than that by O(margin) in the median of O(rounds) and in each of them, both
    being measured in turns.
  - The action plugin puts each table into O(tables_dir) on the controller, with a file beside it that says where it
    comes from.
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
  sizes:
    description:
      - Sizes of tensor parallelism to make a table for; each GPU has that part of every expert. One GPU is enough.
    type: list
    elements: int
    required: true
  tokens:
    description:
      - Numbers of tokens to tune for. vLLM takes the entry that is nearest.
    type: list
    elements: int
    default: [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192]
  workers:
    description:
      - Processes that compile. Two fewer than the host has processors, 16 at most, when it is V(0).
    type: int
    default: 0
  tolerance:
    description:
      - The largest difference of a number from what vLLM's own choice computes, as a share of the largest of these.
    type: float
    default: 0.02
  margin:
    description:
      - The least gain in speed, as a share.
    type: float
    default: 0.02
  rounds:
    description:
      - How often a tiling and vLLM's own choice are measured, in turns.
    type: int
    default: 5
  timeout:
    description:
      - Seconds after which it is given up.
    type: int
    default: 3600
  hf_home:
    description:
      - Folder of the Hugging Face cache.
    type: path
    default: /var/lib/gpufleet/huggingface
  cache_dir:
    description:
      - Folder of the servers' compile caches.
    type: path
    default: /var/lib/gpufleet/cache
  volumes:
    description:
      - Further mounts of the servers, as C(docker run --volume) takes them.
    type: list
    elements: str
    default: []
  work_dir:
    description:
      - Folder of the host to work in.
    type: path
    default: /var/lib/gpufleet/verify
  container_prefix:
    description:
      - What the name of the container begins with.
    type: str
    default: vllm
  tables_dir:
    description:
      - Folder on the controller for the tables. Empty keeps none.
    type: str
    default: ""
extends_documentation_fragment:
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
attributes:
  check_mode:
    support: none
    description: Cannot run in check mode.
  diff_mode:
    support: none
    description: Nothing of the host is changed.
  idempotent:
    support: none
    description: Each run measures anew.
seealso:
  - module: gpufleet.vllm.vllm_tune
"""

EXAMPLES = r"""
- name: Make tables for one and for two GPUs
  gpufleet.vllm.vllm_moe_tables:
    plan: "{{ vllm_plan }}"
    image: "{{ vllm_plan.image.reference }}"
    sizes: [1, 2]
    tables_dir: moe-tables
"""

RETURN = r"""
tables:
  description:
    - C(name) of the file as vLLM looks for it, C(table), and C(provenance), which is C(cards) and C(vllm), further
      versions, date, shape, and for each number of tokens the time before and after, the gain, and how many tilings
      were tried and rejected.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "E=16,N=8192,device_name=NVIDIA_H200,dtype=fp8_w8a8.json", "provenance": {"tilings": 352}}]
why:
  description: Why there is no table; empty where there is one.
  returned: success
  type: str
  sample: ""
written:
  description: Files on the controller, by the action plugin. A table in which nothing is faster is not written.
  returned: success
  type: list
  elements: str
  sample: [/home/me/reports/tune/moe-tables/E=16,N=8192,device_name=NVIDIA_H200,dtype=fp8_w8a8.json]
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 183.0
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(tuning-failed), V(job-too-slow), V(image-missing), V(busy), V(name-taken), V(interrupted),
      V(tables-not-written) and V(engine-error).
  returned: failure
  type: dict
"""

import os
import time
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import (
    DOCKER_ARGUMENTS,
    PROGRESS_ARGUMENTS,
    GpufleetModule,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import kernel_tuning
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import resolve_image

ARGUMENTS: dict[str, Any] = {
    "plan": {"type": "dict", "required": True},
    "image": {"type": "str", "required": True},
    "sizes": {"type": "list", "elements": "int", "required": True},
    "tokens": {
        "type": "list",
        "elements": "int",
        "default": [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192],
        "no_log": False,
    },
    "workers": {"type": "int", "default": 0},
    "tolerance": {"type": "float", "default": 0.02},
    "margin": {"type": "float", "default": 0.02},
    "rounds": {"type": "int", "default": 5},
    "timeout": {"type": "int", "default": 3600},
    "hf_home": {"type": "path", "default": "/var/lib/gpufleet/huggingface"},
    "cache_dir": {"type": "path", "default": "/var/lib/gpufleet/cache"},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "work_dir": {"type": "path", "default": "/var/lib/gpufleet/verify"},
    "container_prefix": {"type": "str", "default": "vllm"},
    "tables_dir": {"type": "str", "default": ""},
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def request_of(params: dict[str, Any]) -> dict[str, Any]:
    """Return what the program is asked, from the module's options."""
    plan = params["plan"]
    return {
        "model": plan["model_source"]["argument"],
        "precision": plan["precision"],
        "workers": params["workers"] or kernel_tuning.workers_for(os.cpu_count() or 1),
        **{name: params[name] for name in ("sizes", "tokens", "tolerance", "margin", "rounds")},
    }


def work(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Make the tables; return the module's result."""
    started = time.monotonic()
    plan = params["plan"]
    client = connect(params["docker_host"], params["docker_timeout"])
    image = resolve_image(client, params["image"])
    options = ServerOptions(
        image=params["image"],
        image_id=image.id,
        model_source=plan["model_source"],
        device="cuda",
        gpu_access=plan["gpu_access"],
        network_mode="host",
        hf_home=params["hf_home"],
        cache_dir=params["cache_dir"],
        config_dir="/etc/gpufleet",
        python_path=image.python_path,
        volumes=tuple(params["volumes"]),
    )
    name = f"{params['container_prefix']}-moe-tables"
    with jobs.work_folder(params["work_dir"], "vllm_moe_tables", client) as folder:
        job = kernel_tuning.job_of(plan, options, folder, name)
        answer = kernel_tuning.tune(client, job, folder, request_of(params), params["timeout"], progress)
    return {
        "changed": False,
        "tables": answer["tables"],
        "why": answer.get("why", ""),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS)
    module.require("docker", "requests")
    module.run(lambda: work(module.params, Progress(module.params["progress_file"])))


if __name__ == "__main__":
    main()
