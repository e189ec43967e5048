# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks tell and keep of secrets, on two stand-in hosts behind a real HAProxy; see many.py.

A value of its own stands in each variable that may hold a secret (tests/fakes/markers.py). Every playbook is run with
C(-vvv), C(--diff), a persistent cache of facts and every result kept as AWX keeps them. Then the values are looked for
in all that was printed, in every file but the inventory, in what Docker tells of containers and images and in their
logs; meanwhile they are looked for in the command lines of all processes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.tests.fakes.markers import (
    MARKER,
    SECRETS,
    CommandLines,
    excerpt,
    holders,
    told_everything,
)
from ansible_collections.gpufleet.vllm.tests.fleet.changes import another_length, say, tell
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import SHOWN_OF_LOG, StandInFleet, free_port

# The test's own: the inventory, and the copy of the collection, in which the markers stand.
GIVEN = ("hosts.json", "collections/")
LEAST_LOOKS = 20


@dataclass(frozen=True)
class Run:
    """A run of a playbook: its name, words of its command line, what it says where it did what it is run for.

    Attributes:
        playbook: its name.
        words: of the command line.
        says: a text without which the run did not get as far as it should.
        fails: whether it has to fail, as where the stand-ins cannot do what is asked of them.
        other_length: whether another length of requests is wished before it.
    """

    playbook: str
    words: tuple[str, ...] = ()
    says: str = "failed=0"
    fails: bool = False
    other_length: bool = False


ONE = ("--limit", "host-02")
RUNS = (
    Run("plan"),
    Run("preflight"),
    Run("deploy", ("--check",)),
    Run("deploy"),
    Run("router"),
    Run("status"),
    Run("verify", ("--tags", "basic,security")),
    # The image has neither lm_eval nor what measures.
    Run("verify", ("--tags", "accuracy,performance"), "Verification FAILED", fails=True),
    Run("tune", (*ONE, "--check")),
    Run("upgrade", other_length=True),
    Run("rollback"),
    Run("rollback", ("--tags", "history")),
    Run("restart", ONE),
    Run("drain", ONE),
    Run("resume", ONE),
    Run("usage"),
    Run("watch"),
    Run("monitoring"),
    # No package index answers.
    Run(
        "bundle",
        ("--check", "-e", "vllm_bundle_dir=bundle"),
        "Make an environment with the modules' libraries",
        fails=True,
    ),
    Run("accept", ("--check",), fails=True),
    Run("teardown"),
)


def wishes(fleet: StandInFleet) -> dict[str, Any]:
    """Return the variables of all hosts."""
    watched = {
        f"monitoring_{kind}_dir": str(fleet.folder / "watch" / kind)
        for kind in ("targets", "scrape", "rules", "dashboards", "provisioning")
    }
    for folder in watched.values():
        os.makedirs(folder)
    return {
        **SECRETS,
        **watched,
        "router_metrics_port": free_port(),
        "vllm_report_dir": str(fleet.folder / "reports"),
        "vllm_tune_dir": str(fleet.folder / "tuned"),
        "vllm_plan_dir": str(fleet.folder / "plans"),
    }


def told_by_docker(fleet: StandInFleet) -> Iterator[str]:
    """Yield what Docker tells of the fleet's containers, but for the environment, which root alone sees."""
    for box in fleet.engine.containers.list(all=True, ignore_removed=True):
        if fleet.host_of(str(box.name)):
            attributes = json.loads(json.dumps(box.attrs))
            attributes["Config"].pop("Env")
            yield f"{box.name}: {json.dumps(attributes)}"
            yield f"{box.name}: {box.logs().decode(errors='replace')}"


def problems_of(fleet: StandInFleet, run: Run, number: int) -> Iterator[str]:
    """Run a playbook and yield what is not as it should be."""
    if run.other_length:
        another_length(fleet)
    said = f"play-{number:02d}-{run.playbook}"
    played = fleet.run(run.playbook, words=run.words, name=said)
    named = " ".join([run.playbook, *run.words])
    if bool(played.status) is not run.fails or run.says not in played.text:
        yield f"{named} ended with status {played.status}:\n{played.text[-SHOWN_OF_LOG:]}"
    if "task path: " not in played.text:
        yield f"{named} did not tell all that it can"
    if shown := excerpt(played.text):
        yield f"{named} shows it: {shown}"
    yield from (f"{named}: Docker tells it: {excerpt(told)}" for told in told_by_docker(fleet) if MARKER in told)
    yield from (f"{named}: {holder}" for holder in holders(fleet.folder, GIVEN))
    say(f"{named}: {played.seconds:.0f} s")


def marked(given: argparse.Namespace) -> int:
    """Run every playbook with the markers; return the exit status."""
    found: list[str] = []
    with StandInFleet(given.hosts[0], os.environ["DOCKER_HOST"], start_s=given.start) as fleet:
        fleet.wishes |= wishes(fleet)
        fleet.key = SECRETS["vllm_api_key"]
        fleet.environment |= told_everything(fleet.folder)
        with CommandLines() as lines:
            for number, run in enumerate(RUNS):
                for problem in problems_of(fleet, run, number):
                    say(problem)
                    found.append(problem)
        seen = [f"a process list shows it: {line}" for line in lines.found]
        if lines.looks < LEAST_LOOKS or not (fleet.folder / "play.events").stat().st_size:
            seen.append(f"{lines.looks} looks at the processes, or no results kept: too few to say something")
    return tell(seen) or int(bool(found))
