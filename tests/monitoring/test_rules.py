# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each alert fires where it has to, and only there, by Prometheus' own judgement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.alert_rules import ALERTS, rule_groups
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.thresholds import read_thresholds
from ansible_collections.gpufleet.vllm.tests.monitoring import programs
from ansible_collections.gpufleet.vllm.tests.monitoring.alert_cases import CASES, QUIET, Case

DAY = 86400


def rules(**thresholds: Any) -> dict[str, Any]:
    """Return the rules of a fleet whose clock begins at zero, as promtool's does."""
    return rule_groups(
        read_thresholds(thresholds),
        runbooks="https://example.com/runbooks.html",
        node_job="gpufleet-node",
        certificates={"lb-1": 10 * DAY, "lb-2": 300 * DAY},
    )


def judged(folder: Path, document: dict[str, Any], cases: list[Case]) -> str:
    """Return what promtool says of the cases; empty where all of them hold."""
    recorded, alerts = document["groups"]
    # Those of the cases alone: promtool evaluates each rule for each minute.
    alerts = {**alerts, "rules": [rule for rule in alerts["rules"] if rule["alert"] in {case.alert for case in cases}]}
    groups = {"groups": [recorded, alerts]}
    (folder / "rules.yml").write_text(yaml.safe_dump(groups, sort_keys=False), encoding="utf-8")
    tests = [
        {
            "name": what,
            "interval": f"{cases[0].step}m",
            "input_series": [{"series": name, "values": values} for name, values in same[0].series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{case.minute}m",
                    "exp_samples": [{"labels": "{}", "value": case.fires}],
                }
                for case in same
            ],
        }
        for what, same in (
            (what, [case for case in cases if case.what == what]) for what in {case.what for case in cases}
        )
    ]
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": f"{cases[0].step}m", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    done = programs.run("promtool", "test", "rules", str(folder / "tests.yml"))
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("alert", [alert.name for alert in ALERTS])
def test_an_alert_fires_where_it_has_to_and_only_there(tmp_path: Path, alert: str) -> None:
    cases = [case for case in CASES if case.alert == alert]
    assert {bool(case.fires) for case in cases} == {True, False}, "a case that fires, and one that must not"
    assert judged(tmp_path, rules(), cases) == ""


def test_a_fleet_at_work_is_left_alone(tmp_path: Path) -> None:
    document = rules()
    ends = [rule for rule in document["groups"][0]["rules"] if rule["record"] == "gpufleet:certificate_end:seconds"]
    document["groups"][0]["rules"].remove(ends[0])  # the one that ends soon
    cases = [Case(alert.name, "an hour of work", QUIET, minute, 0) for alert in ALERTS for minute in (35, 75)]
    assert judged(tmp_path, document, cases) == ""


def test_a_wrong_expectation_is_noticed(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.fires)
    assert "got:" in judged(tmp_path, rules(), [Case(case.alert, case.what, case.series, case.minute, 0)])


def test_thresholds_count(tmp_path: Path) -> None:
    grows = next(case for case in CASES if case.what == "grows, and is short")
    assert judged(tmp_path, rules(queue_length=5), [Case(grows.alert, "", grows.series, grows.minute, 1)]) == ""


@pytest.mark.parametrize("thresholds", [{}, {"ttft_goal_seconds": 0.25, "ttft_share": 0.99, "rollout_minutes": 10080}])
def test_prometheus_takes_the_rules(tmp_path: Path, thresholds: dict[str, Any]) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules(**thresholds)), encoding="utf-8")
    done = programs.run("promtool", "check", "rules", str(tmp_path / "rules.yml"))
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr
