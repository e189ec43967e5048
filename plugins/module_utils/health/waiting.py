# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for started servers: reads their logs, sees their death or their silence, and asks them for an answer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import parse_time, started_at
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.health import deadlines
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import Server
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.kernel_log import memory_kill
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.start_phases import (
    PHASES,
    SERVING,
    Sample,
    StartWatch,
)

if TYPE_CHECKING:
    from docker.models.containers import Container

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 1.0
SAMPLE_EVERY_S = 10.0
HEALTH_TIMEOUT_S = 5.0
# The first request may compile kernels.
REQUEST_TIMEOUT_S = 300.0
READY_PROMPT = "San Francisco is a"
# A busy engine may fail to answer in time, and one that is restarted is away for a while; the server runs on, or Docker
# starts it again. So long an engine that does not answer is no reason to give up a server.
ENGINE_AWAY_S = 180.0
# For so long may /health say that the engine is dead before the server counts as dead though it runs.
DEAD_ENGINE_S = 20.0
# For so long may a container run on after the log said that its engine ended: what follows that line, such as the
# traceback and the exit of the container, is worth waiting for.
ENGINE_ENDED_S = 5.0
# What to look at when a phase takes too long, by the phase's key.
PHASE_REMEDIES = {
    "container": "The engine started the container, but vLLM printed nothing: see what its disk is doing.",
    "weights": "A slow hub or a slow disk under vllm_hf_home is the usual cause.",
    "compile": "Few or busy processors are the usual cause; vllm_cache_dir keeps what was compiled for later starts.",
    "kv_cache": "Kernels are compiled in this phase, with few lines in the log; few or busy processors are the usual"
    " cause.",
    "serving": "The server started, but did not answer a completion: its first kernels may still be compiled.",
}
# An answer that is not what it should be is vllm_completion's to judge; a server that gives one does serve.
ANSWERED = ("empty-answer", "malformed-answer")
MOST_LOG_LINES = 10


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long starts may take, in seconds.

    Attributes:
        ready: for all of a wait.
        stall: without a line and without any use of processor, network or disk.
        phases: for each phase of a server, by the keys of deadlines.DEFAULTS; 0 or none means no deadline.
    """

    ready: float = 3600
    stall: float = 900
    phases: Mapping[str, int] = dataclasses.field(default_factory=dict)


class LogReader:
    """Reads what is new in a container's log since it was last asked.

    Args:
        container: whose log.
        since: seconds since the epoch; older lines are left out.
    """

    def __init__(self, container: Container, since: float) -> None:
        self._container = container
        self._since = since
        self._last = ""
        self._at_last: set[str] = set()

    def read(self) -> list[tuple[float, str]]:
        """Return the new lines, each with its time in seconds since the epoch."""
        with engine_errors(f"reading the log of {self._container.name}"):
            # The engine takes fractions of a second; one millisecond of overlap makes up for their rounding.
            data = self._container.logs(timestamps=True, since=max(self._since - 0.001, 0.001))
        new = []
        for raw in data.decode("utf-8", "replace").split("\n"):
            stamp, _space, line = raw.partition(" ")
            if not stamp[:4].isdigit() or stamp < self._last or (stamp == self._last and raw in self._at_last):
                continue
            if stamp != self._last:
                self._last, self._at_last = stamp, set()
            self._at_last.add(raw)
            self._since = parse_time(stamp)
            new.append((self._since, line))
        return new


def engine_ended(container: Container) -> bool:
    """Return whether the log of a container's last start says that its engine has ended."""
    watch = StartWatch(started_at(container))
    for at, line in LogReader(container, started_at(container)).read():
        watch.feed(at, line)
    return watch.engine_ended


class Start:
    """One server that is starting.

    Args:
        container: its container, running.
        label: how it is called in messages, such as C(vllm-0).
        url: its address as seen from this host.
        api_key: the key that it wants, or C("").
    """

    def __init__(self, container: Container, label: str, url: str, api_key: str) -> None:
        self.container = container
        self.label = label
        self.began = time.time()
        self.ready = False
        self.model = ""
        container.reload()
        self._since = started_at(container) or self.began
        self.watch = StartWatch(self._since)
        self._log = LogReader(container, started_at(container))
        self._restarts: int = container.attrs.get("RestartCount", 0)
        self._server = Server(url, api_key=api_key, timeout=HEALTH_TIMEOUT_S)
        self._url, self._api_key = url, api_key
        self._dead_since = 0.0
        self._ended_since = 0.0
        self._sampled = 0.0

    def look(self, limits: Limits) -> None:
        """Find out how far the start has got.

        Raises:
            GpufleetError: the diagnosis when it failed, C(phase-too-long), C(not-ready-in-time) or C(start-stalled).
        """
        with engine_errors(f"looking at {self.container.name}"):
            self.container.reload()
        for at, line in self._log.read():
            self.watch.feed(at, line)
        self._check_alive()
        now = time.time()
        self._check_engine(now)
        if self._answers(now):
            self.watch.serving(now)
            self.ready = True
            return
        self._check_dead(now)
        self._check_time(now, limits)

    def _check_alive(self) -> None:
        state = self.container.attrs["State"]
        restarted = self.container.attrs.get("RestartCount", 0) > self._restarts
        if state["Status"] in ("running", "paused", "created") and not restarted:
            return
        for at, line in self._log.read():
            self.watch.feed(at, line)
        exit_code = None if restarted and state["Running"] else state.get("ExitCode")
        error = diagnose(
            self.watch.lines(),
            exit_code=exit_code,
            out_of_memory=bool(state.get("OOMKilled")),
            memory_kill=memory_kill(str(self.container.id), self._since),
            what=f"The server {self.label} did not start",
        )
        error.details.update(phase=self.watch.phase, phases=self.watch.durations(time.time()))
        raise error

    def _check_engine(self, now: float) -> None:
        """Raise the diagnosis when the log says that the engine has ended, though the container runs on."""
        if not self.watch.engine_ended:
            return
        self._ended_since = self._ended_since or now
        if now - self._ended_since < ENGINE_ENDED_S:
            return
        error = diagnose(
            self.watch.lines(),
            what=f"The server {self.label} did not start: its engine has ended, though its container still runs",
        )
        error.details.update(phase=self.watch.phase, phases=self.watch.durations(now))
        raise error

    def _answers(self, now: float) -> bool:
        """Return whether the server has answered a real request."""
        try:
            self._server.request("GET", "/health")
        except GpufleetError as error:
            if error.details.get("status") == 503:
                self._dead_since = self._dead_since or now
            return False
        self._dead_since = 0.0
        server = Server(self._url, api_key=self._api_key, timeout=REQUEST_TIMEOUT_S)
        try:
            self.model = server.served_model()
            server.complete(self.model, READY_PROMPT, max_tokens=1, temperature=0)
        except GpufleetError as error:
            # 404, 405: a model that does not complete texts, such as one for embeddings.
            if error.name in ANSWERED or error.details.get("status") in (404, 405):
                return True
            if error.name in ("not-ready", "server-unreachable", "timeout") or error.details.get("status", 0) >= 500:
                return False
            raise
        return True

    def _check_dead(self, now: float) -> None:
        """Raise the diagnosis when the server has said for a while that its engine is dead."""
        if not self._dead_since or now - self._dead_since <= DEAD_ENGINE_S:
            return
        error = diagnose(self.watch.lines(), what=f"The server {self.label} does not answer")
        if error.name != "unknown-failure":
            raise error
        raise self._error(
            "engine-died",
            f"The server {self.label} says that its engine is dead (/health answers 503).",
            "Look at its log (docker logs); the play's next run replaces or restarts it.",
        )

    def _check_time(self, now: float, limits: Limits) -> None:
        phase = self.watch.phase
        if now - self.began > limits.ready:
            raise self._error(
                "not-ready-in-time",
                f"The server {self.label} was not ready within {limits.ready:.0f} s (vllm_ready_timeout); it was in"
                f" the phase '{phase}'{self._seen(now)}.",
                "Raise vllm_ready_timeout if its log shows that it was getting on.",
            )
        allowed = deadlines.deadline_of(phase, limits.phases)
        # What an earlier run saw of a start does not count: it may have been waiting with other deadlines.
        taken = min(self.watch.phase_seconds(now), now - self.began)
        if allowed and taken > allowed:
            key = deadlines.key_of(phase)
            raise self._error(
                "phase-too-long",
                f"The server {self.label} was in the phase '{phase}' for {taken:.0f} s{self._seen(now)}; its deadline"
                f" is {allowed} s ({deadlines.VARIABLE}: {key}).",
                f"Raise {deadlines.VARIABLE}: {{{key}: SECONDS}} if the log shows that it was getting on, or set it to"
                f" 0 for no deadline. {PHASE_REMEDIES.get(key, '')}".strip(),
                deadline_s=allowed,
            )
        if now - self._sampled >= SAMPLE_EVERY_S:
            self._sampled = now
            with engine_errors(f"measuring {self.container.name}"):
                stats: Any = self.container.stats(stream=False, one_shot=True)
            self.watch.sample(Sample.from_stats(stats, now))
        idle = min(self.watch.idle_seconds(now), now - self.began)
        if idle > limits.stall:
            raise self._error(
                "start-stalled",
                f"The server {self.label} has printed nothing and used neither processor, network nor disk for"
                f" {idle:.0f} s (vllm_stall_timeout), in the phase '{phase}'.",
                "A download that hangs is the usual cause in the phase weights: check the way to the hub. Raise"
                " vllm_stall_timeout if this silence is normal here.",
            )

    def _seen(self, now: float) -> str:
        """Return how far the phase has got and for how long nothing was seen of it, in words."""
        detail = f", at {self.watch.detail}" if self.watch.detail else ""
        idle = self.watch.idle_seconds(now)
        return detail + (f", without any sign of work for {idle:.0f} s" if idle >= SAMPLE_EVERY_S * 2 else "")

    def _error(self, name: str, message: str, remedy: str, **details: Any) -> GpufleetError:
        lines = [line for line in self.watch.lines() if line.strip()][-MOST_LOG_LINES:]
        details.update(phase=self.watch.phase, phases=self.watch.durations(time.time()), log=lines)
        return GpufleetError(message, name=name, remedy=remedy, evidence=self.watch.last_line, details=details)


def wait_for(
    starts: Sequence[Start],
    limits: Limits,
    progress: Progress,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until every server has answered a real request.

    Args:
        starts: the servers; those that become ready are marked so even if another fails.
        limits: how long it may take, from now on.
        progress: told of the phases.
        sleep: how to wait.
        clock: returns seconds.

    Raises:
        GpufleetError: of the first server that fails; its C(details) name it as C(server).
    """
    pause, answered = FIRST_PAUSE_S, clock()
    while True:
        for start in starts:
            if not start.ready:
                try:
                    start.look(limits)
                    answered = clock()
                except GpufleetError as error:
                    if error.name != "engine-error" or clock() - answered > ENGINE_AWAY_S:
                        error.details["server"] = start.label
                        raise
        _report(starts, progress)
        if all(start.ready for start in starts):
            return
        sleep(pause)
        pause = min(pause * 1.3, LONGEST_PAUSE_S)


def _report(starts: Sequence[Start], progress: Progress) -> None:
    """Tell the phase of the only server, or that of the one which is the furthest behind."""
    behind = min(starts, key=lambda start: (start.ready, PHASES.index(start.watch.phase)))
    if len(starts) == 1:
        progress.phase(f"{behind.label}: {behind.watch.phase}", behind.watch.detail)
        return
    ready = sum(start.ready for start in starts)
    phase = SERVING if ready == len(starts) else behind.watch.phase
    detail = " ".join(part for part in (behind.label, behind.watch.detail) if part)
    progress.phase(f"{len(starts)} servers: {phase}", f"{detail}, {ready} of {len(starts)} ready")
