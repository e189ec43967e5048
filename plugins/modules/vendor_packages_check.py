# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vendor_packages_check: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vendor_packages_check
short_description: Tell which packages of a vendor lack, and check the key or the files that they come with
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Does what Ansible's own modules for packages cannot do. They install what this module says is lacking.
  - A package lacks if it is not installed, or older than wanted by the package manager's own order.
  - The key of a repository must have one of the expected fingerprints, bring no further key along that has not, and be
    in force, all by what C(gpg) on the host says of it. It is fetched only if a package lacks.
options:
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
  key:
    description:
      - Address of the key that signs the repository, or its path on the host. Needed with O(url).
    type: str
  fingerprints:
    description:
      - The fingerprints that the key may have. Spaces do not matter. Needed with O(url).
    type: list
    elements: str
  key_copy:
    description:
      - File that the checked key is written to, for apt in binary form, except in check mode. Needed with O(url).
    type: path
  source:
    description:
      - File that is to describe the repository, and the key that it is to name. Other files of apt must not name the
        same repository with another key.
    type: path
  keyring:
    description:
      - Path of the key that O(source) is to name.
    type: path
  proxy:
    description:
      - Proxy for the key. Empty for what the host's environment has.
    type: str
    default: ""
  gpg_refused:
    description:
      - What the package manager said when it could not install C(gpg), for the failure if the host has none.
    type: str
    default: ""
  folder:
    description:
      - Folder on the host with the packages as files, taken instead of a repository.
    type: path
  allow_downgrade:
    description:
      - Whether a version newer than the wanted one lacks too.
    type: bool
    default: false
  variables:
    description:
      - The variables that messages name for C(key), C(fingerprints) and C(folder).
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Looks and checks as always, and is C(changed) if something lacks, on behalf of what would install it.
  diff_mode:
    support: full
    description: Shows in check mode which packages would be installed.
  idempotent:
    support: full
    description: The module changes nothing but O(key_copy).
"""

EXAMPLES = r"""
- name: Look at NVIDIA's container toolkit and its key
  gpufleet.vllm.vendor_packages_check:
    packages:
      - nvidia-container-toolkit=1.19.1-1
      - nvidia-container-toolkit-base=1.19.1-1
    url: https://nvidia.github.io/libnvidia-container/stable/deb/amd64
    key: https://nvidia.github.io/libnvidia-container/gpgkey
    fingerprints: [C95B321B61E88C1809C4F759DDCAE044F796ECB0]
    key_copy: /run/toolkit.gpg
  register: toolkit
"""

RETURN = r"""
manager:
  description: The package manager.
  returned: success
  type: str
  sample: apt
lacking:
  description: The packages that have to be installed.
  returned: success
  type: list
  elements: str
  sample: [nvidia-container-toolkit=1.19.1-1]
downgrade:
  description: Whether one of them goes back in version.
  returned: success
  type: bool
files:
  description: The files of O(folder) that have them, and those beside them of what they may depend on.
  returned: success
  type: list
  elements: str
fingerprints:
  description: The fingerprints of the key.
  returned: success
  type: list
  elements: str
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(key-unreachable), V(key-invalid), V(key-mismatch), V(key-expired), V(gpg-missing), V(source-conflict),
      V(package-missing), V(packages-failed), V(no-package-manager) and V(write-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import package_managers, signing_key
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.package_managers import Family, Package

ARGUMENTS: dict[str, Any] = {
    "packages": {"type": "list", "elements": "str", "required": True},
    "manager": {"type": "str", "choices": ["auto", "apt", "dnf"], "default": "auto"},
    "url": {"type": "str"},
    "key": {"type": "str", "no_log": False},
    "fingerprints": {"type": "list", "elements": "str"},
    "key_copy": {"type": "path", "no_log": False},
    "source": {"type": "path"},
    "keyring": {"type": "path", "no_log": False},
    "proxy": {"type": "str", "default": "", "no_log": True},
    "gpg_refused": {"type": "str", "default": ""},
    "folder": {"type": "path"},
    "allow_downgrade": {"type": "bool", "default": False},
    "variables": {"type": "dict", "default": {}},
}


def look(module: GpufleetModule) -> dict[str, Any]:
    """Look at the packages, and at the files or the key if some lack; return the module's result."""
    params = module.params
    family = package_managers.family_of(params["manager"])
    wanted = [Package.parse(text) for text in params["packages"]]
    lacking = package_managers.lacking_packages(family, wanted, params["allow_downgrade"])
    result: dict[str, Any] = {
        "changed": bool(lacking.packages) and module.check_mode,
        "manager": family.name,
        "lacking": [str(package) for package in lacking.packages],
        "downgrade": lacking.downgrade,
        "files": [],
        "fingerprints": [],
    }
    if result["changed"]:
        result["diff"] = package_managers.difference(lacking)
    if not lacking.packages:
        return result
    if params["folder"]:
        variable = params["variables"].get("folder", "folder")
        result["files"] = package_managers.files_with(family, params["folder"], lacking.packages, variable)
    else:
        result["fingerprints"] = check_key(module, family)
    return result


def check_key(module: GpufleetModule, family: Family) -> list[str]:
    """Check the key of the repository, write its copy unless in check mode, and return its fingerprints."""
    params = module.params
    check_sources(params, family)
    if not signing_key.has_gpg():
        return without_gpg(module, family)
    expected = signing_key.Expected(params["key"], params["fingerprints"], params["proxy"], params["variables"])
    data, keys = signing_key.fetch_key(expected)
    if not module.check_mode:
        write_file(params["key_copy"], signing_key.dearmor(data) if family.name == "apt" else data, 0o644)
    return [key.fingerprint for key in keys]


def without_gpg(module: GpufleetModule, family: Family) -> list[str]:
    """Raise C(gpg-missing), but in check mode, in which nothing could install gpg, only warn."""
    key = module.params["key"]
    if module.check_mode:
        module.warn(
            f"This host has no gpg, so the key {key} is not checked in check mode. It is in a run that installs."
        )
        return []
    raise GpufleetError(
        f"This host has no gpg, so the key {key} cannot be checked.",
        name="gpg-missing",
        remedy=f"Install {'gpg' if family.name == 'apt' else 'gnupg2'} on the host, then run the play again.",
        evidence=module.params["gpg_refused"],
    )


def check_sources(params: dict[str, Any], family: Family) -> None:
    """Raise C(source-conflict) if the host names the repository already, with another key than it will have."""
    others = family.other_sources(params["url"], params["source"] or "", params["keyring"] or "")
    if others:
        raise GpufleetError(
            f"{', '.join(others)} names {params['url']} already, with another key than {params['keyring']};"
            f" {family.name} refuses that.",
            name="source-conflict",
            remedy="Remove that file (and its key), then run the play again.",
        )


def main() -> None:
    """Run the module."""
    module = GpufleetModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_one_of=[("url", "folder")],
        mutually_exclusive=[("url", "folder")],
        required_together=[("url", "key", "fingerprints")],
        required_by={"url": ("key_copy",)},
    )
    module.run(lambda: look(module))


if __name__ == "__main__":
    main()
