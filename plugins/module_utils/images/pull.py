# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pulls an image from its registry, with progress, retries and deadlines."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB, MIB, format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import event_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import inspect_image, tag_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.pull_failures import (
    STALLED,
    PullFailure,
    classify_pull_error,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import ImageWish, Reference

if TYPE_CHECKING:
    from docker import DockerClient


# A name that does not resolve or a closed port rarely recovers on its own: one more try, soon, then the error.
UNREACHABLE_RETRIES = 1
UNREACHABLE_BACKOFF = 2.0


class LayerProgress:
    """Sums up the events of a pull, which the engine sends per layer.

    Args:
        clock: returns seconds; only differences count.
    """

    WINDOW = 10.0  # seconds over which the rate is taken

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._layers: set[str] = set()
        self._downloaded: set[str] = set()
        self._extracted: set[str] = set()
        self._samples: deque[tuple[float, int]] = deque()
        self.note = ""

    @property
    def layers(self) -> int:
        """The number of layers that the engine named."""
        return len(self._layers)

    @property
    def bytes(self) -> int:
        """The bytes downloaded so far, as transferred (compressed)."""
        return sum(self._current.values())

    def update(self, event: dict[str, Any]) -> None:
        """Take one event of the stream."""
        status, layer = str(event.get("status", "")), str(event.get("id", ""))
        if not layer or status.startswith("Pulling from"):
            return
        self._layers.add(layer)
        self.note = ""
        detail = event.get("progressDetail") or {}
        if status == "Downloading":
            rest = int(detail.get("total") or self._total.get(layer, 0))
            # After an interruption the engine counts only what is left of the layer.
            self._total[layer] = max(rest, self._total.get(layer, 0))
            self._current[layer] = self._total[layer] - rest + int(detail.get("current") or 0)
        elif status in ("Download complete", "Verifying Checksum", "Extracting"):
            self._finish_download(layer)
        elif status in ("Pull complete", "Already exists"):
            self._finish_download(layer)
            self._extracted.add(layer)
        elif status.startswith("Retrying in"):
            self.note = status.lower()

    def _finish_download(self, layer: str) -> None:
        self._downloaded.add(layer)
        if layer in self._total:
            self._current[layer] = max(self._current[layer], self._total[layer])

    def rate(self) -> float:
        """Return the bytes per second of the last seconds; 0.0 at the beginning."""
        now, done = self._clock(), self.bytes
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > self.WINDOW:
            self._samples.popleft()
        then, before = self._samples[0]
        return max(done - before, 0) / (now - then) if now > then else 0.0

    def text(self) -> str:
        """Return the state in a line, such as C(12/23 layers, 4.1/8.3 GiB, 120 MiB/s).

        The total is followed by C(+) until every layer's size is known.
        """
        if not self._layers:
            return "asking the registry"
        if len(self._downloaded) == len(self._layers):
            return f"unpacking, {len(self._extracted)}/{len(self._layers)} layers"
        parts = [f"{len(self._downloaded)}/{len(self._layers)} layers"]
        total = sum(self._total.values())
        if total:
            unknown = self._layers - self._downloaded - self._total.keys()
            amount, unit = format_bytes(total).split()
            done = self.bytes / (GIB if unit == "GiB" else MIB)
            parts.append(f"{done:.1f}/{amount}{'+' if unknown else ''} {unit}")
        rate = self.rate()
        if rate:
            parts.append(f"{rate / MIB:.0f} MiB/s")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


def pull_image(
    engine: DockerClient,
    wish: ImageWish,
    reference: Reference,
    progress: Progress,
    transfer: dict[str, Any],
    sleep: Callable[[float], None],
) -> dict[str, Any]:
    """Pull with retries and return the image, which has its reference as name.

    The engine keeps each layer that is complete, so a further attempt only fetches those that are missing.
    """
    name = f"{reference.repository}@{wish.digest}" if wish.digest else reference.local_name
    started = time.monotonic()
    deadline = started + wish.timeout if wish.timeout else float("inf")
    delay = wish.backoff
    brief_failures = 0
    while True:
        transfer["attempts"] += 1
        layers = LayerProgress()
        try:
            _pull_once(engine, wish, reference, layers, progress, deadline)
            break
        except PullFailure as failure:
            brief_failures += failure.brief
            last = transfer["attempts"] > wish.retries or brief_failures > UNREACHABLE_RETRIES
            if last or not failure.transient:
                failure.details["attempts"] = transfer["attempts"]
                raise _explain_pinned(engine, wish, failure) from failure
            wait = min(delay, UNREACHABLE_BACKOFF) if failure.brief else delay
            delay *= 2
            progress.phase(
                "pulling image",
                f"attempt {transfer['attempts']} failed ({failure.name}: {failure.evidence[:120]}), next in {wait:g} s",
            )
            sleep(wait)
        finally:
            transfer["layers"] = max(transfer["layers"], layers.layers)
            transfer["bytes"] += layers.bytes
            transfer["seconds"] = round(time.monotonic() - started, 1)
    image = inspect_image(engine, name)
    if image is None:
        raise PullFailure(None, f"the engine reported success, but has no {name}", wish)
    if wish.digest:
        tag_image(engine, image["Id"], reference.local_name)
    return image


def _explain_pinned(engine: DockerClient, wish: ImageWish, failure: PullFailure) -> GpufleetError:
    """Return the failure, or, where the pinned digest alone is unknown to the registry, one that says so."""
    from docker.errors import DockerException

    if failure.name != "image-not-found" or not wish.digest:
        return failure
    try:
        auth = {"username": wish.username, "password": wish.password} if wish.username else None
        api: Any = engine.api
        found = api.inspect_distribution(wish.reference, auth_config=auth)["Descriptor"]["digest"]
    except (DockerException, KeyError, TypeError):
        return failure
    return GpufleetError(
        f"vllm_image_digest: the registry has {wish.reference}, but not as {wish.digest}.",
        name="digest-mismatch",
        remedy=f"If the image there now is the one you want, set vllm_image_digest: {found}; if not, find out who"
        " changed it.",
        evidence=f"{wish.reference} is {found}; {failure.evidence}",
        details={"found": [found], "wanted": wish.digest},
    )


def _pull_once(
    engine: DockerClient,
    wish: ImageWish,
    reference: Reference,
    layers: LayerProgress,
    progress: Progress,
    deadline: float,
) -> None:
    """Do one attempt at a pull, until C(deadline) by the monotonic clock.

    Raises:
        PullFailure: what the engine said.
    """
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    progress.phase("pulling image", layers.text())
    auth = {"username": wish.username, "password": wish.password} if wish.username else None
    try:
        events = _while_moving(
            lambda: engine.api.pull(
                reference.repository,
                tag=wish.digest or reference.tag,
                platform=wish.platform,
                stream=True,
                decode=True,
                auth_config=auth,
            ),
            wish.stall_timeout,
            deadline,
        )
        _follow(events, layers, progress, wish)
    except PullTooLongError as error:
        raise GpufleetError(
            f"The pull of {wish.reference} took more than {wish.timeout:g} s (vllm_phase_timeouts: image).",
            name="phase-too-long",
            remedy="Run the play again: the engine keeps each layer that is complete. Raise vllm_phase_timeouts:"
            " {image: SECONDS} if the connection is only slow, or set vllm_image to a nearer registry.",
            evidence=f"last state: {layers.text()}",
            details={"phase": "image", "deadline_s": wish.timeout},
        ) from error
    except TimeoutError as error:
        raise PullFailure(STALLED, f"{error}; state: {layers.text()}", wish) from error
    except APIError as error:
        text = str(error.explanation or error)
        raise PullFailure(classify_pull_error(text), text, wish) from error
    except (DockerException, RequestException) as error:
        raise PullFailure(None, f"connection to the engine: {error}", wish) from error


class PullTooLongError(Exception):
    """A pull has passed its deadline."""


def _while_moving(
    start: Callable[[], Iterable[dict[str, Any]]], seconds: float, deadline: float = float("inf")
) -> Iterator[dict[str, Any]]:
    """Yield the events of the pull that C(start) begins, or raise TimeoutError when nothing moves for C(seconds).

    An engine with the containerd image store goes on telling the state of a layer that stands still, ten times a
    second; what tells nothing new is left out.

    Raises PullTooLongError at C(deadline), by the monotonic clock.

    The engine waits for a silent registry without end. It ends the pull when its client is gone, so a thread left
    behind here ends with the module.
    """
    arrived: queue.Queue[Any] = queue.Queue()
    end = object()

    def read() -> None:
        known: dict[Any, tuple[Any, Any]] = {}
        try:
            for event in start():
                state = event.get("status"), event.get("progressDetail")
                if event_error(event) or known.get(event.get("id")) != state:
                    known[event.get("id")] = state
                    arrived.put(event)
            arrived.put(end)
        except Exception as error:  # raised again where the events are read
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            item = arrived.get(timeout=min(seconds, left))
        except queue.Empty:
            if left < seconds:
                raise PullTooLongError from None
            raise TimeoutError(f"the engine reported nothing for {seconds:g} s") from None
        if item is end:
            return
        if isinstance(item, Exception):
            raise item
        yield item


def _follow(events: Iterable[dict[str, Any]], layers: LayerProgress, progress: Progress, wish: ImageWish) -> None:
    """Show the events of a pull until they end."""
    shown = time.monotonic()
    for event in events:
        problem = event_error(event)
        if problem:
            raise PullFailure(classify_pull_error(problem), problem, wish)
        layers.update(event)
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            progress.phase("pulling image", layers.text())
