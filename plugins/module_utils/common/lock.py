# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock that keeps two runs from acting on one host, or on a folder that several hosts share, at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Callable, TextIO

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import rough_duration

PAUSE_S = 0.5


@contextlib.contextmanager
def host_lock(
    path: str,
    operation: str,
    *,
    timeout: float = 0,
    on_wait: Callable[[str], None] = lambda _holder: None,
    variable: str = "",
) -> Iterator[None]:
    """Hold the lock C(path) inside the block; the kernel lets go of it when this process ends, however it does.

    On NFS the lock is the server's, so the holder may be a process of another host.

    Args:
        path: the lock file; it stays, its folder must exist.
        operation: what is being done, for the message of whoever comes second.
        timeout: seconds to wait for another process to let go of it.
        on_wait: told meanwhile, about twice a second, who holds it, such as C(download of o/m, for 3 min, process 17).
        variable: the variable that moves the lock's folder elsewhere, for the remedy; empty if there is none.

    Raises:
        GpufleetError: C(busy), naming the process and operation that hold the lock; C(write-failed) where there can be
            no lock.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise write_failed(path, error, variable) from error
    with os.fdopen(descriptor, "r+", encoding="utf-8") as stream:
        try:
            _take(stream, path, time.monotonic() + timeout, on_wait)
        except OSError as error:
            # Such as "No locks available" on NFS without its lock service.
            raise write_failed(path, error, variable) from error
        stream.seek(0)
        stream.truncate(0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "operation": operation, "since": int(time.time())}
        json.dump(holder, stream)
        stream.flush()
        try:
            yield
        finally:
            stream.seek(0)
            stream.truncate(0)


def _take(stream: TextIO, path: str, deadline: float, on_wait: Callable[[str], None]) -> None:
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = _holder(stream.read())
            if time.monotonic() >= deadline:
                raise _busy(path, holder) from None
            on_wait(f"{_operation(holder)}, for {_span(holder)}, {_process(holder)}")
            time.sleep(PAUSE_S)
        else:
            return


def _holder(text: str) -> dict[str, Any]:
    """Return what the holder of a lock wrote into it; empty when that cannot be read."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _operation(holder: dict[str, Any]) -> str:
    return str(holder.get("operation", "something else"))


def _span(holder: dict[str, Any]) -> str:
    # The clocks of two hosts differ.
    seconds = max(time.time() - holder.get("since", time.time()), 0)
    return rough_duration(seconds)


def _process(holder: dict[str, Any]) -> str:
    there = f" on {_elsewhere(holder)}" if _elsewhere(holder) else ""
    return f"process {holder.get('pid', 'unknown')}{there}"


def _elsewhere(holder: dict[str, Any]) -> str:
    """Return the name of the host that the holder is on; empty for this one."""
    host = str(holder.get("host", ""))
    return host if host != socket.gethostname() else ""


def _busy(path: str, holder: dict[str, Any]) -> GpufleetError:
    where = f"in {os.path.dirname(path)}" if _elsewhere(holder) else "on this host"
    return GpufleetError(
        f"Another run is working {where} (for {_span(holder)}): {_operation(holder)} ({_process(holder)}).",
        name="busy",
        remedy=f"Wait until it has ended and run the play again. A play that was interrupted goes on working on its"
        f" host until it is done; end {_process(holder)} only if it hangs (the next run puts right what it left).",
        evidence=path,
        details=holder,
    )
