# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet that an earlier version deployed, taken over by this one beneath requests; see many.py.

The earlier version's own playbooks, from its commit in this checkout's history, deploy the fleet and upgrade it once;
of a second fleet they do so, and a second upgrade is killed in the turn of a host, for this version to end. The
inventory then has only the variables that the earlier version knows. Each step afterwards is one of this version's
playbooks, and nothing is taken from what serves without need: a server that is replaced where none should be is a
problem, as is a request that is lost or has to be sent again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gpufleet.vllm.tests.bench.bench_deploy import ROOT, altered_collection, changed_tasks
from ansible_collections.gpufleet.vllm.tests.fleet.changes import (
    COUNTS,
    another_length,
    counted,
    differences,
    last,
    not_answered_at_once,
    say,
    table,
    tell,
)
from ansible_collections.gpufleet.vllm.tests.fleet.interruptions import KILL, REPLACES, at, later, short_name, turn_of
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import ROUTER, StandInFleet
from ansible_collections.gpufleet.vllm.tests.fleet.watching import Watch

# 0.1.0 was never tagged: the last commit before the next version's work.
EARLIER = "27df8729dafef2785cc030376f3d1c22af51cebd"
HEADS = ["step", "exit", "changed", "servers replaced", *COUNTS, "seconds"]
SETTLE_S, KILLED_AFTER_S = 1.0, 1.0
NONE, ALL, FIRST, LAST, SOME = "none", "all", "the first", "the last", "some"


@dataclass(frozen=True)
class Step:
    """One playbook of this version.

    Attributes:
        name: for the table, and for --only.
        playbook: which one.
        replaces: whose servers it must replace; SOME where that depends on the moment of an interruption.
        wish: changes what is wished before it.
        limit: the hosts that it is for, by the names of all.
        words: further ones of the command line, from the ids of the earlier version's deployments on the first host.
        unchanged: whether no task may have changed anything.
        serves: whether the last host serves afterwards.
        as_wished: whether the first host serves what is wished afterwards.
    """

    name: str
    playbook: str
    replaces: str = NONE
    wish: Callable[[StandInFleet], Any] = lambda _fleet: None
    limit: Callable[[StandInFleet], str] = lambda _fleet: ""
    words: Callable[[Sequence[str]], Sequence[str]] = lambda _ids: ()
    unchanged: bool = False
    serves: bool = True
    as_wished: bool = True


def first(fleet: StandInFleet) -> str:
    """Return the first host."""
    return fleet.hosts[0]


STEPS = [
    Step("status", "status", unchanged=True),
    Step("deploy --check", "deploy", words=lambda _ids: ["--check"]),
    Step("deploy", "deploy"),
    Step("deploy again", "deploy", unchanged=True),
    Step("verify", "verify", words=lambda _ids: ["--tags", "basic"]),
    Step("router", "router", unchanged=True),
    Step("upgrade", "upgrade", ALL, another_length),
    Step("rollback", "rollback", ALL, another_length),
    Step(
        "rollback to its first",
        "rollback",
        FIRST,
        limit=first,
        words=lambda ids: [f"-evllm_rollback_to={ids[0]}"],
        as_wished=False,
    ),
    Step("and back", "deploy", FIRST),
    Step("restart", "restart", ALL),
    Step("drain", "drain", limit=last),
    Step("resume", "resume", limit=last),
    Step("teardown --limit", "teardown", LAST, limit=last, serves=False),
    Step("status at the end", "status", limit=lambda fleet: f"{','.join(fleet.hosts[:-1])},{ROUTER}", serves=False),
]
# Of a fleet in which an upgrade by the earlier version was killed.
STEPS_AFTER_A_KILL = [
    Step("upgrade that 0.1.0 began", "upgrade", SOME),
    Step("deploy of that fleet", "deploy"),
    Step("rollback of it", "rollback", ALL, another_length),
]


def checkout_of(commit: str, folder: Path) -> Path:
    """Return a checkout of a commit, made in a folder.

    Raises:
        SystemExit: this checkout's history does not have it.
    """
    clone = ["git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(folder)]
    for command in (clone, ["git", "-C", str(folder), "checkout", "--quiet", commit]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}; the whole history is needed.")
    return folder


def variables_of(checkout: Path) -> frozenset[str]:
    """Return the variables that the roles of a checkout know."""
    found: set[str] = set()
    for path in checkout.glob("roles/*/meta/argument_specs.yml"):
        specs = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        found.update(name for spec in specs.values() for name in spec.get("options") or {})
    return frozenset(found)


def servers(fleet: StandInFleet) -> dict[str, tuple[str, str]]:
    """Return for each host its server's container and when that was started; nothing for a host without one."""
    found = {}
    for box in fleet.engine.containers.list(ignore_removed=True):
        host = fleet.host_of(str(box.name))
        if host:
            found[host] = (str(box.id), str(box.attrs["State"]["StartedAt"]))
    return found


def deployments(fleet: StandInFleet, host: str) -> list[str]:
    """Return the ids of a host's remembered deployments, the oldest first."""
    return sorted(path.stem for path in (fleet.folder / host / "etc" / "history").glob("*.json"))


def meant(step: Step, fleet: StandInFleet) -> set[str]:
    """Return the hosts whose servers a step must replace."""
    return {ALL: set(fleet.hosts), FIRST: {first(fleet)}, LAST: {last(fleet)}}.get(step.replaces, set())


def take(step: Step, fleet: StandInFleet, watch: Watch, ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Run a step beneath requests; return its line of the table and what should not be."""
    step.wish(fleet)
    before, began = servers(fleet), time.time()
    played = fleet.run(step.playbook, limit=step.limit(fleet), words=step.words(ids))
    time.sleep(SETTLE_S)
    after, counts = servers(fleet), counted(watch.settled(began, time.time()))
    replaced = {host for host in fleet.hosts if before.get(host) != after.get(host)}
    problems = []
    if played.status != 0:
        problems.append(f"it ended with status {played.status}: {played.text[-3000:]}")
    if step.replaces != SOME and replaced != meant(step, fleet):
        problems.append(f"replaced were {sorted(replaced)}, where {sorted(meant(step, fleet))} should be")
    changed = changed_tasks(played.text)
    if step.unchanged and changed:
        problems.append(f"{changed} tasks changed something")
    problems += not_answered_at_once(counts)
    wrong = differences(fleet.served(), wanted(step, fleet))
    if wrong:
        problems.append(f"vllm_max_model_len is not what it should be: {wrong}")
    row = [step.name, str(played.status), str(changed), ", ".join(sorted(replaced)) or "-"]
    row += [*(str(counts[what]) for what in COUNTS), f"{played.seconds:.0f}"]
    return row, [f"{step.name}: {problem}" for problem in problems]


def wanted(step: Step, fleet: StandInFleet) -> Mapping[str, int]:
    """Return the longest request that each host should serve after a step."""
    found = dict.fromkeys(fleet.hosts, int(fleet.wishes["vllm_max_model_len"]))
    if not step.as_wished:
        del found[first(fleet)]
    if not step.serves:
        found[last(fleet)] = 0
    return found


def deploy_earlier(fleet: StandInFleet) -> list[dict[str, Any]]:
    """Have the earlier version deploy a fleet and upgrade it; return the steps of that upgrade."""
    fleet.wishes.update(vllm_venv=str(fleet.folder / "venv"), vllm_profile="recipe")
    fleet.collections = fleet.folder / "earlier"
    checkout = checkout_of(EARLIER, fleet.folder / "checkout")
    altered_collection(fleet.collections, checkout)
    fleet.known = variables_of(checkout)
    fleet.must("deploy", limit=f"{first(fleet)},{ROUTER}")  # all hosts have one venv, which is made here
    fleet.must("deploy")
    another_length(fleet)
    return fleet.must("upgrade").steps


def kill_an_upgrade(fleet: StandInFleet, steps: Sequence[Mapping[str, Any]]) -> None:
    """Have the earlier version upgrade a fleet once more, and kill it while it replaces the second host's server."""
    host = fleet.hosts[1]
    replaces = next(step for step in turn_of(steps, host) if short_name(step) == REPLACES and step["changed"])
    another_length(fleet)
    began = time.time()
    play = fleet.start("upgrade", at=at(replaces, host, later(KILL, KILLED_AFTER_S), begins=True))
    fleet.finish(play, "upgrade", began)


def take_over(given: argparse.Namespace) -> int:
    """Have the earlier version deploy fleets, and this one take them over; print the table, return the exit status."""
    rows: list[list[str]] = []
    problems: list[str] = []
    for killed, all_steps in ((False, STEPS), (True, STEPS_AFTER_A_KILL)):
        steps = [step for step in all_steps if re.search(given.only, step.name)]
        if not steps:
            continue
        with StandInFleet(given.hosts[0], os.environ["DOCKER_HOST"], start_s=given.start) as fleet:
            ours = fleet.collections
            upgraded = deploy_earlier(fleet)
            ids = deployments(fleet, first(fleet))
            say(f"{len(fleet.hosts)} hosts deployed and upgraded by {EARLIER[:7]}: {', '.join(ids)}")
            with Watch(fleet) as watch:
                if killed:
                    kill_an_upgrade(fleet, upgraded)
                    say(f"killed, with {', '.join(watch.out_now()) or 'none'} out")
                fleet.collections, fleet.known = ours, None
                for step in steps:
                    row, found = take(step, fleet, watch, ids)
                    say("\n".join([" | ".join(row), *found]))
                    rows.append(row)
                    problems += found
    print(table(HEADS, rows))
    return tell(problems or ([] if rows else ["nothing was tried"]))
