# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two routers with one address: what clients see when the one that has it goes away.

    python tests/fleet/two_routers.py [--out results.json]

as root, with HAProxy installed and the folder above ansible_collections on PYTHONPATH. Each router is a network
namespace of this machine with HAProxy and keepalived, with the configuration that the collection makes for both. In a
third one a client asks the shared address over a new connection for each request, at a steady rate; each tenth answer
is a stream of STREAM_S seconds. What stands in for two servers listens in a fourth. keepalived is Debian's, fetched and
unpacked where it is not installed. There is no systemd in a namespace, so the programs are started here.

One after another, with the router that has the address:

haproxy killed     HAProxy is killed with -9; keepalived notices
host killed        HAProxy and keepalived are killed with -9 and the interface goes down, as when a host loses its power
no server behind   it cannot reach its servers any more; the other one can
stopped            keepalived is ended, as by a reboot

and each time the router comes back, which must not move the address. C(lost) are requests without a whole answer at the
first attempt, C(never) those that two more attempts, as OpenAI's libraries make, did not help either; C(silence_s) is
the longest time in which no request was answered. Exits with 1 when the address does not move or moves back, when no
request is answered for MOST_SILENT_S, or when what is planned, the last one, loses a request that is no stream and that
further attempts do not help: what is being answered at the moment in which the address goes is cut with it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import as_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.shared_address import in_step_file
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS
from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import CACHE, debian_program

TEMPLATE = Path(__file__).resolve().parents[2] / "roles" / "router" / "templates" / "keepalived.conf.j2"
LIBRARIES = (
    *("libnl-3-200", "libnl-genl-3-200", "libnftnl11", "libmnl0", "libglib2.0-0", "libsnmp40", "libsensors5"),
    *("libpci3", "libwrap0", "libperl5.36", "libipset13", "libkmod2"),
)
SHARED, OWN, CLIENT, BEHIND = "10.77.0.10", ("10.77.0.1", "10.77.0.2"), "10.77.0.3", "10.77.0.100"
PORT, SERVER_PORTS, KEY = 8080, (9001, 9002), "the-client-key"
RATE, TIMEOUT_S, STREAM_S, STREAM_EVERY = 50.0, 5.0, 2.0, 10
RETRIES, PAUSES_S = 2, (0.5, 1.0)
BEFORE_S, AFTER_S, MOVES_S = 2.0, 10.0, 15.0
PLANNED, MOST_SILENT_S = "stopped", 5.0


# What the namespaces run


class Server(http.server.BaseHTTPRequestHandler):
    """Stands in for vLLM: a short answer, or a stream."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if not self.path.startswith("/v1/stream"):
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _number in range(int(STREAM_S / 0.1)):
            self.wfile.write(b"5\r\ntoken\r\n")
            time.sleep(0.1)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Quiet(http.server.ThreadingHTTPServer):
    """One that says nothing of connections which break, as those of a router that is killed do."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def serve() -> None:
    """Be both servers, until this process is ended."""
    for port in SERVER_PORTS:
        server = Quiet((BEHIND, port), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.pause()


def route(folder: Path) -> None:
    """Start HAProxy as the module router_server does."""
    names = ("etc", "run", "state", "log")
    etc, run_dir, state_dir, log = (str(folder / name) for name in names)
    defaults = {name: argument.get("default") for name, argument in ARGUMENTS.items()}
    wished = {"host": "0.0.0.0", "port": PORT, "tls": False, "api_keys": [KEY], "user": "daemon"}
    paths = {"endpoints": ["/v1/models", "/v1/stream"], "run_dir": run_dir, "state_dir": state_dir}
    settings = as_settings({**defaults, **wished, **paths}, chroot="", replica_key="")
    replicas = [Replica(f"gpu-{number}", "vllm-0", BEHIND, port) for number, port in enumerate(SERVER_PORTS, 1)]
    router = RouterService(etc, run_dir, state_dir, log)
    router.load(config.files(settings, replicas, etc))
    Path(in_step_file(run_dir)).touch()


@dataclass
class Seen:
    """What the client saw: times in seconds since the epoch."""

    sent: int = 0
    lost: int = 0
    streams_lost: int = 0
    never: int = 0
    answered_at: list[float] = field(default_factory=list)
    causes: dict[str, int] = field(default_factory=dict)


class Load:
    """Requests on a fixed beat, each by a thread of its own."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._lock = threading.Lock()

    def run(self, over: threading.Event) -> None:
        """Send until told to end, then wait for the last answers."""
        threads, number, begin = [], 0, time.monotonic()
        while not over.is_set():
            number += 1
            threads.append(threading.Thread(target=self._ask, args=(number % STREAM_EVERY == 0,)))
            threads[-1].start()
            time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
        for thread in threads:
            thread.join()

    def _ask(self, stream: bool) -> None:
        with self._lock:
            self.seen.sent += 1
        for attempt in range(RETRIES + 1):
            cause = attempted(stream)
            with self._lock:
                if not cause:
                    self.seen.answered_at.append(time.time())
                    return
                self.seen.causes[cause] = self.seen.causes.get(cause, 0) + 1
                if attempt == 0:
                    self.seen.streams_lost += stream
                    self.seen.lost += not stream
            if stream:
                return  # of a stream a part was seen, and no library sends it again
            time.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
        with self._lock:
            self.seen.never += 1


def attempted(stream: bool) -> str:
    """Ask once; return why there was no whole answer, empty when there was."""
    path, whole = ("/v1/stream", b"token" * int(STREAM_S / 0.1)) if stream else ("/v1/models", b"ok")
    try:
        with contextlib.closing(http.client.HTTPConnection(SHARED, PORT, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            found = answer.read()
    except socket.timeout:
        return "time-out"
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    return "" if found == whole else f"status {answer.status}"


def load() -> None:
    """Ask until standard input ends, and print a line at the first answer and what was seen at the end."""
    over, client = threading.Event(), Load()
    thread = threading.Thread(target=client.run, args=(over,))
    thread.start()
    until(lambda: bool(client.seen.answered_at), MOVES_S)
    print("asks", flush=True)
    sys.stdin.read()
    over.set()
    thread.join()
    json.dump(asdict(client.seen), sys.stdout)


# The namespaces


class Net:
    """Namespaces at one bridge: two routers, a client, and the servers at the bridge itself."""

    def __init__(self, prefix: str) -> None:
        self.switch = f"{prefix}-sw"
        self.routers = (f"{prefix}-1", f"{prefix}-2")
        self.client = f"{prefix}-3"

    def make(self) -> None:
        """Make them."""
        for name in (self.switch, *self.routers, self.client):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        ip("-n", self.switch, "address", "add", f"{BEHIND}/24", "dev", "br0")
        for number, (name, address) in enumerate(zip((*self.routers, self.client), (*OWN, CLIENT)), 1):
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"p{number}", "netns", self.switch)
            ip("-n", self.switch, "link", "set", f"p{number}", "master", "br0", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Remove them."""
        for name in (*self.routers, self.client, self.switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def holders(self) -> list[int]:
        """Return the numbers of the routers that have the shared address."""
        shown = [ip("-n", name, "-brief", "address", "show", "dev", "eth0") for name in self.routers]
        return [number for number, text in enumerate(shown) if f"{SHARED}/" in text]


def ip(*words: str) -> str:
    """Run ip and return what it says."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def inside(namespace: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start a part of this program in a namespace."""
    command = ["ip", "netns", "exec", namespace, sys.executable, __file__, *words]
    return subprocess.Popen(command, text=True, **options)


class Router:
    """One router: HAProxy and keepalived in a namespace."""

    def __init__(self, net: Net, number: int, folder: Path, keepalived: list[str]) -> None:
        self._net, self._number, self._folder = net, number, folder
        self._program = keepalived
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        (folder / "keepalived.conf").write_text(self._config())

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self._net.routers[self._number]

    def _config(self) -> str:
        environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
        probe = f"/usr/bin/curl --silent --insecure --output /dev/null --max-time 4 http://127.0.0.1:{PORT}/health"
        virtual = {"interface": "eth0", "source": OWN[self._number], "peers": [OWN[1 - self._number]]}
        return environment.from_string(TEMPLATE.read_text()).render(
            ansible_managed="a test",
            inventory_hostname=f"lb-{self._number + 1}",
            router_run_dir=str(self._folder / "run"),
            router_virtual_id=51,
            __router_probe=probe,
            __router_virtual={**virtual, "address": SHARED, "prefix_length": 24},
        )

    def start(self) -> None:
        """Have both programs run."""
        self.start_haproxy()
        words = ["--dont-fork", "--vrrp", "--log-console", "--no-syslog", f"--use-file={self._folder}/keepalived.conf"]
        pids = [f"--pid={self._folder}/keepalived.pid", f"--vrrp_pid={self._folder}/vrrp.pid"]
        command = ["ip", "netns", "exec", self.namespace, *self._program, *words, *pids]
        with (self._folder / "keepalived.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def start_haproxy(self) -> None:
        """Have HAProxy run."""
        if inside(self.namespace, "route", str(self._folder)).wait(60):
            raise SystemExit("HAProxy does not start")

    def kill_haproxy(self) -> None:
        """Kill HAProxy's processes."""
        pids = ip("netns", "pids", self.namespace).split()
        for pid in pids:
            with contextlib.suppress(OSError, ValueError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "haproxy":
                    os.kill(int(pid), signal.SIGKILL)

    def kill_host(self) -> None:
        """Have all of it go at once."""
        ip("-n", self.namespace, "link", "set", "eth0", "down")
        for pid in ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def boot(self) -> None:
        """Come back after kill_host."""
        ip("-n", self.namespace, "address", "flush", "dev", "eth0")
        ip("-n", self.namespace, "address", "add", f"{OWN[self._number]}/24", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "eth0", "up")
        self.start()

    def stop_keepalived(self) -> None:
        """End keepalived as systemd does."""
        if self._process:
            self._process.terminate()
            self._process.wait(15)

    def start_keepalived(self) -> None:
        """Start it again, beside HAProxy, which runs."""
        self.start()

    def cut_off(self) -> None:
        """Have it reach no server any more."""
        ip("-n", self.namespace, "route", "add", "blackhole", f"{BEHIND}/32")

    def join(self) -> None:
        """Have it reach them again."""
        ip("-n", self.namespace, "route", "del", "blackhole", f"{BEHIND}/32")


EVENTS: dict[str, tuple[Callable[[Router], None], Callable[[Router], None]]] = {
    "haproxy killed": (Router.kill_haproxy, Router.start_haproxy),
    "host killed": (Router.kill_host, Router.boot),
    "no server behind": (Router.cut_off, Router.join),
    PLANNED: (Router.stop_keepalived, Router.start_keepalived),
}


def keepalived() -> list[str]:
    """Return the words that start keepalived: the installed one, or Debian's, unpacked."""
    installed = shutil.which("keepalived", path="/usr/sbin:/usr/bin")
    if installed:
        return [installed]
    program = debian_program("keepalived", "usr/sbin/keepalived")
    folders = []
    for package in LIBRARIES:
        with contextlib.suppress(subprocess.CalledProcessError):
            debian_program(package, ".fetched")
        folders += [str(CACHE / package / root / "x86_64-linux-gnu") for root in ("usr/lib", "lib")]
    return ["env", f"LD_LIBRARY_PATH={':'.join(folders)}", str(program)]


def until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Return after how many seconds a condition holds; None when it does not in time."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            return None
        time.sleep(0.02)
    return time.monotonic() - begin


def silence(answered: list[float]) -> float:
    """Return the longest time between two answers."""
    times = sorted(answered)
    return max((later - earlier for earlier, later in zip(times, times[1:])), default=0.0)


def provoke(net: Net, routers: list[Router], name: str) -> dict[str, Any]:
    """Provoke one event under load and return what came of it."""
    fault, repair = EVENTS[name]
    (holder,) = net.holders()
    client = inside(net.client, "load", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdout is not None and client.stdout.readline() == "asks\n"
    time.sleep(BEFORE_S)
    fault(routers[holder])
    moved = until(lambda: (1 - holder) in net.holders(), MOVES_S)
    time.sleep(AFTER_S)
    repair(routers[holder])
    time.sleep(AFTER_S)
    back = holder in net.holders()
    told, _none = client.communicate(timeout=60)
    seen = json.loads(told)
    return {
        "moved_s": None if moved is None else round(moved, 2),
        "moved_back": back,
        "sent": seen["sent"],
        "lost": seen["lost"],
        "streams_lost": seen["streams_lost"],
        "never": seen["never"],
        "silence_s": round(silence(seen["answered_at"]), 2),
        "causes": seen["causes"],
    }


@contextlib.contextmanager
def two_routers() -> Iterator[tuple[Net, list[Router]]]:
    """Have two routers, servers behind them, and one of the two with the address."""
    net = Net(f"gpr{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix="two-routers-") as folder:
        os.chmod(folder, 0o755)  # HAProxy's and keepalived's users look into it
        servers = None
        routers: list[Router] = []
        try:
            net.make()
            servers = inside(net.switch, "serve")
            program = keepalived()
            routers += [Router(net, number, Path(folder) / f"router-{number}", program) for number in (0, 1)]
            for router in routers:
                router.start()
            if until(lambda: len(net.holders()) == 1, 30) is None:
                raise SystemExit("No router takes the address")
            time.sleep(3)
            yield net, routers
        finally:
            for router in routers:
                router.kill_host()
            if servers:
                servers.terminate()
            net.remove()


def is_wrong(name: str, found: dict[str, Any]) -> bool:
    """Return whether an event had effects that it must not have."""
    never = found["never"] if name == PLANNED else 0
    return found["moved_s"] is None or found["moved_back"] or found["silence_s"] > MOST_SILENT_S or never > 0


def measure(out: str) -> int:
    """Provoke everything, print a table, and return the exit status."""
    results = {}
    with two_routers() as (net, routers):
        for name in EVENTS:
            results[name] = provoke(net, routers, name)
            print(f"{name:<18}{json.dumps(results[name])}", flush=True)
    if out:
        Path(out).write_text(json.dumps(results, indent=1) + "\n")
    wrong = [name for name, found in results.items() if is_wrong(name, found)]
    for name in wrong:
        print(f"not as it should be: {name}")
    return 1 if wrong else 0


def main() -> int:
    """Run a part of this program in a namespace, or all of it."""
    parts: dict[str, Callable[[], None]] = {"serve": serve, "load": load}
    if len(sys.argv) > 1 and sys.argv[1] in parts:
        parts[sys.argv[1]]()
        return 0
    if len(sys.argv) > 2 and sys.argv[1] == "route":
        route(Path(sys.argv[2]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="", help="file for the results as JSON")
    return measure(parser.parse_args().out)


if __name__ == "__main__":
    sys.exit(main())
