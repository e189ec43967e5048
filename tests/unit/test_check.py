# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last line of `make test`: it must not claim more than ran, nor hide what failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tools.check import Outcome, count_cases, report

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
    assert report(outcomes) is good
    assert capsys.readouterr().out.splitlines()[-1] == line
