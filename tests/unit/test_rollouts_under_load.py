# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the judgement over rollouts under load; the rollouts themselves are Molecule's."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import variables
from ansible_collections.gpufleet.vllm.tests.fleet.rollouts import Rollout, parse, problems, rollouts, table

UPGRADE = Rollout("upgraded", "upgrade", {}, True, "changed", 1536)


def result(**changes: Any) -> dict[str, Any]:
    """Return what a rollout gave when all went well, with changes."""
    counts = {"sent": 9, "answered": 9, "retried": 0, "refused": 0, "lost": 0, "failed": 0}
    times = {"short": {"max": 1.25}, "streamed": {"max": 2.5}}
    served = {"cpu-1": 1536, "cpu-2": 1536}
    rest = {"latency_s": times, "reasons": {}, "seconds": 61.0, "status": 0, "text": "3 changed", "served": served}
    return {**counts, **rest, "wanted": served, **changes}


def test_a_rollout_that_did_what_it_should_has_no_problem() -> None:
    assert problems(UPGRADE, result()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"lost": 1},
        {"refused": 1},
        {"failed": 1},
        {"retried": 1},
        {"status": 2},
        {"text": "nothing"},
        {"served": {"cpu-1": 1536, "cpu-2": 1024}},
        {"served": {"cpu-1": 1536, "cpu-2": 0}},
    ],
)
def test_anything_else_is_named(change: dict[str, Any]) -> None:
    found = problems(UPGRADE, result(**change))
    assert len(found) == 1 and found[0].startswith("upgraded: ")


def test_a_rollout_that_should_fail_and_does_not_is_a_problem() -> None:
    refused = Rollout("bad", "upgrade", {}, False, "", 1536)
    assert problems(refused, result(status=2)) == []
    assert problems(refused, result()) == ["bad: it ended with status 0"]


def test_of_a_deployment_of_one_host_the_others_are_to_stay_as_they_were() -> None:
    one = Rollout("one", "deploy", {}, True, "", 1280, limit="cpu-2")
    assert one.wanted({"cpu-1": 1536, "cpu-2": 1536}) == {"cpu-1": 1536, "cpu-2": 1280}
    assert UPGRADE.wanted({"cpu-1": 0, "cpu-2": 1024}) == {"cpu-1": 1536, "cpu-2": 1536}


def test_the_table_has_a_row_for_each_rollout() -> None:
    lines = table({"upgraded": result(), "killed": result(served={"cpu-1": 0, "cpu-2": 1536})}).splitlines()
    assert lines[2] == "| upgraded | 9 | 9 | 0 | 0 | 0 | 0 | 2.5 s | 61.0 | what it should |"
    assert lines[3].endswith('| {"cpu-1": 0, "cpu-2": 1536} |')


def test_the_arguments_of_the_plays_are_kept_apart() -> None:
    words = ["--url", "http://127.0.0.1:1", "--model", "m", "--server", "a=http://127.0.0.1:2", "--state-dir", "/tmp/s"]
    given = parse([*words, "--", "-i", "inventory", "-e", "x=1"])
    assert given.arguments == ["-i", "inventory", "-e", "x=1"]


def test_only_one_host_gets_the_configuration_that_cannot_start() -> None:
    broken = next(rollout for rollout in rollouts("cpu-1", "cpu-2") if rollout.name == "host that cannot start")
    assert "inventory_hostname == 'cpu-2'" in broken.wishes["vllm_extra_config"]
    assert not broken.succeeds


@pytest.mark.parametrize("rollout", rollouts("cpu-1", "cpu-2"), ids=lambda rollout: rollout.name)
def test_what_a_rollout_wishes_of_the_verification_is_valid(rollout: Rollout) -> None:
    assert variables.problems(rollout.wishes) == []
