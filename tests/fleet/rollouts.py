# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a steady stream of requests sees of rollouts through the hosts behind a router, good ones and bad ones.

    VLLM_API_KEY=KEY REPLICA_KEY=KEY python tests/fleet/rollouts.py --url https://localhost:8443 --ca-file lb-1.pem \\
        --model NAME --server cpu-1=http://127.0.0.1:18100 --server cpu-2=… --out rollouts.json -- -i INVENTORY…

on a machine where the hosts are (the client sends to the loopback interface only), with DOCKER_HOST of their engine,
and the folder above ansible_collections on PYTHONPATH. What follows C(--) goes to every ansible-playbook. In turn:

upgraded                 C(upgrade) to another C(vllm_max_model_len), to its end
canary below its floor   the canary's score is below the floor of its accuracy: nothing is changed in the end
host that cannot start   a host after the canary gets a configuration that fails at its start: nothing is changed either
play killed              C(upgrade) is killed (C(kill -9)) while its second host is changed, and run again
brought back             C(rollback) to what served before
one host deployed        C(deploy --limit) with another C(vllm_max_model_len); the others serve what they served
baseline measured        C(verify) measures the canary and stores that: nothing is changed
canary below baseline    the canary serves one request at a time, far slower than that: nothing is changed in the end
canary as fast           the canary holds its baseline, and all hosts are changed

What each host serves is read from its own C(/v1/models). A planned rollout loses no request, and none of these may; nor
may one be turned away and answered only when the client sent it again, which half a minute without a server looks like.
Prints a table, and exits with 1 when that was so or a host serves what it should not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from ansible_collections.gpufleet.vllm.tests.fleet.give_way import giving_way
from ansible_collections.gpufleet.vllm.tests.fleet.router_faults import (
    MOST_RETRIED,
    SHOWN,
    add_load_arguments,
    load_options,
    under_load,
)

LONGEST_PLAY_S = 2400
SHOWN_OF_LOG = 4000
TASKS = Path(__file__).resolve().parents[2] / "roles" / "verify" / "files" / "capitals"
# Far too little for a request of the lengths below.
CACHE_BYTES = 65536
# Of the benchmark: a small one, with room for what the other servers and the requests do to it on the same processors.
BENCHMARK = {
    "vllm_benchmark_num_prompts": 32,
    "vllm_benchmark_input_len": 32,
    "vllm_benchmark_output_len": 16,
    "vllm_benchmark_tolerance": 0.9,
}
FIRST_LENGTH, SECOND_LENGTH, THIRD_LENGTH = 1536, 1024, 1280


@dataclass
class Rollout:
    """One rollout, and what should come of it.

    Attributes:
        name: for the table.
        playbook: C(upgrade), C(rollback), C(deploy) or C(verify).
        wishes: extra variables.
        succeeds: whether its exit status is to be 0.
        says: regular expression that what is printed must hold.
        serves: C(vllm_max_model_len) that every host must serve afterwards; None for what it served before.
        killed: whether it is killed in the middle and run again.
        limit: the only host that it is for; the others must serve what they served.
        tags: the only stages to verify.
    """

    name: str
    playbook: str
    wishes: dict[str, Any]
    succeeds: bool
    says: str
    serves: int | None
    killed: bool = False
    limit: str = ""
    tags: str = ""

    def wanted(self, before: dict[str, int]) -> dict[str, int]:
        """Return what each host must serve afterwards, by what it served before."""
        return {
            host: self.serves if self.serves and self.limit in ("", host) else length for host, length in before.items()
        }


def rollouts(canary: str, second: str) -> list[Rollout]:
    """Return the rollouts in their order; C(canary) is changed first, C(second) is a host that is changed after it."""
    # Without the stage performance, which most of these are not about.
    plain = {"vllm_rollout_verify_canary": ["basic"]}
    accuracy = {
        "vllm_rollout_verify_canary": ["basic", "accuracy"],
        "vllm_accuracy_tasks": ["capitals"],
        "vllm_accuracy_tasks_dir": str(TASKS),
        "vllm_accuracy_limit": 4,
        "vllm_accuracy_num_concurrent": 2,
        "vllm_accuracy_floors": {"fp32": {"capitals": {"exact_match,first-words": 1.0}}},
        "vllm_accuracy_standard_errors": 0,
    }
    performance = {**BENCHMARK, "vllm_rollout_verify_canary": ["basic", "performance"]}
    cache = f"{{'kv-cache-memory-bytes': {CACHE_BYTES}}} if inventory_hostname == '{second}' else {{}}"
    too_little = "{{ {'load-format': 'dummy'} | combine(" + cache + ") }}"
    return [
        Rollout("upgraded", "upgrade", {**plain, "vllm_max_model_len": FIRST_LENGTH}, True, "", FIRST_LENGTH),
        Rollout(
            "canary below its floor",
            "upgrade",
            {**accuracy, "vllm_max_model_len": SECOND_LENGTH},
            False,
            r"The rollout was stopped: the canary \S+ failed: .*floor",
            FIRST_LENGTH,
        ),
        Rollout(
            "host that cannot start",
            "upgrade",
            {**plain, "vllm_max_model_len": SECOND_LENGTH, "vllm_extra_config": too_little},
            False,
            rf"The rollout was stopped: .*{re.escape(second)}",
            FIRST_LENGTH,
        ),
        Rollout(
            "play killed",
            "upgrade",
            {**plain, "vllm_max_model_len": THIRD_LENGTH},
            True,
            "Goes on with the rollout",
            THIRD_LENGTH,
            killed=True,
        ),
        Rollout("brought back", "rollback", {}, True, "", FIRST_LENGTH),
        Rollout(
            "one host deployed", "deploy", {"vllm_max_model_len": THIRD_LENGTH}, True, "", THIRD_LENGTH, limit=second
        ),
        Rollout(
            "baseline measured",
            "verify",
            {**BENCHMARK, "vllm_benchmark_save_baseline": True},
            True,
            "",
            None,
            limit=canary,
            tags="performance",
        ),
        Rollout(
            "canary below baseline",
            "upgrade",
            {**performance, "vllm_max_model_len": SECOND_LENGTH, "vllm_max_num_seqs": 1},
            False,
            r"The rollout was stopped: the canary \S+ failed: .*baseline",
            None,
        ),
        Rollout(
            "canary as fast", "upgrade", {**performance, "vllm_max_model_len": SECOND_LENGTH}, True, "", SECOND_LENGTH
        ),
    ]


@dataclass
class Fleet:
    """The hosts, as they are seen from outside.

    Attributes:
        servers: each host's own address.
        key: the replicas' key.
        arguments: for every ansible-playbook.
        state_dir: of the rollouts, on the controller.
    """

    servers: dict[str, str]
    key: str = field(repr=False)
    arguments: list[str]
    state_dir: Path

    def served(self) -> dict[str, int]:
        """Return the longest request of each host's model; 0 for a host that does not answer."""
        return {host: self._length(url) for host, url in self.servers.items()}

    def _length(self, url: str) -> int:
        try:
            answer = requests.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {self.key}"}, timeout=30)
            return int(answer.json()["data"][0]["max_model_len"])
        except (requests.exceptions.RequestException, LookupError, ValueError):
            return 0

    def start(self, rollout: Rollout, log: Any) -> subprocess.Popen[str]:
        """Start a rollout's play, in a session of its own; what it prints goes to C(log)."""
        wishes = {
            **rollout.wishes,
            "vllm_rollout_state_dir": str(self.state_dir),
            "vllm_baseline_dir": str(self.state_dir.parent / "baselines"),
        }
        command = ["ansible-playbook", f"gpufleet.vllm.{rollout.playbook}", *self.arguments, "-e", json.dumps(wishes)]
        command += ["--limit", rollout.limit] if rollout.limit else []
        command += ["--tags", rollout.tags] if rollout.tags else []
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def states(self) -> list[str]:
        """Return the hosts' states in the rollout that is under way."""
        found = []
        for path in sorted(self.state_dir.glob("hosts/*.json")):
            found.append(str(json.loads(path.read_text(encoding="utf-8")).get("state")))
        return found


def run(fleet: Fleet, rollout: Rollout) -> dict[str, Any]:
    """Run a rollout and return C(status), C(text) (all of what it printed), C(seconds) and C(killed_s)."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        if rollout.killed:
            with fleet.start(rollout, log) as play:
                try:
                    wait_for_second(fleet, play)
                finally:
                    os.killpg(play.pid, signal.SIGKILL)
            found["killed_s"] = round(time.monotonic() - began, 1)
        with fleet.start(rollout, log) as play:
            try:
                play.wait(LONGEST_PLAY_S)
            except BaseException:
                os.killpg(play.pid, signal.SIGKILL)
                raise
        log.seek(0)
        text = log.read()
    return {**found, "seconds": round(time.monotonic() - began, 1), "status": play.returncode, "text": text}


def wait_for_second(fleet: Fleet, play: subprocess.Popen[str]) -> None:
    """Wait until the canary is done and the next host is being changed."""
    deadline = time.monotonic() + LONGEST_PLAY_S
    while not {"done", "begun"} <= set(fleet.states()):
        if play.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the play did not come to its second host; the hosts are {fleet.states()}")
        time.sleep(0.2)
    time.sleep(5)  # into the stop of the old server or the start of the new one


def problems(rollout: Rollout, result: dict[str, Any]) -> list[str]:
    """Return what should not be, of a rollout's result."""
    found = []
    missed = result["lost"] + result["refused"] + result["failed"]
    if missed:
        found.append(f"{missed} of {result['sent']} requests were not answered: {json.dumps(result['reasons'])}")
    if result["retried"] > MOST_RETRIED:
        found.append(f"{result['retried']} of {result['sent']} requests were turned away before they were answered")
    if (result["status"] == 0) is not rollout.succeeds:
        found.append(f"it ended with status {result['status']}")
    if not re.search(rollout.says, result["text"], re.DOTALL):
        found.append(f"it did not say {rollout.says!r}")
    if result["served"] != result["wanted"]:
        found.append(f"vllm_max_model_len should be {result['wanted']}; it is {result['served']}")
    return [f"{rollout.name}: {problem}" for problem in found]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the counts as Markdown."""
    heads = ["", *SHOWN, "slowest answer", "seconds", "every host serves afterwards"]
    rows = [
        [
            name,
            *(str(result[what]) for what in SHOWN),
            f"{max((kind.get('max', 0.0) for kind in result['latency_s'].values()), default=0.0):.1f} s",
            str(result["seconds"]),
            "what it should" if result["served"] == result["wanted"] else json.dumps(result["served"]),
        ]
        for name, result in results.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Run rollouts beneath a steady stream of requests.")
    add_load_arguments(parser, rate=2.0)
    parser.add_argument("--server", action="append", required=True, metavar="HOST=URL", help="a host and its server")
    parser.add_argument("--state-dir", type=Path, required=True, help="for the rollouts' state")
    parser.add_argument("--only", default="", help="regular expression of the rollouts to run")
    parser.add_argument("arguments", nargs="*", help="for ansible-playbook, after --")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run each rollout, print the table."""
    given = parse(arguments)
    servers = dict(pair.split("=", 1) for pair in given.server)
    fleet = Fleet(servers, os.environ.get("REPLICA_KEY", ""), given.arguments, given.state_dir)
    options = load_options(given)
    results: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    for rollout in rollouts(*list(servers)[:2]):
        if not re.search(given.only, rollout.name):
            continue
        act: Callable[[], dict[str, Any]] = lambda rollout=rollout: run(fleet, rollout)  # type: ignore[misc]  # noqa: E731
        wanted = rollout.wanted(fleet.served())
        with giving_way(os.environ["DOCKER_HOST"]):
            counted = under_load(options, act, given.lead)
        ended = counted.pop("found")
        result = {**counted, **ended, "served": fleet.served(), "wanted": wanted}
        found = problems(rollout, result)
        wrong += found
        results[rollout.name] = result
        shown = {name: value for name, value in result.items() if name != "text"}
        print(f"{rollout.name}: {json.dumps(shown)}", file=sys.stderr, flush=True)
        if found:
            print(result["text"][-SHOWN_OF_LOG:], file=sys.stderr, flush=True)
    if given.out:
        kept = {name: {key: value for key, value in each.items() if key != "text"} for name, each in results.items()}
        given.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
