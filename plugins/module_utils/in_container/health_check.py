# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside a server's container as its Docker health check, and ends a server that will not come back by itself.

A vLLM whose engine died may live on, answering 503; one whose engine or API process hangs does not answer at all, and
/health of a hung engine still says 200. Docker restarts what exits, never what hangs. So this check, once it has seen
the server healthy, ends the server's process, and with it the container, when for the seconds in the file C(watchdog)
beside it (0: never)

- /health does not answer, or
- requests wait for vLLM (server_door tells which) but the engine does not do a single step (the counters in /metrics
  stand still),

and the container's processes use next to no processor time meanwhile: a first request may compile kernels for eight
minutes without a step. Some engines spin where they hang, so one that is busy all the while is ended after BUSY_LIMITS
times as long. When /health says 503, half a minute is enough, for vLLM then knows itself that the engine is dead.
Docker's restart policy starts the container again. The reason is a line in the container's log.

A start may take an hour, so nothing is ended that was not healthy since this very start of the container: what the
check remembers carries the start time of process 1. Only a child of Docker's own init is ever ended.

Standard library only, Python 3.9: it runs on the image's interpreter.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import signal
import sys
import time
from typing import Any

MARK = "gpufleet-watchdog:"
STATE = "/tmp/gpufleet-health.json"  # noqa: S108 - in the container, which nobody else uses
DEAD_S = 25.0
BUSY_LIMITS = 3
# Processor seconds a second: an API server that answers its health check stays well under it.
BUSY_CORES = 0.05
WAITING_HEADER = "x-gpufleet-waiting"
INITS = ("docker-init", "tini", "catatonit")
# Counters that an engine at work moves: with each step, each token, each finished request.
PROGRESS = (
    "vllm:iteration_tokens_total_count",
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:request_success_total",
)


@dataclasses.dataclass
class Memory:
    """What the check remembers from one look to the next. Times are seconds of the machine's monotonic clock.

    Attributes:
        start: start time of the container's process 1; memories of another start are void.
        healthy: whether the server was healthy since then.
        problem: what is wrong since C(since), or C("").
        since: when that began.
        idle_since: since when its processes do nothing either; not before C(since).
        counters: the engine's counters at the last look.
        cpu: processor seconds that its processes had used at the last look; -1 when that is not known.
        at: time of the last look.
    """

    start: str = ""
    healthy: bool = False
    problem: str = ""
    since: float = 0.0
    idle_since: float = 0.0
    counters: str = ""
    cpu: float = -1.0
    at: float = 0.0

    def note(self, problem: str, cpu: float, now: float) -> None:
        """Take note of what is wrong now, C("") for nothing, and of the processor time used until now."""
        if problem != self.problem:
            self.problem, self.since, self.idle_since = problem, now, now
        elif self._busy(cpu, now):
            self.idle_since = now
        self.cpu, self.at = cpu, now

    def _busy(self, cpu: float, now: float) -> bool:
        """Return whether there was work since the last look, as far as that is known."""
        if min(cpu, self.cpu) < 0:
            return False
        # It gets less when processes end that nobody waited for; where something ends, something works.
        return cpu < self.cpu or cpu - self.cpu >= BUSY_CORES * (now - self.at)


@dataclasses.dataclass(frozen=True)
class Look:
    """One look at the server.

    Attributes:
        status: HTTP status of /health; 0 when nothing answered.
        waiting: requests that wait for vLLM; -1 when it does not tell.
        counters: the engine's counters as one text; empty when it does not tell.
        cpu: processor seconds that the container's processes have used; -1 when that is not known.
    """

    status: int
    waiting: int = -1
    counters: str = ""
    cpu: float = -1.0


DEAD = "/health answers 503: its engine is dead"
SILENT = "/health does not answer"
STUCK = "requests are waiting and its engine does nothing"


def reason_to_end(look: Look, memory: Memory, now: float, limit: float) -> str:
    """Return why the server must be ended, or C(""); the memory takes note of the look.

    Args:
        look: what was seen.
        memory: of the looks before.
        now: seconds of the machine's monotonic clock.
        limit: seconds for which a server may hang; 0 never ends it.
    """
    still = bool(look.counters) and look.counters == memory.counters
    memory.counters = look.counters or memory.counters
    if look.status == 200:
        memory.healthy = True
        problem = STUCK if still and look.waiting > 0 else ""
    else:
        problem = DEAD if look.status == 503 else SILENT
    memory.note(problem, look.cpu, now)
    if not limit or not memory.healthy or not problem:
        return ""
    lasts, idle = now - memory.since, now - memory.idle_since
    if problem == DEAD:
        return f"{problem}, for {lasts:.0f} s" if lasts >= min(DEAD_S, limit) else ""
    if idle >= limit:
        return f"{problem}, for {lasts:.0f} s"
    if lasts >= limit * BUSY_LIMITS:
        return f"{problem}, for {lasts:.0f} s, though its processes are busy"
    return ""


def look_at(address: str, timeout: float) -> Look:
    """Ask the server at C(host:port) how it is."""
    cpu = processor_seconds(processes())
    status, headers, _body = get(address, "/health", timeout)
    waiting = headers.get(WAITING_HEADER, "")
    if status != 200 or not waiting.isdigit():
        return Look(status, cpu=cpu)
    _status, _headers, body = get(address, "/metrics", timeout)
    counters = " ".join(line for line in body.splitlines() if line.startswith(PROGRESS))
    return Look(status, int(waiting), counters, cpu)


def get(address: str, path: str, timeout: float) -> tuple[int, dict[str, str], str]:
    """Return status, headers (names in lower case) and body of an answer; status 0 when there is none."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return 0, {}, ""
    finally:
        connection.close()


def door_closed(folder: str, now: float) -> bool:
    """Return whether the server is turning requests away on purpose (see server_door)."""
    try:
        return now < float(text_of(os.path.join(folder, "closed")))
    except ValueError:
        return False


def text_of(path: str) -> str:
    """Return a file's text; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def started() -> str:
    """Return the start time of the container's process 1."""
    return text_of("/proc/1/stat").rpartition(")")[2].split()[19]


def recall(path: str, start: str) -> Memory:
    """Return what was remembered since this start of the container."""
    try:
        known: dict[str, Any] = json.loads(text_of(path))
        memory = Memory(**known)
    except (ValueError, TypeError):
        return Memory(start)
    return memory if memory.start == start else Memory(start)


def say(text: str) -> None:
    """Tell Docker, which keeps what its health checks print."""
    sys.stdout.write(f"{text}\n")


def remember(path: str, memory: Memory) -> None:
    """Keep the memory for the next look."""
    try:
        with open(f"{path}.new", "w", encoding="utf-8") as stream:
            json.dump(dataclasses.asdict(memory), stream)
        os.replace(f"{path}.new", path)
    except OSError as error:
        say(f"cannot remember: {error}")


def processes() -> dict[int, list[str]]:
    """Return the processes that are seen from here: id -> the fields of its stat file from its state on."""
    found = {}
    for entry in os.listdir("/proc"):
        fields = text_of(f"/proc/{entry}/stat").rpartition(")")[2].split() if entry.isdigit() else []
        if fields:
            found[int(entry)] = fields
    return found


def processor_seconds(seen: dict[int, list[str]]) -> float:
    """Return the processor seconds that process 1 and its descendants have used, with those that have ended; or -1.

    This check is none of them: what is executed in a container beside its process 1 has no parent there.
    """
    children: dict[int, list[int]] = {}
    for process, fields in seen.items():
        children.setdefault(int(fields[1]), []).append(process)
    family = [1] if 1 in seen else []
    for process in family:
        family.extend(children.get(process, ()))
    # Of itself in user and kernel mode, and of the children that it waited for.
    ticks = sum(int(ticks) for process in family for ticks in seen[process][11:15])
    return ticks / os.sysconf("SC_CLK_TCK") if family else -1.0


def server_processes() -> list[int]:
    """Return the children of the container's process 1; none when that is not Docker's own init."""
    program = text_of("/proc/1/cmdline").split("\0")[0]
    if os.path.basename(program) not in INITS:
        return []
    return [process for process, fields in processes().items() if fields[1] == "1"]


def end(reason: str) -> None:
    """End the server, and say why in the container's log."""
    processes = server_processes()
    if not processes:
        say(f"{MARK} not ended, process 1 is not Docker's init: {reason}")
        return
    try:
        with open("/proc/1/fd/2", "w", encoding="utf-8") as log:
            log.write(f"{MARK} {reason}. The server is ended so that it is started again.\n")
    except OSError as error:
        say(f"cannot write to the log: {error}")
    for process in processes:
        os.kill(process, signal.SIGKILL)


def main() -> int:
    """Do one look; return 0 when the server is healthy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--timeout", type=float, default=8.0)
    arguments = parser.parse_args()
    folder = os.path.dirname(os.path.abspath(__file__))
    if door_closed(folder, time.time()):
        say("draining")
        return 0
    limit = text_of(os.path.join(folder, "watchdog")).strip()
    memory = recall(STATE, started())
    # Before the look, which may take seconds: then the processor time is taken.
    now = time.monotonic()
    look = look_at(arguments.address, arguments.timeout)
    reason = reason_to_end(look, memory, now, float(limit or 0))
    remember(STATE, memory)
    say(memory.problem or "healthy")
    if reason:
        end(reason)
    return int(look.status != 200)


if __name__ == "__main__":
    raise SystemExit(main())
