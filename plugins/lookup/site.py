# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup site: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
name: site
short_description: What the variables of a site mean for a host
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Reads the variables by which a site names its proxies, mirrors, registries and secrets, and returns what one kind of
    program needs of them. The roles of this collection use it; see the guide to sites.
  - What it returns may hold passwords. Give it to options that are not shown, or to tasks with C(no_log).
options:
  _terms:
    description:
      - What is wanted. V(servers) are the environment variables of servers and downloads that are not shown, V(jobs)
        those of the containers that verify them, V(secrets) all values that no report may show. V(registry) is how to
        get into the registry of O(reference), with C(username), C(password) and the text of C(ca). V(packages) is what
        M(gpufleet.vllm.way_out) tells package managers, V(proxy) the proxy for O(url), V(engine) what
        M(gpufleet.vllm.docker_engine) takes as C(proxies), V(index) has C(url), C(user) and C(proxy) of the package
        index.
    type: list
    elements: str
    choices: [servers, jobs, secrets, registry, packages, proxy, engine, index]
    required: true
  reference:
    description:
      - Name of an image, for V(registry).
    type: str
    default: ""
  url:
    description:
      - Address, for V(proxy).
    type: str
    default: ""
  proxy:
    description:
      - Proxy in the place of the site's, for V(packages).
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Download with the site's proxies
  gpufleet.vllm.vllm_model:
    model: RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic
    image: vllm/vllm-openai:v0.26.0
    secrets: "{{ lookup('gpufleet.vllm.site', 'servers') }}"
"""

RETURN = r"""
_raw:
  description: One entry for each term.
  type: list
  elements: raw
"""

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.site_variables import SiteVariables

KINDS = ("servers", "jobs", "secrets", "registry", "packages", "proxy", "engine", "index")
# The option that one of them takes.
TAKES = {"registry": "reference", "packages": "proxy", "proxy": "url"}


class LookupModule(LookupBase):  # type: ignore[misc]
    """The lookup plugin gpufleet.vllm.site."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **options: Any) -> list[Any]:
        """Return what each term asks for."""
        site = SiteVariables(self._templar, variables or {})
        unknown = [term for term in terms if term not in KINDS]
        if unknown:
            raise AnsibleError(f"The lookup gpufleet.vllm.site knows {', '.join(KINDS)}, and not {unknown[0]}.")
        given = {term: [str(options.get(option) or "")] for term, option in TAKES.items()}
        return [getattr(site, term)(*given.get(term, [])) for term in terms]
