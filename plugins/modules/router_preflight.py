# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at what would keep a router from running, or its clients from trusting it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_preflight
version_added: 0.2.0
short_description: Look at what would keep a router from running, or its clients from trusting it
author: gpufleet contributors (@gpufleet)
description:
  - Looks at the host of a router. The action plugin of the same name judges what was found, as
    M(gpufleet.vllm.vllm_preflight) does for hosts with servers.
options:
  certificate:
    description:
      - Certificate that the router is to serve, as PEM; empty where the router has one made.
    type: str
    default: ""
  warn_days:
    description:
      - Days before the end of a certificate from which on it is found. Read by the action plugin alone.
    type: int
    default: 30
  renews:
    description:
      - Whether the run that asks makes a certificate anew that ends soon, so that this is nothing to find. Read by the
        action plugin alone.
    type: bool
    default: false
  virtual_address:
    description:
      - Address that several routers share; empty for none. Read by the action plugin alone, as are O(virtual_interface)
        and O(listens).
    type: str
    default: ""
  virtual_interface:
    description:
      - Interface to have it on; empty for the one that is in its network.
    type: str
    default: ""
  listens:
    description:
      - Address on which the router listens.
    type: str
    default: 0.0.0.0
  directory:
    description:
      - Folder of the configuration.
    type: path
    default: /etc/gpufleet-router
  run_dir:
    description:
      - Folder of HAProxy's sockets.
    type: path
    default: /run/gpufleet-router
  state_dir:
    description:
      - Folder of what is kept over a reboot.
    type: path
    default: /var/lib/gpufleet-router
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
"""

EXAMPLES = r"""
- name: Look
  gpufleet.vllm.router_preflight:
    certificate: "{{ lookup('ansible.builtin.file', '/etc/ssl/llm.example.com.pem', rstrip=false) }}"
    warn_days: 21
  register: found
"""

RETURN = r"""
served_certificate:
  description:
    - The certificate that HAProxy serves, C(not_after) and C(seconds_left). Empty where it serves none or does not run.
  returned: success
  type: dict
  sample: {"not_after": "2027-12-24T16:00:00Z", "seconds_left": 33696000}
wanted_certificate:
  description: The same of O(certificate). Empty where there is none, or no openssl on the host to read it.
  returned: success
  type: dict
  sample: {}
addresses:
  description: The addresses of the host, C(interface), C(address) and C(prefix_length).
  returned: success
  type: list
  elements: dict
  sample: [{"interface": "eth0", "address": "10.0.0.2", "prefix_length": 24}]
shared_address:
  description: The address that the host shares by the role; empty for none.
  returned: success
  type: str
  sample: 10.0.0.10
systemd:
  description: Whether systemd runs the host.
  returned: success
  type: bool
  sample: true
virtual:
  description: Where the host has O(virtual_address); empty without one, or where it cannot. Made by the action plugin.
  returned: success
  type: dict
  sample: {"address": "10.0.0.10", "prefix_length": 24, "interface": "eth0", "source": "10.0.0.2"}
findings:
  description: What was found, as P(gpufleet.vllm.vllm_preflight#module) returns it. Made by the action plugin.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "certificate-ends-soon", "severity": "warning"}]
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate_end import end_of, served_end
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.shared_address import (
    interface_addresses,
    shared_address,
)

ARGUMENTS: dict[str, Any] = {
    "certificate": {"type": "str", "default": "", "no_log": True},
    "warn_days": {"type": "int", "default": 30},
    "renews": {"type": "bool", "default": False},
    "virtual_address": {"type": "str", "default": ""},
    "virtual_interface": {"type": "str", "default": ""},
    "listens": {"type": "str", "default": "0.0.0.0"},  # noqa: S104  compared
    "directory": {"type": "path", "default": "/etc/gpufleet-router"},
    "run_dir": {"type": "path", "default": "/run/gpufleet-router"},
    "state_dir": {"type": "path", "default": "/var/lib/gpufleet-router"},
}


def work(params: dict[str, Any]) -> dict[str, Any]:
    """Look at the host and return the module's result."""
    served = served_end(Master(f"{params['run_dir']}/{MASTER_SOCKET}", params["state_dir"]))
    wanted = end_of(params["certificate"])
    return {
        "changed": False,
        "served_certificate": served.as_result() if served else {},
        "wanted_certificate": wanted.as_result() if wanted else {},
        "addresses": interface_addresses(),
        "shared_address": shared_address(params["directory"]),
        "systemd": on_systemd(),
    }


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module.params))


if __name__ == "__main__":
    main()
