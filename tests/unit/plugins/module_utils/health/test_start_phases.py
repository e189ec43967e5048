# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The phases of a start, on recordings from a real H200 and on what other versions print."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.health import start_phases
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.start_phases import (
    PHASES,
    Sample,
    StartWatch,
    watch_lines,
)

LOGS = Path(__file__).parents[3] / "data" / "logs"
STAMP = re.compile(r"11-22 (\d\d):(\d\d):(\d\d)")


def replay(name: str) -> tuple[StartWatch, float]:
    """Return a watch that has read a recording with the times that its lines carry, and the time of the last."""
    text = (LOGS / name).read_text(encoding="utf-8")
    first = STAMP.search(text)
    assert first
    at = seconds(first)
    watch = StartWatch(at)
    for line in text.splitlines():
        stamp = STAMP.search(line)
        at = seconds(stamp) if stamp else at
        watch.feed(at, line)
    return watch, at


def seconds(stamp: re.Match[str]) -> float:
    """Return the time of a stamp in seconds since the epoch."""
    hour, minute, second = map(int, stamp.groups())
    return datetime(2026, 11, 22, hour, minute, second, tzinfo=timezone.utc).timestamp()


def test_a_cold_start_takes_the_time_that_was_measured() -> None:
    watch, end = replay("start-cold-triton-moe.log")
    assert watch.phase == "serving"
    phases = {phase["name"]: phase["seconds"] for phase in watch.durations(end)}
    assert tuple(phases) == PHASES
    # recordings: process and configuration 40 s, weights 10 s, compile 52 s, 94 s of silent JIT, graphs 20 s
    assert phases["engine start"] == pytest.approx(42, abs=2)
    assert phases["weights"] == pytest.approx(10, abs=2)
    assert phases["compile"] == pytest.approx(52, abs=2)
    assert phases["KV cache"] == pytest.approx(101, abs=2)
    assert phases["warm-up"] + phases["graphs"] == pytest.approx(23, abs=2)
    assert phases["graphs"] == pytest.approx(20, abs=3)
    assert sum(phases.values()) == pytest.approx(228, abs=6)


def test_a_warm_start_compiles_for_a_few_seconds() -> None:
    watch, end = replay("start-warm-triton-moe.log")
    phases = {phase["name"]: phase["seconds"] for phase in watch.durations(end)}
    assert watch.phase == "serving"
    assert phases["compile"] < 12


def test_an_eager_start_of_the_cpu_build_compiles_nothing() -> None:
    watch, end = replay("start-cpu-0.32.log")
    phases = {phase["name"]: phase["seconds"] for phase in watch.durations(end)}
    assert tuple(phases) == ("container", "engine start", "weights", "KV cache", "warm-up", "serving")
    assert phases["engine start"] == pytest.approx(119, abs=3)  # a machine under load
    assert phases["warm-up"] == pytest.approx(6, abs=1)


def test_a_silent_compiler_leaves_the_start_in_the_phase_before_the_kv_cache() -> None:
    watch, end = replay("start-stalled-in-flashinfer-jit.log")
    assert watch.phase == "KV cache"
    assert watch.idle_seconds(end + 480) == 480


def test_a_refused_backend_dies_while_loading_weights() -> None:
    assert replay("start-refused-moe-backend.log")[0].phase == "weights"


@pytest.mark.parametrize(
    ("lines", "phase", "detail"),
    [
        ([], "container", ""),
        (["", "  "], "container", ""),
        (["INFO 12-03 10:00:00 [api_server.py:1772] vLLM API server version 0.12.0"], "engine start", ""),
        (
            ["Starting to load model x...", "Loading safetensors checkpoint shards:  45% Completed | 9/20"],
            "weights",
            "45 %",
        ),
        (["Loading safetensors checkpoint shards: 100% Completed | 20/20 [00:01<00:00]"], "weights", "100 %"),
        (
            ["Starting to load model x...", "Time spent downloading weights for x: 63.250000 seconds"],
            "weights",
            "downloaded in 63.250000 s",
        ),
        (["Model loading took 104.9330 GiB and 88.1 seconds"], "compile", ""),
        (["Loading weights took 3.35 seconds", "Dynamo bytecode transform time: 14.4 s"], "compile", "graph traced"),
        (
            ["Model loading took 1 GiB", "Directly load the compiled graph(s) for dynamic shape from the cache"],
            "compile",
            "from the cache",
        ),
        (["WARNING [vllm.py:1703] Enforce eager set, disabling", "Loading weights took 1.01 seconds"], "KV cache", ""),
        (["torch.compile takes 26.01 s in total"], "KV cache", ""),
        (["monitor.py:53] torch.compile took 52.39 s in total"], "KV cache", ""),
        (["Available KV cache memory: 19.73 GiB"], "KV cache", "19.73 GiB"),
        (["GPU KV cache size: 215,548 tokens"], "warm-up", "KV cache 215,548 tokens"),
        (["CPU KV cache size: 75,264 tokens", "Warming up model for the compilation..."], "warm-up", ""),
        (["init engine (profile, create kv cache, warmup model) took 176.92 seconds"], "serving", ""),
        (["INFO:     Application startup complete."], "serving", "started"),
        # A start never goes back: the CPU build compiles after it has sized its cache.
        (["GPU KV cache size: 5 tokens", "Dynamo bytecode transform time: 14.4 s"], "warm-up", "KV cache 5 tokens"),
    ],
)
def test_phases_from_the_lines_of_many_versions(lines: list[str], phase: str, detail: str) -> None:
    watch = watch_lines(lines)
    assert watch.phase == phase
    assert watch.detail.startswith(detail)


def test_a_carriage_return_divides_a_line() -> None:
    shards = "Loading safetensors checkpoint shards: {}% Completed"
    watch = watch_lines(["Starting to load model x...", "\r".join(["", shards.format(0), shards.format(45), ""])])
    assert (watch.phase, watch.detail) == ("weights", "45 %")
    assert watch.lines()[1:] == [shards.format(0), shards.format(45)]


def test_recordings_have_plain_line_endings() -> None:
    assert [path.name for path in LOGS.glob("*.log") if b"\r" in path.read_bytes()] == []


def test_use_of_processor_network_or_disk_is_activity_and_idling_is_not() -> None:
    watch = StartWatch(100.0)
    watch.feed(101.0, "Starting to load model x...")
    watch.sample(Sample(at=110.0, cpu_s=5.0, network_bytes=0, disk_bytes=0))
    watch.sample(Sample(at=120.0, cpu_s=5.1, network_bytes=5_000, disk_bytes=0))
    assert watch.idle_seconds(121.0) == 20.0  # 0.01 cores and 500 bytes a second
    watch.sample(Sample(at=130.0, cpu_s=15.0, network_bytes=5_000, disk_bytes=0))
    assert watch.idle_seconds(131.0) == 1.0
    watch.sample(Sample(at=140.0, cpu_s=15.0, network_bytes=9_000_000, disk_bytes=0))
    assert watch.idle_seconds(141.0) == 1.0
    watch.sample(Sample(at=150.0, cpu_s=15.0, network_bytes=9_000_000, disk_bytes=5_000_000))
    assert watch.idle_seconds(151.0) == 1.0


def test_a_sample_reads_the_engines_statistics() -> None:
    stats = {
        "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
        "networks": {"eth0": {"rx_bytes": 10, "tx_bytes": 5}, "eth1": {"rx_bytes": 1, "tx_bytes": 0}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 7}, {"op": "Total", "value": 7}]},
    }
    assert Sample.from_stats(stats, 3.0) == Sample(at=3.0, cpu_s=2.5, network_bytes=16, disk_bytes=7)
    # A container that has just ended, or on the host's network.
    empty = {"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "blkio_stats": {"io_service_bytes_recursive": None}}
    assert Sample.from_stats(empty, 3.0) == Sample(at=3.0, cpu_s=0.0, network_bytes=0, disk_bytes=0)


def test_a_long_log_keeps_its_beginning_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_phases, "HEAD_LINES", 2)
    watch = StartWatch(0.0)
    for number in range(start_phases.TAIL_LINES + 10):
        watch.feed(float(number), f"line {number}")
    lines = watch.lines()
    assert lines[:2] == ["line 0", "line 1"]
    assert lines[-1] == f"line {start_phases.TAIL_LINES + 9}"
    assert len(lines) == start_phases.TAIL_LINES + 2


def test_an_answer_makes_it_serving_whatever_the_log_says() -> None:
    watch = StartWatch(10.0)
    watch.serving(14.0)
    assert watch.durations(15.0) == [{"name": "container", "seconds": 4.0}, {"name": "serving", "seconds": 1.0}]
