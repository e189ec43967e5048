# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of the collection's variables: which are ours, and which are misspelt."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import plain, value_of, version_of

PREFIXES = ("vllm_", "nvidia_container_toolkit_")
# Prefixes that other collections use too: only what nearly is one of our names is told, as a warning.
SHARED_PREFIXES = ("cpu_image_", "docker_", "router_")
NEARLY = 0.9
# Variables of others that nearly are ours: geerlingguy.docker has it.
OF_OTHERS = frozenset({"docker_package"})
# Files and folders on the controller, which Ansible would look for beside the playbook and the role.
CONTROLLER_PATHS = frozenset(
    {
        "nvidia_container_toolkit_packages_dir",
        "router_ca",
        "router_certificate",
        "vllm_accuracy_tasks_dir",
    }
)
# Versions of what the roles install.
VERSIONS = frozenset({"cpu_image_torch_version", "nvidia_container_toolkit_version"})
# Variables of 0.1.0 that are gone, and what is to be done about them.
GONE = {
    "vllm_allow_key_change": "leave it out. Servers take the old and the new key while vllm_api_key changes.",
    "vllm_rollout_allow_outage": "it is vllm_allow_outage now, and holds for every playbook.",
}
# Variables that the collection sets itself.
OUTPUTS = frozenset({"vllm_plan", "vllm_plans"})


def misspelt(variables: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return a problem for each variable that looks like a wish but is none that the collection knows."""
    names = set(known)
    problems = []
    for name in sorted(variables):
        if not name.startswith(PREFIXES) or name in names or name in OUTPUTS:
            continue
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "the collection has no such variable."
        problems.append(f"{name}: unknown; {GONE.get(name, hint)}")
    return problems


def near_misses(variables: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return a warning for each variable whose name is nearly one of ours, where others may have one of that name."""
    names = {name for name in known if name.startswith(SHARED_PREFIXES)}
    warnings = []
    for name in sorted(variables):
        if not name.startswith(SHARED_PREFIXES) or name in names or name in OF_OTHERS:
            continue
        near = difflib.get_close_matches(name, names, n=1, cutoff=NEARLY)
        if near:
            warnings.append(f"{name} is no variable of this collection; did you mean {near[0]}?")
    return warnings


def rounded_versions(values: Mapping[str, Any]) -> list[str]:
    """Return a problem for each version of what the roles install that YAML has made a number of."""
    problems: list[str] = []
    for name in sorted(VERSIONS & values.keys()):
        value_of(values, name, (name, version_of), problems)
    return problems


def relative_paths(values: Mapping[str, Any]) -> list[str]:
    """Return a problem for each path on the controller that is not absolute."""
    problems = []
    for name in sorted(CONTROLLER_PATHS & values.keys()):
        path = plain(values[name])
        if isinstance(path, str) and path.strip() and not path.strip().startswith(("/", "~")):
            problems.append(
                f"{name}: {path!r} is not valid: it must be an absolute path on the controller, such as"
                f' "{{{{ inventory_dir }}}}/../files/{posixpath.basename(path.rstrip("/")) or "…"}"'
            )
    return problems
