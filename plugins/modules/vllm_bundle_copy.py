# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a host's part of a bundle on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle_copy
short_description: Have a host's part of a bundle on the host
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Sends what the bundle in C(vllm_bundle_dir) on the controller has for the host and what is missing there, over
    Ansible's own connection. Each file is verified by its SHA-256 on the host before it is moved to where it belongs,
    so a damaged one replaces nothing.
  - A second run reads no file that has not changed.
  - The action plugin of this name fills in O(state), O(files), O(needed) and O(owner). Without C(vllm_bundle_dir) the
    task is skipped.
options:
  base:
    description:
      - Folder of the host for its part of the bundle.
    type: path
    required: true
  hf_home:
    description:
      - Folder of the host for the Hugging Face cache, into which weights go.
    type: path
    required: true
  state:
    description:
      - One of the steps that the action plugin takes.
    type: str
    choices: [look, open, place, close]
    default: look
  files:
    description:
      - The files, each C(path), C(source) and C(sha256), or C(path) and C(link).
    type: list
    elements: dict
    default: []
  needed:
    description:
      - Bytes that will come, by path.
    type: dict
    default: {}
  owner:
    description:
      - The id of the user of the connection, who writes what is sent. V(-1) is the user that the module runs as.
    type: int
    default: -1
  progress_file:
    description:
      - File that the module replaces with its current phase.
    type: path
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Bring the bundle's part
  gpufleet.vllm.vllm_bundle_copy:
    base: "{{ vllm_state_dir }}/bundle"
    hf_home: "{{ vllm_hf_home }}"
"""

RETURN = r"""
missing:
  description: Paths on the host that were missing or not as the bundle has them.
  returned: success
  type: list
  elements: str
  sample: []
removed:
  description: Files of an earlier bundle that were removed.
  returned: success
  type: list
  elements: str
  sample: []
incoming:
  description: Folder for what is sent.
  returned: when O(state=open)
  type: str
  sample: /var/lib/gpufleet/bundle/.incoming-x
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(bundle-missing), V(bundle-unfinished), V(bundle-in-parts), V(bundle-part-missing), V(bundle-damaged),
      V(bundle-unknown), V(bundle-without-host), V(disk-full) and V(write-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import PROGRESS_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import bundle_copy

ARGUMENTS: dict[str, Any] = {
    "base": {"type": "path", "required": True},
    "hf_home": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["look", "open", "place", "close"], "default": "look"},
    "files": {"type": "list", "elements": "dict", "default": []},
    "needed": {"type": "dict", "default": {}},
    "owner": {"type": "int", "default": -1},
    **PROGRESS_ARGUMENTS,
}
# What the role itself writes beside the packages.
SPARED = ("packages/bundle.list", "packages/bundle.repo")


def work(module: GpufleetModule) -> dict[str, Any]:
    """Take one step, and return the module's result."""
    params, base = module.params, module.params["base"]
    progress = Progress(params["progress_file"])
    result: dict[str, Any] = {"changed": False}
    if params["state"] == "open":
        result["incoming"] = bundle_copy.open_incoming(base, params["owner"], params["needed"])
    elif params["state"] == "place":
        bundle_copy.place(base, params["files"], progress)
    elif params["state"] == "close":
        bundle_copy.close_incoming(base)
    else:
        missing = bundle_copy.look(base, params["files"], progress, check=module.check_mode)
        left = bundle_copy.left_over(base, params["files"], SPARED)
        if not module.check_mode:
            bundle_copy.remove(left)
        result = {"changed": bool(missing or left), "missing": missing, "removed": left}
        if module._diff and (missing or left):
            result["diff"] = {"before_header": base, "after_header": base, **bundle_copy.as_result(missing, left)}
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
