# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task on the controller knows of its host: the wishes in its variables, and what the probes told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import belongs_to
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.orphans import ALIVE
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import HostInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import variables as verify_variables
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import variable_names, wishes

# The folder of tuned tables below vllm_tune_dir, unless vllm_moe_tables_dir names another.
MOE_TABLES = "moe-tables"
# What the planner calls the texts of gpu_info.
GPU_TEXTS = {
    "driver_version": "driver_version",
    "cuda_driver_version": "cuda_driver_version",
    "gpu_state": "state",
    "gpu_reason": "reason",
    "gpu_remedy": "remedy",
}


def read_wishes(
    templar: Any, variables: Mapping[str, Any], overrides: Mapping[str, Any], known: Iterable[str]
) -> wishes.Wishes:
    """Return the wishes in the task's variables.

    Args:
        templar: the task's.
        variables: the task's, untemplated.
        overrides: further ones, which win.
        known: every name that the collection's roles document.

    Raises:
        GpufleetError: C(invalid-wishes), naming every problem at once.
    """
    names = {name for name in variables if name.startswith(variable_names.PREFIXES)}
    readable = {reader[0] for reader in wishes.READERS.values()} | verify_variables.READERS.keys()
    values: dict[str, Any] = {}
    problems = []
    for name in sorted(names & readable):
        try:
            values[name] = templar.template(variables[name])
        except AnsibleError as error:
            problems.append(f"{name}: cannot be templated: {error}")
    values.update(overrides)
    problems += verify_variables.problems(values)
    others = {**_others(templar, variables), **values}
    problems += variable_names.relative_paths(others) + variable_names.rounded_versions(others)
    return wishes.read({**dict.fromkeys(names), **values}, known, problems)


def _others(templar: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return paths on the controller and versions; those that only another host can template are left to it."""
    found = {}
    for name in sorted((variable_names.CONTROLLER_PATHS | variable_names.VERSIONS) & variables.keys()):
        with contextlib.suppress(AnsibleError):
            found[name] = templar.template(variables[name])
    return found


def planner_host(
    gpu_info: Mapping[str, Any], host_info: HostInfo, variables: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """Return what planner.plan needs to know of the host: what the probes told, or else its gathered facts.

    Args:
        gpu_info: what the module of that name returned; may be empty.
        host_info: what the module of that name returned; may be empty.
        variables: the task's.
        prefix: vllm_container_prefix: what runs under another one is not this deployment's.
    """
    return {
        **_machine(host_info, variables.get("ansible_facts") or {}),
        "own_containers": _own_containers(host_info, prefix),
        "model": host_info.get("model") or {},
        "gpus": gpu_info.get("gpus") or [],
        **{name: gpu_info.get(key) or "" for name, key in GPU_TEXTS.items()},
    }


def moe_tables(templar: Any) -> dict[str, str]:
    """Return the names and texts of the files in C(vllm_moe_tables_dir) on the controller.

    The default folder is there once the playbook tune has made tables.

    Raises:
        GpufleetError: C(no-moe-tables) where another folder is named that cannot be read.
    """
    known = templar.available_variables
    named = str(templar.template(known.get("vllm_moe_tables_dir") or "")).strip()
    default = f"{templar.template(known.get('vllm_tune_dir') or '')}/{MOE_TABLES}"
    folder = Path(named).expanduser()
    if not named or (named == default and not folder.exists()):
        return {}
    try:
        folder.stat()
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}
    except (OSError, UnicodeDecodeError) as error:
        raise GpufleetError(
            f"vllm_moe_tables_dir: {folder} cannot be read: {error}.",
            name="no-moe-tables",
            remedy="Name a folder on the controller that the playbook tune has written, or leave it at its default.",
        ) from error


def _machine(host_info: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return architecture, processors and memory of the host."""
    system, cpu, memory = (host_info.get(part) or {} for part in ("system", "cpu", "memory"))
    return {
        "architecture": system.get("architecture") or facts.get("architecture", ""),
        "cpus": cpu.get("count") or facts.get("processor_vcpus", 0),
        "cpu_flags": cpu.get("flags") or [],
        "memory_mib": memory.get("total_mib") or facts.get("memtotal_mb", 0),
        "memory_available_mib": memory.get("available_mib") or 0,
    }


def _own_containers(host_info: Mapping[str, Any], prefix: str) -> list[str]:
    """Return the ids of this deployment's containers that are alive."""
    return [
        container["id"]
        for container in (host_info.get("engine") or {}).get("containers") or []
        if container.get("ours")
        and container.get("state", "running") in ALIVE
        and belongs_to(prefix, str(container.get("name") or f"{prefix}-0"))
    ]
