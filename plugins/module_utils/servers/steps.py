# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done about each replica, and which replicas are done together."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import (
    environment_of,
    is_running,
    restart_policy,
    wanted_policy,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import base_name
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    Change,
    endpoint,
    read_spec,
    secret_changes,
    spec_changes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.waiting import Start
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.drain import Drain

if TYPE_CHECKING:
    from docker.models.containers import Container


GOES_ON = "goes on with the replacement that an earlier run began"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Found:
    """What is there of a replica.

    Attributes:
        container: that has its name, if any.
        health: HTTP status of its `/health`; 0 when nothing answers.
        closed: whether it turns new requests away because we told it to.
        engine_ended: tells whether its log says that its engine has ended.
    """

    container: Container | None = None
    health: int = 0
    closed: bool = False
    engine_ended: Callable[[], bool] = lambda: False


@dataclasses.dataclass
class Step:
    """What is to be done about one replica.

    Attributes:
        name: of the replica.
        spec: what it should be; None for one that is no longer wanted.
        old: the container that runs it now, if any.
        changes: why `old` cannot stay.
        action: none, created, replaced, started, restarted, updated or removed.
        why: for people.
        new: the container that takes over.
        resumed: whether `new` was made by an earlier run that did not get to its end.
        aside: with `resumed`, the server that the earlier run has stopped for `new`, if it did.
        was_running: whether `old` ran.
        old_policy: the restart policy that `old` had.
        start: of the new container.
        drain: of the old container, or of the one that is restarted.
        serves: whether `old` answers.
    """

    name: str
    spec: Spec | None
    old: Container | None
    changes: list[Change] = dataclasses.field(default_factory=list)
    action: str = "none"
    why: list[str] = dataclasses.field(default_factory=list)
    new: Container | None = None
    resumed: bool = False
    aside: Container | None = None
    was_running: bool = False
    old_policy: Any = None
    start: Start | None = None
    drain: Drain | None = None
    serves: bool = False

    def needs(self) -> set[str]:
        """Return the GPUs and ports that the new server takes."""
        return resources(self.spec)

    def holds(self) -> set[str]:
        """Return the GPUs and ports that the old server holds, and those that the one set aside wants back."""
        containers = [container for container in (self.old, self.aside) if container]
        return set().union(*(resources(read_spec(container.labels)) for container in containers))


def required(value: T | None) -> T:
    """Return a value that the caller knows to be there."""
    if value is None:
        raise AssertionError("a step lacks what its action needs")
    return value


def step_for(
    spec: Spec, found: Found, secrets: Mapping[str, str], *, aside: Container | None = None, restart: bool = False
) -> Step:
    """Decide what has to be done about a replica that is wanted.

    Args:
        spec: what it should be.
        found: what is there of it.
        secrets: environment variables that it should have and that its spec does not hold.
        aside: the old server of a replacement that an earlier run began, if this run goes on with it.
        restart: whether a server that needs no replacement is to be restarted.
    """
    name, container = spec["name"], found.container
    if container is None:
        return Step(name, spec, None, action="created", why=["there was none"])
    step = Step(name, spec, container, was_running=is_running(container), serves=found.health == 200)
    before = read_spec(container.labels)
    step.changes = spec_changes(before, spec) + secret_changes(environment_of(container), secrets, before)
    if aside is not None:
        step.action, step.resumed, step.aside, step.why = "replaced", True, aside, [GOES_ON]
    elif step.changes:
        step.action, step.why = "replaced", [change.as_text() for change in step.changes]
    elif restart:
        step.action, step.why = "restarted", ["asked for (state restarted)"]
    elif not step.was_running:
        step.action, step.why = "started", [f"it did not run ({container.status})"]
    elif why := _why_restart(found, container):
        step.action, step.why = "restarted", [why]
    elif restart_policy(container) != wanted_policy(spec):
        step.action = "updated"
        step.changes = [Change("restart_policy", restart_policy(container)["Name"], spec["restart_policy"])]
        step.why = [change.as_text() for change in step.changes]
    return step


def _why_restart(found: Found, container: Container) -> str:
    """Return why a server whose container runs as it should has to be restarted; empty when it has not."""
    if container.status == "restarting":
        return "it died again and again"
    if found.health == 503 and not found.closed:
        return "its engine is dead: /health answers 503"
    if found.health != 200 and found.engine_ended():
        return "its engine has ended, says its log, though its container runs"
    return ""


def steps_for_unwanted(
    containers: Mapping[str, Container], wanted: Collection[str], waiting: Collection[str]
) -> list[Step]:
    """Return the steps that remove what is not in the plan any more.

    Args:
        containers: of this deployment, by name.
        wanted: names of the replicas of the plan. What check mode finds beside one of them, such as `-previous`, stays.
        waiting: old servers that an interrupted run has stopped and that have to come back if this run fails.
    """
    return [
        Step(
            name,
            None,
            container,
            action="removed",
            why=["not in the plan any more"],
            was_running=is_running(container) or name in waiting,
        )
        for name, container in sorted(containers.items())
        if base_name(name) not in wanted
    ]


def resources(spec: Spec | None) -> set[str]:
    if spec is None:
        return set()
    return {f"gpu {gpu}" for gpu in spec["gpus"]} | {f"port {endpoint(spec)[1]}"}


def groups_of(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yield the steps in groups to be done together, in their order.

    New servers that take no GPU and no port from another are one group and start at the same time. A server that needs
    what another still holds is in that other's group. Everything else is alone.
    """
    groups: list[list[Step]] = []
    for step in steps:
        linked = [group for group in groups if any(_linked(step, other) for other in group)]
        merged = [entry for group in linked for entry in group] + [step]
        groups = [group for group in groups if group not in linked] + [merged]
    fresh = [group[0] for group in groups if len(group) == 1 and group[0].action == "created"]
    if fresh:
        yield fresh
    yield from (group for group in groups if group[0] not in fresh)


def join_unfinished(steps: Sequence[Step]) -> None:
    """Make the servers that an interrupted replacement has started beside another a part of that replacement again.

    If that one fails, they have to give its GPUs back to the old server, as they would have had to then.
    """
    wanted_back = set().union(*(resources(read_spec(step.aside.labels)) for step in steps if step.aside))
    for step in steps:
        if step.action in ("none", "updated") and step.needs() & wanted_back:
            step.action, step.resumed, step.changes = "created", True, []
            step.why = [GOES_ON]


def _linked(one: Step, other: Step) -> bool:
    return bool(one.needs() & other.holds() or one.holds() & other.needs())
