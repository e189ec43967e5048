# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker daemon of a host: its daemon.json, merged and never overwritten, and its start, reload and restart.

A reload (SIGHUP) takes over most of daemon.json without touching a container, so it comes first; a restart ends every
container on the host and comes only where it must, and not while any runs unless that is allowed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import (
    SYSTEM_PATH,
    program_name,
    program_path,
    read_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import (
    run_command,
    run_program,
    start_program,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import engine_proxies
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_config import (
    CONFIG_MODE,
    RUNTIME,
    DaemonWish,
    wanted_config,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_rules import (
    refuse_conflicts,
    refuse_unread,
    validate,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import (
    daemon_pid,
    engine,
    predates_toolkit,
    process_of,
)

LOG = "/var/log/docker.log"

# Written by Debian's init script, before dockerd writes its own.
SCRIPT_PID_FILE = "/var/run/docker-ssd.pid"
# Seconds. A daemon with many containers on a busy host takes its time.
START_TIMEOUT = 180.0
RELOAD_TIMEOUT = 10.0
STOP_TIMEOUT = 30.0
GONE_AFTER = 10.0  # without a process for so long, a daemon that a script started has ended
# A daemon that has no unit is started once more, as systemd would do, when it gave up on a host that was too busy:
# dockerd waits 15 s for its containerd, and no option changes that.
GAVE_UP = re.compile(r"timeout waiting for containerd|context deadline exceeded")
TRIES = 3
# Docker's own list of what a running daemon takes over on SIGHUP.
RELOADABLE = frozenset(
    {
        "authorization-plugins",
        "debug",
        "default-runtime",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)


STOPPING = ("running", "paused", "restarting")


@dataclass
class DaemonStep:
    """What has to be done with the daemon: `action` is `none`, `start`, `reload` or `restart`; `reason` says why.

    `pending` says what only a restart would bring, where one is not due at the price of running containers.
    """

    action: str
    reason: str = ""
    pending: str = ""


# The daemon


def running_containers(seen: Mapping[str, Any]) -> list[str]:
    """Return the names of the containers that a restart would end, from what `engine` told."""
    return [found["name"] for found in seen["containers"] if found["state"] in STOPPING]


def next_step(wish: DaemonWish, seen: Mapping[str, Any], keys: Sequence[str], old_daemon: bool) -> DaemonStep:
    """Return what has to be done with the daemon.

    Args:
        wish: what it should be.
        seen: what the probe of the engine told of it.
        keys: the keys of daemon.json that change.
        old_daemon: whether it started before NVIDIA's hook was installed.

    Raises:
        GpufleetError: C(engine-serves) when it has to be restarted and containers run.
    """
    if not seen["running"]:
        return DaemonStep("start", seen["reason"])
    running = running_containers(seen)
    fixed = sorted(set(keys) - RELOADABLE)
    if fixed:
        reason = f"{', '.join(fixed)} in {wish.path} changed, which the engine reads at its start only"
        if running and not wish.allow_restart:
            raise _serves(wish, running, reason)
        return DaemonStep("restart", reason)
    old = "the engine started before NVIDIA's container toolkit was installed, so it does not know --gpus"
    if wish.nvidia_runtime and old_daemon and (not running or wish.allow_restart):
        return DaemonStep("restart", old)
    pending = f"{old}; containers run ({', '.join(running)})" if wish.nvidia_runtime and old_daemon else ""
    if keys:
        return DaemonStep("reload", f"{', '.join(keys)} in {wish.path} changed", pending)
    if wish.nvidia_runtime and RUNTIME not in (seen["runtimes"] or []):
        return DaemonStep(
            "reload", f"{wish.path} names the runtime {RUNTIME}, which the engine does not know yet", pending
        )
    return DaemonStep("none", "", pending)


def _serves(wish: DaemonWish, running: list[str], reason: str) -> GpufleetError:
    return GpufleetError(
        f"The Docker engine has to be restarted ({reason}), and that would end what runs on it: {', '.join(running)}."
        " Nothing was changed.",
        name="engine-serves",
        remedy=f"Run the play when nothing serves on this host, or allow the interruption with {wish.variable}: true.",
        details={"containers": running},
    )


class Daemon:
    """Starts, reloads and restarts the host's own daemon: systemd's unit, or a process where there is no systemd."""

    def __init__(self, docker_host: str, proxies: Mapping[str, str] | None = None) -> None:
        self.docker_host = docker_host
        self._proxies = dict(proxies or {})
        self._process: subprocess.Popen[Any] | None = None
        self.unit = has_unit()

    def start(self) -> None:
        """Start it and wait until it answers; with systemd also at every boot.

        Raises:
            GpufleetError: C(engine-start-failed).
        """
        if self.unit:
            _command("systemctl", "enable", "--now", "docker.service", doing="Starting the Docker engine")
            self.wait()
        else:
            self._have_process(self._start_process)

    def reload(self, loaded: Callable[[Mapping[str, Any]], bool]) -> bool:
        """Let it read daemon.json again; return whether `loaded` became true of what the engine tells."""
        pid = process_of(self.docker_host)
        if pid is None:
            return False
        os.kill(pid, signal.SIGHUP)
        return self._until(loaded, RELOAD_TIMEOUT)

    def restart(self) -> None:
        """Restart it, with the same options, and wait until it answers.

        Raises:
            GpufleetError: C(engine-start-failed).
        """
        if self.unit:
            # A unit that failed to start several times in a row is refused otherwise.
            _succeeds("systemctl", "reset-failed", "docker.service")
            _command("systemctl", "restart", "docker.service", doing="Restarting the Docker engine")
            self.wait()
        else:
            self._restart_process()

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            GpufleetError: C(engine-start-failed), with the end of its log.
        """
        if not self._until(lambda _seen: True, START_TIMEOUT):
            raise _start_failed(self.last_words())

    def last_words(self) -> str:
        """Return what its log says last of a failure."""
        return _failure(_journal() if self.unit else read_text(LOG))

    def _until(self, true: Callable[[Mapping[str, Any]], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        alive = time.monotonic()
        while time.monotonic() < deadline:
            seen = engine(self.docker_host)
            if seen["running"] and true(seen):
                return True
            if self._alive():
                alive = time.monotonic()
            elif not self.unit and (self._process or time.monotonic() - alive > GONE_AFTER):
                return False
            time.sleep(0.3)
        return False

    def _alive(self) -> bool:
        """Tell whether there is a process of the daemon, which on a busy host is there long before its pid file."""
        if daemon_pid() is not None or (self._process and self._process.poll() is None):
            return True
        pid = read_text(SCRIPT_PID_FILE).strip()
        program = program_name(read_text("/proc", pid, "cmdline")) if pid.isdigit() else ""
        return program in ("dockerd", "start-stop-daemon")

    def _have_process(self, launch: Callable[[], None]) -> None:
        """Start the daemon and wait until it answers, once more where it gave up because the host was too busy."""
        for _attempt in range(TRIES):
            launch()
            if self._until(lambda _seen: True, START_TIMEOUT):
                return
            if self._alive() or not GAVE_UP.search(self.last_words()):
                break
        raise _start_failed(self.last_words())

    def _start_process(self) -> None:
        # Debian's init script raises limits that a container or a virtual machine may not let it raise.
        script = "/etc/init.d/docker"
        os.environ.update(self._proxies)
        if os.access(script, os.X_OK) and _succeeds(script, "start"):
            return
        self._spawn([program_path("dockerd") or "dockerd"], dict(os.environ))

    def _restart_process(self) -> None:
        pid = daemon_pid()
        if pid is None:
            self._have_process(self._start_process)
            return
        # With the options and the environment that it had: proxies are often given there.
        words = [word for word in _whole(f"/proc/{pid}/cmdline").split("\0") if word]
        pairs = (entry.partition("=") for entry in _whole(f"/proc/{pid}/environ").split("\0") if "=" in entry)
        environment = {**{name: value for name, _equals, value in pairs}, **self._proxies}
        os.kill(pid, signal.SIGTERM)
        if not until(lambda: daemon_pid() != pid, STOP_TIMEOUT, 0.1):
            raise _start_failed(f"dockerd (process {pid}) did not end within {STOP_TIMEOUT:.0f} seconds of SIGTERM.")
        self._have_process(lambda: self._spawn(words, environment))

    def _spawn(self, words: list[str], environment: dict[str, str]) -> None:
        search = environment.get("PATH", "")
        environment["PATH"] = os.pathsep.join(part for part in (search, SYSTEM_PATH) if part)
        try:
            with open(LOG, "ab") as log:
                self._process = start_program(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise _start_failed(str(error)) from error


def has_unit() -> bool:
    """Return whether systemd runs the engine."""
    return os.path.isdir("/run/systemd/system") and _succeeds("systemctl", "cat", "docker.service")


def _whole(path: str) -> str:
    """Return a file of /proc, byte by byte as the process has it."""
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read()


def _start_failed(evidence: str) -> GpufleetError:
    return GpufleetError(
        "The Docker engine did not start.",
        name="engine-start-failed",
        remedy=f"Fix what its log says ({LOG}, or journalctl --unit docker), then run the play again.",
        evidence=evidence,
    )


def _command(*words: str, doing: str) -> None:
    try:
        run_command(list(words), name="engine-start-failed", doing=doing)
    except GpufleetError as error:
        raise _start_failed(_failure(_journal(), error.evidence)) from error


def _journal() -> str:
    return _output("journalctl", "--unit=docker.service", "--lines=60", "--no-pager", "--output=cat")


def _failure(log: str, otherwise: str = "") -> str:
    """Return the last lines of a daemon's log that tell a failure; without one C(otherwise) and its last lines."""
    lines = [line.rstrip() for line in log.strip().splitlines()]
    told = [
        line for line in lines if re.search(r"level=(?:error|fatal)|^(?:failed|unable) to |specified both as", line)
    ]
    return "\n".join(told[-3:] or [line for line in (otherwise, *lines[-8:]) if line])


def _succeeds(*words: str) -> bool:
    try:
        return run_program(words, capture_output=True, timeout=START_TIMEOUT, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _output(*words: str) -> str:
    try:
        done = run_program(words, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


# The work


def ensure(wish: DaemonWish, check_mode: bool) -> dict[str, Any]:
    """Set the daemon up as wished.

    What a restart with a new daemon.json breaks is put back: the old file, and the daemon with it.

    Returns:
        C(changed), C(action), C(reason), C(pending), C(changed_keys) and the C(diff).

    Raises:
        GpufleetError: C(daemon-config-invalid), C(daemon-config-not-read), C(engine-is-podman), C(toolkit-missing),
            C(toolkit-failed), C(engine-serves), C(engine-start-failed), C(daemon-config-refused) or C(write-failed).
    """
    before, after, keys = wanted_config(wish)
    seen = engine(wish.docker_host)
    step = next_step(wish, seen, keys, wish.nvidia_runtime and predates_toolkit())
    # What a person has set in daemon.json counts.
    proxies = None if json.loads(after or "{}").get("proxies") else wish.proxies
    new_proxies = proxies is not None and engine_proxies.due(proxies, unit=has_unit())
    if proxies is not None and seen["running"]:
        step = _with_proxies(wish, step, seen, new_proxies or not engine_proxies.taken(wish.docker_host, proxies))
    _refuse_useless(wish, seen, step, after, keys)
    result = {
        "changed": bool(keys) or new_proxies or step.action != "none",
        "action": step.action,
        "reason": step.reason,
        "pending": step.pending,
        "changed_keys": keys,
        "before": before,
        "after": after,
    }
    if check_mode:
        return result
    if keys:
        write_file(wish.path, after, CONFIG_MODE, keep=True)
    if new_proxies and proxies is not None:
        engine_proxies.write(proxies, unit=has_unit())
        _succeeds("systemctl", "daemon-reload")
    try:
        _take(wish, step, result)
    except GpufleetError as error:
        if not keys:
            raise
        _put_back(wish, before, seen["running"])
        if error.name != "engine-start-failed":
            raise
        works = ", and the engine runs with it" if engine(wish.docker_host)["running"] else ""
        raise GpufleetError(
            f"The Docker engine did not start with {', '.join(keys)} in {wish.path}. The file is as it was{works}.",
            name="daemon-config-refused",
            remedy="Correct the value (docker_daemon_config), or remove the option from dockerd's command line if it is"
            " set there too.",
            evidence=error.evidence,
            details={"keys": keys},
        ) from error
    return result


def _refuse_useless(
    wish: DaemonWish, seen: Mapping[str, Any], step: DaemonStep, after: str, keys: Sequence[str]
) -> None:
    """Refuse what the engine would not read, and what it would not start with."""
    if seen["running"] and (wish.config or keys or step.action != "none"):
        refuse_unread(wish, seen)
    refuse_conflicts(wish, json.loads(after) if after.strip() else {}, keys)
    if keys:
        validate(wish, after, keys, str(seen.get("version") or ""))


def _with_proxies(wish: DaemonWish, step: DaemonStep, seen: Mapping[str, Any], due: bool) -> DaemonStep:
    """Return the step that has a running engine take other proxies, too; what serves is not ended for them."""
    if not due or step.action == "restart":
        return step
    running = running_containers(seen)
    reason = "the engine takes its proxies (vllm_http_proxy, vllm_https_proxy, vllm_no_proxy) at its start only"
    if running and not wish.allow_restart:
        return DaemonStep(step.action, step.reason, step.pending or f"{reason}; containers run ({', '.join(running)})")
    return DaemonStep("restart", reason)


def _take(wish: DaemonWish, step: DaemonStep, result: dict[str, Any]) -> None:
    """Take the step; a reload that does not bring the runtime becomes a restart if that is allowed."""
    daemon = Daemon(wish.docker_host, wish.proxies)
    if step.action == "start":
        daemon.start()
    elif step.action == "restart":
        daemon.restart()
    elif step.action == "reload" and not daemon.reload(
        lambda seen: not wish.nvidia_runtime or RUNTIME in (seen["runtimes"] or [])
    ):
        running = running_containers(engine(wish.docker_host))
        reason = "it did not take over daemon.json while running"
        if running and not wish.allow_restart:
            raise _serves(wish, running, reason)
        result.update(action="restart", reason=reason)
        daemon.restart()


def _put_back(wish: DaemonWish, before: str, was_running: bool) -> None:
    """Restore daemon.json, and the daemon with it; a daemon that runs is not restarted because of that."""
    with contextlib.suppress(GpufleetError, OSError):
        if before:
            write_file(wish.path, before, CONFIG_MODE, keep=True)
        else:
            os.unlink(wish.path)
        daemon = Daemon(wish.docker_host)
        if engine(wish.docker_host)["running"]:
            daemon.reload(lambda _seen: True)
        elif was_running:
            daemon.restart()
