# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deployment is like before and after a fault, and whether that is the state which the table says."""

from __future__ import annotations

import dataclasses

from ansible_collections.gpufleet.vllm.tests.faults.table import FINISHED, PUT_BACK, RESTARTED, UNTOUCHED
from ansible_collections.gpufleet.vllm.tests.faults.world import Play, Site


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a fault that struck a deployment of its own.

    Attributes:
        play: the play.
        left: names of the containers that were left.
        cured: the play with the variables of the fault's cure; None if it has none.
    """

    play: Play
    left: list[str]
    cured: Play | None = None


@dataclasses.dataclass
class Results:
    """What a run of the tests came to.

    Attributes:
        passed: names of the faults whose test passed.
        measured: figures of those that stop the server, by their names.
    """

    passed: list[str] = dataclasses.field(default_factory=list)
    measured: dict[str, dict[str, object]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class State:
    """What the serving deployment is like.

    Attributes:
        server: id of the server's container.
        started: when it was last started, as the engine says it.
        policy: its restart policy.
        names: of all containers of the deployment.
        answers: whether it completes a text.
    """

    server: str
    started: str
    policy: str
    names: tuple[str, ...]
    answers: bool


def look(site: Site) -> State:
    """Return the state of a deployment with a server."""
    box = site.server()
    return State(
        server=str(box.id),
        started=box.attrs["State"]["StartedAt"],
        policy=box.attrs["HostConfig"]["RestartPolicy"]["Name"],
        names=tuple(str(other.name) for other in site.containers()),
        answers=site.answers(),
    )


def check(after: str, old: State, new: State) -> None:
    """Assert that the deployment went from one state to what C(after) means."""
    assert new.answers
    assert new.names == old.names
    assert new.policy == old.policy == "unless-stopped"
    same_server, same_start = new.server == old.server, new.started == old.started
    expected = {
        UNTOUCHED: (True, True),
        PUT_BACK: (True, False),
        RESTARTED: (True, False),
        FINISHED: (False, False),
    }
    assert (same_server, same_start) == expected[after], (after, old, new)
