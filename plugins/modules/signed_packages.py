# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module signed_packages: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: signed_packages
short_description: Have packages from a vendor's repository whose key is known by its fingerprint
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Installs packages with C(apt) or C(dnf), in versions of one's choice, from a vendor's repository or from files.
  - A host that has the packages is left alone, its repositories too.
  - The key is fetched and checked before anything is written. It must have one of the expected fingerprints, bring no
    further key along that has not, and be in force. No C(gpg) is needed on the host.
  - Only the lists of this repository are refreshed, so that another one of the host that is broken does no harm. A
    repository that does not work is taken away again.
  - Services are not restarted by C(needrestart) while this module installs.
options:
  name:
    description:
      - Names the files of repository and key on the host.
    type: str
    required: true
  packages:
    description:
      - The packages, as V(name) or V(name=version).
    type: list
    elements: str
    required: true
  manager:
    description:
      - The package manager. V(auto) is V(apt) where Debian's package database is, V(dnf) otherwise.
    type: str
    choices: [auto, apt, dnf]
    default: auto
  url:
    description:
      - Address of the repository. Needed unless O(folder) is given.
    type: str
  suite:
    description:
      - Suite of an apt repository, C(/) for a flat one.
    type: str
    default: /
  components:
    description:
      - Components of an apt repository that is not flat.
    type: list
    elements: str
    default: []
  key:
    description:
      - Address of the key that signs the repository, or its path on the host. Needed with O(url).
    type: str
  fingerprints:
    description:
      - The fingerprints that the key may have. Spaces do not matter. Needed with O(url).
    type: list
    elements: str
  signed:
    description:
      - What of a dnf repository is signed.
    type: str
    choices: [metadata, packages]
    default: metadata
  proxy:
    description:
      - Proxy for key and packages, used for this task and written nowhere. Empty for what the host's environment and
        its package manager have.
    type: str
    default: ""
  folder:
    description:
      - Folder on the host with the packages as files, taken instead of a repository. Others in it are installed with
        them, as what they depend on.
    type: path
  allow_downgrade:
    description:
      - Whether a version newer than the wanted one is taken back to it. It is left alone otherwise.
    type: bool
    default: false
  variables:
    description:
      - The variables that messages shall name for C(url), C(key), C(fingerprints), C(version) and C(folder).
    type: dict
    default: {}
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Install NVIDIA's container toolkit
  gpufleet.vllm.signed_packages:
    name: nvidia-container-toolkit
    packages:
      - nvidia-container-toolkit=1.19.1-1
      - nvidia-container-toolkit-base=1.19.1-1
      - libnvidia-container-tools=1.19.1-1
      - libnvidia-container1=1.19.1-1
    url: https://nvidia.github.io/libnvidia-container/stable/deb/amd64
    key: https://nvidia.github.io/libnvidia-container/gpgkey
    fingerprints: [C95B321B61E88C1809C4F759DDCAE044F796ECB0]

- name: Install it without a network
  gpufleet.vllm.signed_packages:
    name: nvidia-container-toolkit
    packages: [nvidia-container-toolkit=1.19.1-1, nvidia-container-toolkit-base=1.19.1-1]
    folder: /srv/packages
"""

RETURN = r"""
manager:
  description: The package manager that was used.
  returned: success
  type: str
  sample: apt
installed:
  description: The packages that were installed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [nvidia-container-toolkit=1.19.1-1]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(key-unreachable), V(key-invalid), V(key-mismatch), V(key-expired), V(repository-unreachable),
      V(repository-untrusted), V(source-conflict), V(package-missing), V(packages-failed), V(no-package-manager) and
      V(write-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import signed_packages
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.signed_packages import Package, Source

ARGUMENTS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "packages": {"type": "list", "elements": "str", "required": True},
    "manager": {"type": "str", "choices": ["auto", "apt", "dnf"], "default": "auto"},
    "url": {"type": "str"},
    "suite": {"type": "str", "default": "/"},
    "components": {"type": "list", "elements": "str", "default": []},
    "key": {"type": "str", "no_log": False},
    "fingerprints": {"type": "list", "elements": "str"},
    "signed": {"type": "str", "choices": ["metadata", "packages"], "default": "metadata"},
    "proxy": {"type": "str", "default": "", "no_log": True},
    "folder": {"type": "path"},
    "allow_downgrade": {"type": "bool", "default": False},
    "variables": {"type": "dict", "default": {}},
}


def have_packages(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Have the packages on the host, and return the module's result."""
    family = signed_packages.family_of(params["manager"], proxy=params["proxy"])
    wanted = [Package.parse(text) for text in params["packages"]]
    lacking = signed_packages.lacking_packages(family, wanted, params["allow_downgrade"])
    result: dict[str, Any] = {
        "changed": bool(lacking.packages),
        "manager": family.name,
        "installed": [str(package) for package in lacking.packages],
    }
    if not lacking.packages:
        return result
    if params["folder"]:
        result["diff"] = signed_packages.difference(family, lacking, None)
        if not check_mode:
            variable = params["variables"].get("folder", "folder")
            signed_packages.install_from_folder(family, params["folder"], lacking, variable)
        return result
    source = source_of(params)
    result["diff"] = signed_packages.difference(family, lacking, source)
    key = signed_packages.fetch_key(source)
    if not check_mode:
        signed_packages.install_from_source(family, source, lacking, key)
    return result


def source_of(params: dict[str, Any]) -> Source:
    """Return the repository that the options describe."""
    return Source(
        name=params["name"],
        url=params["url"],
        suite=params["suite"],
        components=tuple(params["components"]),
        key=params["key"],
        fingerprints=tuple(params["fingerprints"]),
        signed=params["signed"],
        proxy=params["proxy"],
        variables=params["variables"],
    )


def main() -> None:
    """Run the module."""
    module = GpufleetModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_one_of=[("url", "folder")],
        mutually_exclusive=[("url", "folder")],
        required_together=[("url", "key", "fingerprints")],
    )
    module.run(lambda: have_packages(module.params, module.check_mode))


if __name__ == "__main__":
    main()
