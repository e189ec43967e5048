# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the judgement over the faults behind a router; the faults themselves are Molecule's."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.fleet.router_faults import table, wrong


def result(**changes: Any) -> dict[str, Any]:
    """Return what a fault gave when everything was answered, with changes."""
    counts = {"sent": 9, "answered": 9, "retried": 0, "refused": 0, "lost": 0, "failed": 0, "cut": 0, "streams_cut": 0}
    return {**counts, "reasons": {}, "found": {"left": 0, "requests_while_drained": 0}, **changes}


LOADED = {"loaded": 3, "taken_back": 0, "requests_while_drained": 0}


def results(**changes: Any) -> dict[str, dict[str, Any]]:
    """Return the faults' results, one of them changed; by its name with C(_) for a blank."""
    found = {name: result(**changes.get(name, {})) for name in ("drained", "killed", "restarted")}
    return {"loaded again": result(**{"found": LOADED, **changes.get("loaded_again", {})}), **found}


def test_nothing_lost_is_right_and_so_is_what_was_open_when_its_end_came() -> None:
    assert wrong(results()) == []
    # Nobody planned these, and clients send again what was refused.
    assert wrong(results(killed={"retried": 3}, restarted={"retried": 20})) == []
    assert (
        wrong(
            results(killed={"lost": 2, "cut": 2, "streams_cut": 2}, restarted={"lost": 2, "cut": 2, "streams_cut": 1})
        )
        == []
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("killed", {"lost": 3, "cut": 3, "streams_cut": 2}),
        ("restarted", {"lost": 3, "cut": 2, "streams_cut": 2}),
        ("killed", {"failed": 1}),
        ("restarted", {"refused": 1}),
        ("loaded_again", {"lost": 1, "cut": 1, "streams_cut": 1}),
        ("loaded_again", {"retried": 1}),
        ("loaded_again", {"found": {**LOADED, "loaded": 2}}),
        ("loaded_again", {"found": {**LOADED, "taken_back": 1}}),
        ("loaded_again", {"found": {**LOADED, "requests_while_drained": 1}}),
        ("drained", {"retried": 1}),
        ("drained", {"lost": 1, "cut": 1, "streams_cut": 1}),
        ("drained", {"found": {"left": 1, "requests_while_drained": 0}}),
        ("drained", {"found": {"left": 0, "requests_while_drained": 2}}),
    ],
)
def test_anything_else_is_named(name: str, change: dict[str, Any]) -> None:
    problems = wrong(results(**{name: change}))
    assert len(problems) == 1 and problems[0].startswith(f"{name.replace('_', ' ')}: ")


def test_the_table_has_a_row_for_each_fault() -> None:
    lines = table(results(killed={"lost": 2, "cut": 2, "streams_cut": 2, "found": {"left_out_s": 0.3}})).splitlines()
    assert len(lines) == 6
    assert lines[4] == "| killed | 9 | 9 | 0 | 0 | 2 | 0 | 2 | 2 | left_out 0.3 |"
