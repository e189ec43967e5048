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
  - A port counts as closed where the connection is refused, or where it gets no answer and another port of the same
    address does. What this machine does not reach at all is told in RV(not_tried), and proves nothing.
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
  parts:
    description:
      - What to try, the router itself, the ports of the O(replicas), or both.
    type: list
    elements: str
    choices: [router, replicas]
    default: [router, replicas]
  ssh_ports:
    description:
      - Another port of the hosts of O(replicas), by host, which tells whether this machine reaches them. 22 when left
        out.
    type: dict
    default: {}
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
  description:
    - Every attempt, C(what) was tried, what was C(found), whether that C(passed), and whether it could be C(tried).
  returned: always
  type: list
  elements: dict
  sample: [{"what": "plain HTTP is refused", "found": "connection closed", "passed": true, "tried": true}]
tried:
  description: Those of O(replicas) that this machine reaches by each address, so that their checks prove something.
  returned: always
  type: list
  elements: dict
  sample: [{"host": "gpu-01", "name": "vllm-0", "address": "10.0.0.11", "port": 8000}]
not_tried:
  description: Those of O(replicas) that this machine does not reach by an address that it was to try.
  returned: always
  type: list
  elements: dict
  sample: []
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details). Its name is V(not-secure), or
      V(router-not-reached) where this machine does not reach the router at all, so that nothing was tried.
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.security import (
    Check,
    Endpoint,
    closed_port,
    outside_addresses,
    reaches,
    router_checks,
)

ARGUMENTS: dict[str, Any] = {
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "default": 8443},
    "server_name": {"type": "str", "default": ""},
    "tls": {"type": "bool", "default": True},
    "authorities": {"type": "str", "default": ""},
    "api_key": {"type": "str", "required": True, "no_log": True},
    "max_request_bytes": {"type": "int", "default": 33554432},
    "parts": {"type": "list", "elements": "str", "choices": ["router", "replicas"], "default": ["router", "replicas"]},
    "ssh_ports": {"type": "dict", "default": {}},
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


def port_checks(params: dict[str, Any], replica: dict[str, Any]) -> list[Check]:
    """Return the checks of a replica's port."""
    asked = {**replica, "other_port": params["ssh_ports"].get(replica["host"])}
    return [closed_port(asked, address, params["timeout"]) for address in addresses(params, replica)]


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    endpoint = Endpoint(
        server_name=params["server_name"] or params["address"],
        **{name: params[name] for name in ("address", "port", "tls", "authorities", "api_key", "timeout")},
    )
    found: list[Check] = []
    tried: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    if "router" in params["parts"]:
        if not reaches(endpoint.address, endpoint.port, endpoint.timeout):
            module.fail_on(
                GpufleetError(
                    f"{authority(endpoint.address, endpoint.port)} cannot be reached from here, so nothing was tried.",
                    name="router-not-reached",
                    remedy="Set router_address to where the controller reaches the router, or have it tried elsewhere.",
                ),
                checks=[],
                tried=[],
                not_tried=params["replicas"],
            )
        found += router_checks(endpoint, params["max_request_bytes"])
    if "replicas" in params["parts"]:
        for replica in params["replicas"]:
            ports = port_checks(params, replica)
            found += ports
            tried[all(check.tried for check in ports)].append(replica)
    result = {"checks": [vars(check) for check in found], "tried": tried[True], "not_tried": tried[False]}
    wrong = [check for check in found if check.tried and not check.passed]
    if wrong:
        listed = "\n".join(f"  - {check.what}: {check.found}" for check in wrong)
        module.fail_on(
            GpufleetError(
                f"{len(wrong)} of {len(found)} checks of the router failed:\n{listed}",
                name="not-secure",
                remedy="Run the playbook gpufleet.vllm.router again. Close a replica's port to all but the router:"
                " by vllm_restrict_ports, by vllm_host, an address in a network of the router's own, or by a firewall.",
            ),
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
