# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup bundle: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
name: bundle
short_description: The variables of a host that follow from a bundle
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Returns what a variable of this collection is with C(vllm_bundle_dir), the folder that the playbook
    C(gpufleet.vllm.bundle) made. The defaults of the roles use it, so that an inventory may say otherwise.
options:
  _terms:
    description:
      - Names of variables, of V(vllm_image_archive), V(vllm_accuracy_wheels) and
        V(nvidia_container_toolkit_packages_dir).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show which archive the host loads
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.vllm.bundle', 'vllm_image_archive') }}"
"""

RETURN = r"""
_raw:
  description: One entry for each term, empty where there is no bundle, or nothing of it for the host.
  type: list
  elements: str
"""

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.site_variables import SiteVariables


class LookupModule(LookupBase):  # type: ignore[misc]
    """The lookup plugin gpufleet.vllm.bundle."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **options: Any) -> list[str]:
        """Return the value of each variable."""
        try:
            bundle = SiteVariables(self._templar, variables or {}).bundle()
        except GpufleetError as error:
            raise AnsibleError(error.as_text()) from None
        derived = bundle.derived() if bundle else {}
        return [derived.get(term, "") for term in terms]
