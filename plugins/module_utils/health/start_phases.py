# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a vLLM server's start has got, told from the lines of its log.

The lines are those that vLLM 0.12 to 0.33 and its CPU build print; a start goes through the phases in one order and
never back, but may skip any of them (an eager start compiles nothing, the CPU build captures no graphs).
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterable
from typing import Any

CONTAINER = "container"
ENGINE_START = "engine start"
WEIGHTS = "weights"
COMPILE = "compile"
KV_CACHE = "KV cache"
WARM_UP = "warm-up"
GRAPHS = "graphs"
SERVING = "serving"
PHASES = (CONTAINER, ENGINE_START, WEIGHTS, COMPILE, KV_CACHE, WARM_UP, GRAPHS, SERVING)

# A line that matches begins the phase. Most of vLLM's lines say that something has ended, so what they begin is next.
PHASE_BEGINS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (ENGINE_START, re.compile(r"\S")),
    (
        WEIGHTS,
        re.compile(r"Starting to load model |Loading safetensors checkpoint shards|Loading pt checkpoint shards"),
    ),
    (COMPILE, re.compile(r"Model loading took |Loading weights took |Using cache directory: .*torch_compile_cache")),
    (
        KV_CACHE,
        re.compile(r"torch\.compile (?:takes|took) |Initial profiling/warmup run took|Available KV cache memory"),
    ),
    (WARM_UP, re.compile(r"(?:GPU|CPU) KV cache size: |# (?:GPU|CPU) blocks: |Warming up model for the compilation")),
    (GRAPHS, re.compile(r"Capturing CUDA graphs")),
    (SERVING, re.compile(r"init engine .* took |Starting vLLM (?:API )?server|Application startup complete")),
)
# Some releases capture graphs already while they measure memory; only those after the KV cache are the phase.
NOT_BEFORE = {GRAPHS: WARM_UP}
EAGER = re.compile(r"Enforce eager set|enforce_eager=True")
# The engine has ended; the API server's process, and with it the container, may outlive it by minutes.
ENGINE_ENDED = re.compile(
    r"EngineCore failed to start|EngineCore encountered a fatal error|Engine core initialization failed"
)
PERCENTS = {
    WEIGHTS: re.compile(r"checkpoint shards:\s+(\d+)%"),
    GRAPHS: re.compile(r"Capturing CUDA graphs[^:]*:\s+(\d+)%"),
}
DETAILS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (WEIGHTS, re.compile(r"Time spent downloading weights .*?: ([\d.]+) sec"), "downloaded in {0} s"),
    (COMPILE, re.compile(r"Dynamo bytecode transform time"), "graph traced"),
    (COMPILE, re.compile(r"Directly load the compiled graph"), "from the cache"),
    (KV_CACHE, re.compile(r"Available KV cache memory: (\S+ Gi?B)"), "{0}"),
    (WARM_UP, re.compile(r"KV cache size: ([\d,]+ tokens)"), "KV cache {0}"),
    (SERVING, re.compile(r"Application startup complete"), "started"),
)

# Fewer processor seconds per second than this is idle: waiting API and engine processes stay under it.
IDLE_CPU_CORES = 0.05
IDLE_BYTES_PER_S = 10_000.0
HEAD_LINES = 3000
TAIL_LINES = 1500


class StartWatch:
    """The state of one start, fed with log lines and samples of what the container does.

    Times are seconds since the epoch; lines carry the time at which the engine received them, so that phases have
    the right length however rarely they are read.

    Args:
        started: when the container was started.
    """

    def __init__(self, started: float) -> None:
        self.phase = CONTAINER
        self.detail = ""
        self.last_line = ""
        self.last_activity = started
        self.engine_ended = False
        self._since = started
        self._started = started
        self._eager = False
        self._finished: list[dict[str, Any]] = []
        self._head: list[str] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._sample: Sample | None = None

    def feed(self, at: float, line: str) -> None:
        """Take one line of the log, received at the time C(at); a progress bar's carriage returns divide it."""
        self.last_activity = max(self.last_activity, at)
        for part in [part for part in line.split("\r") if part] or [""]:
            self._take(at, part)

    def sample(self, sample: Sample) -> None:
        """Take a sample of what the container has used; use since the last sample counts as activity."""
        if self._sample and sample.busy_since(self._sample):
            self.last_activity = max(self.last_activity, sample.at)
        self._sample = sample

    def serving(self, at: float) -> None:
        """Note that the server has answered a request, whatever its log says."""
        if self.phase != SERVING:
            self._enter(SERVING, at)

    def idle_seconds(self, now: float) -> float:
        """Return for how long there was neither a line nor any use of processor, network or disk."""
        return now - self.last_activity

    def seconds(self, now: float) -> float:
        """Return for how long the start has been going on."""
        return now - self._started

    def phase_seconds(self, now: float) -> float:
        """Return for how long the current phase has been going on."""
        return max(0.0, now - self._since)

    def durations(self, now: float) -> list[dict[str, Any]]:
        """Return the phases so far, the current one last: C(name) and C(seconds)."""
        return [*self._finished, {"name": self.phase, "seconds": round(self.phase_seconds(now), 1)}]

    def lines(self) -> list[str]:
        """Return the kept lines of the log, oldest first: the beginning and the end of a long one."""
        return [*self._head, *self._tail]

    def _take(self, at: float, line: str) -> None:
        if len(self._head) < HEAD_LINES:
            self._head.append(line)
        else:
            self._tail.append(line)
        if line.strip():
            self.last_line = line
        self._eager = self._eager or bool(EAGER.search(line))
        self.engine_ended = self.engine_ended or bool(ENGINE_ENDED.search(line))
        for phase, pattern in PHASE_BEGINS:
            # An eager start compiles nothing: what begins after the weights is the phase after that.
            begins = KV_CACHE if phase == COMPILE and self._eager else phase
            earliest = PHASES.index(NOT_BEFORE.get(begins, CONTAINER))
            if PHASES.index(begins) > PHASES.index(self.phase) >= earliest and pattern.search(line):
                self._enter(begins, at)
        self._read_detail(line)

    def _enter(self, phase: str, at: float) -> None:
        at = max(at, self._since)
        self._finished.append({"name": self.phase, "seconds": round(at - self._since, 1)})
        self.phase, self.detail, self._since = phase, "", at

    def _read_detail(self, line: str) -> None:
        percent = PERCENTS[self.phase].search(line) if self.phase in PERCENTS else None
        if percent:
            self.detail = f"{percent.group(1)} %"
        for phase, pattern, text in DETAILS:
            match = pattern.search(line)
            if match and phase == self.phase:
                self.detail = text.format(*match.groups())


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a container has used since it was started.

    Attributes:
        at: time of the sample, seconds since the epoch.
        cpu_s: processor time in seconds, all cores together.
        network_bytes: bytes received and sent; 0 on the host's network, where they are not counted.
        disk_bytes: bytes read and written on block devices.
    """

    at: float
    cpu_s: float
    network_bytes: int
    disk_bytes: int

    def busy_since(self, before: Sample) -> bool:
        """Return whether more was used since C(before) than an idle server uses."""
        seconds = max(self.at - before.at, 0.001)
        moved = self.network_bytes + self.disk_bytes - before.network_bytes - before.disk_bytes
        return (self.cpu_s - before.cpu_s) / seconds >= IDLE_CPU_CORES or moved / seconds >= IDLE_BYTES_PER_S

    @classmethod
    def from_stats(cls, stats: dict[str, Any], at: float) -> Sample:
        """Return the sample that an answer of the engine's stats endpoint holds."""
        cpu = (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
        networks = (stats.get("networks") or {}).values()
        blocks = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
        return cls(
            at=at,
            cpu_s=cpu.get("total_usage", 0) / 1e9,
            network_bytes=sum(network.get("rx_bytes", 0) + network.get("tx_bytes", 0) for network in networks),
            disk_bytes=sum(entry["value"] for entry in blocks if entry.get("op", "").lower() in ("read", "write")),
        )


def watch_lines(lines: Iterable[str]) -> StartWatch:
    """Return a watch that has read lines without times, for a phase told from a log alone."""
    watch = StartWatch(0.0)
    for line in lines:
        watch.feed(0.0, line)
    return watch
