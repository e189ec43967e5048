# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repairs what an earlier run left unfinished; the table at the head of deployment.py says what it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import environment_of, kept_policy
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import NEXT, PREVIOUS, base_name
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    base_url,
    read_spec,
    secret_changes,
    spec_changes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import health_status
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import resources

if TYPE_CHECKING:
    from docker.models.containers import Container


class Recovery:
    """Looks for the traces of an interrupted run, and repairs what it left.

    Args:
        own: the deployment's containers.
        settings: how to go about it.
        secrets: environment variables that must not be seen.

    Attributes:
        recovered: what was repaired, as sentences.
        unfinished: by replica, the old server of a replacement that this run goes on with.
        waiting: old servers that stay stopped, because an unfinished replacement has their GPUs or ports.
    """

    def __init__(self, own: OwnContainers, settings: Settings, secrets: Mapping[str, str]) -> None:
        self.recovered: list[str] = []
        self.unfinished: dict[str, Container] = {}
        self.waiting: set[str] = set()
        self._own = own
        self._settings = settings
        self._secrets = secrets

    def recover(self, wanted: Mapping[str, Spec]) -> None:
        """Repair what an earlier run left.

        Args:
            wanted: specs of the replicas that this run wants, by name.
        """
        found = self._own.by_name()
        for name in [name for name in found if name.endswith(NEXT)]:
            self._own.remove(found.pop(name))
            self.recovered.append(f"removed {name}, which an earlier run left")
        for name in wanted:
            if self._own.control(name).open():
                self.recovered.append(f"{name} takes requests again: its drain was interrupted")
        # Those that are wanted come first, so that it is known which GPUs an unfinished one has taken.
        left = [name for name in found if name.endswith(PREVIOUS)]
        for previous in sorted(left, key=lambda name: base_name(name) not in wanted):
            name = base_name(previous)
            self._repair(name, found.get(name), found[previous], wanted)

    @contextlib.contextmanager
    def on_failure(self) -> Iterator[None]:
        """If what is wanted cannot be had, let the old servers serve that an interrupted run has stopped."""
        try:
            yield
        except GpufleetError as error:
            with contextlib.suppress(GpufleetError):
                self.recover({})
            if self.recovered:
                error.message += f" What an interrupted run had left was put right: {'; '.join(self.recovered)}."
            raise

    def _repair(self, name: str, current: Container | None, previous: Container, wanted: Mapping[str, Spec]) -> None:
        """Repair a replica whose old container still exists."""
        spec = wanted.get(name)
        if current is not None and spec is not None and self._is_as_wanted(current, spec):
            if self._settings.wait:
                self.unfinished[name] = previous
            return
        if current is not None and _answers(current):
            with engine_errors(f"setting the restart policy of {name}"):
                current.update(restart_policy=kept_policy(current))
            self._own.remove(previous)
            self.recovered.append(f"removed {previous.name}: the server that replaced it answers")
            return
        if current is not None:
            self._own.remove(current)
        taken = set().union(*(resources(wanted[unfinished]) for unfinished in self.unfinished))
        if taken & resources(read_spec(previous.labels)):
            self.waiting.add(name)
        with engine_errors(f"putting {previous.name} back"):
            self._own.restore(previous, name, start=name not in self.waiting)
        if name not in self.waiting:
            self.recovered.append(f"put the old server {name} back: its replacement was interrupted")

    def _is_as_wanted(self, container: Container, spec: Spec) -> bool:
        old = read_spec(container.labels)
        return not spec_changes(old, spec) and not secret_changes(environment_of(container), self._secrets, old)


def _answers(container: Container) -> bool:
    """Return whether the server in a container of ours answers."""
    spec = read_spec(container.labels)
    return spec is not None and health_status(base_url(spec)) == 200
