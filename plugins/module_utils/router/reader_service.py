# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the reader, the router's second HAProxy: a unit of its own, or where there is no systemd a process of its own.

HAProxy could run it as a C(program) of the first one, and cannot from its version 3.3 on.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import start_detached
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import Unit, on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import READER_CONFIG
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.reader_config import sockets_in

UNIT = Unit("gpufleet-router-reader.service", "router-not-started")
MASTER_SOCKET = "reader.cli"
START_S, POLL_S = 30.0, 0.1
# By itself glibc has the kernel take each of its large buffers back at once, and clear the next one page by page.
MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(256 * 1024 * 1024)}


class ReaderService:
    """The reader of a router.

    Args:
        directory: folder of the router's files.
        run_dir: folder of its sockets.
        state_dir: folder of what it keeps over a reboot.
        log_file: where HAProxy's messages go when there is no systemd.
    """

    def __init__(self, directory: str, run_dir: str, state_dir: str, log_file: str) -> None:
        self._config = os.path.join(directory, READER_CONFIG)
        self._log_file = log_file
        self._mark = os.path.join(run_dir, "reader.pid")
        socket = os.path.join(run_dir, MASTER_SOCKET)
        self._words = ["-S", f"{socket},mode,600", "-f", self._config]
        self._made = f"/bin/mkdir -p {run_dir}"
        self._master = Master(socket, state_dir)

    def runs(self) -> bool:
        """Return whether it runs."""
        return bool(self._workers())

    def load(self, program: str) -> None:
        """Run it with the file that is there; what it reads goes on.

        Args:
            program: HAProxy itself.

        Raises:
            GpufleetError: C(router-not-started).
        """
        before = self._workers()
        if on_systemd():
            UNIT.write(self._unit_text(program))
            UNIT.systemctl("enable")
        if before:
            self._master.reload()
        elif on_systemd():
            UNIT.systemctl("restart")
        else:
            self._spawn(program)
        if not until(lambda: bool(set(self._workers()) - set(before)), START_S, POLL_S):
            if not before:
                self._let_go()
            raise GpufleetError(
                "The HAProxy that reads the router's large requests does not start.",
                name="router-not-started",
                remedy=f"Its messages are in {self._log_file}, or in journalctl --unit {UNIT.name}.",
            )

    def stop(self) -> None:
        """End it, and remove its file and sockets."""
        sockets = sockets_in(read_text(self._config))
        for path in (self._config, self._mark, *sockets):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if on_systemd():
            UNIT.remove()
            return
        with contextlib.suppress(GpufleetError, ProcessLookupError):
            master = self._master.processes().master
            os.kill(master, signal.SIGTERM)
            until(lambda: not lives(master), START_S, POLL_S)

    def _workers(self) -> Sequence[int]:
        try:
            return self._master.processes().current
        except GpufleetError:
            return ()

    def _let_go(self) -> None:
        """Have nothing start it again where there is no systemd."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._mark)

    def _spawn(self, program: str) -> None:
        """Start it, and have it started again until it is stopped, or started by somebody else."""
        line, mark = shlex.join([program, "-W", *self._words]), shlex.quote(self._mark)
        shell = f'echo $$ > {mark}; while test "$(cat {mark} 2> /dev/null)" = $$; do {line}; sleep 1; done'
        start_detached(["/bin/sh", "-c", shell], self._log_file, MEMORY)

    def _unit_text(self, program: str) -> str:
        return (
            "[Unit]\n"
            "Description=Reader of large requests to vLLM servers (HAProxy), by the collection gpufleet.vllm\n"
            "Before=gpufleet-router.service\n\n"
            "[Service]\n"
            "Type=notify\n"
            f"Environment={' '.join(f'{name}={value}' for name, value in MEMORY.items())}\n"
            f"ExecStartPre={self._made}\n"
            f"ExecStart={' '.join([program, '-Ws', *self._words])}\n"
            "ExecReload=/bin/kill -USR2 $MAINPID\n"
            "KillMode=mixed\n"
            "SuccessExitStatus=143\n"
            "Restart=always\n"
            "LimitNOFILE=1048576\n\n"
            "[Install]\n"
            "WantedBy=multi-user.target\n"
        )


def lives(pid: int) -> bool:
    """Return whether a process is there and has not ended yet."""
    return "State:\tZ" not in (read_text(f"/proc/{pid}/status") or "State:\tZ")
