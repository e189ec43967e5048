# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that a server of this collection left on a GPU.

What proves that a process is ours is the configuration that every server of ours mounts at one place: the kernel shows
it in the process's mounts, also when its container is gone from the engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import NOTHING
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import container_id, process_fields, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import ContainerInfo, belongs_to
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONFIG_PATH

# The file that deployment.py mounts at CONFIG_PATH, as the kernel tells it of a mount.
ACTIVE_CONFIG = re.compile(r"/active/(?P<replica>[A-Za-z0-9][A-Za-z0-9_.-]*)-[0-9a-f]{6,}\.yaml(?://deleted)?$")
# Who starts the processes of containers and stays with them.
SUPERVISORS = ("containerd-shim", "dockerd", "containerd", "conmon", "podman")
ALIVE = ("running", "paused", "restarting", "removing")
MOST_ANCESTORS = 64


def replica_of(pid: int, root: str = "/") -> str:
    """Return the replica whose configuration is mounted in a process's view of the file system, or an empty text."""
    for line in read_text(root, "proc", str(pid), "mountinfo").splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[4] == CONFIG_PATH:
            found = ACTIVE_CONFIG.search(fields[3])
            return found["replica"] if found else ""
    return ""


def is_supervised(pid: int, root: str = "/") -> bool:
    """Return whether an ancestor of the process is a container engine's: then some engine still looks after it."""
    for _generation in range(MOST_ANCESTORS):
        fields = process_fields(pid, root)
        if len(fields) < 2 or not fields[1].isdigit() or int(fields[1]) == 0:
            return False
        pid = int(fields[1])
        if read_text(root, "proc", str(pid), "comm").strip().startswith(SUPERVISORS):
            return True
    return False


def find(gpus: Iterable[Mapping[str, Any]], containers: Sequence[ContainerInfo], prefix: str) -> list[dict[str, Any]]:
    """Return what servers of this collection hold of the GPUs that no deployment of this prefix wants any more.

    Args:
        gpus: what gpu_info told.
        containers: all containers of the engine, as host_info told.
        prefix: vllm_container_prefix. What runs under it is the deployment's own and no orphan.

    Returns:
        For each process C(pid), C(gpu) (index), C(used_mib), C(replica), C(container) (the name of a container that
        still runs, under another prefix; empty for a process whose container died or is gone) and C(why).
    """
    known = {container["id"]: container for container in containers}
    found = []
    for gpu in gpus:
        for process in gpu.get("processes") or []:
            why, container = _why(process, known.get(process.get("container") or ""), prefix)
            if why:
                found.append(
                    {
                        "pid": process["pid"],
                        "gpu": gpu["index"],
                        "used_mib": process.get("used_mib"),
                        "replica": (container or NOTHING).get("replica") or process.get("replica") or "",
                        "container": container["name"] if container and container["state"] in ALIVE else "",
                        "why": why,
                    }
                )
    return found


def _why(process: Mapping[str, Any], container: ContainerInfo | None, prefix: str) -> tuple[str, ContainerInfo | None]:
    """Return why a process is an orphan of ours, and its container as far as the engine has one; or an empty text."""
    if container is not None and not container.get("ours"):
        return "", None
    if container is not None:
        if container.get("state") not in ALIVE:
            return f"its container {container['name']} is {container.get('state') or 'dead'}", container
        if not belongs_to(prefix, str(container["name"])):
            return f"its container {container['name']} is no longer of this deployment ({prefix}-…)", container
        return "", None
    if process.get("replica") and not process.get("supervised"):
        return f"the container of {process['replica']} is gone", None
    return "", None


def may_end(pid: int, containers: Sequence[ContainerInfo], root: str = "/") -> bool:
    """Return whether a process may be ended: it proves to be ours, and no engine looks after it any more.

    Args:
        pid: the process.
        containers: all containers of the engine, as they are now.
        root: the folder below which proc is mounted.
    """
    identifier = container_id(pid, root)
    container = next((entry for entry in containers if identifier and entry["id"] == identifier), None)
    if container is not None:
        return bool(container["ours"]) and container["state"] not in ALIVE
    return bool(replica_of(pid, root)) and not is_supervised(pid, root)


def exists(pid: int, root: str = "/") -> bool:
    """Return whether there is such a process that has not ended; one that waits for its parent has."""
    fields = process_fields(pid, root)
    return bool(fields) and fields[0] not in "ZX" and os.path.isdir(os.path.join(root, "proc", str(pid)))
