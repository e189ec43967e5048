# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored benchmarks: found again by what they measured, replaced as a whole, refused when broken."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import baseline

PARTS = {
    "hardware": {"gpus": ["NVIDIA H200"], "driver": "580.159.04"},
    "image_id": "sha256:1",
    "load": {"input_len": 1024},
}


def point(concurrency: int) -> dict[str, Any]:
    """Return what was measured at one concurrency."""
    return {"concurrency": concurrency, "runs": [{}], "summary": {"output_throughput": {"mean": 460.0, "std": 1.5}}}


def test_saved_is_found_and_replaced(tmp_path: Path) -> None:
    key, folder = baseline.key_of(PARTS), str(tmp_path / "baselines")
    assert baseline.load(folder, key) is None
    for concurrency in (8, 128):
        baseline.save(folder, key, PARTS, [point(concurrency)], "2026-11-22")
    stored = baseline.load(folder, key)
    assert stored is not None
    (entry,) = stored["entries"]
    assert entry["points"] == [point(128)] and stored["of"] == PARTS
    assert [path.name for path in (tmp_path / "baselines").iterdir()] == [f"{key}.json"]


def test_each_server_of_a_fleet_has_an_entry_of_its_own(tmp_path: Path) -> None:
    def store(number: int) -> None:
        baseline.save(
            str(tmp_path), "k", PARTS, [point(8)], "d", host=f"gpu-{number // 8}", server=f"vllm-{number % 8}"
        )

    processes = [multiprocessing.get_context("fork").Process(target=store, args=(number,)) for number in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    store(3)
    stored = baseline.load(str(tmp_path), "k")
    assert stored is not None
    assert [(entry["host"], entry["server"]) for entry in stored["entries"]] == [
        (f"gpu-{number // 8}", f"vllm-{number % 8}") for number in range(16)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["k.json"], "no lock stays in a folder that is kept in git"


def test_the_median_server_is_what_counts_and_the_spread_is_told() -> None:
    def entry(throughput: float, std: float, runs: int) -> dict[str, Any]:
        summary = {"output_throughput": {"mean": throughput, "std": std}}
        return {"points": [{"concurrency": 8, "runs": [{}] * runs, "summary": summary}]}

    (found,) = baseline.reference([entry(1000, 30, 3), entry(1010, 40, 2), entry(20, 0, 4)])
    assert (found["servers"], len(found["runs"])) == (3, 2)
    figure = found["summary"]["output_throughput"]
    assert figure["mean"] == 1000 and figure["spread"] == pytest.approx(14.826) and 28 < figure["std"] < 29
    (alone,) = baseline.reference([entry(1000, 30, 3)])
    assert alone["summary"]["output_throughput"] == {"mean": 1000, "std": pytest.approx(30), "spread": 0}


def test_a_file_of_the_first_release_is_read_and_its_unnamed_entry_goes_when_one_is_stored(tmp_path: Path) -> None:
    old = {"schema_version": 1, "key": "k", "date": "2026-11-22", "of": PARTS, "points": [point(8)]}
    (tmp_path / "k.json").write_text(json.dumps(old), encoding="utf-8")
    stored = baseline.load(str(tmp_path), "k")
    assert (
        stored is not None and baseline.reference(stored["entries"])[0]["summary"]["output_throughput"]["mean"] == 460
    )
    assert baseline.stored_parts(str(tmp_path)) == [PARTS]
    baseline.save(str(tmp_path), "k", PARTS, [point(8)], "2026-11-27", host="gpu-1", server="vllm-0")
    stored = baseline.load(str(tmp_path), "k")
    assert stored is not None and [entry["host"] for entry in stored["entries"]] == ["gpu-1"]


def test_the_concurrencies_of_all_that_can_be_read(tmp_path: Path) -> None:
    assert baseline.concurrencies(str(tmp_path / "none")) == {}
    baseline.save(str(tmp_path), "k", PARTS, [point(128), point(8)], "2026-11-22")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    assert baseline.concurrencies(str(tmp_path)) == {"k": [8, 128]}


def test_the_key_follows_what_was_measured_not_the_order() -> None:
    assert baseline.key_of(dict(reversed(PARTS.items()))) == baseline.key_of(PARTS)
    for name in PARTS:
        assert baseline.key_of({**PARTS, name: "other"}) != baseline.key_of(PARTS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema_version": 99}',
        '{"schema_version": 2}',
        '{"schema_version": 2, "entries": [{"date": "", "points": []}]}',
        '{"schema_version": 1, "date": "2026-11-22"}',
        '{"schema_version": 1, "points": []}',
        '{"schema_version": 1, "date": "2026-11-22", "points": [{"concurrency": 8, "runs": [{}]}]}',
        '{"schema_version": 1, "date": "", "points": [{"concurrency": 8, "runs": [], "summary": {"x": {"mean": 1}}}]}',
        '{"schema_version": 1, "date": "", "points": [{"concurrency": 8, "runs": [], "summary": {"x": 460.0}}]}',
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.json").write_text(text, encoding="utf-8")
    with pytest.raises(GpufleetError, match=r"k\.json") as raised:
        baseline.load(str(tmp_path), "k")
    assert raised.value.name == "baseline-unreadable"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(GpufleetError) as raised:
        baseline.save(str(tmp_path / "file"), "k", {}, [], "")
    assert raised.value.name == "baseline-not-written"
