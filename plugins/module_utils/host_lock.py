# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock that keeps two runs from acting on one host at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import TextIO

from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError

PAUSE_S = 0.5


@contextlib.contextmanager
def host_lock(path: str, operation: str, *, timeout: float = 0) -> Iterator[None]:
    """Hold the lock C(path) inside the block; the kernel lets go of it when this process ends, however it does.

    Args:
        path: the lock file; it stays, its folder must exist.
        operation: what is being done, for the message of whoever comes second.
        timeout: seconds to wait for another process to let go of it.

    Raises:
        GpufleetError: C(busy), naming the process and operation that hold the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as stream:
        _take(stream, path, time.monotonic() + timeout)
        stream.seek(0)
        stream.truncate(0)
        json.dump({"pid": os.getpid(), "operation": operation, "since": int(time.time())}, stream)
        stream.flush()
        try:
            yield
        finally:
            stream.seek(0)
            stream.truncate(0)


def _take(stream: TextIO, path: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                stream.seek(0)
                raise _busy(path, stream.read()) from None
            time.sleep(PAUSE_S)
        else:
            return


def _busy(path: str, text: str) -> GpufleetError:
    try:
        holder = json.loads(text)
    except ValueError:
        holder = {}
    pid, operation = holder.get("pid", "unknown"), holder.get("operation", "something else")
    seconds = time.time() - holder.get("since", time.time())
    span = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return GpufleetError(
        f"Another run is working on this host (for {span}): {operation} (process {pid}).",
        name="busy",
        remedy=f"Wait until it has ended and run the play again. A play that was interrupted goes on working on the"
        f" host until it is done; end process {pid} only if it hangs (the next run puts right what it left).",
        evidence=path,
        details=holder,
    )
