# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that a server sees exactly the GPUs it was given."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_gpu_check
short_description: Check that a vLLM server sees exactly the GPUs it was given
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Asks CUDA and NVML inside the container of a running server for the GPUs, and compares their UUIDs with those that
    M(gpufleet.vllm.vllm_server) gave it.
  - Fails when one is missing, when one is seen that was not given, and when CUDA or NVML do not start any more in the
    container, as after systemd reloaded its units.
  - A server on processors has none to be seen and passes.
options:
  name:
    description:
      - Name of the server and its container.
    type: str
    required: true
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
  - gpufleet.vllm.common.docker
seealso:
  - module: gpufleet.vllm.vllm_gpu_access
"""

EXAMPLES = r"""
- name: Check the first server's GPUs
  gpufleet.vllm.vllm_gpu_check:
    name: vllm-0
"""

RETURN = r"""
name:
  description: Name of the server.
  returned: success
  type: str
  sample: vllm-0
gpu_access:
  description: How its GPUs reach it.
  returned: success
  type: str
  sample: gpus
given:
  description: The GPUs it was given, by UUID, or by index where the plan was made without a probe.
  returned: success
  type: list
  elements: str
  sample: [GPU-11d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7]
seen:
  description: What C(cuda) and C(nvml) see, each C(library) (its path), C(code) (0), C(text) and C(gpus).
  returned: success
  type: dict
  sample: {"cuda": {"code": 0, "gpus": ["GPU-11d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7"]}}
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(wrong-gpus), V(server-missing), V(server-stopped), V(no-answer), V(gpu-lost-by-container),
      V(driver-mismatch), V(driver-libraries-missing) and those of M(gpufleet.vllm.vllm_gpu_access).
  returned: failure
  type: dict
"""

from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Nothing, Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import DOCKER_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect, engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import access

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

ARGUMENTS: dict[str, Any] = {"name": {"type": "str", "required": True}, **DOCKER_ARGUMENTS}


def server_of(client: DockerClient, name: str) -> Container:
    """Return the running container of a server.

    Raises:
        GpufleetError: C(server-missing) or C(server-stopped).
    """
    from docker.errors import NotFound

    with engine_errors(f"looking for {name}"):
        try:
            container = client.containers.get(name)
        except NotFound as error:
            raise GpufleetError(
                f"There is no container {name} on this host.",
                name="server-missing",
                remedy="Deploy first (playbook gpufleet.vllm.deploy).",
            ) from error
    if container.status != "running":
        raise GpufleetError(
            f"The server {name} does not run; its container is {container.status}.",
            name="server-stopped",
            remedy="See why with the playbook gpufleet.vllm.status, and deploy again.",
        )
    return container


def work(params: dict[str, Any]) -> dict[str, Any]:
    """Compare what the server sees with what it was given; return the module's result."""
    client = connect(params["docker_host"], params["docker_timeout"])
    container = server_of(client, params["name"])
    spec: Spec | Nothing = read_spec(container.labels) or {}
    given = list(spec.get("gpus") or [])
    result = {"changed": False, "name": params["name"], "gpu_access": spec.get("gpu_access", ""), "given": given}
    if not given:
        return {**result, "seen": {}}
    try:
        seen = access.seen_by(container)
    except access.UnknownError as reason:
        raise GpufleetError(
            f"The container {params['name']} does not tell which GPUs it sees.",
            name="no-answer",
            remedy="Look at the server with the playbook gpufleet.vllm.status.",
            evidence=str(reason),
        ) from reason
    error = access.judge(seen, given)
    if error:
        error.message = f"{params['name']} (access {result['gpu_access']}): {error.message}"
        raise error
    return {**result, "seen": seen}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: work(module.params))


if __name__ == "__main__":
    main()
