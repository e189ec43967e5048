# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the router's certificate on its host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_certificate
short_description: Make the router's certificate on its host
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Makes a certificate that is signed by itself, with openssl, for sites that give none.
  - A new one is made when there is none, when it ends within 30 days, and when O(names) are others.
options:
  path:
    description:
      - File for the certificate and its key, readable by root alone.
    type: path
    default: /etc/gpufleet-router/site.pem
  names:
    description:
      - Names and addresses by which clients reach the router.
    type: list
    elements: str
    required: true
  days:
    description:
      - For how long a new one is valid.
    type: int
    default: 397
  renew_days:
    description:
      - Days before its end from which on it is made anew.
    type: int
    default: 30
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
requirements:
  - openssl 1.1.1 or newer (program)
"""

EXAMPLES = r"""
- name: Have a certificate for two names and an address
  gpufleet.vllm.router_certificate:
    names: [llm.example.com, lb-01, 10.0.0.5]
"""

RETURN = r"""
certificate:
  description: The certificate without its key, for clients to trust.
  returned: when there is one
  type: str
names:
  description: The names that it is for.
  returned: success
  type: list
  elements: str
  sample: [10.0.0.5, lb-01, llm.example.com]
not_after:
  description: Until when it is valid, as openssl shows it.
  returned: success
  type: str
  sample: Dec 24 16:00:00 2027 GMT
fingerprint:
  description: SHA-256 of the certificate.
  returned: success
  type: str
  sample: 5A:21:…:9C
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(invalid-router), V(certificate-not-made), V(openssl-missing) and V(write-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import (
    make_certificate,
    public_part,
    read_certificate,
    wanted_names,
)

ARGUMENTS: dict[str, Any] = {
    "path": {"type": "path", "default": "/etc/gpufleet-router/site.pem"},
    "names": {"type": "list", "elements": "str", "required": True},
    "days": {"type": "int", "default": 397},
    "renew_days": {"type": "int", "default": 30},
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Make the certificate if there is none, and return the module's result."""
    path, names = module.params["path"], wanted_names(module.params["names"])
    found = read_certificate(path, module.params["renew_days"])
    changed = found is None or found.ends_soon or found.names != names
    before = f"names: {', '.join(found.names)}\nvalid until: {found.not_after}\n" if found else ""
    if changed and not module.check_mode:
        make_certificate(path, names, module.params["days"])
        found = read_certificate(path, module.params["renew_days"])
    after = f"names: {', '.join(names)}\nvalid for: {module.params['days']} days\n" if changed else before
    return {
        "changed": changed,
        "certificate": public_part(path),
        "names": list(names),
        "not_after": found.not_after if found else "",
        "fingerprint": found.fingerprint if found else "",
        "diff": [{"before_header": path, "after_header": path, "before": before, "after": after}],
    }


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
