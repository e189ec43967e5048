# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Letting servers finish what they do before they are stopped.

A server with our door (in_container/door.py) turns new requests away at once, and the wait is over when the last of
its running requests has its whole answer. One without it (made by hand, or by an earlier release) cannot be closed;
then the wait is over when its metrics say that nothing runs and nothing waits, which under steady load may never be.
In both cases
what is left after the timeout is aborted by the stop that follows, and counted. A loaded server may take seconds to
tell of its requests, so only one that is silent several times in a row is taken to have none that can be waited for.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.metrics import parse_metrics
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import REFUSED_HEADER, RUNNING_HEADER

ANSWER_S = 5.0
PAUSE_S = 0.25
# The door opens by itself so many seconds after a drain must have ended: the time that a stop may take.
SPARE_S = 60.0
# A server that cannot be closed is idle when its metrics say so this many times in a row.
QUIET_LOOKS = 3
SILENT_LOOKS = 4


@dataclasses.dataclass(frozen=True)
class ServerLoad:
    """What a server has in hand.

    Attributes:
        running: requests without a complete answer, those that wait in the engine among them.
        refused: requests turned away since the server was started; None for a server without our door.
    """

    running: int
    refused: int | None


def load_of(url: str) -> ServerLoad | None:
    """Return what the server at an address has in hand; None when it does not tell."""
    import requests

    with requests.Session() as session:
        session.trust_env = False
        try:
            health = session.get(f"{url}/health", timeout=ANSWER_S)
            metrics = parse_metrics(session.get(f"{url}/metrics", timeout=ANSWER_S).text)
        except requests.exceptions.RequestException:
            return None
    engine = metrics.get("requests_running")
    in_engine = None if engine is None else int(engine + metrics.get("requests_waiting", 0))
    refused = health.headers.get(REFUSED_HEADER, "")
    if refused.isdigit():
        # Of several API processes only one has answered; the engine knows the requests of all.
        return ServerLoad(max(int(health.headers.get(RUNNING_HEADER, 0)), in_engine or 0), int(refused))
    return None if in_engine is None or health.status_code != 200 else ServerLoad(in_engine, None)


class Drain:
    """The drain of one server.

    Args:
        label: how it is called in messages.
        url: its address as seen from this host.
        control: its control folder.
        timeout: seconds that running requests get.
        clock: returns seconds.
        ask: returns what the server has in hand.

    Attributes:
        done: whether the server may be stopped.
    """

    def __init__(
        self,
        label: str,
        url: str,
        control: Control,
        timeout: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        ask: Callable[[str], ServerLoad | None] = load_of,
    ) -> None:
        self.label = label
        self.done = False
        self._url, self._control, self._timeout = url, control, timeout
        self._clock, self._ask = clock, ask
        self._began = clock()
        self._ended = self._began
        self._quiet = self._silent = 0
        before = ask(url)
        self._refused_before = before.refused if before else None
        self._first = self._last = before
        # Whether a silent server has a door is not known; closing none does no harm.
        if before is None or before.refused is not None:
            control.close(timeout + SPARE_S)
        if self.turned_away:
            # Counted behind the closed door, so that none is missed.
            self._first = self._last = ask(url) or before

    @property
    def turned_away(self) -> bool:
        """Whether new requests are turned away."""
        return self._refused_before is not None

    @property
    def answered(self) -> bool:
        """Whether the server has told of its requests at all."""
        return self._first is not None

    @property
    def running(self) -> int:
        """The requests that the server has in hand, as last seen."""
        return self._last.running if self._last else 0

    def look(self) -> None:
        """See whether the server is done, or its time is up."""
        if self.done:
            return
        load = self._ask(self._url)
        self._ended = self._clock()
        self._silent = 0 if load else self._silent + 1
        if load and not self.answered:
            self._first, self._refused_before = load, load.refused
        self._last = load or self._last
        quiet = load is not None and load.running == 0
        self._quiet = self._quiet + 1 if quiet else 0
        enough = 1 if load and load.refused is not None else QUIET_LOOKS
        late = self._ended - self._began >= self._timeout
        self.done = self._quiet >= enough or self._silent >= SILENT_LOOKS or late

    def as_result(self) -> dict[str, Any]:
        """Return what became of the requests, see the RETURN of vllm_server."""
        first, last = self._first or ServerLoad(0, None), self._last or ServerLoad(0, None)
        return {
            "waited_s": round(self._ended - self._began, 1),
            "running_at_start": first.running,
            "finished": max(0, first.running - last.running),
            "aborted": last.running,
            "refused": (last.refused or 0) - (self._refused_before or 0) if self.turned_away else 0,
            "turned_away": self.turned_away,
            "answered": self.answered,
        }


def drain_all(
    drains: Sequence[Drain], timeout: float, progress: Progress, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until every server is done or its time is up.

    Args:
        drains: the servers' drains, begun.
        timeout: of theirs, for the progress.
        progress: told of what still runs.
        sleep: how to wait.
    """
    while True:
        for drain in drains:
            drain.look()
        left = [drain for drain in drains if not drain.done]
        if not left:
            return
        running = sum(drain.running for drain in left)
        what = left[0].label if len(left) == 1 else f"{len(left)} servers"
        progress.phase(f"{what}: draining", f"{running} requests running (up to {timeout:g} s)")
        sleep(PAUSE_S)
