# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find how the GPUs of a host reach containers of the image that will serve."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_gpu_access
short_description: Find how GPUs reach containers of the image that will serve
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Tries the ways of giving GPUs to a container in the plan's own image, with the servers' mounts, environment and
    GPUs, and returns the plan with the first way by which CUDA and NVML start there and see exactly those GPUs.
  - Each attempt is a container without a network that is removed at once. It takes no memory of a GPU, so that servers
    which run are not disturbed.
  - With a way named in the plan only that one is tried, so that one which cannot work fails before a server is touched.
  - What was found is kept in O(config_dir) with all that it depends on, which is image, driver, GPUs, container
    toolkit, engine, its runtimes and CDI specifications, mounts and environment. While these stay the same, nothing is
    tried again.
  - A plan for processors, and one with the access V(none), is returned as it is.
options:
  plan:
    description:
      - The plan. Its C(gpu_access) is the wish, C(auto) or one of the ways C(gpus), C(cdi), C(runtime) and C(devices).
    type: dict
    required: true
  volumes:
    description:
      - Further mounts of the servers, as C(docker run --volume) takes them.
    type: list
    elements: str
    default: []
  config_dir:
    description:
      - Folder of the host in which to keep what was found, as C(gpu-access.json).
    type: path
    default: /etc/gpufleet
  container_prefix:
    description:
      - What the names of the containers begin with.
    type: str
    default: vllm
attributes:
  check_mode:
    support: partial
    description: Can run in check mode and return the way without making a container.
    details:
      - In check mode the way is the one found before, or else stays as it was wished.
  diff_mode:
    support: none
    description: What is kept on the host is no configuration.
  idempotent:
    support: full
    description: A second run on an unchanged host tries nothing and changes nothing.
extends_documentation_fragment:
  - gpufleet.vllm.common.docker
seealso:
  - module: gpufleet.vllm.vllm_gpu_check
  - module: gpufleet.vllm.vllm_server
"""

EXAMPLES = r"""
- name: Find how GPUs reach the containers
  gpufleet.vllm.vllm_gpu_access:
    plan: "{{ vllm_plan }}"
  register: access

- name: Tell it
  ansible.builtin.debug:
    msg: "{{ access.gpu_access }}, because of {{ access.reason }}"

- name: Write a configuration that goes this way
  gpufleet.vllm.vllm_config:
    plan: "{{ access.plan }}"
"""

RETURN = r"""
gpu_access:
  description: The way that works; the wish itself where nothing was tried.
  returned: success
  type: str
  sample: cdi
reason:
  description: Why it was chosen, for people; empty where nothing was tried.
  returned: success
  type: str
  sample: "gpus: CUDA does not start in the container; cdi: CUDA and NVML see exactly the 8 GPU(s) given"
ways:
  description: What came of each way that was tried, in order.
  returned: success
  type: list
  elements: dict
  contains:
    way:
      description: C(gpus), C(cdi), C(runtime) or C(devices).
      type: str
      sample: gpus
    works:
      description: Whether CUDA and NVML in the container see exactly the GPUs it was given.
      type: bool
      sample: false
    said:
      description: What was seen, or what is wrong.
      type: str
      sample: CUDA does not start in the container. The driver and the image's CUDA libraries do not go together.
    name:
      description: Name of the cause if it does not work; else empty.
      type: str
      sample: driver-mismatch
    remedy:
      description: What fixes the way; else empty.
      type: str
      sample: Reboot the host if its driver was just updated.
    evidence:
      description: The text that proves the cause; else empty.
      type: str
      sample: "cuInit: Error 803: system has unsupported display driver / cuda driver combination"
tried:
  description: Whether containers were made; not when what was found before still holds.
  returned: success
  type: bool
  sample: false
plan:
  description: The plan with C(gpu_access) and the decision for it.
  returned: success
  type: dict
  sample: {"gpu_access": "cdi"}
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details); C(details.ways) is as RV(ways).
    - Names are V(no-gpu-access) (no way works), V(gpu-access-broken) (the wished one does not), V(image-missing),
      V(write-failed), V(engine-not-running) and V(engine-error).
  returned: failure
  type: dict
"""

import dataclasses
import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import DOCKER_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import access, access_record
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import tool
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import resolve_image

ARGUMENTS: dict[str, Any] = {
    "plan": {"type": "dict", "required": True},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "config_dir": {"type": "path", "default": "/etc/gpufleet"},
    "container_prefix": {"type": "str", "default": "vllm"},
    **DOCKER_ARGUMENTS,
}


def result_of(plan: Plan, outcomes: list[access_record.Outcome], *, tried: bool, changed: bool) -> dict[str, Any]:
    """Return the module's result: with outcomes, the plan has the way of the last."""
    found = access_record.recorded(plan, outcomes) if outcomes else plan
    return {
        "changed": changed,
        "gpu_access": found.get("gpu_access", ""),
        "reason": access_record.reason_of(outcomes),
        "ways": [dataclasses.asdict(outcome) for outcome in outcomes],
        "tried": tried,
        "plan": found,
    }


def work(module: GpufleetModule) -> dict[str, Any]:
    """Find the way, or take the one found before, and return the module's result."""
    params = module.params
    plan = params["plan"]
    wish = plan.get("gpu_access") or "auto"
    if plan.get("device") != "cuda" or wish == "none":
        return result_of(plan, [], tried=False, changed=False)
    client = connect(params["docker_host"], params["docker_timeout"])
    tag = plan["image"]["tag"]
    image = resolve_image(client, tag, missing_ok=module.check_mode)
    wishes = ServerOptions(
        image=tag,
        image_id=image.id,
        model_source={"argument": "", "mount": ""},
        device="cuda",
        gpu_access=wish,
        network_mode="host",
        hf_home="",
        cache_dir="",
        config_dir=params["config_dir"],
        python_path=image.python_path,
        volumes=tuple(params["volumes"]),
    )
    path = os.path.join(params["config_dir"], access_record.FILE_NAME)
    now = access.circumstances(client, plan, wishes, tool("nvidia-ctk")["version"] or "")
    known = access_record.remembered(path, now, guess=module.check_mode)
    if known or module.check_mode:
        return result_of(plan, known, tried=False, changed=False)
    outcomes = access.find(client, plan, wishes, params["container_prefix"])
    if not outcomes[-1].works:
        raise access.nothing_works(outcomes, tag, wish)
    return result_of(plan, outcomes, tried=True, changed=access_record.remember(path, now, outcomes))


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
