# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module way_out: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: way_out
short_description: Tell a host's package managers the site's proxies for one piece of work
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Writes files for apt, dnf and pip that only root reads, and returns the environment variables that name them. A
    password is so in no environment, process list or log.
  - The files do not stay. With O(state=absent) they are removed, and a reboot removes them, too. So nothing counts as
    changed.
options:
  state:
    description:
      - Whether the files are there.
    type: str
    choices: [present, absent]
    default: present
  apt:
    description:
      - Lines for apt, which the lookup P(gpufleet.vllm.site#lookup) has as C(apt) of V(packages); so with those below.
    type: str
    default: ""
  dnf:
    description:
      - Lines for the main part of dnf's configuration.
    type: str
    default: ""
  pip:
    description:
      - Text of a configuration of pip.
    type: str
    default: ""
  no_proxy:
    description:
      - Who is reached without a proxy.
    type: str
    default: ""
  folder:
    description:
      - Folder of the files, which is made for them and removed with them.
    type: path
    default: /run/gpufleet-way-out
attributes:
  check_mode:
    support: full
    description: Writes nothing in check mode and returns no variables.
  diff_mode:
    support: N/A
    description: Nothing that stays is changed.
  idempotent:
    support: full
    description: A second run changes nothing.
"""

EXAMPLES = r"""
- name: Have the site's way out
  gpufleet.vllm.way_out:
    apt: "{{ lookup('gpufleet.vllm.site', 'packages').apt }}"
  register: way

- name: Install a package by it
  ansible.builtin.apt:
    name: gpg
  environment: "{{ way.environment }}"

- name: Leave nothing behind
  gpufleet.vllm.way_out:
    state: absent
"""

RETURN = r"""
environment:
  description: Environment variables of the programs. They hold no secret.
  returned: success
  type: dict
  sample: {APT_CONFIG: /run/gpufleet-way-out/apt.conf, no_proxy: "localhost,127.0.0.1,::1"}
dnf_config:
  description: The configuration that dnf is to be given, C(/etc/dnf/dnf.conf) where it is the host's own.
  returned: success
  type: str
  sample: /run/gpufleet-way-out/dnf.conf
error:
  description: The failure in parts, C(name) (V(write-failed)), C(message), C(remedy), C(evidence) and C(details).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import package_settings

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "apt": {"type": "str", "default": "", "no_log": True},
    "dnf": {"type": "str", "default": "", "no_log": True},
    "pip": {"type": "str", "default": "", "no_log": True},
    "no_proxy": {"type": "str", "default": ""},
    "folder": {"type": "path", "default": package_settings.FOLDER},
}


def work(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Write or remove the files, and return the module's result."""
    result: dict[str, Any] = {"changed": False, "environment": {}, "dnf_config": package_settings.DNF_CONFIG}
    if check_mode:
        return result
    if params["state"] == "absent":
        package_settings.remove(params["folder"])
        return result
    texts = {name: params[name] for name in ("apt", "dnf", "pip")}
    if not any(texts.values()):
        return result
    result["environment"] = package_settings.write(texts, params["no_proxy"], params["folder"])
    if texts["dnf"]:
        result["dnf_config"] = package_settings.path_of("dnf", params["folder"])
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module.params, check_mode=module.check_mode))


if __name__ == "__main__":
    main()
