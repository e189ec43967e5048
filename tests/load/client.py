# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends completions to a server at a steady rate and counts what becomes of each.

    python tests/load/client.py --url http://127.0.0.1:8000 --model NAME --rate 4 --seconds 60 --out load.json

Requests start on a fixed beat, whether or not earlier ones have been answered, as those of many users do; at most
C(max_open) are open at once. Every one is sent on a connection of its own and ends as one of:

========== ============================================================================================================
answered   a whole completion came back: the short one with its text, the streamed one up to C([DONE])
refused    it was turned away before the server took it: nobody listens, the connection closed before the server asked
           for the body, or status 503; such a request is sent again C(retries) times before it counts as refused
lost       the server had taken it, then the answer broke off, was cut short as C(abort), stayed out for C(timeout)
           seconds, or was status 500 (its engine died), 502 or 504 (a router's: nobody behind it answered)
failed     another status: the request or the key is wrong
========== ============================================================================================================

What tells refused from lost is C(Expect: 100-continue) (RFC 9110, 10.1.1): the body is sent only once the server has
asked for it. A connection alone proves nothing, as Docker's proxy accepts it and then finds no server behind. A server
that does not ask within CONTINUE_S gets the body all the same, and from then on what breaks counts as lost.

Only addresses of the loopback interface are ever sent to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import math
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ANSWERED, REFUSED, LOST, FAILED = "answered", "refused", "lost", "failed"
OUTCOMES = (ANSWERED, REFUSED, LOST, FAILED)
SHORT, STREAMED = "short", "streamed"
CONTINUE_S = 1.0
PERCENTILES = (50, 90, 99)
MOST_PER_SECOND = 200.0
LONGEST_BODY = 16 * 1024 * 1024
STOP_FILE_EVERY_S = 0.1


@dataclass(frozen=True)
class Options:
    """What to send, and how often.

    Attributes:
        url: of the server, such as C(http://127.0.0.1:8000).
        model: the served model's name.
        rate: requests a second.
        streamed_share: which part of them is streamed, 0 to 1.
        max_tokens: of each completion.
        prompt: of each completion.
        api_key: sent as a bearer token; C("") sends none.
        timeout: seconds for one attempt, from its beginning to its last byte.
        retries: how often a refused request is sent again.
        retry_pause: seconds before that.
        max_open: requests open at once; the beat waits for one to end.
        ca_file: certificates for an https address; C("") means the system's.
    """

    url: str
    model: str
    rate: float = 2.0
    streamed_share: float = 0.5
    max_tokens: int = 8
    prompt: str = "San Francisco is a"
    api_key: str = field(default="", repr=False)
    timeout: float = 60.0
    retries: int = 0
    retry_pause: float = 0.25
    max_open: int = 64
    ca_file: str = ""

    def __post_init__(self) -> None:
        """Refuse what would be no test of one's own server, or no steady load."""
        if not 0 < self.rate <= MOST_PER_SECOND:
            raise ValueError(f"rate is {self.rate}; it must be above 0 and at most {MOST_PER_SECOND:.0f} a second")
        if not 0 <= self.streamed_share <= 1:
            raise ValueError(f"streamed_share is {self.streamed_share}; it must be between 0 and 1")
        check_loopback(self.url)


@dataclass(frozen=True)
class Record:
    """What became of one request.

    Attributes:
        number: counted from 0.
        kind: C(short) or C(streamed).
        started: when its first attempt began, seconds since the epoch.
        seconds: from there to its end, the retries with their pauses included.
        outcome: one of OUTCOMES.
        attempts: how often it was sent; more than 1 means that it was refused before.
        first_byte_s: seconds from the beginning of the last attempt to the first token; 0 unless streamed and answered.
        reason: why it was not answered.
    """

    number: int
    kind: str
    started: float
    seconds: float
    outcome: str
    attempts: int = 1
    first_byte_s: float = 0.0
    reason: str = ""

    @property
    def ended(self) -> float:
        """When it ended, seconds since the epoch."""
        return self.started + self.seconds


class EndError(Exception):
    """How an attempt ended that was not answered."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


def check_loopback(url: str) -> None:
    """Raise ValueError unless every address of the URL's host belongs to the loopback interface."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a server, such as http://127.0.0.1:8000")
    found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    for *_rest, address in found:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise ValueError(f"{parts.hostname} is {address[0]}; load is sent to the loopback interface only")


# One request


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Return the status and the headers (by lower-case names) that come next; raise EOFError if none do."""
    status_line = await reader.readline()
    if not status_line.endswith(b"\n"):
        raise EOFError
    status = int(status_line.split()[1])
    headers = {}
    while (line := await reader.readline()) not in (b"\r\n", b"\n"):
        if not line:
            raise EOFError
        name, _colon, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return status, headers


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Return a whole body; raise EOFError if it breaks off."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return b"".join([chunk async for chunk in chunks(reader)])
    if "content-length" in headers:
        return await reader.readexactly(min(int(headers["content-length"]), LONGEST_BODY))
    return await reader.read(LONGEST_BODY)


async def chunks(reader: asyncio.StreamReader) -> Any:
    """Yield the chunks of a chunked body; raise EOFError if it breaks off before the last, empty one."""
    while True:
        size_line = await reader.readline()
        if not size_line.endswith(b"\n"):
            raise EOFError
        size = int(size_line.split(b";")[0], 16)
        data = await reader.readexactly(size)
        await reader.readline()
        if size == 0:
            return
        yield data


async def pieces(reader: asyncio.StreamReader) -> Any:
    """Yield what comes until the connection ends."""
    while data := await reader.read(65536):
        yield data


class Sender:
    """Sends single requests.

    Args:
        options: what to send.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        parts = urlsplit(options.url)
        self._secure = parts.scheme == "https"
        self._host, self._port = str(parts.hostname), parts.port or (443 if self._secure else 80)
        self._authority, self._path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        self._context = ssl.create_default_context(cafile=options.ca_file or None) if self._secure else None

    async def send(self, number: int, kind: str) -> Record:
        """Send one request, again when it is refused, and return what became of it."""
        started, began = time.time(), time.monotonic()
        for attempt in range(1, self._options.retries + 2):
            taken = asyncio.Event()
            try:
                async with asyncio.timeout(self._options.timeout):
                    first_byte = await self._attempt(kind, taken)
                outcome, reason = ANSWERED, ""
            except EndError as end:
                outcome, reason, first_byte = end.outcome, end.reason, 0.0
            except TimeoutError:
                outcome = LOST if taken.is_set() else REFUSED
                reason, first_byte = f"no end within {self._options.timeout:g} s", 0.0
            if outcome != REFUSED or attempt > self._options.retries:
                break
            await asyncio.sleep(self._options.retry_pause)
        seconds = time.monotonic() - began
        return Record(number, kind, started, round(seconds, 4), outcome, attempt, round(first_byte, 4), reason)

    async def _attempt(self, kind: str, taken: asyncio.Event) -> float:
        """Send it once; return the seconds to the first token of a streamed one, else 0.

        Sets C(taken) once the server has taken the request. Raises EndError when there is no answer.
        """
        began = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._context)
        except (OSError, EOFError) as error:
            raise EndError(REFUSED, f"connecting: {_words(error)}") from error
        try:
            status, headers = await self._ask(reader, writer, json.dumps(self._document(kind)).encode(), taken)
            if status != 200:
                raise self._turned_away(status, await read_body(reader, headers))
            if kind == STREAMED:
                return await self._read_stream(reader, headers, began)
            self._judge_short(await read_body(reader, headers))
            return 0.0
        except (OSError, EOFError, ValueError, LookupError) as error:
            when = "after the server took it" if taken.is_set() else "before the server took it"
            raise EndError(LOST if taken.is_set() else REFUSED, f"{when}: {_words(error)}") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, taken: asyncio.Event
    ) -> tuple[int, dict[str, str]]:
        """Send the request, its body once the server has asked for it, and return the head of the answer."""
        writer.write(self._head(len(body)))
        await writer.drain()
        answer = asyncio.ensure_future(read_head(reader))
        try:
            await asyncio.wait({answer}, timeout=CONTINUE_S)
            if not answer.done() or answer.result()[0] == 100:
                taken.set()
                writer.write(body)
                await writer.drain()
            status, headers = await answer
            while status == 100:
                status, headers = await read_head(reader)
        finally:
            answer.cancel()
        taken.set()
        return status, headers

    def _document(self, kind: str) -> dict[str, Any]:
        return {
            "model": self._options.model,
            "prompt": self._options.prompt,
            "max_tokens": self._options.max_tokens,
            "temperature": 0,
            "stream": kind == STREAMED,
        }

    def _head(self, length: int) -> bytes:
        lines = [
            f"POST {self._path}/v1/completions HTTP/1.1",
            f"Host: {self._authority}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            "Expect: 100-continue",
            "Connection: close",
        ]
        if self._options.api_key:
            lines.append(f"Authorization: Bearer {self._options.api_key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _turned_away(self, status: int, body: bytes) -> EndError:
        said = f"status {status}: {body[:200].decode('utf-8', 'replace')}"
        return EndError({503: REFUSED, 500: LOST, 502: LOST, 504: LOST}.get(status, FAILED), said)

    def _judge_short(self, body: bytes) -> None:
        choice = json.loads(body)["choices"][0]
        if choice.get("finish_reason") == "abort":
            raise EndError(LOST, "the server aborted it")

    async def _read_stream(self, reader: asyncio.StreamReader, headers: dict[str, str], began: float) -> float:
        """Read events up to C([DONE]); return the seconds to the first one with text."""
        first, rest = 0.0, b""
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        parts = chunks(reader) if chunked else pieces(reader)
        async for part in parts:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                event = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                if event == b"[DONE]":
                    return first
                if event:
                    first = first or time.monotonic() - began
                    self._judge_event(json.loads(event))
        raise EndError(LOST, "the stream ended without [DONE]")

    def _judge_event(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise EndError(LOST, f"in the stream: {json.dumps(event['error'])[:200]}")
        if any(choice.get("finish_reason") == "abort" for choice in event.get("choices", [])):
            raise EndError(LOST, "the server aborted it")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# Many


class Load:
    """A steady load, in a thread of its own.

    C(with Load(options) as load:) sends until the block ends; then no more requests are begun and the open ones are
    waited for.

    Args:
        options: what to send, and how often.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._records: list[Record] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self._open: dict[int, float] = {}
        self.began = 0.0

    def __enter__(self) -> Load:
        """Begin to send."""
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop, see stop."""
        self.stop()

    def start(self) -> None:
        """Begin to send."""
        self.began = time.time()
        self._thread.start()

    def stop(self) -> None:
        """Begin no more requests, and wait for those that are open: they end within the timeout."""
        self._stopping.set()
        self._thread.join()

    @property
    def running(self) -> bool:
        """Whether requests are still sent or waited for."""
        return self._thread.is_alive()

    def open_requests(self) -> int:
        """Return how many requests wait for their end."""
        return len(self._open)

    def records(self, since: float = 0.0, until: float = math.inf) -> list[Record]:
        """Return the requests that have ended and that began from C(since) to before C(until), in epoch seconds."""
        return [record for record in list(self._records) if since <= record.started < until]

    def settled(self, since: float, until: float) -> list[Record]:
        """Return the same once each of those requests has ended, which it does within the timeout."""
        while self.running and any(began < until for began in list(self._open.values())):
            time.sleep(0.02)
        return self.records(since, until)

    async def _run(self) -> None:
        sender = Sender(self.options)
        tasks: set[asyncio.Task[None]] = set()
        beat = 1 / self.options.rate
        began, number, streamed = time.monotonic(), 0, 0.0
        while not self._stopping.is_set():
            wait = began + number * beat - time.monotonic()
            if wait > 0 or len(tasks) >= self.options.max_open:
                await asyncio.sleep(min(max(wait, 0.005), 0.05))
                continue
            streamed += self.options.streamed_share
            kind, streamed = (STREAMED, streamed - 1) if streamed >= 1 else (SHORT, streamed)
            self._open[number] = time.time()
            task = asyncio.create_task(self._one(sender, number, kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        while tasks:
            await asyncio.wait(set(tasks))

    async def _one(self, sender: Sender, number: int, kind: str) -> None:
        try:
            self._records.append(await sender.send(number, kind))
        finally:
            del self._open[number]


# What it comes to


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the values that C(share) percent of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)] if ordered else 0.0


def latencies(values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of seconds, and the largest."""
    figures = {f"p{share}": percentile(values, share) for share in PERCENTILES}
    return {name: round(value, 3) for name, value in {**figures, "max": max(values, default=0.0)}.items()}


def outages(records: Iterable[Record]) -> list[dict[str, float]]:
    """Return the spans in which no request got an answer: seconds since the epoch at C(from), and C(seconds).

    A span begins with the first request that was not answered, by its start, and ends with the next answered one.
    """
    spans: list[dict[str, float]] = []
    since: float | None = None
    last = 0.0
    for record in sorted(records, key=lambda record: record.started):
        last = record.started
        if record.outcome != ANSWERED and since is None:
            since = record.started
        elif record.outcome == ANSWERED and since is not None:
            spans.append({"from": round(since, 3), "seconds": round(record.started - since, 3)})
            since = None
    if since is not None:
        spans.append({"from": round(since, 3), "seconds": round(last - since, 3)})
    return spans


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Return the counts of requests by what became of them, the attempts, the latencies, and the outages."""
    counted = Counter(record.outcome for record in records)
    answered = [record for record in records if record.outcome == ANSWERED]
    streamed = [record for record in answered if record.kind == STREAMED]
    return {
        "sent": len(records),
        **{outcome: counted[outcome] for outcome in OUTCOMES},
        "retried": sum(record.attempts > 1 for record in records),
        "attempts_refused": sum(record.attempts - (record.outcome != REFUSED) for record in records),
        "latency_s": {
            SHORT: latencies([record.seconds for record in answered if record.kind == SHORT]),
            STREAMED: latencies([record.seconds for record in streamed]),
        },
        "first_token_s": latencies([record.first_byte_s for record in streamed]),
        "outages": outages(records),
        "reasons": dict(Counter(record.reason for record in records if record.reason).most_common(10)),
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never half of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# The command line


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Send a steady load and count what becomes of each request.")
    parser.add_argument("--url", required=True, help="of the server; loopback only")
    parser.add_argument("--model", required=True, help="the served model's name")
    parser.add_argument("--rate", type=float, default=Options.rate, help="requests a second")
    parser.add_argument("--streamed-share", type=float, default=Options.streamed_share, help="0 to 1")
    parser.add_argument("--max-tokens", type=int, default=Options.max_tokens)
    parser.add_argument("--prompt", default=Options.prompt)
    parser.add_argument("--timeout", type=float, default=Options.timeout, help="seconds for one attempt")
    parser.add_argument("--retries", type=int, default=Options.retries, help="of a refused request")
    parser.add_argument("--retry-pause", type=float, default=Options.retry_pause, help="seconds")
    parser.add_argument("--max-open", type=int, default=Options.max_open, help="requests open at once")
    parser.add_argument("--ca-file", default="", help="certificates for an https address")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which it stops by itself")
    parser.add_argument("--stop-file", type=Path, help="it stops once this file exists")
    parser.add_argument("--out", type=Path, help="the summary as JSON, every second and at the end; default: printed")
    parser.add_argument("--records", type=Path, help="every request as a line of JSON, at the end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Send until told to stop; the key is read from the variable VLLM_API_KEY, never from the command line."""
    given = parse(arguments)
    own = ("seconds", "stop_file", "out", "records")
    wishes = {name: value for name, value in vars(given).items() if name not in own}
    try:
        load = Load(Options(**wishes, api_key=os.environ.get("VLLM_API_KEY", "")))
    except (ValueError, OSError) as error:
        print(f"client.py: {error}", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    load.start()
    deadline, next_write = time.monotonic() + given.seconds, 0.0
    while not stop.wait(STOP_FILE_EVERY_S) and time.monotonic() < deadline and load.running:
        if given.stop_file and given.stop_file.exists():
            break
        if given.out and time.monotonic() >= next_write:
            write_whole(given.out, json.dumps(document(load, finished=False), indent=2) + "\n")
            next_write = time.monotonic() + 1.0
    load.stop()
    text = json.dumps(document(load, finished=True), indent=2) + "\n"
    if given.out:
        write_whole(given.out, text)
    else:
        print(text, end="")
    if given.records:
        write_whole(given.records, "".join(json.dumps(asdict(record)) + "\n" for record in load.records()))
    return 0


def document(load: Load, *, finished: bool) -> dict[str, Any]:
    """Return the summary of a load with what it was: the written file."""
    options = load.options
    return {
        "url": options.url,
        "model": options.model,
        "rate": options.rate,
        "began": round(load.began, 3),
        "seconds": round(time.time() - load.began, 1),
        "finished": finished,
        "open": load.open_requests(),
        **summary(load.records()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
