# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every metric that rules and dashboards ask for is one that vLLM has, in each release that we know."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.metrics import parse_samples
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.alert_rules import ALERTS, rule_groups
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.dashboard_panels import DASHBOARDS, MARKS
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.grafana import dashboards
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.thresholds import TTFT_BOUNDS, read_thresholds

ROOT = Path(__file__).resolve().parents[5]
DATA = ROOT / "tests" / "unit" / "data"
RELEASES: dict[str, dict[str, Any]] = json.loads((DATA / "vllm_metrics.json").read_text(encoding="utf-8"))
SCRAPE = parse_samples((DATA / "vllm_scrape.txt").read_text(encoding="utf-8").splitlines())
NAME = re.compile(r"vllm:[a-z0-9_]+")
# What a name was before, and is still asked for beside the one of today.
BEFORE = {
    "vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "vllm:gpu_prefix_cache_hits_total": "vllm:prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_queries_total": "vllm:prefix_cache_queries_total",
}
GROUPS = rule_groups(read_thresholds({}), runbooks="r", node_job="n", certificates={"lb-1": 1})["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
PANELS = [
    target["expr"] for board in dashboards(2.5).values() for panel in board["panels"] for target in panel["targets"]
]
EXPRESSIONS = sorted({*(rule["expr"] for rule in RULES), *PANELS, *(mark[0] for mark in MARKS.values())})


def base(name: str) -> str:
    """Return a metric's name without the ending of a histogram's samples."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize("version", RELEASES)
def test_each_name_is_in_the_release_or_the_name_of_today_is(version: str) -> None:
    release = {name for name, about in RELEASES[version].items() if not about["hidden"]}
    assert "vllm:num_requests_running" in release
    unknown = []
    for expression in EXPRESSIONS:
        names = {base(name) for name in NAME.findall(expression)}
        unknown += [name for name in names - release if BEFORE.get(name, name) not in names & release]
    assert unknown == []


def test_names_of_before_are_asked_for_beside_those_of_today() -> None:
    for expression in EXPRESSIONS:
        names = set(NAME.findall(expression))
        for before, today in BEFORE.items():
            assert (before in names) == (today in names), expression


def test_the_releases_are_those_whose_parsers_are_known() -> None:
    assert set(RELEASES) == {path.stem for path in (DATA / "vllm_parsers").glob("*.json")}


def test_a_real_server_has_what_its_release_has() -> None:
    scraped = {base(name) for name, _labels, _value in SCRAPE}
    asked = {base(name) for expression in EXPRESSIONS for name in NAME.findall(expression)}
    assert asked - BEFORE.keys() <= scraped


def test_the_bounds_of_the_time_to_the_first_token_are_those_of_a_real_server() -> None:
    labels = [labels for name, labels, _value in SCRAPE if name == "vllm:time_to_first_token_seconds_bucket"]
    found = [match[1] for text in labels if (match := re.search(r'le="([^"]+)"', text))]
    assert tuple(found) == (*TTFT_BOUNDS, "+Inf")


def test_no_placeholder_is_left() -> None:
    for expression in EXPRESSIONS:
        assert re.findall(r"\$(?!\{(?:host|model|gpu)\}|__rate_interval)\w+|(?<!\$)\{[a-z_]+\}", expression) == []


def test_every_alert_has_its_runbook() -> None:
    page = (ROOT / "docs" / "docsite" / "rst" / "runbooks.rst").read_text(encoding="utf-8")
    headings = re.findall(r"^(Gpufleet\w+)\n[-~=]+$", page, re.M)
    assert headings == [alert.name for alert in ALERTS]
    by_name = {rule["alert"]: rule for rule in RULES if "alert" in rule}
    assert by_name["GpufleetGpuSick"]["annotations"]["runbook_url"] == "r#gpufleetgpusick"


def test_panels_lie_beside_each_other() -> None:
    for board in dashboards(2.5).values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
            taken |= cells
    assert len({board.uid for board in DASHBOARDS}) == len(DASHBOARDS) == 4
