# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vendor_repository_check: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vendor_repository_check
short_description: Tell by its one cause why a vendor's repository or its packages cannot be had
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Reads what C(ansible.builtin.apt) or C(ansible.builtin.dnf) said, and fails by the name of what is wrong.
    Succeeds if nothing is.
options:
  url:
    description:
      - Address of the repository, or folder of the files.
    type: str
    required: true
  fingerprints:
    description:
      - The fingerprints that its key may have.
    type: list
    elements: str
    default: []
  packages:
    description:
      - The packages that are wanted of it, as V(name) or V(name=version).
    type: list
    elements: str
    required: true
  refused:
    description:
      - What the package manager said when it could not read the repository. Empty if it could.
    type: str
    default: ""
  available:
    description:
      - The packages of these names that the repository has, as V(name=version).
    type: list
    elements: str
    default: []
  not_installed:
    description:
      - What the package manager said when it could not install the packages. Nothing else is looked at then.
    type: str
    default: ""
  variables:
    description:
      - The variables that messages name for C(url), C(key) and C(version).
    type: dict
    default: {}
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
"""

EXAMPLES = r"""
- name: See whether the repository can be had and has the toolkit
  gpufleet.vllm.vendor_repository_check:
    url: https://nvidia.github.io/libnvidia-container/stable/deb/amd64
    fingerprints: [C95B321B61E88C1809C4F759DDCAE044F796ECB0]
    packages: [nvidia-container-toolkit=1.19.1-1]
    refused: "{{ refreshed.msg | default('') }}"
    available: [nvidia-container-toolkit=1.19.1-1, nvidia-container-toolkit=1.17.8-1]
"""

RETURN = r"""
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(repository-untrusted), V(repository-unreachable), V(package-missing) and V(packages-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import package_failures
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.package_failures import Repository
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.package_managers import Package

ARGUMENTS: dict[str, Any] = {
    "url": {"type": "str", "required": True},
    "fingerprints": {"type": "list", "elements": "str", "default": []},
    "packages": {"type": "list", "elements": "str", "required": True},
    "refused": {"type": "str", "default": ""},
    "available": {"type": "list", "elements": "str", "default": []},
    "not_installed": {"type": "str", "default": ""},
    "variables": {"type": "dict", "default": {}},
}


def check(params: dict[str, Any]) -> dict[str, Any]:
    """Raise what is wrong with the repository; return the module's result if nothing is."""
    packages = [Package.parse(text) for text in params["packages"]]
    repository = Repository(params["url"], params["fingerprints"], params["variables"])
    if params["not_installed"]:
        raise package_failures.install_failed(packages, params["not_installed"])
    if params["refused"]:
        raise package_failures.refresh_failed(repository, params["refused"])
    package_failures.check_available(repository, packages, [Package.parse(text) for text in params["available"]])
    return {"changed": False}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: check(module.params))


if __name__ == "__main__":
    main()
