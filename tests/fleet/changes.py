# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Planned changes of a fleet of stand-in hosts, and what is seen of each; see many.py."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.tests.bench.bench_deploy import ROOT
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import (
    FIRST_LENGTH,
    REPLICA_KEY,
    ROUTER,
    SECOND_LENGTH,
    Played,
    StandInFleet,
)
from ansible_collections.gpufleet.vllm.tests.fleet.watching import Turn, Watch, most_out
from ansible_collections.gpufleet.vllm.tests.load.client import Record, summary

UNAVAILABLE = 0.25  # the default of vllm_max_unavailable
MOST_OUT_TIMES, MOST_WALL_TIMES = 1.2, 1.3
LEAST_START_S = 30.0  # of a server, for its times to be judged
FEW = 8  # hosts; such a fleet is changed at each number of forks
LEAD_S = 2.0
COUNTS = ("sent", "answered", "retried", "refused", "lost", "failed")


@dataclass(frozen=True)
class Change:
    """One planned change, and what should come of it.

    Attributes:
        name: for the table, and for --only.
        playbook: a run of it.
        wish: changes the fleet's wishes before it; its result is what each host must serve afterwards.
        limit: the hosts that it is for, by the names of all.
        verified: whether a canary has its turn before all others.
        everyone: whether each host must have a turn.
        module: without which there is no such change.
        after: puts right what the next change must find.
    """

    name: str
    playbook: str
    wish: Callable[[StandInFleet], dict[str, int]]
    limit: Callable[[StandInFleet], str] = lambda _fleet: ""
    verified: bool = False
    everyone: bool = True
    module: str = ""
    after: Callable[[StandInFleet], Any] = lambda _fleet: None

    def possible(self) -> bool:
        """Return whether the collection has the playbook, and the module that makes the change."""
        module = ROOT / "plugins" / "modules" / f"{self.module}.py"
        return (ROOT / "playbooks" / f"{self.playbook}.yml").exists() and (not self.module or module.exists())


def another_length(fleet: StandInFleet) -> dict[str, int]:
    """Wish another length of requests than is wished now."""
    now = fleet.wishes["vllm_max_model_len"]
    length = SECOND_LENGTH if now == FIRST_LENGTH else FIRST_LENGTH
    fleet.wishes["vllm_max_model_len"] = length
    return dict.fromkeys(fleet.hosts, length)


def another_key(fleet: StandInFleet) -> dict[str, int]:
    """Wish another key of the servers."""
    fleet.key = f"{REPLICA_KEY}-2" if fleet.key == REPLICA_KEY else REPLICA_KEY
    return dict.fromkeys(fleet.hosts, fleet.wishes["vllm_max_model_len"])


def as_it_is(fleet: StandInFleet) -> dict[str, int]:
    """Wish nothing else."""
    return fleet.served()


def without_last(fleet: StandInFleet) -> dict[str, int]:
    """The last host serves nothing."""
    return {**fleet.served(), fleet.hosts[-1]: 0}


def last(fleet: StandInFleet) -> str:
    """Return the last host."""
    return fleet.hosts[-1]


# rollback goes to the length that upgrade has left, and the inventory follows, as the guide tells a person.
CHANGES = [
    Change("upgrade", "upgrade", another_length, verified=True),
    Change("rollback", "rollback", another_length),
    Change("deploy", "deploy", another_length),
    Change("restart", "restart", as_it_is),
    Change("another key", "router", another_key, everyone=False, module="vllm_keys"),
    Change("one host drained", "drain", as_it_is, last, everyone=False),
    Change("and resumed", "resume", as_it_is, last, everyone=False),
    Change(
        "teardown --limit",
        "teardown",
        without_last,
        last,
        everyone=False,
        after=lambda fleet: (fleet.must("router"), fleet.must("deploy", limit=f"{last(fleet)},{ROUTER}")),
    ),
]


def limit_of(hosts: int) -> int:
    """Return how many of so many hosts may be out at once by default."""
    return max(1, int(hosts * UNAVAILABLE))


@dataclass
class Seen:
    """What was seen of one change.

    Attributes:
        change: which one it is.
        hosts: of the fleet.
        forks: of the play.
        start_s: what a server takes to start.
        played: the play.
        counts: of the requests, as summary in tests/load/client.py.
        out: the most hosts that were out at once.
        turns: of the hosts that were.
        served: what each host serves afterwards.
        wanted: what it should.
        left_out: the hosts that get no requests afterwards.
    """

    change: Change
    hosts: int
    forks: int
    start_s: float
    played: Played
    counts: Mapping[str, Any]
    out: int
    turns: Mapping[str, Turn]
    served: Mapping[str, int]
    wanted: Mapping[str, int]
    left_out: Sequence[str]

    @property
    def times(self) -> float:
        """How many times its own replacement the host was out for which that is the most; 0 if none was replaced."""
        return max((turn.out_s / turn.own_s for turn in self.turns.values() if turn.own_s), default=0.0)

    @property
    def wall_s(self) -> float:
        """The seconds from the first host that was out to the last one that was back."""
        turns = self.turns.values()
        return max((turn.end for turn in turns), default=0.0) - min((turn.begin for turn in turns), default=0.0)

    @property
    def own_s(self) -> float:
        """The seconds that the replacement of a host took on average."""
        return statistics.mean(turn.own_s for turn in self.turns.values()) if self.turns else 0.0

    @property
    def allowed_s(self) -> float:
        """The seconds that the hosts would take together if each were out for its own replacement alone.

        So many at a time as the limit allows, and the play has forks; a canary comes first, by itself.
        """
        first = 1 if self.change.verified and self.turns else 0
        at_once = min(limit_of(self.hosts), self.forks)
        return (first + math.ceil((len(self.turns) - first) / at_once)) * self.own_s

    def problems(self) -> list[str]:
        """Return what should not be."""
        found = []
        if self.played.status != 0:
            found.append(f"it ended with status {self.played.status}")
        found += not_answered_at_once(self.counts)
        if self.out > limit_of(self.hosts):
            found.append(f"{self.out} hosts were out at once; vllm_max_unavailable allows {limit_of(self.hosts)}")
        if self.change.everyone and len(self.turns) < self.hosts:
            found.append(f"only {len(self.turns)} hosts were seen to be out")
        if self.served != self.wanted:
            found.append(f"vllm_max_model_len is not what it should be: {differences(self.served, self.wanted)}")
        if self.left_out:
            found.append(f"{', '.join(self.left_out)} get no requests")
        if self.start_s >= LEAST_START_S:
            if self.times > MOST_OUT_TIMES:
                found.append(f"a host was out for {self.times:.2f} times its own replacement")
            if self.allowed_s and self.wall_s > MOST_WALL_TIMES * self.allowed_s:
                found.append(f"it took {self.wall_s:.0f} s, where the limit allows {self.allowed_s:.0f} s")
        return [f"{self.change.name}, {self.hosts} hosts, {self.forks} forks: {problem}" for problem in found]

    def row(self) -> list[str]:
        """Return its line of the table."""
        turns = list(self.turns.values())
        return [
            self.change.name,
            str(self.hosts),
            str(self.forks),
            *(str(self.counts[what]) for what in COUNTS),
            f"{self.out} of {limit_of(self.hosts)}",
            f"{max((turn.out_s for turn in turns), default=0):.1f} s",
            f"{self.own_s:.1f} s",
            f"{self.times:.2f}",
            f"{self.wall_s:.0f} s of {self.allowed_s:.0f} s",
            f"{self.played.seconds:.0f} s",
            "no" if self.problems() else "yes",
        ]


HEADS = [
    "change",
    "hosts",
    "forks",
    *COUNTS,
    "most out, of allowed",
    "longest out",
    "own replacement",
    "out, times own",
    "all, of allowed",
    "play",
    "as it should",
]


def not_answered_at_once(counts: Mapping[str, Any]) -> list[str]:
    """Return what should not be of the requests beneath a planned change, see counted."""
    missed = counts["refused"] + counts["lost"] + counts["failed"]
    found = []
    if missed or not counts["sent"]:
        found.append(f"{missed} of {counts['sent']} requests were not answered: {json.dumps(counts['reasons'])}")
    if counts["retried"]:
        found.append(f"{counts['retried']} of {counts['sent']} requests were turned away before they were answered")
    return found


def differences(served: Mapping[str, int], wanted: Mapping[str, int]) -> str:
    """Return the hosts that do not serve what they should."""
    return ", ".join(f"{host} {served[host]} for {wanted[host]}" for host in wanted if served[host] != wanted[host])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])


def counted(records: Sequence[Record]) -> dict[str, Any]:
    """Return the counts of requests, and why those failed that did."""
    found = summary(records)
    return {name: found[name] for name in (*COUNTS, "reasons")}


def see(fleet: StandInFleet, change: Change, forks: int, start_s: float) -> Seen:
    """Make a change, and return what was seen of it."""
    wanted = change.wish(fleet)
    stays_out = {last(fleet)} if change.playbook in ("drain", "teardown") else set()
    with Watch(fleet) as watch:
        time.sleep(LEAD_S)
        began = time.time()
        played = fleet.run(change.playbook, limit=change.limit(fleet), forks=forks)
        time.sleep(LEAD_S)
        ended = time.time()
        left_out = [host for host in watch.out_now() if host not in stays_out]
        served = fleet.served()
        turns = watch.turns(began, ended)
        counts = counted(watch.settled(began - LEAD_S, ended))
    for host in stays_out:
        turns.pop(host, None)
    out = most_out(sample for sample in watch.samples if began <= sample.time <= ended)
    return Seen(change, len(fleet.hosts), forks, start_s, played, counts, out, turns, served, wanted, left_out)


def with_forks(changes: Sequence[Change], forks: Sequence[int], size: int) -> list[tuple[Change, int]]:
    """Return each change with the forks of its play, in an order in which rollback finds what upgrade has left.

    A small fleet goes through all of them at each number of forks, a large one once, at one number after the other.
    """
    if size <= FEW:
        return [(change, number) for number in forks for change in changes]
    return [(change, forks[place % len(forks)]) for place, change in enumerate(changes)]


def make_changes(given: argparse.Namespace) -> int:
    """Make each planned change in fleets of each size, print the table, return the exit status."""
    rows: list[Seen] = []
    for size in given.hosts:
        with StandInFleet(size, os.environ["DOCKER_HOST"], start_s=given.start) as fleet:
            say(f"{size} hosts deployed in {fleet.deploy_first().seconds:.0f} s")
            wanted = [change for change in CHANGES if change.possible() and re.search(given.only, change.name)]
            for change, forks in with_forks(wanted, given.forks, size):
                seen = see(fleet, change, forks, given.start)
                rows.append(seen)
                report(seen)
                change.after(fleet)
    print(table(HEADS, [seen.row() for seen in rows]))
    return tell([problem for seen in rows for problem in seen.problems()] or ([] if rows else ["nothing was tried"]))


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def report(seen: Seen) -> None:
    """Tell what was seen of one change, with the end of the play's output where something is wrong."""
    say(" | ".join(seen.row()))
    for problem in seen.problems():
        say(problem)
    if seen.played.status != 0:
        say(seen.played.text[-4000:])


def tell(problems: Sequence[str]) -> int:
    """Print the problems; return the exit status."""
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0
