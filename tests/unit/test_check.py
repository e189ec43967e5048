# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last line of `make test`: it must not claim more than ran, nor hide what failed."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tools import check
from ansible_collections.gpufleet.vllm.tools.check import Aside, Command, Outcome, count_cases, report, run

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="1.5"></testsuite></testsuites>
"""


def test_cases_are_read_from_what_pytest_wrote(tmp_path: Path) -> None:
    junit = tmp_path / "units.xml"
    junit.write_text(JUNIT, encoding="utf-8")
    outcome = Outcome("units", "pytest", 1.5, 1)
    count_cases(junit, outcome)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (4, 3, 3)


def test_a_pytest_that_wrote_nothing_counts_no_case(tmp_path: Path) -> None:
    outcome = Outcome("units", "pytest", 0.1, 4)
    count_cases(tmp_path / "absent.xml", outcome)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (0, 0, 0)


@pytest.mark.parametrize(
    ("outcomes", "line", "good"),
    [
        ([Outcome("lint", "mypy", 1, 0), Outcome("units", "pytest", 1, 0, passed=5)], "5 passed, 0 failed", True),
        ([Outcome("units", "pytest", 1, 0, passed=5, skipped=2)], "5 passed, 0 failed, 2 skipped", True),
        # A linter that failed, and pytest that could not start, count as one failure each.
        ([Outcome("lint", "mypy", 1, 1), Outcome("units", "pytest", 1, 0, passed=5)], "5 passed, 1 failed", False),
        ([Outcome("engine", "pytest", 1, 4)], "0 passed, 1 failed", False),
        ([Outcome("units", "pytest", 1, 1, passed=5, failed=2)], "5 passed, 2 failed", False),
    ],
)
def test_the_last_line(outcomes: list[Outcome], line: str, good: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(outcomes, 2.0) is good
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_what_a_failed_command_complained_of_is_told_again_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    script = "\n".join(
        [
            "print('TASK [See that it answers] ' + '*' * 20)",
            "print('[ERROR]: Task failed: it does not')",
            "print('Evidence: connection refused')",
            "print('TASK [Clean up] ' + '*' * 20)",
            "print('ERROR    [default > verify] Executed: Failed')",
            "raise SystemExit(2)",
        ]
    )
    with io.StringIO() as log:
        outcome = run("molecule", Command("default", [sys.executable, "-c", script]), log)
    assert report([outcome], 1.0) is False
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "molecule default: TASK [See that it answers] [ERROR]: Task failed: it does not Evidence: connection refused",
        "0 passed, 1 failed",
    ]


def test_what_a_command_that_passed_said_of_errors_is_no_complaint() -> None:
    with io.StringIO() as log:
        outcome = run("units", Command("units", [sys.executable, "-c", "print('ERROR: of no matter')"]), log)
    assert (outcome.status, outcome.complaints) == (0, [])


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two stages of one command: a short one and one that does not end by itself."""

    def python(name: str, script: str) -> list[Command]:
        return [Command(name, [sys.executable, "-c", script])]

    long = f"import pathlib, time; pathlib.Path({str(tmp_path / 'runs')!r}).touch(); time.sleep(600)"
    stages = {"short": lambda: python("greeting", "print('hello')"), "long": lambda: python("waiting", long)}
    monkeypatch.setattr(check, "STAGES", stages)
    monkeypatch.setattr(check, "LOGS", tmp_path / "logs")
    return list(stages)


@pytest.mark.usefixtures("stages")
def test_what_runs_aside_is_shown_when_it_has_ended(capsys: pytest.CaptureFixture[str]) -> None:
    aside = Aside(["short", "short"])
    assert [(outcome.name, outcome.status) for outcome in aside.outcomes()] == [("greeting", 0)] * 2
    assert capsys.readouterr().out == "\n=== short: greeting\nhello\n" * 2


@pytest.mark.usefixtures("stages")
def test_what_is_added_runs_aside_too() -> None:
    aside = Aside([])
    aside.add(["short"])
    aside.add(["short"])
    assert [(outcome.stage, outcome.status) for outcome in aside.outcomes()] == [("short", 0)] * 2


def test_bare_hosts_run_behind_the_other_stages(stages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    short = check.STAGES[stages[0]]
    monkeypatch.setattr(check, "STAGES", dict.fromkeys(("lint", "molecule", "hosts"), short))
    monkeypatch.setattr(check, "docker_engine", lambda: contextlib.nullcontext(Outcome("engine", "start", 0.0, 0)))
    found = [outcome.stage for outcome in check.run_stages(["lint", "molecule", "hosts"])]
    assert found == ["engine", "molecule", "lint", "hosts"]


def test_bare_hosts_alone_are_shown_as_they_come(stages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    short = check.STAGES[stages[0]]
    monkeypatch.setattr(check, "STAGES", {"molecule": list, "hosts": short})
    monkeypatch.setattr(check, "docker_engine", lambda: contextlib.nullcontext(Outcome("engine", "start", 0.0, 0)))
    assert [outcome.stage for outcome in check.run_stages(["molecule", "hosts"])] == ["engine", "hosts"]


def test_no_scenario_is_left_out_or_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCENARIO", raising=False)
    monkeypatch.setattr(check, "scenarios", lambda names: [Command(name, []) for name in names])
    stages = ("molecule", "hosts", "fleet", "tune", "air-gap", "sites")
    names = [command.name for stage in stages for command in check.STAGES[stage]()]
    folders = [path.parent.name for path in (check.ROOT / "molecule").glob("*/molecule.yml")]
    assert sorted(names) == sorted(folders)


@pytest.mark.parametrize(
    ("scenario", "molecule", "hosts"), [("", True, ["hosts"]), ("hosts", False, ["hosts"]), ("scout", True, [])]
)
def test_a_scenario_may_be_named(
    scenario: str, molecule: bool, hosts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENARIO", scenario)
    monkeypatch.setattr(check, "scenarios", lambda names: [Command(name, []) for name in names])
    assert bool(check.STAGES["molecule"]()) is molecule
    assert [command.name for command in check.STAGES["hosts"]()] == hosts


def test_what_runs_aside_ends_when_it_is_stopped(stages: list[str], tmp_path: Path) -> None:
    aside = Aside([*reversed(stages)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    aside.stop()
    assert [(outcome.name, outcome.status != 0) for outcome in aside.outcomes()] == [("waiting", True)]
