# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack what servers have compiled, and add it to the caches of a host that compiles the same."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_caches
short_description: Bring what servers have compiled to a host that compiles the same
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - V(packed) packs what is in the caches of vLLM, FlashInfer and Triton on a host, and brings it to the controller.
    V(present) adds it to the caches of another host.
  - Only what is for the same O(key) is added, see RV(gpufleet.vllm.vllm_server#module:caches). What is damaged, cut
    short, larger than the disk or for another key is thrown away, and so is an archive with links or names that lead
    out of the caches. What the host has already stays.
  - Nothing of this is an error. RV(why) says what did not work, and servers then compile by themselves.
  - Servers become ready with what was added, or M(gpufleet.vllm.vllm_server) removes it and starts them once more.
  - What was compiled is code. Have it brought only between hosts that trust each other.
options:
  state:
    description:
      - V(packed) brings the caches of the host to the controller. V(present) adds what is there to those of the host.
    type: str
    choices: [packed, present]
    required: true
  key:
    description:
      - Of what is compiled, as M(gpufleet.vllm.vllm_server) returns it.
    type: str
    required: true
  cache_dir:
    description:
      - Folder with the caches of vLLM, FlashInfer and Triton, each in a folder of its own.
    type: path
    default: /var/lib/gpufleet/cache
  archive:
    description:
      - The archive. The action plugin keeps it on the controller in Ansible's own folder for this run, so that it is
        packed once in a run.
    type: path
  sha256:
    description:
      - Hash of the archive, as V(packed) returned it.
    type: str
    default: ""
  host:
    description:
      - Name of the host that has packed it, for people.
    type: str
    default: ""
  config_dir:
    description:
      - Folder with the lock by which two runs do not work on the host at the same time. Needed with V(present).
    type: path
    default: /etc/gpufleet
  container_prefix:
    description:
      - What the names of the containers that are to start with it begin with, before the dash.
    type: str
    default: vllm
attributes:
  check_mode:
    support: partial
    description: Can run in check mode.
    details: Nothing is packed then, so what would be added is not known.
  diff_mode:
    support: none
    description: What is added is not for people to read.
  idempotent:
    support: full
    description: A second run with the same archive changes nothing.
"""

EXAMPLES = r"""
- name: Bring the caches of a host that is ready to the controller
  gpufleet.vllm.vllm_caches:
    state: packed
    key: "{{ served.caches.key }}"
  delegate_to: gpu-01
  register: packed

- name: Add them to those of this host
  gpufleet.vllm.vllm_caches:
    state: present
    key: "{{ served.caches.key }}"
    sha256: "{{ packed.sha256 }}"
    host: gpu-01
"""

RETURN = r"""
why:
  description: Why nothing was packed or added; empty where it was.
  returned: always
  type: str
sha256:
  description: Hash of the archive; empty where there is none.
  returned: with O(state=packed)
  type: str
size:
  description: Bytes of the archive.
  returned: with O(state=packed)
  type: int
files:
  description: How many files are in it.
  returned: with O(state=packed)
  type: int
bytes:
  description: Bytes of the files.
  returned: always
  type: int
names:
  description: What of it was not in the caches before, the highest names.
  returned: with O(state=present)
  type: list
  elements: str
  sample: ["vllm/torch_compile_cache", "triton/cache"]
msg:
  description: What was added or why nothing was, as the action plugin shows it; empty where there was nothing to do.
  returned: always
  type: str
  sample: "compile caches: 118.3 MiB from gpu-01"
"""

import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.cache_archive import pack
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.warm_caches import WarmCaches

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["packed", "present"], "required": True},
    "key": {"type": "str", "required": True, "no_log": False},
    "cache_dir": {"type": "path", "default": "/var/lib/gpufleet/cache"},
    "archive": {"type": "path"},
    "sha256": {"type": "str", "default": ""},
    "host": {"type": "str", "default": ""},
    "config_dir": {"type": "path", "default": "/etc/gpufleet"},
    "container_prefix": {"type": "str", "default": "vllm"},
}
NOT_PACKED: dict[str, Any] = {"sha256": "", "size": 0, "files": 0, "bytes": 0}
NOT_ADDED: dict[str, Any] = {"bytes": 0, "names": []}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Do what O(state) says, and return the module's result."""
    params = module.params
    nothing = NOT_PACKED if params["state"] == "packed" else NOT_ADDED
    if module.check_mode:
        return {"changed": False, "why": "check mode", "msg": "", **nothing}
    try:
        if params["state"] == "packed":
            # What is packed is for others, and the host stays as it is.
            return {
                "changed": False,
                "why": "",
                "msg": "",
                **pack(params["cache_dir"], params["archive"], params["key"]),
            }
        added = add(params)
    except GpufleetError as error:
        return {"changed": False, "why": error.message, "msg": "", **nothing}
    told = f"compile caches: {format_bytes(added['bytes'])} from {params['host']}" if added["names"] else ""
    return {"changed": bool(added["names"]), "why": "", "msg": told, **added}


def add(params: dict[str, Any]) -> dict[str, Any]:
    """Add an archive to the host's caches."""
    os.makedirs(params["config_dir"], mode=0o750, exist_ok=True)
    with host_lock(os.path.join(params["config_dir"], ".lock"), "vllm_caches, state present"):
        caches = WarmCaches(params["cache_dir"], params["container_prefix"])
        return caches.receive(params["archive"], params["key"], params["sha256"], params["host"])


def main() -> None:
    """Run the module."""
    module = GpufleetModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_if=[("state", "packed", ("archive",)), ("state", "present", ("archive", "sha256"))],
    )
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
