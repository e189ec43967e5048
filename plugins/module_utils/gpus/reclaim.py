# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends what servers of this collection left on GPUs; each is proved to be ours again at the moment it is ended."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import (
    COLLECTION,
    LABEL_COLLECTION,
    ContainerInfo,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.stop import stop_container
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.orphans import exists, may_end

if TYPE_CHECKING:
    from docker import DockerClient

POLL_S = 0.1
# A process that is killed has its memory taken back by the driver before it is gone.
KILL_TIMEOUT_S = 30.0

Containers = Callable[[], Sequence[ContainerInfo]]


def reclaim(
    orphans: Iterable[Mapping[str, Any]],
    client: Callable[[], DockerClient],
    containers: Containers,
    *,
    drain_timeout: float,
    check: bool,
) -> dict[str, Any]:
    """End orphans.

    Args:
        orphans: see orphans.find.
        client: makes the Docker SDK's client, if one is needed.
        containers: tells all containers of the engine.
        drain_timeout: seconds between asking an orphan to end and killing it.
        check: only tell what would be ended.

    Returns:
        C(changed), C(containers) (names of those removed), C(processes) (ids of those ended) and C(gone) (those of
        either kind that had ended by themselves).

    Raises:
        GpufleetError: C(not-ours) before anything is ended when one does not prove to be ours; C(orphan-stays) when one
            cannot be ended.
    """
    entries = list(orphans)
    names = sorted({str(entry["container"]) for entry in entries if entry.get("container")})
    pids = sorted({int(entry["pid"]) for entry in entries if not entry.get("container")})
    known = {str(found["name"]): found for found in containers()}
    _check_containers([known[name] for name in names if name in known])
    there = [name for name in names if name in known]
    with _opened(pids) as handles:
        _check_processes(list(handles), list(known.values()))
        if not check:
            _remove(there, client, drain_timeout)
            _end(handles, drain_timeout)
        gone = [str(pid) for pid in pids if pid not in handles] + [name for name in names if name not in known]
        return {"changed": bool(there or handles), "containers": there, "processes": sorted(handles), "gone": gone}


def _check_containers(containers: Iterable[ContainerInfo]) -> None:
    for container in containers:
        if not container["ours"]:
            raise _not_ours(f"The container {container['name']}")


def _check_processes(pids: Iterable[int], containers: Sequence[ContainerInfo]) -> None:
    for pid in pids:
        if not may_end(pid, containers):
            raise _not_ours(f"Process {pid}")


def _not_ours(what: str) -> GpufleetError:
    return GpufleetError(
        f"{what} is not, or no longer, what a server of this collection left.",
        name="not-ours",
        remedy="Nothing was ended. Run again: the host has changed since it was looked at.",
    )


@contextlib.contextmanager
def _opened(pids: Iterable[int]) -> Iterator[dict[int, int]]:
    """Open the processes, so that none that takes a number over is ended in another's stead."""
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                handles[pid] = handle
                if not exists(pid):
                    os.close(handles.pop(pid))
        yield handles
    finally:
        for handle in handles.values():
            os.close(handle)


def _remove(names: Iterable[str], client: Callable[[], DockerClient], drain_timeout: float) -> None:
    from docker.errors import NotFound

    for name in names:
        with engine_errors(f"removing {name}"), contextlib.suppress(NotFound):
            container = client().containers.get(name)
            if container.labels.get(LABEL_COLLECTION) != COLLECTION:
                raise _not_ours(f"The container {name}")
            stop_container(container, int(drain_timeout))
            container.remove(force=True)


def _end(handles: Mapping[int, int], drain_timeout: float) -> None:
    for number, patience in ((signal.SIGTERM, drain_timeout), (signal.SIGKILL, KILL_TIMEOUT_S)):
        for handle in handles.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
        if until(lambda: not any(map(exists, handles)), patience, POLL_S):
            return
    left = [pid for pid in handles if exists(pid)]
    raise GpufleetError(
        f"Process {', '.join(map(str, left))} does not end, even when killed.",
        name="orphan-stays",
        remedy="It hangs in the driver: look for Xid lines in `dmesg`, and reboot the host.",
    )
