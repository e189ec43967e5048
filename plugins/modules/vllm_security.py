# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try what the router and the servers behind it must refuse."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_security
short_description: Try what the router and the servers behind it must refuse
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Asks the router, from the machine where it runs, for what it must refuse, and tries to connect to the replicas'
    ports. It fails unless all of that is refused, and what a client with a key may do works.
  - The key is sent through TLS alone.
options:
  address:
    description:
      - Name or address of the router.
    type: str
    required: true
  port:
    description:
      - Its port.
    type: int
    default: 8443
  server_name:
    description:
      - Name for which its certificate must be. O(address) when left out.
    type: str
    default: ""
  tls:
    description:
      - Whether it is to speak TLS.
    type: bool
    default: true
  authorities:
    description:
      - Certificates, as PEM, with which its own is checked. The system's when left out.
    type: str
    default: ""
  api_key:
    description:
      - A key that it accepts.
    type: str
    required: true
  max_request_bytes:
    description:
      - Size of a body beyond which it must refuse.
    type: int
    default: 33554432
  replicas:
    description:
      - Servers behind it, each with C(host), C(name), C(address) (at which the router reaches it) and C(port).
    type: list
    elements: dict
    default: []
  reached_at:
    description:
      - Where other machines reach the hosts of O(replicas), by host; the host's name when left out. Both this and the
        address that the router uses are tried.
    type: dict
    default: {}
  connections:
    description:
      - How Ansible connects to the hosts of O(replicas), by host. For V(local), and where no address leads to another
        machine, this machine's own addresses are tried, except loopback.
    type: dict
    default: {}
  timeout:
    description:
      - Seconds for each attempt.
    type: float
    default: 5
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
"""

EXAMPLES = r"""
- name: Try the router from the controller
  gpufleet.vllm.vllm_security:
    address: llm.example.com
    api_key: "{{ vllm_api_key }}"
    replicas:
      - {host: gpu-01, name: vllm-0, address: 10.0.0.11, port: 8000}
  delegate_to: localhost
"""

RETURN = r"""
checks:
  description: Every attempt, C(what) was tried, what was C(found), and whether that C(passed).
  returned: always
  type: list
  elements: dict
  sample: [{"what": "plain HTTP is refused", "found": "connection closed", "passed": true}]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details). Its name is V(not-secure).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.security import Endpoint, checks, outside_addresses

ARGUMENTS: dict[str, Any] = {
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "default": 8443},
    "server_name": {"type": "str", "default": ""},
    "tls": {"type": "bool", "default": True},
    "authorities": {"type": "str", "default": ""},
    "api_key": {"type": "str", "required": True, "no_log": True},
    "max_request_bytes": {"type": "int", "default": 33554432},
    "replicas": {"type": "list", "elements": "dict", "default": []},
    "reached_at": {"type": "dict", "default": {}},
    "connections": {"type": "dict", "default": {}},
    "timeout": {"type": "float", "default": 5},
}


def addresses(params: dict[str, Any], replica: dict[str, Any]) -> list[str]:
    """Return where other machines might reach a replica."""
    host = replica["host"]
    local = params["connections"].get(host) == "local"
    return outside_addresses([replica["address"], *([] if local else [params["reached_at"].get(host) or host])])


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    endpoint = Endpoint(
        server_name=params["server_name"] or params["address"],
        **{name: params[name] for name in ("address", "port", "tls", "authorities", "api_key", "timeout")},
    )
    replicas = [{**replica, "addresses": addresses(params, replica)} for replica in params["replicas"]]
    found = list(checks(endpoint, params["max_request_bytes"], replicas))
    result = {"checks": [vars(check) for check in found]}
    wrong = [check for check in found if not check.passed]
    if wrong:
        listed = "\n".join(f"  - {check.what}: {check.found}" for check in wrong)
        module.fail_on(
            GpufleetError(
                f"{len(wrong)} of {len(found)} checks of the router failed:\n{listed}",
                name="not-secure",
                remedy="Run the playbook gpufleet.vllm.router again. Close a replica's port to all but the router:"
                " by vllm_host, an address in a network of the router's own, or by a firewall.",
            ),
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
