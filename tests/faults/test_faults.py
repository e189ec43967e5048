# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault of the table, provoked on vLLM's CPU build through the playbooks while requests flow.

`make faults` runs them, with the tests' own Docker engine.
"""

from __future__ import annotations

import concurrent.futures
import time

import pytest

from ansible_collections.gpufleet.vllm.tests.faults import state
from ansible_collections.gpufleet.vllm.tests.faults.provocations import PROVOCATIONS
from ansible_collections.gpufleet.vllm.tests.faults.state import Outcome, Results
from ansible_collections.gpufleet.vllm.tests.faults.table import FAULTS, OWN, RESTARTED, SERVING, Fault
from ansible_collections.gpufleet.vllm.tests.faults.world import Play, Site, World
from ansible_collections.gpufleet.vllm.tests.load.client import Load, summary

Futures = dict[str, concurrent.futures.Future[Outcome]]

# Those that strike a deployment of their own run beside the first ones; what stops the serving server comes last,
# with the machine to itself.
UNDISTURBED = [fault for fault in FAULTS if fault.on == SERVING and not fault.stops]
BESIDE = [fault for fault in FAULTS if fault.on == OWN]
STOPPING = [fault for fault in FAULTS if fault.stops]


def name_of(fault: Fault) -> str:
    """Return the name of a test case."""
    return fault.name


def judge(play: Play, fault: Fault) -> None:
    """Assert that the user saw what the table says."""
    assert any(play.error == error and says in (play.message or play.text) for error, says in fault.told()), play.text
    error = play.failure.get("error") or {}
    assert fault.proof in str(error.get("evidence", "")), play.text
    assert fault.phase in ("", (error.get("details") or {}).get("phase")), play.text


@pytest.mark.parametrize("fault", UNDISTURBED, ids=name_of)
def test_the_old_server_answers_every_request(
    fault: Fault, world: World, own_plays: Futures, serving: Site, load: Load, results: Results
) -> None:
    old, began = state.look(serving), time.time()
    play = PROVOCATIONS[fault.how](world, serving, fault)
    judge(play, fault)
    state.check(fault.after, old, state.look(serving))
    counted = summary(load.settled(began, time.time()))
    assert counted["answered"] == counted["sent"] > 0, counted
    results.passed.append(fault.name)


@pytest.mark.parametrize("fault", BESIDE, ids=name_of)
def test_nothing_is_left_of_a_server_that_fails(fault: Fault, own_plays: Futures, results: Results) -> None:
    outcome = own_plays[fault.name].result()
    assert outcome.play.status != 0
    judge(outcome.play, fault)
    assert outcome.left == []
    if outcome.cured:
        # The remedy was followed, and the server serves.
        assert outcome.cured.status == 0, outcome.cured.text
    results.passed.append(fault.name)


@pytest.mark.parametrize("fault", STOPPING, ids=name_of)
def test_the_server_comes_back(
    fault: Fault, world: World, own_plays: Futures, serving: Site, load: Load, results: Results
) -> None:
    concurrent.futures.wait(own_plays.values())
    if fault.after == RESTARTED:
        # What an earlier fault wished for may still be written down; the next run would have something to change.
        assert serving.play().status == 0
    old, began = state.look(serving), time.time()
    play = PROVOCATIONS[fault.how](world, serving, fault)
    serving.wait_until_it_answers()
    ended = time.time()
    judge(play, fault)
    if not fault.error:
        assert play.status == 0, play.text
    if fault.after == RESTARTED:
        assert play.changed == 0, play.text
    state.check(fault.after, old, state.look(serving))
    counted = summary(load.settled(began, ended))
    assert counted["failed"] == 0, counted
    assert counted["sent"] == counted["answered"] + counted["refused"] + counted["lost"]
    results.measured[fault.name] = {
        **{name: counted[name] for name in ("sent", "answered", "refused", "lost")},
        "seconds": round(ended - began, 1),
        "outage_s": round(max((gap["seconds"] for gap in counted["outages"]), default=0.0), 1),
    }
    results.passed.append(fault.name)
