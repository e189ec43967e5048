# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say which API keys the servers of a host take."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_keys
short_description: Say which API keys the vLLM servers of a host take
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Servers that M(gpufleet.vllm.vllm_server) made take other keys from their next request on. None is replaced or
    restarted, and no request is lost.
  - Servers that want no key go on so.
  - The host keeps the keys' SHA-256 sums for its servers, and O(api_key) in files that only root reads.
options:
  api_key:
    description:
      - Key with which the servers are asked. Empty, nothing is changed.
    type: str
    default: ""
  accepted_keys:
    description:
      - Further keys that they take.
    type: list
    elements: str
    default: []
  other_keys_for:
    description:
      - Seconds for which the servers go on with other keys that they take now, and that end by themselves then; V(-1)
        until another run says otherwise.
    type: int
    default: 0
  config_dir:
    description:
      - Folder of the host with the replicas' configurations, as M(gpufleet.vllm.vllm_server) has it.
    type: path
    default: /etc/gpufleet
  container_prefix:
    description:
      - What the names of the deployment's containers begin with.
    type: str
    default: vllm
  lock_timeout:
    description:
      - Seconds to wait for another run that works on this host.
    type: int
    default: 0
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
seealso:
  - module: gpufleet.vllm.vllm_server
  - module: gpufleet.vllm.router_server
"""

EXAMPLES = r"""
- name: Let the servers take another key besides the ones that they take
  gpufleet.vllm.vllm_keys:
    api_key: "{{ vllm_api_key }}"
    other_keys_for: -1

- name: Let them take no other, once no client uses one
  gpufleet.vllm.vllm_keys:
    api_key: "{{ vllm_api_key }}"
"""

RETURN = r"""
keys_changed:
  description: Replicas that take other keys than before, or would.
  returned: success
  type: list
  elements: str
  sample: [vllm-0]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(busy), V(write-failed) and V(secret-invalid).
  returned: failure
  type: dict
"""

import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import KEY_VARIABLE, split_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.keys import (
    Keys,
    difference_of,
    replicas_in,
    update,
)

ARGUMENTS: dict[str, Any] = {
    "api_key": {"type": "str", "default": "", "no_log": True},
    "accepted_keys": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "other_keys_for": {"type": "int", "default": 0, "no_log": False},
    "config_dir": {"type": "path", "default": "/etc/gpufleet"},
    "container_prefix": {"type": "str", "default": "vllm"},
    "lock_timeout": {"type": "int", "default": 0},
}


def change_keys(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Make the servers take the keys and return the module's result.

    Raises:
        GpufleetError: C(secret-invalid), C(write-failed).
    """
    split_secrets({}, {KEY_VARIABLE: params["api_key"]})
    keys = Keys(params["api_key"], tuple(params["accepted_keys"]), params["other_keys_for"])
    folder = params["config_dir"]
    replicas = replicas_in(folder, params["container_prefix"])
    changed = [name for name in replicas if update(folder, name, keys, check=check)]
    return {"changed": bool(changed), "keys_changed": changed, "diff": [difference_of(name) for name in changed]}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Do the work while holding the host's lock, if there is work to do."""
    folder = module.params["config_dir"]
    found = change_keys(module.params, check=True)
    if module.check_mode or not found["changed"]:
        return found
    with host_lock(os.path.join(folder, ".lock"), "vllm_keys", timeout=module.params["lock_timeout"]):
        return change_keys(module.params, check=False)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
