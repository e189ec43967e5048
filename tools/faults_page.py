# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes docs/docsite/rst/faults.rst from the tables of the tests that provoke faults, and from what they measured.

PYTHONPATH=.cache/collections .venv/bin/python tools/faults_page.py

A unit test holds the committed page to what this makes. `make faults` writes what it measured to
.cache/logs/faults.json; copied to tests/faults/measured.json it is what the page publishes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gpufleet.vllm.tests.faults.table import FAULTS, NOTHING, STATES, Fault

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "docsite" / "rst" / "faults.rst"
MEASURED = ROOT / "tests" / "faults" / "measured.json"
INPUT = ROOT / "molecule" / "faults" / "converge.yml"

HEAD = """\
.. Made by tools/faults_page.py from the tests' own tables.

.. _ansible_collections.gpufleet.vllm.docsite.faults:

What happens when something goes wrong
======================================

Every row is a test that provokes the fault through the playbook ``deploy``, as a user would run into it, and checks
what the user sees and the state afterwards. The servers are vLLM's CPU build with a miniature of Scout, and requests
flow to the server that serves all the while. What only a GPU can have go wrong is replayed: a container prints what
vLLM prints and exits as vLLM does.
:ref:`The table of diagnoses <ansible_collections.gpufleet.vllm.docsite.diagnoses>` has every failure that has a name.
"""
UNMEASURED = """
.. note::
   Until the tests of all rows have passed (``make faults``), a row is what its test demands.
"""
NEWER = """
.. note::
   The tests of these rows are newer than the last published run, of {date}, so what they say is what the tests
   demand: {names}.
"""
IN_RUNS = """
.. note::
   All rows have passed, but in {runs} runs: not yet in one.
"""
INPUT_TEXT = """
Wishes that cannot be met
-------------------------

Told before anything is changed on the host; nothing is left half-made. The tests: ``molecule/faults/converge.yml``.

"""
GROUPS: tuple[tuple[str, str, Any], ...] = (
    (
        "A change that cannot work, while a server serves",
        "The server goes on answering: not one request was refused or lost.",
        lambda fault: not fault.stops and fault.after != NOTHING,
    ),
    (
        "A server that cannot start",
        "There was none before it, so none is left.",
        lambda fault: fault.after == NOTHING and not fault.replayed,
    ),
    (
        "What needs a GPU to go wrong",
        "Replayed: the texts are those of vLLM's source and of starts recorded on an H200.",
        lambda fault: fault.replayed and not fault.stops,
    ),
    (
        "What stops the server that serves",
        "What became of the requests meanwhile is measured, see below.",
        lambda fault: fault.stops,
    ),
)
TEST = "tests/faults/test_faults.py"


def list_table(heads: Sequence[str], widths: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a cell's further lines are indented under its first."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (heads, *rows):
        for number, cell in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell}".rstrip())
    return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    """Return text that is shown as it is."""
    return f"``{text.strip()}``" if text.strip() else ""


def seen(fault: Fault) -> str:
    """Return what the user sees of a fault."""
    if not fault.error:
        return literal(fault.says) if fault.says else "The play succeeds."
    told = ", or ".join(f"{literal(error)}: {literal(says)}" for error, says in fault.told())
    return told + (f", with {literal(fault.proof)}" if fault.proof else "")


def fault_row(fault: Fault) -> list[str]:
    """Return the row of a fault."""
    return [fault.what + ".", seen(fault), STATES[fault.after], literal(fault.name)]


def input_cases() -> list[dict[str, Any]]:
    """Return the cases of the Molecule scenario faults."""
    (play,) = yaml.safe_load(INPUT.read_text(encoding="utf-8"))
    cases: list[dict[str, Any]] = play["vars"]["faults"]
    return cases


def input_row(case: dict[str, Any]) -> list[str]:
    """Return the row of a case of the Molecule scenario."""
    wishes = ", ".join(f"{name}: {json.dumps(value)}" for name, value in case["wishes"].items())
    return [literal(wishes), f"{literal(case['error'])}: … {literal(str(case['says']))} …"]


def measured_text() -> str:
    """Return the section with the figures of the last published run; empty if there is none."""
    if not MEASURED.exists():
        return ""
    run = json.loads(MEASURED.read_text(encoding="utf-8"))
    rows = []
    for fault in FAULTS:
        if fault.name in run["faults"]:
            figures = run["faults"][fault.name]
            counts = [str(figures[key]) for key in ("sent", "answered", "refused", "lost")]
            rows.append([literal(fault.name), *counts, f"{figures['seconds']} s", f"{figures['outage_s']} s"])
        elif fault.stops:
            rows.append([literal(fault.name), "not measured yet", *[""] * 5])
    head = ["Fault", "Sent", "Answered", "Refused", "Lost", "Until all was well", "Longest without an answer"]
    return f"""
Requests meanwhile
------------------

Measured on {run["date"]} on a machine with {run["cores"]} processor cores, by ``make faults``: short and streamed
completions at a steady rate, not sent again when they were refused. *Refused* is what no server took: a router sends
it elsewhere, a client again. *Lost* is what a server had taken and did not finish. The times are those of this machine,
on which a server starts in about a minute; what counts is that nothing stays refused, and how much is lost.

{list_table(head, "24 10 12 12 10 16 16", rows)}"""


def section(title: str, text: str, faults: Iterable[Fault]) -> str:
    """Return a section with its table."""
    table = list_table(
        ["Fault", "What the user sees", "Afterwards", "Test"], "30 35 20 15", (fault_row(fault) for fault in faults)
    )
    return f"\n{title}\n{'-' * len(title)}\n\n{text}\nThe tests: ``{TEST}``.\n\n{table}"


def note() -> str:
    """Return what the page has to admit of its rows."""
    if not MEASURED.exists():
        return UNMEASURED
    run = json.loads(MEASURED.read_text(encoding="utf-8"))
    newer = [literal(fault.name) for fault in FAULTS if fault.name not in run["passed"]]
    runs = run.get("runs", 1)
    parts = [NEWER.format(date=run["date"], names=", ".join(newer))] if newer else []
    return "".join(parts + ([IN_RUNS.format(runs=runs)] if runs > 1 else []))


def page() -> str:
    """Return the page."""
    sections = [section(title, text, filter(belongs, FAULTS)) for title, text, belongs in GROUPS]
    table = list_table(["Variables", "What the user sees"], "45 55", (input_row(case) for case in input_cases()))
    return HEAD + note() + "".join(sections) + measured_text() + INPUT_TEXT + table


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
