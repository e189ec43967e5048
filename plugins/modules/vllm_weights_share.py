# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let other hosts of the fleet have this host's weights, for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_weights_share
short_description: Let other hosts of the fleet have this host's weights, for a while
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Says what the host's Hugging Face cache has whole of a model, and lets other hosts read it until O(state=absent) or
    O(seconds) later, whichever is first.
  - Other hosts read by rsync over an sshd that is started for this alone. It has a port, a host key and a list of
    accepted keys of its own, and runs nothing but rsync, which can read the contents of the model's repositories and
    nothing else. The host's own sshd, its keys and C(authorized_keys) files are not touched.
  - A host that cannot give its weights away is no error; RV(why) says what is in the way.
options:
  state:
    description:
      - V(look) only says what the host has, and makes a key for what it lacks. V(present) gives it away. V(absent) ends
        that and removes the keys.
    type: str
    choices: [look, present, absent]
    default: look
  model:
    description:
      - Name of the model at the hub. Needed unless O(state=absent).
    type: str
    default: ""
  hf_home:
    description:
      - Folder on the host with the Hugging Face cache.
    type: path
    default: /var/lib/gpufleet/huggingface
  run_dir:
    description:
      - Folder for keys, configuration and logs of this run. It is removed at the end.
    type: path
    default: /run/gpufleet-weights
  address:
    description:
      - Where other hosts reach this one. The port is open on this address alone if it is one of the host's own, or else
        on all of them.
    type: str
    default: ""
  port:
    description:
      - Port of the sshd that is started.
    type: int
    default: 18022
  keys:
    description:
      - Public keys of the hosts that may read.
    type: list
    elements: str
    default: []
  connections:
    description:
      - How many connections are served at once. A host that comes when there are as many tries again.
    type: int
    default: 4
  rate:
    description:
      - MiB that are sent in a second at most, each connection having its equal part; 0 for no limit.
    type: int
    default: 0
  seconds:
    description:
      - After how many seconds it ends by itself, as where the play was interrupted.
    type: int
    default: 14400
extends_documentation_fragment:
  - gpufleet.vllm.common.model_cache
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Say what the host has of a model
  gpufleet.vllm.vllm_weights_share:
    model: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8

- name: Let another host read it for an hour
  gpufleet.vllm.vllm_weights_share:
    state: present
    model: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    address: 10.0.0.11
    keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG0Jc8eFhYl0qH8m3v4W5yJ0xkq8f0v1Cj3m1m9o2m5T"]
    seconds: 3600

- name: End it
  gpufleet.vllm.vllm_weights_share:
    state: absent
"""

RETURN = r"""
complete:
  description: Whether the host has all of the model.
  returned: unless O(state=absent)
  type: bool
wanted:
  description: What a server takes of which repositories; the same on hosts that can help each other.
  returned: unless O(state=absent)
  type: list
  elements: str
models:
  description: What the host has whole, of which the hashes of the hub are known.
  returned: unless O(state=absent)
  type: list
  elements: dict
  contains:
    want:
      description: The entry of RV(wanted).
      type: str
    repository:
      description: Name at the hub.
      type: str
    commit:
      description: Which commit it is.
      type: str
    files:
      description: The files, each with C(name), C(size) in bytes and C(blob), the hash.
      type: list
      elements: dict
public_key:
  description: The key with which this host reads from others; empty where it lacks nothing, and in check mode.
  returned: with O(state=look)
  type: str
lacking_programs:
  description: Programs that giving and taking need and the host does not have.
  returned: with O(state=look)
  type: list
  elements: str
serves:
  description: Whether other hosts can read now.
  returned: with O(state=present)
  type: bool
why:
  description: Why they cannot; empty where they can.
  returned: with O(state=present)
  type: str
host_key:
  description: The public half of the host key.
  returned: with O(state=present)
  type: str
address:
  description: O(address).
  returned: with O(state=present)
  type: str
port:
  description: O(port).
  returned: with O(state=present)
  type: int
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - The name is V(write-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cached import lacks, left_to_the_server
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.sending import (
    CLIENT_KEY,
    Sending,
    begin,
    end,
    make_key,
    missing_programs,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.shared_files import shared_model, want_key
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import wants_of

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["look", "present", "absent"], "default": "look"},
    "model": {"type": "str", "default": ""},
    "config": {"type": "dict", "default": {}},
    "hf_home": {"type": "path", "default": "/var/lib/gpufleet/huggingface"},
    "environment": {"type": "dict", "default": {}},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "run_dir": {"type": "path", "default": "/run/gpufleet-weights"},
    "address": {"type": "str", "default": ""},
    "port": {"type": "int", "default": 18022},
    "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "connections": {"type": "int", "default": 4},
    "rate": {"type": "int", "default": 0},
    "seconds": {"type": "int", "default": 14400},
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Do what O(state) says, and return the module's result."""
    params = module.params
    if params["state"] == "absent":
        return {"changed": not module.check_mode and end(params["run_dir"])}
    environment = {str(name): str(value) for name, value in params["environment"].items()}
    # Whether the hub may be asked does not matter for what is here: what is not known to be whole is no source.
    around = Surroundings("", params["hf_home"], environment=environment, volumes=params["volumes"])
    if left_to_the_server(params["config"], environment, around.cache):
        return {"changed": False, "complete": True, "wanted": [], "models": [], "public_key": "", "serves": False}
    wants = wants_of(params["model"], params["config"])
    models = [model for model in (shared_model(want, around) for want in wants) if model]
    complete = not any(lacks(want, around) for want in wants)
    seen = {
        "complete": complete,
        "wanted": sorted(want_key(want) for want in wants),
        "models": [model.as_result() for model in models],
    }
    if params["state"] == "look":
        key = "" if complete or module.check_mode or missing_keygen() else make_key(params["run_dir"], CLIENT_KEY)
        return {"changed": False, **seen, "public_key": key, "lacking_programs": missing_programs()}
    place = {"address": params["address"], "port": params["port"]}
    if module.check_mode:
        return {"changed": True, **seen, **place, "serves": False, "why": "check mode", "host_key": ""}
    sending = Sending(
        folder=params["run_dir"],
        cache=around.cache.folder,
        repositories=[want.repository for want in wants],
        **{name: params[name] for name in ("address", "port", "keys", "connections", "seconds")},
        rate_mib=params["rate"],
    )
    try:
        key = begin(sending)
    except GpufleetError as error:
        if error.name != "sharing-failed":
            raise
        return {"changed": False, **seen, **place, "serves": False, "why": error.as_failure()["msg"], "host_key": ""}
    return {"changed": True, **seen, **place, "serves": True, "why": "", "host_key": key}


def missing_keygen() -> bool:
    """Return whether the host cannot make a key."""
    return "ssh-keygen" in missing_programs()


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
