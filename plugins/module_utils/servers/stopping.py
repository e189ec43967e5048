# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends servers: each drains first, and the drains are told in the result."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import is_running
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import base_name
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import base_url, read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.stop import stop_container
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.drain import Drain, drain_all
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Step, required

if TYPE_CHECKING:
    from docker.models.containers import Container


# Between asking a server without requests to stop and killing it; one that still has some gets the shorter time.
STOP_S, ABORT_S = 30, 5


class Stopping:
    """Drains and stops the servers of one run.

    Args:
        own: the deployment's containers.
        settings: how to go about it.
        progress: told what is being done.

    Attributes:
        drains: what became of the requests of each replica that drained.
    """

    def __init__(self, own: OwnContainers, settings: Settings, progress: Progress) -> None:
        self.drains: dict[str, dict[str, Any]] = {}
        self._own = own
        self._settings = settings
        self._progress = progress

    def begin(self, name: str, container: Container) -> Drain | None:
        """Make a server turn new requests away; None for one that does not run or whose address is not known."""
        with engine_errors(f"looking at {name}"):
            container.reload()
        spec = read_spec(container.labels)
        if spec is None or container.status != "running":
            return None
        return Drain(name, base_url(spec), self._own.control(name), self._settings.drain_timeout)

    def finish(self, drains: Sequence[Drain | None]) -> None:
        """Wait for drains, and note what became of the requests."""
        begun = [drain for drain in drains if drain is not None]
        drain_all(begun, self._settings.drain_timeout, self._progress)
        self.drains.update({base_name(drain.label): drain.as_result() for drain in begun})

    def drain(self, steps: Sequence[Step]) -> None:
        """Let the old servers of some steps finish their requests, all at the same time."""
        for step in steps:
            step.drain = self.begin(step.name, required(step.old))
        self.finish([step.drain for step in steps])

    def drain_and_stop(self, steps: Sequence[Step]) -> None:
        """Drain and stop the servers of some steps; those that a failure leaves running take requests again."""
        try:
            self.drain(steps)
            for step in steps:
                self._progress.phase(f"{step.name}: stopping")
                self.stop(required(step.old), step.drain)
        finally:
            for step in steps:
                self._own.control(step.name).open()

    def stop_all(self) -> list[str]:
        """Drain and stop every server of the deployment that runs, all at the same time; return their names.

        The old server of an unfinished replacement is among them. In check mode nothing is done to them.
        """
        found = {name: container for name, container in sorted(self._own.by_name().items()) if is_running(container)}
        if self._settings.check:
            return list(found)
        drains = {name: self.begin(name, container) for name, container in found.items()}
        self.finish(list(drains.values()))
        for name, container in found.items():
            self._progress.phase(f"{name}: stopping")
            self.stop(container, drains[name])
        return list(found)

    def stop(self, container: Container, drain: Drain | None) -> None:
        """Stop a server that has drained; one that still has requests loses them."""
        from docker.errors import NotFound

        spec = read_spec(container.labels)
        own_drain = int((spec["config"] if spec else {}).get("shutdown-timeout") or 0)
        seconds = ABORT_S if drain and drain.running else STOP_S
        if drain and not drain.turned_away and (drain.running or not drain.answered) and own_drain:
            # We cannot close this server: its vLLM turns requests away while it lets the others finish.
            seconds = min(own_drain, self._settings.drain_timeout) + ABORT_S
        with engine_errors(f"stopping {container.name}"), contextlib.suppress(NotFound):
            stop_container(container, seconds)
        self._own.control(str(container.name)).open()
