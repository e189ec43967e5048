# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a start, with a clock of our own and a container that plays a recorded log."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import attributes
from ansible_collections.gpufleet.vllm.plugins.module_utils.health import waiting
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.start_phases import StartWatch
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.waiting import Limits, LogReader, Start, wait_for

LOGS = Path(__file__).parents[3] / "data" / "logs"
STAMP = re.compile(r"11-22 (\d\d:\d\d:\d\d)")
ENGINE_FAILED = datetime(2026, 11, 22, 13, 37, 44, tzinfo=timezone.utc).timestamp()


class Clock:
    """Stands in for the module C(time)."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Box:
    """A running container that prints lines at their times."""

    def __init__(self, lines: list[tuple[str, str]], clock: Clock) -> None:
        self.name = "vllm-0"
        self._clock = clock
        self._lines = lines
        self.attrs: dict[str, Any] = {"State": {"Status": "running", "Running": True, "StartedAt": lines[0][0]}}

    def reload(self) -> None:
        pass

    def logs(self, **_options: Any) -> bytes:
        said = [f"{at} {line}\n" for at, line in self._lines if attributes.parse_time(at) <= self._clock.now]
        return "".join(said).encode()

    def stats(self, **_options: Any) -> dict[str, Any]:
        return {}


def recording(name: str) -> list[tuple[str, str]]:
    """Return the lines of a recording with the times at which the engine would have received them."""
    lines, last = [], "13:35:50"
    for number, line in enumerate((LOGS / name).read_text(encoding="utf-8").splitlines()):
        stamp = STAMP.search(line)
        last = stamp.group(1) if stamp else last
        lines.append((f"2026-11-22T{last}.{number:09}Z", line))
    return lines


def test_an_engine_that_ended_is_noticed_while_its_container_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = recording("engine-dead-container-alive-cpu-0.32.log")
    clock = Clock(attributes.parse_time(lines[0][0]))
    monkeypatch.setattr(waiting, "time", clock)
    box: Any = Box(lines, clock)
    start = Start(box, "vllm-0", "http://127.0.0.1:1", "")
    with pytest.raises(GpufleetError) as caught:
        wait_for([start], Limits(), Progress(None), sleep=clock.sleep)
    error = caught.value
    assert error.name == "compiler-missing"
    assert "its container still runs" in error.message
    assert "enforce-eager" in error.remedy
    assert (error.details["server"], error.details["phase"]) == ("vllm-0", "warm-up")
    assert 0 < clock.now - ENGINE_FAILED < 10


def failure(
    lines: list[tuple[str, str]], limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> tuple[GpufleetError, float]:
    """Return how the wait for a server that prints these lines ends, and the seconds that it took."""
    clock = Clock(attributes.parse_time(lines[0][0]))
    began = clock.now
    monkeypatch.setattr(waiting, "time", clock)
    box: Any = Box(lines, clock)
    with pytest.raises(GpufleetError) as caught:
        wait_for([Start(box, "vllm-0", "http://127.0.0.1:1", "")], limits, Progress(None), sleep=clock.sleep)
    return caught.value, clock.now - began


def test_a_phase_that_takes_too_long_is_named_with_its_deadline_and_what_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = recording("start-cold-triton-moe.log")
    loading = next(number for number, (_at, line) in enumerate(lines) if "Starting to load model" in line)
    error, _seconds = failure(lines[: loading + 1], Limits(phases={"weights": 30, "engine_start": 900}), monkeypatch)
    assert error.name == "phase-too-long"
    assert "was in the phase 'weights' for 3" in error.message
    assert "its deadline is 30 s (vllm_phase_timeouts: weights)" in error.message
    assert "without any sign of work for" in error.message
    assert "Starting to load model" in error.evidence
    assert error.remedy.startswith("Raise vllm_phase_timeouts: {weights: SECONDS}")
    assert (error.details["phase"], error.details["deadline_s"]) == ("weights", 30)


def test_a_phase_without_a_deadline_ends_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = recording("start-cold-triton-moe.log")[:5]
    limits = Limits(ready=200, stall=900, phases={"engine_start": 0})
    error, seconds = failure(lines, limits, monkeypatch)
    assert error.name == "not-ready-in-time"
    assert seconds == pytest.approx(200, abs=3)
    stalled, seconds = failure(lines, Limits(stall=50, phases={"engine_start": 60}), monkeypatch)
    assert stalled.name == "start-stalled"
    assert seconds == pytest.approx(50, abs=15)


def test_a_line_keeps_what_follows_a_carriage_return() -> None:
    clock = Clock(4e9)
    box: Any = Box([("2026-11-22T07:24:24.5Z", "0%\r50%\r100%"), ("2026-11-22T07:24:25.5Z", "done\r")], clock)
    reader = LogReader(box, 0.0)
    assert [line for _at, line in reader.read()] == ["0%\r50%\r100%", "done\r"]
    assert reader.read() == []


class Away:
    """A server that starts while the engine is away for some seconds."""

    label = "vllm-0"

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._until = clock, clock.now + seconds
        self.ready = False
        self.watch = StartWatch(clock.now)

    def look(self, _limits: Limits) -> None:
        if self._clock.now < self._until:
            raise GpufleetError("The Docker engine failed looking at vllm-0.", name="engine-error")
        self.ready = True


def test_an_engine_that_is_restarted_is_waited_for() -> None:
    clock = Clock(0.0)
    start: Any = Away(clock, 120)
    wait_for([start], Limits(), Progress(None), sleep=clock.sleep, clock=clock.time)
    assert start.ready
    assert clock.now >= 120


def test_an_engine_that_stays_away_ends_the_wait() -> None:
    clock = Clock(0.0)
    start: Any = Away(clock, 3600)
    with pytest.raises(GpufleetError) as caught:
        wait_for([start], Limits(), Progress(None), sleep=clock.sleep, clock=clock.time)
    assert (caught.value.name, caught.value.details["server"]) == ("engine-error", "vllm-0")
    assert waiting.ENGINE_AWAY_S < clock.now < waiting.ENGINE_AWAY_S + 5
