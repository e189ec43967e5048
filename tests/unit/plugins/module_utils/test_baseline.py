# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored benchmarks: found again by what they measured, replaced as a whole, refused when broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils import baseline
from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError

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
    assert stored["points"] == [point(128)] and stored["of"] == PARTS
    assert [path.name for path in (tmp_path / "baselines").iterdir()] == [f"{key}.json"]


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
