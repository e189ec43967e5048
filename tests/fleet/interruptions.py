# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rolling changes of a fleet of stand-in hosts that are interrupted, and what a person runs next; see many.py.

A first rolling change shows which steps the turn of a host has: its tasks, as Ansible tells them, but for those that
only look or compute (ONLY_LOOK). So a new step is interrupted, too. After each of them in turn the play is killed
(C(kill -9)) and interrupted (Ctrl-C). Within the longest one, the replacement, that is done at several moments; what
works on the host survives it there, so that it is done once more with that killed, too. Then:

- the host stops answering to Ansible; it answers again before the next run;
- the router's configuration is loaded again by somebody else;
- a second operator starts a play of his own;
- Docker's daemon is restarted: here that of all hosts at once, so that requests are lost and the figure says nothing.

What a person runs next is each of NEXT in turn. Those that change something (SETTLE) must have put everything right by
themselves; after the others an upgrade has to, or the one after it. No request may be lost.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.tests.bench.bench_deploy import ROOT
from ansible_collections.gpufleet.vllm.tests.fleet.changes import (
    COUNTS,
    another_length,
    counted,
    differences,
    limit_of,
    say,
    table,
    tell,
)
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import At, Played, StandInFleet
from ansible_collections.gpufleet.vllm.tests.fleet.watching import Watch, most_out
from ansible_collections.gpufleet.vllm.tools import test_engine

KILL = "kill -s KILL -- -$PLAY"
# Twice, as a person does where it hangs: Ansible may wait for ever for a worker that ended with the queue locked.
CTRL_C = "setsid /bin/sh -c 'sleep 20; kill -s INT -- -$PLAY' >/dev/null 2>&1 & sleep 0.2; kill -s INT -- -$PLAY"
# Whatever has the variable of the play, but this.
KILL_ALL = (
    'mark="GPUFLEET_PLAY=$GPUFLEET_PLAY"; unset GPUFLEET_PLAY; exec /bin/sh -c \'for p in /proc/[0-9]*; do'
    ' if grep -qzxF "$0" "$p/environ" 2>/dev/null; then kill -9 "${p#/proc/}"; fi; done\' "$mark"'
)
NEXT = ("upgrade", "deploy", "rollback", "router", "status")
SETTLE = ("upgrade", "deploy", "rollback")
ENDS = {"status": (0, 2)}  # 2 where something that should serve does not
REPLACES = "vllm_server"
# Modules and actions after which everything is as it was before them.
ONLY_LOOK = {
    "assert",
    "debug",
    "fail",
    "gpu_info",
    "host_info",
    "include_role",
    "include_tasks",
    "meta",
    "set_fact",
    "slurp",
    "stat",
    "validate_argument_spec",
    "vllm_completion",
    "vllm_plan",
    "vllm_server_info",
    "vllm_verify_targets",
}
WITHIN_S = (1.0, 2.0, 3.0, 4.5)
PAUSE_S = 1.0
FURTHER = 2  # upgrades until everything has to be as it should
SHOWN_OF_LOG = 800
HEADS = ["interrupted", "by", "left out of the router", "containers left", "next run", "afterwards", *COUNTS]


@dataclass(frozen=True)
class Interruption:
    """One interruption of a rolling change.

    Attributes:
        where: the step, for the table.
        what: what happens, for the table.
        at: what is done at which step.
        ends: whether the play must end with a failure; None where either is right.
        second: playbook that a second operator starts at that step.
        judged: whether a lost request is a problem.
    """

    where: str
    what: str
    at: At
    ends: bool | None = True
    second: str = ""
    judged: bool = True


def turn_of(steps: Sequence[Mapping[str, Any]], host: str) -> list[Mapping[str, Any]]:
    """Return the steps of a host's turn that change something or may: those of the play that replaced its server."""
    own = [step for step in steps if step["host"] == host]
    plays = [step["play"] for step in own if short_name(step) == REPLACES and step["changed"]]
    if not plays:
        raise SystemExit(f"{host} had no turn: no step of it replaced its server.")
    return [
        step
        for step in own
        if step["play"] == plays[-1] and step["status"] == "ok" and short_name(step) not in ONLY_LOOK
    ]


def short_name(step: Mapping[str, Any]) -> str:
    """Return the name of a step's module without that of its collection."""
    return str(step["action"]).rpartition(".")[2]


def interruptions_of(fleet: StandInFleet, steps: Sequence[Mapping[str, Any]], host: str) -> list[Interruption]:
    """Return what is to be tried, from the steps of a turn."""
    found = [
        Interruption(f"after {named(step)}", what, at(step, host, do))
        for step in steps
        for what, do in (("kill -9", KILL), ("Ctrl-C", CTRL_C))
    ]
    replaces = next(step for step in steps if short_name(step) == REPLACES and step["changed"])
    ways = (("kill -9", KILL), ("Ctrl-C", CTRL_C), ("kill -9, the module, too", KILL_ALL))
    for seconds, (what, do) in itertools.product(WITHIN_S, ways):
        where = f"{seconds:g} s into {named(replaces)}"
        found.append(Interruption(where, what, at(replaces, host, later(do, seconds), begins=True)))
    for step in (steps[0], replaces, steps[-1]):
        where = f"after {named(step)}"
        found.append(Interruption(where, "host stops answering", at(step, host, fleet.die(host)), ends=None))
        found.append(Interruption(where, "router loaded again", at(step, host, load_again(fleet)), ends=False))
    for second in ("upgrade", "deploy"):
        mark = f"touch {shlex.quote(str(fleet.folder / 'second'))}"
        begins = at(replaces, host, mark, begins=True)
        found.append(Interruption(f"in {named(replaces)}", f"second operator: {second}", begins, None, second))
    if test_engine.is_ours() and os.environ["DOCKER_HOST"] == test_engine.docker_host():
        # The daemon must not look like a process of the play, which is ended with the fleet.
        unmarked = ["env", "--unset=GPUFLEET_DEAD_HOSTS", "--unset=GPUFLEET_PLAY"]
        command = [*unmarked, sys.executable, str(ROOT / "tools" / "test_engine.py"), "restart"]
        restart = later(shlex.join(command), WITHIN_S[0])
        begins = at(replaces, host, restart, begins=True)
        found.append(Interruption(f"in {named(replaces)}", "engine restarted", begins, None, judged=False))
    return found


def named(step: Mapping[str, Any]) -> str:
    """Return a step as the table has it."""
    return f"{str(step['task']).removeprefix('gpufleet.vllm.')} ({short_name(step)}{nth_of(step)})"


def nth_of(step: Mapping[str, Any]) -> str:
    return f", {step['nth']}" if step["nth"] > 1 else ""


def at(step: Mapping[str, Any], host: str, do: str, *, begins: bool = False) -> At:
    """Return what is done at that step."""
    return At(host, step["task"], step["nth"], do, begins)


def later(line: str, seconds: float) -> str:
    """Return a line for the shell that does something later, and goes on at once; the play's end does not end it."""
    return f"setsid /bin/sh -c {shlex.quote(f'sleep {seconds}; {line}')} >/dev/null 2>&1 &"


def load_again(fleet: StandInFleet) -> str:
    """Return a line for the shell that has HAProxy load its configuration again."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'reload\\n');"
        " s.shutdown(socket.SHUT_WR); s.recv(99)"
    )
    return shlex.join([sys.executable, "-c", script, os.path.join(fleet.run_dir, MASTER_SOCKET)])


@dataclass
class Outcome:
    """What became of one interruption: its line of the table, and what should not be."""

    row: list[str]
    problems: list[str]


class Interrupting:
    """Interrupts rolling changes of a fleet, one after another.

    Args:
        fleet: the fleet; it serves.
        watch: what is seen of it meanwhile.
        limit: the only hosts that are changed; all if empty.
    """

    def __init__(self, fleet: StandInFleet, watch: Watch, limit: str = "") -> None:
        self._fleet, self._watch, self._limit = fleet, watch, limit

    def one(self, what: Interruption, verb: str) -> Outcome:
        """Interrupt a rolling change, run what a person runs next, and return what became of it."""
        fleet = self._fleet
        before, length = fleet.served(), fleet.wishes["vllm_max_model_len"]
        wanted = {host: new if self._changes(host) else before[host] for host, new in another_length(fleet).items()}
        began = time.time()
        first = self._interrupted(what)
        time.sleep(PAUSE_S)
        left, containers = self._watch.out_now(), fleet.containers()
        fleet.revive()
        if verb == "rollback":
            wanted, fleet.wishes["vllm_max_model_len"] = before, length
        runs = [fleet.run(verb, limit=self._limit)]
        problems = unexpected(what, first) + ([] if runs[0].status in ENDS.get(verb, (0,)) else [ended(runs[0])])
        wrong = self._wrong(wanted)
        if wrong and verb in SETTLE:
            problems.append(f"after {verb}: {wrong}")
        # The first upgrade after a rollout that was stopped has nothing but its hosts to bring back.
        while wrong and len(runs) <= FURTHER:
            runs.append(fleet.run("upgrade", limit=self._limit))
            wrong = self._wrong(wanted)
        problems += [f"after {len(runs) - 1} further upgrades: {wrong}", ended(runs[-1])] if wrong else []
        counts = counted(self._watch.settled(began, time.time()))
        missed = counts["refused"] + counts["lost"] + counts["failed"]
        if missed and what.judged:
            problems.append(f"{missed} of {counts['sent']} requests were not answered: {counts['reasons']}")
        row = [
            what.where,
            what.what,
            ", ".join(left) or "-",
            ", ".join(f"{host} {' '.join(names)}" for host, names in containers.items() if names != ["0"]) or "-",
            ", ".join(f"{run.playbook}: {run.status}" for run in runs),
            wrong or ("as it should" if not problems else "see below"),
            *(str(counts[count]) for count in COUNTS),
        ]
        if wrong:
            fleet.put_right()
        return Outcome(row, [f"{what.where}, {what.what}: {problem}" for problem in problems])

    def _changes(self, host: str) -> bool:
        return not self._limit or host in self._limit.split(",")

    def _interrupted(self, what: Interruption) -> Played:
        fleet, mark = self._fleet, self._fleet.folder / "second"
        mark.unlink(missing_ok=True)
        began = time.time()
        play = fleet.start("upgrade", limit=self._limit, at=what.at)
        if what.second:
            while play.poll() is None and not mark.exists():
                time.sleep(0.1)
            fleet.run(what.second, limit=self._limit, name="second")
        return fleet.finish(play, "upgrade", began)

    def _wrong(self, wanted: Mapping[str, int]) -> str:
        """Return what is not as it should be, once the router's health checks had their time; empty if nothing is."""
        deadline = time.monotonic() + 10 * PAUSE_S
        while True:
            time.sleep(PAUSE_S)
            found = [f"{', '.join(out)} get no requests"] if (out := self._watch.out_now()) else []
            other = differences(self._fleet.served(), wanted)
            found += [f"served: {other}"] if other else []
            more = [host for host, names in self._fleet.containers().items() if names != ["0"]]
            found += [f"containers are left on {', '.join(more)}"] if more else []
            if not found or time.monotonic() > deadline:
                return "; ".join(found)


def unexpected(what: Interruption, first: Played) -> list[str]:
    """Return what should not be of the interrupted play itself."""
    if what.ends is None or what.ends is (first.status != 0):
        return []
    return [f"the play was not interrupted there, it ended with {first.status}" if what.ends else ended(first)]


def ended(played: Played) -> str:
    """Return how a play ended, with the last error that it told."""
    errors = [line for line in played.text.splitlines() if line.startswith("[ERROR]: ")]
    said = errors[-1] if errors else played.text[-SHOWN_OF_LOG:]
    return f"{played.playbook} ended with status {played.status}: {said[:SHOWN_OF_LOG]}"


def try_all(interrupting: Interrupting, todo: Iterable[tuple[Interruption, str]]) -> list[Outcome]:
    """Try each with what is run next."""
    found = []
    for what, verb in todo:
        began = time.monotonic()
        outcome = interrupting.one(what, verb)
        found.append(outcome)
        say(f"{' | '.join(outcome.row)} | {time.monotonic() - began:.0f} s")
        for problem in outcome.problems:
            say(problem)
    return found


def interrupt_all(given: argparse.Namespace) -> int:
    """Try every interruption, print the table, return the exit status."""
    with StandInFleet(given.hosts[0], os.environ["DOCKER_HOST"], start_s=given.start) as fleet:
        fleet.deploy_first()
        another_length(fleet)
        steps = turn_of(fleet.must("upgrade").steps, fleet.hosts[1])
        todo = zip(interruptions_of(fleet, steps, fleet.hosts[1]), itertools.cycle(NEXT))
        wanted = [(what, verb) for what, verb in todo if re.search(given.only, f"{what.where}, {what.what}, {verb}")]
        say(f"{len(wanted)} interruptions; a turn's steps: {', '.join(named(step) for step in steps)}")
        with Watch(fleet) as watch:
            outcomes = try_all(Interrupting(fleet, watch), wanted)
    print(table(HEADS, [outcome.row for outcome in outcomes]))
    return tell([problem for outcome in outcomes for problem in outcome.problems])


def short_form(given: argparse.Namespace) -> int:
    """Kill a rolling change in the middle and make it again; return the exit status."""
    with StandInFleet(given.hosts[0], os.environ["DOCKER_HOST"], start_s=given.start, token_s=0.05) as fleet:
        host = fleet.hosts[1]
        replaces = next(step for step in turn_of(fleet.deploy_first().steps, host) if short_name(step) == REPLACES)
        begins = at(replaces, host, later(KILL, WITHIN_S[0]), begins=True)
        killed = Interruption(f"in {named(replaces)}", "kill -9", begins)
        with Watch(fleet) as watch:
            (outcome,) = try_all(Interrupting(fleet, watch), [(killed, "upgrade")])
        out, limit = most_out(watch.samples), limit_of(len(fleet.hosts))
        too_many = [f"{out} hosts were out at once; vllm_max_unavailable allows {limit}"] if out > limit else []
        return tell([*outcome.problems, *too_many])
