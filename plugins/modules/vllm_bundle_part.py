# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather one part of a bundle for hosts without internet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle_part
short_description: Gather one part of a bundle for hosts without internet
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Saves an image of this machine's Docker engine as an archive, or runs a program in a container that leaves what it
    gathers in C(/out). The part appears complete or not at all.
  - A program that was run by the same O(recipe) before is not run again. An archive that has the engine's image is left
    alone.
options:
  path:
    description:
      - The archive, or the folder for what the program gathers.
    type: path
    required: true
  image:
    description:
      - The image to save, or in which the program runs.
    type: str
    required: true
  platform:
    description:
      - Platform of the image in which the program runs.
    type: str
    default: linux/amd64
  command:
    description:
      - The program and its arguments. Empty saves the image.
    type: list
    elements: str
    default: []
  program:
    description:
      - A program of this collection that runs by the Python of the image, with O(command) as its arguments.
        V(accuracy) gathers what lm_eval needs.
    type: str
    choices: [none, accuracy]
    default: none
  recipe:
    description:
      - A text that says of what the part is made.
    type: str
    default: ""
  inputs:
    description:
      - Files that the program finds in C(/in), by name.
    type: dict
    default: {}
  vendors:
    description:
      - Repositories, each with C(name), C(key) and C(fingerprints). The program finds the key of each in C(/in), once
        it has one of the fingerprints. It is fetched by the proxy C(https_proxy) of O(secrets).
    type: list
    elements: dict
    default: []
  environment:
    description:
      - Variables of the program.
    type: dict
    default: {}
  secrets:
    description:
      - Further variables of the program, such as proxies and tokens, which win. They are not shown.
    type: dict
    default: {}
  volumes:
    description:
      - Further mounts of the program, as C(docker run --volume) takes them.
    type: list
    elements: str
    default: []
  ca_bundle:
    description:
      - File of this machine with certificate authorities.
    type: str
    default: ""
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
"""

EXAMPLES = r"""
- name: Save the serving image
  gpufleet.vllm.vllm_bundle_part:
    path: /srv/bundle/images/vllm-openai.tar
    image: vllm/vllm-openai:v0.26.0
"""

RETURN = r"""
path:
  description: The part.
  returned: success
  type: str
  sample: /srv/bundle/images/vllm-openai.tar
phases:
  description: The phases that the work went through and how many seconds each took.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "saving vllm/vllm-openai:v0.26.0", "seconds": 75.2}]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(image-missing), V(gathering-failed), V(write-failed), V(key-unreachable), V(key-invalid),
      V(key-mismatch), V(key-expired), V(job-too-slow), V(name-taken), V(interrupted), V(engine-not-running) and
      V(engine-error).
  returned: failure
  type: dict
"""

import inspect
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import (
    DOCKER_ARGUMENTS,
    PROGRESS_ARGUMENTS,
    GpufleetModule,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.bundle_part import (
    Program,
    ensure_archive,
    ensure_gathered,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import gather_accuracy

ARGUMENTS: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "platform": {"type": "str", "default": "linux/amd64"},
    "command": {"type": "list", "elements": "str", "default": []},
    "program": {"type": "str", "choices": ["none", "accuracy"], "default": "none"},
    "recipe": {"type": "str", "default": ""},
    "inputs": {"type": "dict", "default": {}},
    "vendors": {"type": "list", "elements": "dict", "default": []},
    "environment": {"type": "dict", "default": {}},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "ca_bundle": {"type": "str", "default": ""},
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Gather the part, and return the module's result."""
    params = module.params
    progress = Progress(params["progress_file"])
    client = connect(params["docker_host"], params["docker_timeout"])
    path, image, check = params["path"], params["image"], module.check_mode
    if params["command"]:
        command = tuple(params["command"])
        if params["program"] == "accuracy":
            source = inspect.getsource(gather_accuracy)
            command = ("/bin/sh", "-c", image_python.LAUNCH, "vllm", source, *command)
        program = Program(
            image=image,
            platform=params["platform"],
            command=command,
            recipe=params["recipe"],
            inputs={name: str(text) for name, text in params["inputs"].items()},
            vendors=params["vendors"],
            environment={name: str(value) for name, value in params["environment"].items()},
            secrets={name: str(value) for name, value in params["secrets"].items()},
            volumes=params["volumes"],
            ca_bundle=params["ca_bundle"],
        )
        changed = ensure_gathered(client, program, path, check=check, progress=progress)
    else:
        changed = ensure_archive(client, image, path, check=check, progress=progress)
    told = f"{image}\n" if not params["command"] else f"{params['recipe']}\n"
    diff = {"before_header": path, "after_header": path, "before": "", "after": told} if changed else {}
    return {
        "changed": changed,
        "path": path,
        "phases": progress.finish(),
        **({"diff": diff} if module._diff and diff else {}),
    }


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
