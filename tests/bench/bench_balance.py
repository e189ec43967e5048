# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to look into a request for its model and its prompt, and what sending like prompts to one server gains.

    python tests/bench/bench_balance.py overhead
    python tests/bench/bench_balance.py balance --image gpufleet/vllm-cpu:deploy --folder /path/to/SmolLM2-135M-Instruct
    VLLM_API_KEY=KEY python tests/bench/bench_balance.py balance --model NAME 10.0.0.11:8000 10.0.0.12:8000

with the folder above ansible_collections on PYTHONPATH, as root, haproxy installed; DOCKER_HOST names the engine.

overhead    milliseconds of a request through the role's configuration without its rules for bodies, and with them, in
            turns in one run. Servers are stand-ins (another HAProxy), so that the router's own time is what shows.
balance     the arguments are vLLM servers with prefix caching on; without any, three of vLLM's CPU build are started.
            Clients ask without a pause, each with the beginning of one of 8 or 64 groups, which are asked for as
            unequally as real traffic does (Zipf), and a question of its own. Each run has beginnings that no cache has
            yet, and the caches are filled before it counts: with each beginning as many times as there are servers.
            0 groups are prompts that share nothing. Before the table stands what the beginnings take and a cache holds:
            with 64 groups the servers' caches hold them together, and one of them does not. It takes ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.metrics import parse_samples
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config, config_names, router_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS
from ansible_collections.gpufleet.vllm.tests.load.client import percentile

KEY, CHROOT = "bench-client-key", "/var/lib/haproxy"
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
PORT, STAND_INS, SERVERS = 18480, (18481, 18482), (18485, 18486, 18487)
START_S, SERVER_START_S = 30.0, 300.0
# Of a server that is started here: its cache holds half and a bit of what the beginnings of the most groups take.
BLOCK_TOKENS, CACHE_SHARE, MODEL_TOKENS = 32, 0.53, 2048
CACHE = "vllm:cache_config_info"
# Each is one token, also of the tokenizer of tests/gpu, which knows words of four letters up to l.
WORDS = (
    *("bank", "bird", "blue", "book", "boat", "card", "cave", "city", "coin", "dark"),
    *("desk", "door", "east", "face", "farm", "fish", "food", "game", "gate", "gold"),
)
QUESTION_WORDS = 16
SIZES = {"1 KB": 1000, "32 KB": 32000, "200 KB": 200000}
ENDED, HITS, ASKED = "vllm:request_success_total", "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
# Lines of the configuration that look into a body or need what was found there.
LOOKS = re.compile(
    r"txn\.(model|backend|seen|cut|first|second|head|role|beginning|session)\b|is_cut|wait-for-body|use_backend"
    r"|x-gpufleet-(hash|once)|hash-type|hash-balance-factor"
)


# The router


@contextlib.contextmanager
def router(replicas: Sequence[Replica], key: str, port: int, *, looks: bool = True, **changes: Any) -> Iterator[None]:
    """Run HAProxy with the role's own configuration, or without the rules that look into a body."""
    options = {name: option.get("default") for name, option in ARGUMENTS.items()}
    own = {"host": "127.0.0.1", "port": port, "tls": False, "api_keys": [KEY], "rate_limit": 0, "connection_rate": 0}
    with tempfile.TemporaryDirectory(prefix="bench-balance-") as name:
        folder = Path(name)
        given = {**options, **own, "run_dir": str(folder / "run"), "state_dir": name, **changes}
        chroot = CHROOT if os.path.isdir(CHROOT) else ""
        settings = router_settings.as_settings(given, chroot, key)
        files = config.files(settings, replicas, name)
        if not looks:
            lines = files[config_names.CONFIG].splitlines(keepends=True)
            files[config_names.CONFIG] = "".join(line for line in lines if not LOOKS.search(line))
        service = RouterService(name, str(folder / "run"), name, str(folder / "log"))
        service.load(files)
        try:
            wait_for_port(port)
            yield
        finally:
            service.remove()


def wait_for_port(port: int) -> None:
    """Wait until somebody listens there."""
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens at {port}")
        time.sleep(0.1)


# Overhead


@contextlib.contextmanager
def stand_ins() -> Iterator[list[Replica]]:
    """Run servers that read a request and answer at once."""
    answer = "http-request return status 200 content-type application/json string '{}'"
    lines = ["defaults", "mode http", "timeout client 60s", "timeout server 60s", "timeout connect 3s"]
    for port in STAND_INS:
        lines += [
            f"frontend f{port}",
            f"bind 127.0.0.1:{port}",
            "http-request wait-for-body time 60s if METH_POST",
            answer,
        ]
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write("\n".join(["global", "maxconn 1000", "tune.bufsize 1000000", *lines, ""]))
        file.flush()
        process = subprocess.Popen([str(program_path("haproxy")), "-db", "-f", file.name], stderr=subprocess.DEVNULL)
        try:
            wait_for_port(STAND_INS[-1])
            yield [Replica(f"h{port}", "0", "127.0.0.1", port, ("alias",)) for port in STAND_INS]
        finally:
            process.terminate()
            process.wait()


def body_of(size: int, model: str, number: int) -> bytes:
    """Return a chat as OpenAI's client writes it, with the model behind the messages."""
    system = f"{number % 64}: " + "You are an assistant. " * 20
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "x" * max(size - len(system), 1)}]
    return json.dumps({"messages": messages, "model": model}).encode()


def times(port: int, size: int, model: str, count: int) -> list[float]:
    """Return the milliseconds of requests on one connection."""
    found = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(count):
        body = body_of(size, model, number)
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        found.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise RuntimeError(f"answered with {answer.status}")
    connection.close()
    return found


def overhead(given: argparse.Namespace) -> None:
    """Print what each way to look costs."""
    with stand_ins() as same, contextlib.ExitStack() as stack:
        kinds = [dataclasses.replace(one, models=("alias", one.host)) for one in same]
        ways: dict[str, tuple[Sequence[Replica], dict[str, Any]]] = {
            "without a look": (same, {"looks": False}),
            "one model, leastconn": (same, {}),
            "one model, prefix": (same, {"balance": "prefix"}),
            "several models, leastconn": (kinds, {}),
            "several models, prefix": (kinds, {"balance": "prefix"}),
        }
        for number, (replicas, changes) in enumerate(ways.values()):
            stack.enter_context(router(replicas, "", PORT + 10 + number, **changes))
        time.sleep(1)
        print("| body | way | p50 ms | p99 ms | p50 more | p99 more |\n| --- | --- | --- | --- | --- | --- |")
        for name, size in SIZES.items():
            found: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(21):
                for number, way in enumerate(ways):
                    measured = times(PORT + 10 + number, size, "alias", max(given.requests // 20, 1))
                    found[way] += measured if turn else []
            base = found["without a look"]
            for way, of in found.items():
                p50, p99 = percentile(of, 50), percentile(of, 99)
                more = (p50 - percentile(base, 50), p99 - percentile(base, 99))
                print(f"| {name} | {way} | {p50:.2f} | {p99:.2f} | {more[0]:+.2f} | {more[1]:+.2f} |", flush=True)


# Balance


@contextlib.contextmanager
def servers(given: argparse.Namespace) -> Iterator[list[str]]:
    """Run three vLLM servers in containers, each with a small cache, unless there are some."""
    if given.servers:
        yield given.servers
        return
    names = [f"gpufleet-balance-{port}" for port in SERVERS]
    blocks = math.ceil(max(given.groups) * given.shared_words * CACHE_SHARE / BLOCK_TOKENS)
    try:
        for name, port in zip(names, SERVERS, strict=True):
            words = ["docker", "run", "--detach", "--init", "--name", name, "--network", "host", "--shm-size", "1g"]
            words += ["--volume", f"{given.folder}:/model:ro", "--env", "VLLM_CPU_KVCACHE_SPACE=2"]
            words += ["--env", "HF_HUB_OFFLINE=1", given.image, "/model", "--served-model-name", given.model]
            words += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(MODEL_TOKENS)]
            words += ["--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(blocks)]
            words += ["--max-num-seqs", "8", "--enable-prefix-caching", "--dtype", "bfloat16"]
            words += ["--enforce-eager"]  # the image has no compiler
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        places = [f"127.0.0.1:{port}" for port in SERVERS]
        for place, name in zip(places, names, strict=True):
            wait_for_server(place, name)
        yield places
    finally:
        subprocess.run(["docker", "rm", "--force", *names], check=False, capture_output=True)


def wait_for_server(place: str, name: str) -> None:
    """Wait until a server is ready, and say what it said if it does not come."""
    deadline = time.monotonic() + SERVER_START_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{place}/health", timeout=5):
            return
        words = ["docker", "inspect", "--format", "{{.State.Running}}", name]
        runs = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() == "true"
        if time.monotonic() > deadline or not runs:
            log = subprocess.run(["docker", "logs", "--tail", "30", name], capture_output=True, text=True, check=False)
            raise TimeoutError(f"{name} {'is not ready' if runs else 'has ended'}:\n{log.stdout}{log.stderr}")
        time.sleep(1)


def cache_tokens(place: str) -> int:
    """Return how many tokens a server's cache holds; 0 if it does not tell."""
    with urllib.request.urlopen(f"http://{place}/metrics", timeout=30) as answer:
        for name, labels, _value in parse_samples(answer.read().decode().splitlines()):
            if name == CACHE:
                sizes = [re.search(rf'{label}="(\d+)"', labels) for label in ("block_size", "num_gpu_blocks")]
                return math.prod(int(size[1]) if size else 0 for size in sizes)
    return 0


def counter(places: Sequence[str], name: str) -> list[float]:
    """Return a counter of each server."""
    found = []
    for place in places:
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found.append(sum(value for sample, _labels, value in parse_samples(lines) if sample == name))
    return found


class Clients:
    """Clients that ask without a pause for some seconds."""

    def __init__(self, given: argparse.Namespace, groups: int, seed: str, servers: int) -> None:
        self.given, self.random = given, random.Random(seed)
        self.beginnings = [self.words(given.shared_words) for _group in range(groups)]
        self.filling = self.beginnings * servers
        self.random.shuffle(self.filling)
        self.weights = [1 / (rank + 1) ** given.zipf for rank in range(groups)]
        self.lock = threading.Lock()
        self.first: list[float] = []
        self.tokens = self.failed = 0
        self.why = ""

    def words(self, number: int) -> str:
        """Return so many words in an order that nobody asked for before."""
        return " ".join(self.random.choices(WORDS, k=number))

    def prompt(self) -> str:
        """Return the next prompt."""
        with self.lock:
            if not self.beginnings:
                return self.words(self.given.shared_words + QUESTION_WORDS)
            return f"{self.random.choices(self.beginnings, self.weights)[0]} {self.words(QUESTION_WORDS)}"

    def fill(self) -> None:
        """Ask with the beginnings that are left."""
        with contextlib.suppress(IndexError):
            while True:
                self.ask(self.filling.pop())

    def measure(self, until: float) -> None:
        """Ask again and again, and count."""
        while time.monotonic() < until:
            first, tokens = self.ask(self.prompt())
            with self.lock:
                self.tokens += tokens
                self.first += [first] if tokens else []

    def ask(self, prompt: str) -> tuple[float, int]:
        """Return the seconds to the first token of an answer, and its number of tokens; 0 if there was none."""
        body = {"prompt": prompt, "max_tokens": self.given.max_tokens, "stream": True, "ignore_eos": True}
        text = json.dumps({**body, "model": self.given.model})
        began, first, tokens = time.monotonic(), 0.0, 0
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=600)
            connection.request("POST", "/v1/completions", text, HEADERS)
            answer = connection.getresponse()
            for line in answer:
                if line.startswith(b"data: {"):
                    first, tokens = first or time.monotonic() - began, tokens + 1
            why = f"status {answer.status}"
            connection.close()
        except OSError as error:
            tokens, why = 0, str(error)
        if not tokens:
            with self.lock:
                self.failed, self.why = self.failed + 1, why
        return first, tokens

    def all(self, target: Callable[..., None], *arguments: Any) -> float:
        """Have all clients do it; return the seconds that they took."""
        began = time.monotonic()
        threads = [threading.Thread(target=target, args=arguments) for _number in range(self.given.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - began

    def run(self, warm: Callable[[], None]) -> dict[str, float]:
        """Fill the caches, call C(warm), ask for some seconds, and return the figures of these."""
        self.all(self.fill)
        warm()
        seconds = self.all(self.measure, time.monotonic() + self.given.seconds)
        if not self.first:
            raise RuntimeError(f"no request was answered; the last failed with {self.why}")
        figures = {"tok/s": self.tokens / seconds, "requests": len(self.first), "failed": self.failed}
        return {**figures, "TTFT p50": percentile(self.first, 50), "TTFT p99": percentile(self.first, 99)}


HEADS = ("groups", "way", "tok/s", "TTFT p50 s", "TTFT p99 s", "cache hits", "fullest replica", "requests", "failed")


def balance(given: argparse.Namespace) -> None:
    """Print what each way to choose gives with each number of groups, and how the two compare."""
    with servers(given) as places:
        replicas = []
        for number, place in enumerate(places):
            address, _colon, port = place.rpartition(":")
            replicas.append(Replica(f"h{number}", "0", address, int(port), (given.model,)))
        size = prompt_tokens(places[0], given)
        held = [cache_tokens(place) for place in places]
        for groups in filter(None, given.groups):
            print(f"{groups} beginnings take {groups * size} tokens; caches hold {held}, together {sum(held)}.")
        print(f"\n| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}", flush=True)
        rates: dict[tuple[int, str], list[float]] = {}
        for turn in range(given.turns):
            for number, groups in enumerate(given.groups):
                ways = ("leastconn", "prefix")
                for way in ways if (turn + number) % 2 == 0 else ways[::-1]:
                    figures = one_run(given, places, replicas, groups, f"{turn} {way}", way)
                    rates.setdefault((groups, way), []).append(figures["tok/s"])
        print("\n| groups | tok/s, prefix to leastconn |\n| --- | --- |")
        for groups in given.groups:
            print(f"| {groups} | {sum(rates[groups, 'prefix']) / max(sum(rates[groups, 'leastconn']), 1e-9):.2f} |")


def prompt_tokens(place: str, given: argparse.Namespace) -> int:
    """Return how many tokens a beginning takes at a server."""
    prompt = Clients(given, 1, "size", 1).beginnings[0]
    body = json.dumps({"model": given.model, "prompt": prompt, "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}"}
    request = urllib.request.Request(f"http://{place}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return int(json.load(answer)["usage"]["prompt_tokens"])


def one_run(
    given: argparse.Namespace, places: Sequence[str], replicas: Sequence[Replica], groups: int, seed: str, way: str
) -> dict[str, float]:
    """Print a row of one way to choose, and return its figures."""
    before: dict[str, list[float]] = {}

    def warm() -> None:
        before.update({name: counter(places, name) for name in (ENDED, HITS, ASKED)})

    key = os.environ.get("VLLM_API_KEY", "")
    with router(replicas, key, PORT, balance=way, balance_factor=given.balance_factor):
        time.sleep(2)
        found = Clients(given, groups, seed, len(places)).run(warm)
        after = {name: counter(places, name) for name in before}
    done = {name: [end - begin for begin, end in zip(before[name], after[name], strict=True)] for name in before}
    hits = sum(done[HITS]) / max(sum(done[ASKED]), 1)
    fullest = max(done[ENDED]) / max(sum(done[ENDED]), 1)
    row = [f"{found['tok/s']:.1f}", f"{found['TTFT p50']:.2f}", f"{found['TTFT p99']:.2f}"]
    row += [f"{hits:.0%}", f"{fullest:.0%}", f"{found['requests']:.0f}", f"{found['failed']:.0f}"]
    print(f"| {groups} | {way} | {' | '.join(row)} |", flush=True)
    return found


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Measure how the router looks into requests.")
    commands = parser.add_subparsers(dest="command", required=True)
    costs = commands.add_parser("overhead")
    costs.add_argument("--requests", type=int, default=2000, help="of each way and size")
    gains = commands.add_parser("balance")
    gains.add_argument("servers", nargs="*", help="address:port of each vLLM server; none has three started")
    gains.add_argument("--image", default="gpufleet/vllm-cpu:deploy", help="of the servers that are started")
    gains.add_argument("--folder", help="of the model that they serve")
    gains.add_argument("--model", default="balance", help="the served model's name")
    gains.add_argument("--groups", type=int, nargs="+", default=[8, 64, 0])
    gains.add_argument("--shared-words", type=int, default=600, help="words of a group's beginning")
    gains.add_argument("--zipf", type=float, default=1.0, help="how unequally groups are asked for")
    gains.add_argument("--balance-factor", type=int, default=ARGUMENTS["balance_factor"]["default"], help="of prefix")
    gains.add_argument("--clients", type=int, default=9)
    gains.add_argument("--seconds", type=float, default=60.0, help="of each run")
    gains.add_argument("--max-tokens", type=int, default=8)
    gains.add_argument("--turns", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.command == "balance" and not (given.servers or given.folder):
        parser.error("give servers, or the --folder of a model")
    return given


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table."""
    given = parse(arguments)
    (overhead if given.command == "overhead" else balance)(given)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
