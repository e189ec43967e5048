# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin router_access."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_access
version_added: 0.2.0
short_description: Show how clients reach a router
description:
  - Prints the router's address, the certificate that clients have to trust, and a line with curl that asks it. The
    line works as it is printed, on the controller, with a key in an environment variable.
  - Runs on the controller, for a host of the router.
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  names:
    description:
      - Names and addresses that the router's certificate has. The first one that the controller can resolve is printed.
    type: list
    elements: str
    required: true
  host:
    description:
      - Address that the router listens on.
    type: str
    required: true
  port:
    description:
      - Port that it listens on.
    type: int
    required: true
  tls:
    description:
      - Whether it speaks TLS.
    type: bool
    default: true
  connect_to:
    description:
      - Name or address at which the controller reaches it, if that is none of O(names).
    type: str
    default: ""
  ansible_host:
    description:
      - Where Ansible reaches its host, which is taken if the controller can resolve none of O(names). Left out, that is
        the host's name in the inventory.
    type: str
    default: ""
  made_certificate:
    description:
      - File on the controller with the certificate that was made for the router. Empty where one was given to it.
    type: str
    default: ""
  authorities:
    description:
      - File on the controller with the certificates by which a given one is checked. Empty takes the system's.
    type: str
    default: ""
  asks_for_key:
    description:
      - Whether it wants a key.
    type: bool
    default: true
  models:
    description:
      - Names of the models that it serves.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show how clients reach the router
  gpufleet.vllm.router_access:
    names: [llm.example.com]
    host: 0.0.0.0
    port: 8443
    made_certificate: certificates/lb-01.pem
"""

RETURN = r"""
lines:
  description: What was printed.
  returned: success
  type: list
  elements: str
  sample: ["OpenAI's API is at https://llm.example.com:8443/v1 for org/model."]
"""
