# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What verifications measured, kept over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import document as report_document
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import over_time
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.test_vllm_report import PLAN, host


def run(day: int, factor: float = 1.0, **plan: Any) -> dict[str, Any]:
    """Return the document of a run of one host, whose throughput is scaled."""
    found = {**host(factor), "plan": {**PLAN, **plan}}
    return report_document.build({"gpu-1": found}, f"2026-11-{day:02} 10:00:00 UTC", 0.1)


def test_each_point_and_score_is_a_line_with_its_conditions() -> None:
    entries = over_time.entries_of(run(1))
    assert [entry.get("concurrency") for entry in entries] == [8, 128, 512, None]
    first, score = entries[0], entries[-1]
    assert (first["host"], first["server"], first["gpus"], first["driver"]) == (
        "gpu-1",
        "vllm-0",
        ["NVIDIA H200"],
        "580",
    )
    assert first["figures"]["output_throughput"] > 0 and first["plan"] and first["image"] == "0.26.0"
    assert (score["kind"], score["metric"]) == ("accuracy", "gsm8k exact_match,flexible-extract")
    assert "plan-secret" not in json.dumps(entries)


def test_the_gpus_own_identities_are_no_other_plan() -> None:
    replicas: list[dict[str, Any]] = [{**PLAN["replicas"][0], "gpu_uuids": ["GPU-2"]}]  # type: ignore[index]
    assert over_time.entries_of(run(1))[0]["plan"] == over_time.entries_of(run(1, replicas=replicas))[0]["plan"]
    assert over_time.entries_of(run(1))[0]["plan"] != over_time.entries_of(run(1, precision="bf16"))[0]["plan"]


def test_a_trend_is_against_the_median_of_runs_under_the_same_conditions(tmp_path: Path) -> None:
    """A run with another plan is shown and marked, and not compared with."""
    for day, factor, plan in ((1, 1.0, {}), (2, 1.02, {}), (3, 3.0, {"precision": "bf16"}), (4, 0.98, {})):
        entries = over_time.entries_of(run(day, factor, **plan))
        over_time.append(str(tmp_path), "".join(json.dumps(entry) + "\n" for entry in entries))
    with (tmp_path / over_time.FILE).open("a") as stream:
        stream.write('{"host": "cut off')
    now = over_time.entries_of(run(5, 0.8))
    found = over_time.trends(over_time.read(str(tmp_path)), now)
    assert found[0]["what"] == "output tokens/s at concurrency 8" and len(found) == 4
    assert round(found[0]["change"], 3) == -0.2 and found[0]["runs"] == 3
    assert [point["changed"] for point in found[0]["values"]] == [[], [], ["plan"], ["plan"], []]
    assert found[3]["change"] == 0
    document = {**run(5, 0.8), "trends": found}
    page = report_document.html(document, {}, [])
    assert "<h2>Over time</h2>" in page and "-20.0 %" in page and "2026-11-03: other plan" in page


def test_what_was_measured_for_the_first_time_has_no_trend(tmp_path: Path) -> None:
    assert over_time.trends(over_time.read(str(tmp_path)), over_time.entries_of(run(1))) == []
    other = [{**entry, "host": "gpu-2"} for entry in over_time.entries_of(run(1))]
    assert over_time.trends(other, over_time.entries_of(run(2))) == []
