# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is seen of a fleet from outside while something is done to it: requests, the router's servers, the containers.

Times are seconds since the epoch.
"""

from __future__ import annotations

import calendar
import contextlib
import csv
import io
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import ADMIN_SOCKET, BACKEND
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import CLIENT_KEY, MODEL, StandInFleet
from ansible_collections.gpufleet.vllm.tests.load.client import Load, Options, Record

SAMPLES_EVERY_S = 0.25
# Of show stat: all proxies, servers alone, all of them.
SHOW_SERVERS = "show stat -1 4 -1"
CHANGES = ("create", "rename", "kill", "stop", "die", "start", "restart", "update", "destroy")
READY = re.compile(r"^(\S+) .*Application startup complete", re.MULTILINE)
SHORT_RATE, LONG_RATE = 4.0, 0.5
LONG_TOKENS = 60


@dataclass(frozen=True)
class Sample:
    """The router's servers at one moment: which hosts are out, and how many requests each host has."""

    time: float
    out: frozenset[str]
    sessions: Mapping[str, int]


def read_sample(text: str, when: float) -> Sample:
    """Return the sample in the answer to C(show stat); a host is out unless HAProxy's word for it begins with UP."""
    out: set[str] = set()
    sessions: dict[str, int] = {}
    for row in csv.DictReader(io.StringIO(text.removeprefix("# "))):
        if row["pxname"] == BACKEND:
            host = host_of(row["svname"])
            sessions[host] = sessions.get(host, 0) + int(row["scur"] or 0)
            if not row["status"].startswith(("UP", "no check")):
                out.add(host)
    return Sample(when, frozenset(out), sessions)


def ask(path: str, command: str) -> str:
    """Return HAProxy's answer; raise OSError if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2.0)
        connection.connect(path)
        connection.sendall(f"{command}\n".encode())
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


class Repeated:
    """Calls a function over and over, in a thread, from its start until it is stopped."""

    def __init__(self, function: Any, every_s: float) -> None:
        self._function, self._every_s = function, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._function()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once the last call has returned."""
        self._ended.set()
        self._thread.join()


@dataclass
class Watch:
    """Requests, samples and events of a fleet; C(with Watch(fleet) as watch:) sends and looks until the block ends.

    Attributes:
        fleet: the fleet; it has to serve already.
        short_rate: short requests a second.
        long_rate: streams a second, each of LONG_TOKENS tokens.
    """

    fleet: StandInFleet
    short_rate: float = SHORT_RATE
    long_rate: float = LONG_RATE
    samples: list[Sample] = field(default_factory=list)
    events: list[tuple[float, str, str]] = field(default_factory=list)

    def __enter__(self) -> Watch:
        """Begin to send and to look."""
        short = Options(
            url=self.fleet.url,
            model=MODEL,
            rate=self.short_rate,
            streamed_share=0.0,
            max_tokens=1,
            api_key=CLIENT_KEY,
            timeout=120,
            retries=120,
            ca_file=self.fleet.certificate,
        )
        long = replace(short, rate=self.long_rate, streamed_share=1.0, max_tokens=LONG_TOKENS)
        self._loads = [Load(short), Load(long)]
        self._stream = self.fleet.engine.events(filters={"type": "container"}, decode=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._sampler = Repeated(self._sample, SAMPLES_EVERY_S)
        self._sampler.start()
        for load in self._loads:
            load.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Wait for the open requests, and end."""
        for load in self._loads:
            load.stop()
        self._sampler.stop()
        with contextlib.suppress(Exception):  # it ends with its engine
            self._stream.close()
        self._listener.join(5.0)

    def _sample(self) -> None:
        with contextlib.suppress(OSError, KeyError, ValueError):  # it is loaded or started again now
            text = ask(os.path.join(self.fleet.run_dir, ADMIN_SOCKET), SHOW_SERVERS)
            self.samples.append(read_sample(text, time.time()))

    def _listen(self) -> None:
        with contextlib.suppress(Exception):  # the stream is closed at the end
            for event in self._stream:
                action = event["Action"].partition(":")[0]
                host = self.fleet.host_of(event["Actor"]["Attributes"].get("name", ""))
                if host and action in CHANGES:
                    self.events.append((event["timeNano"] / 1e9, host, action))

    # What was seen from one moment to another

    def settled(self, since: float, until: float) -> list[Record]:
        """Return the requests that began in that time, once all of them have ended."""
        return [record for load in self._loads for record in load.settled(since, until)]

    def out_now(self) -> list[str]:
        """Return the hosts that get no requests now."""
        return sorted(self.samples[-1].out) if self.samples else []

    def turns(self, since: float, until: float) -> dict[str, Turn]:
        """Return the turn of each host that was out in that time."""
        samples = [sample for sample in self.samples if since <= sample.time <= until]
        spans = spans_of(samples)
        turns = {}
        for host, (begin, end) in spans.items():
            times = [when for when, name, _action in self.events if name == host and since <= when <= until]
            first = min(times, default=begin)
            last = max([*times, *self._ready(host, since, until)], default=begin)
            drained = sum(
                later.time - sample.time
                for sample, later in zip(samples, samples[1:])
                if begin <= sample.time < first and sample.sessions.get(host, 0)
            )
            turns[host] = Turn(begin, end, round(drained + last - first, 2))
        return turns

    def _ready(self, host: str, since: float, until: float) -> list[float]:
        """Return when the servers of a host became ready, in that time."""
        found = []
        for box in self.fleet.engine.containers.list(ignore_removed=True):
            if self.fleet.host_of(str(box.name)) == host:
                said = box.logs(timestamps=True, since=int(since)).decode(errors="replace")
                found += [seconds_of(stamp) for stamp in READY.findall(said)]
        return [when for when in found if since <= when <= until]


@dataclass(frozen=True)
class Turn:
    """When a host was out of the router, and the seconds that its own replacement took.

    The replacement is the wait for the requests that it had, and what its containers went through, from the first
    change of one to the readiness of the new server.
    """

    begin: float
    end: float
    own_s: float

    @property
    def out_s(self) -> float:
        """How long it was out."""
        return self.end - self.begin


def spans_of(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Return for each host that was out the first and the last moment at which it was."""
    spans: dict[str, tuple[float, float]] = {}
    for sample in samples:
        for host in sample.out:
            spans[host] = (spans.get(host, (sample.time, 0.0))[0], sample.time + SAMPLES_EVERY_S)
    return spans


def most_out(samples: Iterable[Sample]) -> int:
    """Return how many hosts were out at once at most."""
    return max((len(sample.out) for sample in samples), default=0)


def seconds_of(stamp: str) -> float:
    """Return the seconds since the epoch of a time as Docker writes it, with nanoseconds, in UTC."""
    whole, _dot, fraction = stamp.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")
