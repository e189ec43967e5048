# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a steady stream of requests sees when something happens to the router or to a server behind it.

    VLLM_API_KEY=KEY python tests/fleet/router_faults.py --url https://localhost:8443 --ca-file lb-1.pem \\
        --model NAME --run-dir /run/gpufleet-router --host cpu-1 --container cpu-1-0 \\
        --server-url http://127.0.0.1:18100 --router 'ansible-playbook gpufleet.vllm.router -i INVENTORY'

as root on the machine where the router and that server run, with DOCKER_HOST of its engine, and the folder above
ansible_collections on PYTHONPATH. Half of the requests are streamed. One after another:

loaded again   the playbook router loads the configuration three times, each time with another setting, while the host
               is drained, which it has to stay
drained        the host is drained as a rollout does it, and put back
killed         the server's process is killed with -9 in the middle of its streams; Docker starts it again
restarted      the router's process is ended, and the playbook router starts it

The client sends again what was refused, as the OpenAI libraries do; C(lost) counts what a client could not send again
without a second answer. Prints a table, and exits with 1 when something was lost that should not be: all but streams
that had begun when their server was killed, and what was open when the router was ended. Of what is planned, the
first two, nothing may have been refused either: a client that waits long enough would not see half a minute without an
answer.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.tests.bench.bench_router import Server, wait_for
from ansible_collections.gpufleet.vllm.tests.fleet.give_way import giving_way
from ansible_collections.gpufleet.vllm.tests.load.client import LOST, STREAMED, Load, Options, summary

BACK_S = 900.0
DRAIN_S = 120.0
SHOWN = ("sent", "answered", "retried", "refused", "lost", "failed")
PLANNED = ("loaded again", "drained")
# Of the requests beneath something that is planned, those that were turned away at first.
MOST_RETRIED = 0
RATE_LIMITS = (9998, 9999, 10000)


class Faults:
    """The faults, each as a function that provokes it and returns what it found besides the requests.

    Args:
        given: the arguments of the command line.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._master = Master(os.path.join(given.run_dir, MASTER_SOCKET), given.state_dir)
        place = given.server_url.rpartition("/")[2].rpartition(":")
        self._server = Server(given.container, place[0], int(place[2]))

    def reload(self) -> dict[str, Any]:
        """Have the playbook load the configuration three times, while the host is drained."""
        names, loaded = self._names(), 0
        self._master.set_state(names, "drain")
        self._master.wait(names, "drain", DRAIN_S)
        before = self._server.ended()
        for limit in RATE_LIMITS:
            workers = self._master.processes().current
            self._router("-e", f"router_rate_limit={limit}")
            loaded += self._master.processes().current != workers
            time.sleep(1)
        servers = self._master.servers()
        found = {
            "loaded": loaded,
            "taken_back": sum(servers[name].state != "drain" for name in names),
            "requests_while_drained": int(self._server.ended() - before),
        }
        self._master.set_state(names, "ready")
        self._master.wait(names, "ready", DRAIN_S)
        return found

    def drain(self) -> dict[str, Any]:
        """Drain the host, see that it gets nothing, and put it back."""
        names = self._names()
        began = time.time()
        self._master.set_state(names, "drain")
        servers, waited = self._master.wait(names, "drain", DRAIN_S)
        before = self._server.ended()
        time.sleep(3)
        found = {
            "drained_s": round(waited, 1),
            "left": sum(server.sessions for server in servers.values()),
            "requests_while_drained": int(self._server.ended() - before),
        }
        self._master.set_state(names, "ready")
        self._master.wait(names, "ready", DRAIN_S)
        return {**found, "seconds": round(time.time() - began, 1)}

    def kill(self) -> dict[str, Any]:
        """Kill the server while it streams, and wait until it gets requests again."""
        wait_for(lambda: self._sessions() > 0, 60)
        self._server.kill()
        killed = time.time()
        wait_for(lambda: not self._usable(), 30)
        out = time.time()
        wait_for(self._server.healthy, BACK_S)
        healthy = time.time()
        wait_for(self._usable, 30)
        return {
            "left_out_s": round(out - killed, 2),
            "restart_s": round(healthy - killed, 1),
            "taken_back_s": round(time.time() - healthy, 2),
        }

    def restart(self) -> dict[str, Any]:
        """End the router, and have the playbook start it."""
        began = time.time()
        os.kill(self._master.processes().master, signal.SIGTERM)
        self._router()
        wait_for(self._usable, 30)
        return {"seconds": round(time.time() - began, 1)}

    def _router(self, *arguments: str) -> None:
        command = [*shlex.split(self._given.router), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def _names(self) -> list[str]:
        return [name for name in self._master.servers() if host_of(name) == self._given.host]

    def _usable(self) -> bool:
        servers = self._master.servers()
        return all(servers[name].usable() for name in self._names())

    def _sessions(self) -> int:
        servers = self._master.servers()
        return sum(servers[name].sessions for name in self._names())


def under_load(options: Options, fault: Callable[[], dict[str, Any]], lead_s: float) -> dict[str, Any]:
    """Provoke a fault under load and return what became of the requests."""
    with Load(options) as load:
        time.sleep(lead_s)
        began = time.time()
        found = fault()
        time.sleep(lead_s)
    records = load.records()
    lost = [record for record in records if record.outcome == LOST]
    cut = [record.kind for record in lost if record.started <= began + 1]
    return {
        **{name: value for name, value in summary(records).items() if name in (*SHOWN, "latency_s", "reasons")},
        "cut": len(cut),
        "streams_cut": cut.count(STREAMED),
        "found": found,
    }


def add_load_arguments(parser: argparse.ArgumentParser, rate: float) -> None:
    """Add the arguments that say which load to send; C(rate) is the default in requests a second."""
    parser.add_argument("--url", required=True, help="of the router")
    parser.add_argument("--ca-file", default="", help="what its certificate is checked with")
    parser.add_argument("--model", required=True, help="the served model's name")
    parser.add_argument("--rate", type=float, default=rate, help="requests a second")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--lead", type=float, default=4.0, help="seconds of load before and after each")
    parser.add_argument("--out", type=Path, help="all figures as JSON")


def load_options(given: argparse.Namespace) -> Options:
    """Return the load of those arguments, sent again when refused, as the OpenAI libraries do."""
    return Options(
        url=given.url,
        model=given.model,
        rate=given.rate,
        max_tokens=given.max_tokens,
        api_key=os.environ.get("VLLM_API_KEY", ""),
        ca_file=given.ca_file,
        timeout=120,
        retries=120,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Provoke faults behind a steady stream of requests.")
    add_load_arguments(parser, rate=3.0)
    parser.add_argument("--run-dir", default="/run/gpufleet-router", help="the router's sockets")
    parser.add_argument("--state-dir", default="/var/lib/gpufleet-router", help="what the router keeps")
    parser.add_argument("--host", required=True, help="the host to drain and whose server is killed")
    parser.add_argument("--container", required=True, help="that server's container")
    parser.add_argument("--server-url", required=True, help="where that server listens")
    parser.add_argument("--router", required=True, help="command that runs the playbook router")
    return parser.parse_args(arguments)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the counts as Markdown."""
    heads = ["", *SHOWN, "of them open when it happened", "streams", "seconds"]
    rows = []
    for name, result in results.items():
        seconds = ", ".join(f"{what.removesuffix('_s')} {value}" for what, value in result["found"].items())
        rows.append([name, *(str(result[what]) for what in (*SHOWN, "cut", "streams_cut")), seconds])
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])


def wrong(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return what should not be."""
    problems = []
    for name, result in results.items():
        spared = {"killed": result["streams_cut"], "restarted": result["cut"]}.get(name, 0)
        missed = result["lost"] + result["refused"] + result["failed"] - spared
        if missed:
            problems.append(f"{name}: {missed} requests were not answered: {json.dumps(result['reasons'])}")
        if name in PLANNED and result["retried"] > MOST_RETRIED:
            problems.append(f"{name}: {result['retried']} requests were turned away before they were answered")
    drained, loaded = results["drained"]["found"], results["loaded again"]["found"]
    if drained["left"] or drained["requests_while_drained"]:
        problems.append(f"drained: {json.dumps(drained)}")
    if loaded["loaded"] != len(RATE_LIMITS) or loaded["taken_back"] or loaded["requests_while_drained"]:
        problems.append(f"loaded again: {json.dumps(loaded)}")
    return problems


def main(arguments: Sequence[str]) -> int:
    """Provoke each fault, print the table."""
    given = parse(arguments)
    options = load_options(given)
    faults = Faults(given)
    todo = {
        "loaded again": faults.reload,
        "drained": faults.drain,
        "killed": faults.kill,
        "restarted": faults.restart,
    }
    results = {}
    for name, fault in todo.items():
        with giving_way(os.environ["DOCKER_HOST"]):
            results[name] = under_load(options, fault, given.lead)
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    problems = wrong(results)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
