# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs HAProxy with the wanted files, and reloads them without dropping a connection.

New files are checked by HAProxy itself in a folder of their own before any of the old ones is touched. They are loaded
by the master process, which starts a new worker with the same listening sockets; the old worker ends with its last
connection. Where the new worker does not come up (a port that is taken is seen only then), the old files are put back:
the old worker has served all the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import (
    run_command,
    run_program,
    start_detached,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import Unit, on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config_names, keeper_service, members
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.access_log import KEEPER_PROGRAM, KEEPER_SETTINGS
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import CLIENT_LIMITS
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master, Processes
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import answer_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.reader_service import ReaderService, lives
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.server_states import at_their_places
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.shared_address import in_step_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.too_large import FILE as TOO_LARGE

UNIT = Unit("gpufleet-router.service", "router-not-started")
LOADED = "loaded.sha256"
SECRET_MODE, CONFIG_MODE = 0o600, 0o644
CONFIGS = (config_names.CONFIG, config_names.READER_CONFIG)
MODES = dict.fromkeys(
    (
        *CONFIGS,
        config_names.REPLICAS,
        config_names.MODELS,
        config_names.MODELS_MAP,
        config_names.TRUSTED_PROXIES,
        config_names.TARGETS,
        CLIENT_LIMITS,
        KEEPER_PROGRAM,
        KEEPER_SETTINGS,
        *answer_files(),
        TOO_LARGE,
    ),
    CONFIG_MODE,
)
START_S = 15.0
POLL_S = 0.1
LOG_SHOWN = 2000


class RouterService:
    """The router of this host.

    Args:
        directory: folder of its files.
        run_dir: folder of its sockets.
        state_dir: folder of what it keeps over a reboot.
        log_file: where HAProxy's messages go when there is no systemd.
    """

    def __init__(self, directory: str, run_dir: str, state_dir: str, log_file: str) -> None:
        self._directory = directory
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._log_file = log_file
        self.master = Master(os.path.join(run_dir, config_names.MASTER_SOCKET), state_dir)
        self._states = self.master.states
        self._reader = ReaderService(directory, run_dir, state_dir, log_file)

    # What is there

    def path(self, name: str) -> str:
        """Return the path of one of its files."""
        return os.path.join(self._directory, name)

    def text(self, name: str) -> str:
        """Return the text of one of its files; empty when it is missing."""
        return read_text(self.path(name))

    def processes(self) -> Processes | None:
        """Return what runs; None when nothing does.

        Raises:
            GpufleetError: C(router-not-answering) when that cannot be told.
        """
        try:
            found = self.master.processes()
        except GpufleetError as error:
            if error.name != "router-not-running":
                raise
            return None
        return found if found.current else None

    def loaded(self, files: Mapping[str, str]) -> bool:
        """Return whether what runs has loaded just these files and the certificate that is there."""
        return read_text(self._run_dir, LOADED).strip() == self._digest(files) and self._reader.runs()

    def _digest(self, files: Mapping[str, str]) -> str:
        whole = hashlib.sha256()
        for name in sorted({*files, config_names.CERTIFICATE}):
            text = files[name] if name in files else self.text(name)
            whole.update(f"{name} {hashlib.sha256(text.encode()).hexdigest()}\n".encode())
        return whole.hexdigest()

    # Checking

    def check(self, render: Callable[[str], Mapping[str, str]]) -> None:
        """Let HAProxy check the files that `render` makes for a folder, in a folder of their own.

        Raises:
            GpufleetError: C(haproxy-missing), or C(router-config-refused) with HAProxy's words.
        """
        program = haproxy_program()
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        self._states.ensure_file()
        folder = tempfile.mkdtemp(prefix=".check-", dir=self._directory)
        try:
            for name, text in render(folder).items():
                write_file(os.path.join(folder, name), text, MODES.get(name, SECRET_MODE))
            certificate, checked = self.path(config_names.CERTIFICATE), os.path.join(folder, config_names.CERTIFICATE)
            if os.path.exists(certificate) and not os.path.exists(checked):
                os.symlink(certificate, checked)
            for name in (name for name in CONFIGS if os.path.exists(os.path.join(folder, name))):
                run_command(
                    [program, "-W", "-c", "-f", os.path.join(folder, name)],
                    name="router-config-refused",
                    doing="HAProxy's check of the router's configuration",
                    remedy="The router goes on with what it has. Correct the router_* variable that the message leads"
                    " to. router_certificate needs the certificate, its chain and its private key in one file.",
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # Changing

    def load(self, files: Mapping[str, str]) -> str:
        """Write the files and have HAProxy run with them; return C(started) or C(reloaded).

        Raises:
            GpufleetError: C(router-not-started), or C(router-not-reloaded); the old files are back then.
        """
        running = self.processes()
        os.makedirs(self._run_dir, mode=0o755, exist_ok=True)
        self._states.ensure_file()
        with self._states.held("router_server"):
            if running:
                self._exchange(files)
            else:
                self._write(files)
                self._reader.load(haproxy_program())
                self._start(_replicas(files))
        write_file(os.path.join(self._run_dir, LOADED), self._digest(files) + "\n", CONFIG_MODE)
        return "reloaded" if running else "started"

    def _exchange(self, files: Mapping[str, str]) -> None:
        before = {name: self.text(name) for name in files if os.path.exists(self.path(name))}
        try:
            self._write(files)
            self._reader.load(haproxy_program())
            self._reload(_replicas(files))
        except GpufleetError:
            self._write(before)
            for name in set(files) - set(before):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path(name))
            with contextlib.suppress(GpufleetError):
                self._reload(_replicas(before))
            with contextlib.suppress(GpufleetError):
                self._reader.load(haproxy_program())
            raise

    def remove(self) -> None:
        """End HAProxy and remove what this made."""
        if on_systemd():
            UNIT.remove()
            keeper_service.UNIT.remove()
        else:
            self._stop()
        self._reader.stop()
        for folder in (self._run_dir, self._state_dir, self._directory):
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            write_file(self.path(name), text, MODES.get(name, SECRET_MODE))

    def _start(self, replicas: Sequence[Replica]) -> None:
        self._states.write(at_their_places(self._states.read(), replicas))
        mark = _size(self._log_file)
        if on_systemd():
            UNIT.write(self._unit_text())
            UNIT.systemctl("enable")
            UNIT.systemctl("restart")
            process = None
        else:
            process = self._spawn()
        if isinstance(until(lambda: self._seen() or _has_ended(process), START_S, POLL_S), Processes):
            return
        if process and process.poll() is None:
            process.terminate()
        raise GpufleetError(
            "The router does not start.",
            name="router-not-started",
            remedy="Evidence is what HAProxy says. A port that is taken: set router_port, or end what holds it.",
            evidence=self._said(mark),
        )

    def _unit_text(self) -> str:
        return unit_text(haproxy_program(), self._directory, self._run_dir, self._state_dir)

    def _seen(self) -> Processes | None:
        """Return what runs, if that can be told now."""
        try:
            return self.processes()
        except GpufleetError:
            return None

    def _has_new_worker(self, before: Sequence[int]) -> bool:
        """Return whether a worker answers that is none of those of before."""
        found = self._seen()
        return found is not None and bool(set(found.current) - set(before))

    def _spawn(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(in_step_file(self._run_dir))
        return start_detached([haproxy_program(), *arguments(self._directory, self._run_dir)], self._log_file)

    def _reload(self, replicas: Sequence[Replica]) -> None:
        mark, before = _size(self._log_file), self.master.processes().workers()
        if on_systemd():
            UNIT.write(self._unit_text())
        self._states.write(at_their_places(self.master.states_now(), replicas))
        try:
            self.master.reload()
            if until(lambda: self._has_new_worker(before), START_S, POLL_S):
                return
        finally:
            with contextlib.suppress(GpufleetError):  # drained is in it anyway
                self.master.keep_states()
        raise GpufleetError(
            "The router does not load its new configuration; it goes on with the old one.",
            name="router-not-reloaded",
            remedy="Evidence is what HAProxy says. A port that is taken: set router_port, or end what holds it.",
            evidence=self._said(mark),
        )

    def _stop(self) -> None:
        running = self.processes()
        if running is None:
            return
        os.kill(running.master, signal.SIGTERM)
        until(lambda: not lives(running.master), START_S, POLL_S)

    def _said(self, mark: int) -> str:
        """Return the end of what HAProxy said since its log had C(mark) bytes."""
        if on_systemd():
            command = ["journalctl", "--unit", UNIT.name, "--lines", "20", "--no-pager", "--output", "cat"]
            return run_program(command, capture_output=True, text=True, check=False).stdout[-LOG_SHOWN:].strip()
        try:
            with open(self._log_file, "rb") as stream:
                stream.seek(mark)
                return stream.read().decode(errors="replace")[-LOG_SHOWN:].strip()
        except OSError:
            return ""


def _has_ended(process: subprocess.Popen[bytes] | None) -> bool:
    """Return whether a process that we started has ended."""
    return process is not None and process.poll() is not None


def _replicas(files: Mapping[str, str]) -> list[Replica]:
    return members.read_replicas(files.get(config_names.REPLICAS, ""))


def arguments(directory: str, run_dir: str) -> list[str]:
    """Return the arguments with which HAProxy's master runs, without the one that says how."""
    socket = os.path.join(run_dir, config_names.MASTER_SOCKET)
    return ["-W", "-S", f"{socket},mode,600", "-f", os.path.join(directory, config_names.CONFIG)]


def unit_text(program: str, directory: str, run_dir: str, state_dir: str) -> str:
    """Return the systemd unit of the router."""
    line = " ".join([program, "-Ws", *arguments(directory, run_dir)[1:]])
    state = os.path.join(state_dir, config_names.SERVER_STATE)
    return (
        "[Unit]\n"
        "Description=Router of vLLM servers (HAProxy), by the collection gpufleet.vllm\n"
        "After=network-online.target\n"
        "Wants=network-online.target\n\n"
        "[Service]\n"
        "Type=notify\n"
        f"ExecStartPre=/bin/mkdir -p {run_dir} {state_dir}\n"
        # What the other routers were told meanwhile is not known here.
        f"ExecStartPre=/bin/rm -f {in_step_file(run_dir)}\n"
        f"ExecStartPre=/bin/sh -c 'test -s {state} || echo 1 > {state}'\n"
        f"ExecStart={line}\n"
        "ExecReload=/bin/kill -USR2 $MAINPID\n"
        "KillMode=mixed\n"
        "SuccessExitStatus=143\n"
        "Restart=always\n"
        "LimitNOFILE=1048576\n\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def haproxy_program() -> str:
    """Return where HAProxy is.

    Raises:
        GpufleetError: C(haproxy-missing).
    """
    path = program_path("haproxy")
    if path is None:
        raise GpufleetError(
            "HAProxy is not installed on this host.",
            name="haproxy-missing",
            remedy="Let the role router install it (router_manage_package: true), or install HAProxy 2.4 or newer.",
        )
    return path


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def differences(router: RouterService, files: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what would change, for C(--diff): the configuration's text; of files with secrets, that they change."""
    found = []
    for name, text in files.items():
        before = router.text(name)
        if before == text:
            continue
        path = router.path(name)
        if name not in MODES:
            before, text = ("(hidden)\n" if before else ""), "(hidden, and changed)\n"
        found.append({"before_header": path, "after_header": path, "before": before, "after": text})
    return found
