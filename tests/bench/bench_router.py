# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy, as role router configures it, and vllm-router before the same real servers: what each costs and loses.

    VLLM_API_KEY=KEY python tests/bench/bench_router.py --model NAME --vllm-router /path/to/vllm-router \\
        cpu-1-0=127.0.0.1:18100 cpu-2-0=127.0.0.1:18110 cpu-3-0=127.0.0.1:18120

with the folder above ansible_collections on PYTHONPATH, as root, haproxy and openssl installed. The arguments name
containers of vLLM servers on this machine and where they listen; DOCKER_HOST names their engine. Measured are:

overhead    seconds that GET /v1/models takes more than at the server itself, one after another on one connection
balance     requests that each server ended under a steady load, counted by the servers
kill -9     the first server's process is killed under that load and Docker starts it again: what became of the
            requests, when the last one was not answered, and how long after it was healthy again it got its first one
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.metrics import parse_samples
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config, config_names, members, router_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate, public_part
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS
from ansible_collections.gpufleet.vllm.tests.load.client import ANSWERED, Load, Options, percentile, summary

START_S = 30.0
BACK_S = 900.0
PORT = 18470
ENDED = "vllm:request_success_total"
COUNTED = ("sent", "answered", "refused", "lost", "failed")


@dataclass(frozen=True)
class Server:
    """A real server: its container and where it listens."""

    container: str
    address: str
    port: int

    @property
    def url(self) -> str:
        """Return its address as a URL."""
        return f"http://{self.address}:{self.port}"

    def healthy(self) -> bool:
        """Return whether it says that it is ready."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ended(self) -> float:
        """Return how many requests it has ended since it was started; 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(value for name, _labels, value in parse_samples(lines) if name == ENDED)

    def kill(self) -> None:
        """Kill its process as the kernel does when memory runs out; Docker's restart policy starts it again."""
        inspect = ["docker", "inspect", "--format", "{{.State.Pid}}", self.container]
        pid = int(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        for victim in [*map(int, children), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)


@dataclass(frozen=True)
class Entrance:
    """Where clients ask: its URL, key, and what its certificate is checked with."""

    url: str
    api_key: str
    ca_file: str = ""


# The engines


@contextlib.contextmanager
def haproxy(servers: Sequence[Server], key: str, folder: Path) -> Iterator[Entrance]:
    """Run HAProxy with the role's own configuration, TLS and a key of its own for clients."""
    options = {name: option.get("default") for name, option in ARGUMENTS.items()}
    own = {"host": "127.0.0.1", "port": PORT, "api_keys": ["bench-client-key"]}
    chroot = options["chroot"] if os.path.isdir(options["chroot"]) else ""
    settings = router_settings.as_settings(
        {**options, **own, "run_dir": str(folder / "run"), "state_dir": str(folder)}, chroot, key
    )
    replicas = [members.Replica(server.container, "0", server.address, server.port) for server in servers]
    certificate, public = folder / config_names.CERTIFICATE, folder / "public.pem"
    make_certificate(str(certificate), ["127.0.0.1"], 1)
    public.write_text(public_part(str(certificate)), encoding="utf-8")
    router = RouterService(str(folder), str(folder / "run"), str(folder), str(folder / "log"))
    router.check(lambda place: config.files(settings, replicas, place))
    router.load(config.files(settings, replicas, str(folder)))
    try:
        yield Entrance(f"https://127.0.0.1:{PORT}", "bench-client-key", str(public))
    finally:
        router.remove()


@contextlib.contextmanager
def vllm_router(program: str, policy: str, servers: Sequence[Server], key: str, folder: Path) -> Iterator[Entrance]:
    """Run vllm-router with health checks as often as HAProxy's; it has neither TLS nor keys for clients."""
    words = [program, "--host", "127.0.0.1", "--port", str(PORT), "--prometheus-port", str(PORT + 1)]
    words += ["--health-check-interval-secs", "1", "--health-failure-threshold", "2"]
    words += ["--health-check-timeout-secs", "2", "--policy", policy]
    words += ["--api-key", key, "--worker-urls", *(server.url for server in servers)]
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        yield Entrance(f"http://127.0.0.1:{PORT}", key)
    finally:
        process.terminate()
        process.wait(timeout=START_S)


# What is measured


def connection_to(entrance: Entrance) -> http.client.HTTPConnection:
    """Return a connection that stays open."""
    place = entrance.url.rpartition("/")[2]
    if not entrance.url.startswith("https"):
        return http.client.HTTPConnection(place, timeout=30)
    return http.client.HTTPSConnection(place, timeout=30, context=ssl.create_default_context(cafile=entrance.ca_file))


def time_requests(connection: http.client.HTTPConnection, key: str, count: int) -> list[float]:
    """Return the seconds of each of that many requests for the list of models."""
    found = []
    for _number in range(count):
        began = time.perf_counter()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        found.append(time.perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(f"GET /v1/models was answered with {answer.status}")
    return found


def overhead(entrance: Entrance, server: Server, key: str, count: int) -> dict[str, float]:
    """Return percentiles in milliseconds directly and through the engine, measured in turns."""
    direct, through = connection_to(Entrance(server.url, key)), connection_to(entrance)
    times: dict[str, list[float]] = {"direct": [], "through": []}
    for _turn in range(10):
        times["direct"] += time_requests(direct, key, count // 10)
        times["through"] += time_requests(through, entrance.api_key, count // 10)
    figures = {
        f"{kind}_p{share}_ms": percentile(found, share) * 1000 for kind, found in times.items() for share in (50, 99)
    }
    figures["overhead_p50_ms"] = figures["through_p50_ms"] - figures["direct_p50_ms"]
    figures["overhead_p99_ms"] = figures["through_p99_ms"] - figures["direct_p99_ms"]
    return {name: round(value, 2) for name, value in figures.items()}


def load_options(entrance: Entrance, given: argparse.Namespace) -> Options:
    """Return the steady load, without retries of its own: what is lost shows."""
    return Options(
        url=entrance.url,
        model=given.model,
        rate=given.rate,
        max_tokens=given.max_tokens,
        api_key=entrance.api_key,
        ca_file=entrance.ca_file,
        timeout=120,
    )


def balance(entrance: Entrance, servers: Sequence[Server], given: argparse.Namespace) -> dict[str, Any]:
    """Return how many requests each server ended under a steady load."""
    before = [server.ended() for server in servers]
    with Load(load_options(entrance, given)) as load:
        time.sleep(given.seconds)
    shares = [int(server.ended() - start) for server, start in zip(servers, before, strict=True)]
    return {"shares": shares, **counts(summary(load.records()))}


def kill(entrance: Entrance, victim: Server, given: argparse.Namespace) -> dict[str, Any]:
    """Kill a server under load and return what became of the requests, and when it was left out and taken back."""
    with Load(load_options(entrance, given)) as load:
        time.sleep(given.seconds / 2)
        killed = time.time()
        victim.kill()
        healthy = wait_for(lambda: not victim.healthy(), START_S) and wait_for(victim.healthy, BACK_S)
        back = wait_for(lambda: victim.ended() > 0, BACK_S)
        time.sleep(2)
    records = load.records()
    missed = [record.ended for record in records if record.outcome != ANSWERED]
    slowest = [record.seconds for record in records if killed - 5 < record.started < killed + 5]
    return {
        **counts(summary(records)),
        "left_out_s": round(max(0.0, *missed) - killed, 2) if missed else 0.0,
        "slowest_s": round(max(slowest, default=0.0), 2),
        "restart_s": round(healthy - killed, 1),
        "taken_back_s": round(back - healthy, 2),
        "reasons": summary(records)["reasons"],
    }


def counts(found: dict[str, Any]) -> dict[str, int]:
    """Return the counts alone."""
    return {name: found[name] for name in COUNTED}


def wait_for(condition: Callable[[], bool], most: float) -> float:
    """Wait until the condition holds and return when; raise TimeoutError after C(most) seconds."""
    deadline = time.monotonic() + most
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {most:.0f} s")
        time.sleep(0.1)
    return time.time()


def measure(entrance: Entrance, servers: Sequence[Server], key: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return every figure of an engine that runs."""

    def answers() -> bool:
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            return bool(time_requests(connection_to(entrance), entrance.api_key, 1))
        return False

    wait_for(answers, START_S)
    return {
        "overhead": overhead(entrance, servers[1], key, given.requests),
        "balance": balance(entrance, servers, given),
        "kill": kill(entrance, servers[0], given),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    heads = ["", *results]
    lines_of: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("overhead, p50 / p99", lambda r: "{overhead_p50_ms} / {overhead_p99_ms} ms".format(**r["overhead"])),
        ("directly, p50 / p99", lambda r: "{direct_p50_ms} / {direct_p99_ms} ms".format(**r["overhead"])),
        ("balance: requests at each server", lambda r: " / ".join(map(str, r["balance"]["shares"]))),
        *((f"kill -9: {name}", lambda r, name=name: str(r["kill"][name])) for name in COUNTED),
        ("kill -9: last one that was not answered, after it", lambda r: f"{r['kill']['left_out_s']} s"),
        ("kill -9: slowest answer about then", lambda r: f"{r['kill']['slowest_s']} s"),
        ("first request after the server was healthy", lambda r: f"{r['kill']['taken_back_s']} s"),
    ]
    rows = [[title, *(figure(found) for found in results.values())] for title, figure in lines_of]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Measure HAProxy and vllm-router before real servers.")
    parser.add_argument("servers", nargs="+", help="container=address:port of each server")
    parser.add_argument("--model", required=True, help="the served model's name")
    parser.add_argument("--vllm-router", default="", help="path of the program; left out, HAProxy is measured alone")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0, help="of steady load")
    parser.add_argument("--requests", type=int, default=1000, help="for the overhead")
    parser.add_argument("--out", type=Path, help="all figures as JSON")
    return parser.parse_args(arguments)


def server_of(text: str) -> Server:
    """Return the server that an argument names."""
    container, _equals, place = text.partition("=")
    address, _colon, port = place.rpartition(":")
    return Server(container, address, int(port))


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table."""
    given = parse(arguments)
    servers, key = [server_of(text) for text in given.servers], os.environ.get("VLLM_API_KEY", "")
    engines: dict[str, Callable[[Path], contextlib.AbstractContextManager[Entrance]]] = {
        "HAProxy": functools.partial(haproxy, servers, key)
    }
    for policy in ("power_of_two", "cache_aware") if given.vllm_router else ():
        engines[f"vllm-router, {policy}"] = functools.partial(vllm_router, given.vllm_router, policy, servers, key)
    results = {}
    for name, engine in engines.items():
        with tempfile.TemporaryDirectory(prefix="bench-router-") as folder, engine(Path(folder)) as entrance:
            results[name] = measure(entrance, servers, key, given)
            print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
