# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation's table of faults is the one that is tested, row by row."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils.health import causes as health_causes
from ansible_collections.gpufleet.vllm.tests.faults.table import FAULTS, STATES
from ansible_collections.gpufleet.vllm.tools import faults_page

TESTS = Path(__file__).resolve().parents[1] / "faults"


def test_the_page_is_what_the_tool_makes() -> None:
    assert faults_page.PAGE.read_text(encoding="utf-8") == faults_page.page(), "run tools/faults_page.py"


def test_every_fault_has_one_row_and_every_row_is_a_fault() -> None:
    rows = re.findall(r"^   \* - .*\n     - .*\n     - .*\n     - ``(.+)``$", faults_page.page(), re.MULTILINE)
    assert Counter(rows) == Counter(fault.name for fault in FAULTS)
    assert len(set(rows)) == len(FAULTS) >= 20


def test_every_fault_is_provoked_by_a_function_that_is_registered() -> None:
    tree = ast.parse((TESTS / "provocations.py").read_text(encoding="utf-8"))
    (registered,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PROVOCATIONS"
    ]
    assert registered
    names = {node.id for node in ast.walk(registered) if isinstance(node, ast.Name)} - {"function"}
    assert {fault.how for fault in FAULTS} == names
    assert {fault.after for fault in FAULTS} == set(STATES)


def test_every_case_of_the_molecule_scenario_has_a_row() -> None:
    cases = faults_page.input_cases()
    rows = faults_page.page().partition("Wishes that cannot be met")[2]
    assert rows.count("\n   * - ``vllm_") == len(cases) > 0
    assert all(f"``{case['error']}``" in rows for case in cases)


def test_what_is_told_of_a_failed_start_is_a_diagnosis_with_that_text() -> None:
    """So that a changed sentence is noticed here, in a second, before the long tests."""
    causes = [*health_causes.CAUSES, health_causes.PROCESS_DIED, health_causes.OUT_OF_MEMORY_KILL]
    told = {fault.error for fault in FAULTS if fault.replayed}
    assert told <= {cause.name for cause in causes}


def test_the_published_figures_are_of_faults_that_stop_the_server() -> None:
    if not faults_page.MEASURED.exists():
        assert "Requests meanwhile" not in faults_page.page()
        return
    measured = json.loads(faults_page.MEASURED.read_text(encoding="utf-8"))["faults"]
    stopping = {fault.name for fault in FAULTS if fault.stops}
    assert set(measured) <= stopping
    for figures in measured.values():
        assert figures["sent"] == figures["answered"] + figures["refused"] + figures["lost"]
    rows = faults_page.measured_text()
    assert all(f"``{name}``\n     - not measured yet" in rows for name in stopping - set(measured))


def test_the_page_admits_which_rows_have_not_passed_yet() -> None:
    if not faults_page.MEASURED.exists():
        assert faults_page.note() == faults_page.UNMEASURED
        return
    passed = set(json.loads(faults_page.MEASURED.read_text(encoding="utf-8"))["passed"])
    assert passed <= {fault.name for fault in FAULTS}
    told = set(re.findall(r"``([\w-]+)``", faults_page.note()))
    assert told == {fault.name for fault in FAULTS} - passed


def test_every_row_of_a_group_stands_in_that_group_alone() -> None:
    for fault in FAULTS:
        assert sum(bool(belongs(fault)) for _title, _text, belongs in faults_page.GROUPS) == 1, fault.name


def test_what_a_fault_says_is_no_part_of_every_plays_text() -> None:
    """The names of deployments are in it, such as gpufleet-faults-17-serving-0."""
    assert all(fault.says not in f"gpufleet-faults-17-{fault.on}-0" for fault in FAULTS if fault.says)
