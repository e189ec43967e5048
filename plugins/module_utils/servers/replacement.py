# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts, restarts, replaces and removes the servers of a run, and puts the old ones back when a new one fails.

A replacement creates name-next (so that what the Docker engine refuses is known before anything is stopped), names the
old container name-previous and stops it, names the new one name, starts it, and waits. Once the new server has answered
a real request, it gets its restart policy and the old container is removed. If it fails, it is removed and the old one
is named, configured and started as it was; the run then fails with the diagnosis of the new one. With caches that came
from another host, a new server that fails is made once more without them first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import (
    is_running,
    kept_policy,
    restart_policy,
    wanted_policy,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import NEXT, PREVIOUS, base_name
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import base_url, create_arguments, read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import health_status
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.waiting import Start, wait_for
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.applied_plan import AppliedPlan
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.checks import check_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replica_files import ReplicaFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Step, groups_of, required
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.stopping import Stopping
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.warm_caches import WarmCaches

if TYPE_CHECKING:
    from docker.models.containers import Container


NO_RESTART: Any = {"Name": "no"}
ENGINE_AWAY_S = 300.0  # a Docker engine that does not answer is waited for so long before old servers are put back


class Replacement:
    """Does the steps of one run.

    Args:
        own: the deployment's containers.
        settings: how to go about it.
        secrets: environment variables that must not be seen.
        files: the replicas' files.
        stopping: drains and stops servers.
        plan: of what serves.
        progress: told what is being done.

    Attributes:
        warnings: what people are told of a run that did not fail.
    """

    def __init__(
        self,
        own: OwnContainers,
        settings: Settings,
        secrets: Mapping[str, str],
        files: ReplicaFiles,
        stopping: Stopping,
        plan: AppliedPlan,
        progress: Progress,
    ) -> None:
        self._own = own
        self._settings = settings
        self._secrets = secrets
        self._files = files
        self._stopping = stopping
        self._plan = plan
        self._progress = progress
        self._caches = WarmCaches(settings.cache_dir, settings.prefix)
        self.warnings: list[str] = []

    def do(self, steps: Sequence[Step]) -> None:
        """Do all steps; a failure ends the run, so that those which have not had their turn go on serving.

        Raises:
            GpufleetError: why a server did not become ready, and what became of the old one.
        """
        # A server that does not serve has nothing to lose, and the others go on serving meanwhile; so do those that are
        # not wanted any more, until what replaces them is known to work.
        steps = sorted(steps, key=lambda step: (step.action == "removed", step.serves))
        for step in steps:
            if step.action in ("restarted", "started"):
                self._restart(step)
        for group in groups_of([step for step in steps if step.action in ("created", "replaced", "removed")]):
            if all(step.action == "removed" for step in group):
                self._stopping.drain_and_stop(group)
                for step in group:
                    self._own.remove(required(step.old))
                self._plan.answered([], _removed(group))
            else:
                self._replace(group)
        self._wait_for_those_that_stay([step for step in steps if step.action in ("none", "updated")])

    def _wait_for_those_that_stay(self, steps: Sequence[Step]) -> None:
        """Wait for the servers that need no change: they may still be starting."""
        for step in steps:
            step.new = step.old
        self._wait([step for step in steps if health_status(base_url(required(step.spec))) != 200])
        for step in steps:
            self._keep_running(step)

    def _restart(self, step: Step) -> None:
        """Start a server's own container; stop it first if it runs."""
        step.new = step.old
        if step.action == "restarted":
            self._stopping.drain_and_stop([step])
        self._bring_up([step])
        self._keep_running(step)

    def _replace(self, group: Sequence[Step]) -> None:
        """Replace, create and remove the servers of a group together; put back what was there if one fails."""
        self._create_next([step for step in group if step.spec and not step.resumed])
        try:
            with engine_errors(f"replacing {', '.join(step.name for step in group)}"):
                self._exchange(group)
        except GpufleetError as error:
            self._put_back(group, error)
            raise
        except Exception as problem:
            unexpected = _unexpected(group, problem)
            self._put_back(group, unexpected)
            raise unexpected from problem
        if self._settings.wait:
            self._plan.answered([step.name for step in group if step.spec], _removed(group))
        for step in group:
            self._keep_running(step)
            if step.old is not None and (self._settings.wait or step.new is None):
                self._own.remove(step.old)

    # Forward

    def _create_next(self, steps: Sequence[Step]) -> None:
        """Create the new containers without starting them; none is left if the Docker engine refuses one."""
        created: list[Container] = []
        for step in steps:
            spec = required(step.spec)
            try:
                with engine_errors(f"creating the container of {step.name}"):
                    arguments = create_arguments(spec, self._secrets, self._files.copy_config(spec))
                    step.new = self._own.client.containers.create(name=step.name + NEXT, **arguments)
                created.append(step.new)
                check_image(self._own.client, spec)
            except GpufleetError as error:
                for container in created:
                    self._own.remove(container)
                self._files.drop_unused_copies()
                raise _cause_of_refusal(step, error) from error

    def _exchange(self, group: Sequence[Step]) -> None:
        """Stop the old servers of a group, start the new ones, and wait until they serve."""
        self._stopping.drain([step for step in group if step.old and not step.resumed])
        for step in group:
            if step.resumed:
                step.new, step.old = step.old, step.aside
            elif step.old:
                self._set_aside(step)
        self._bring_up([step for step in group if step.new is not None])

    def _bring_up(self, steps: Sequence[Step]) -> None:
        """Start the steps' new containers and wait until they serve; once more if caches of another host may be why."""
        try:
            self._start_all(steps)
        except GpufleetError as error:
            host = self._caches.forget_received() if any(step.start for step in steps) else ""
            if not host:
                raise
            told = f"{' and '.join(step.name for step in steps)} did not start with the caches that came from {host}"
            self._progress.phase(f"failed ({error.name}), starting without the caches of {host}")
            try:
                self._make_again(steps)
                self._start_all(steps)
            except GpufleetError as again:
                again.message += f" The first attempt failed, too ({error.name}): {told}."
                raise
            self.warnings.append(
                f"{told} ({error.name}: {error.message}), so these were removed and it was started without them."
            )
        if self._settings.wait:
            self._caches.keep_received()

    def _start_all(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._start(step)
        self._wait(steps)

    def _make_again(self, steps: Sequence[Step]) -> None:
        """Make failed new servers anew; a server's own container is only stopped, to be started again."""
        for step in steps:
            step.start = None
            if step.action in ("restarted", "started"):
                self._stopping.stop(required(step.new), None)
            else:
                self._own.remove(required(step.new))
                step.new = None
        self._create_next([step for step in steps if step.new is None])

    def _set_aside(self, step: Step) -> None:
        """Name the old server name-previous and stop it."""
        from docker.errors import APIError

        old = required(step.old)
        self._progress.phase(f"{step.name}: stopping the old server")
        step.old_policy = kept_policy(old)
        with engine_errors(f"stopping the old server of {step.name}"):
            try:
                old.rename(step.name + PREVIOUS)
            except APIError:
                # Docker renames no container that is between two starts of a restart loop ("sandbox not found").
                old.update(restart_policy=NO_RESTART)
                self._stopping.stop(old, step.drain)
                old.rename(step.name + PREVIOUS)
                return
            old.update(restart_policy=NO_RESTART)
        self._stopping.stop(old, step.drain)

    def _start(self, step: Step) -> None:
        """Start the step's new container under its own name."""
        container = required(step.new)
        if not is_running(container):
            try:
                self._own.await_memory(required(step.spec))
            except GpufleetError:
                # A server that was stopped for this must not stay so because something took the memory meanwhile.
                if step.action != "restarted":
                    raise
        self._progress.phase(f"{step.name}: container")
        try:
            with engine_errors(f"starting the container of {step.name}"):
                container.reload()
                if container.name != step.name:
                    container.rename(step.name)
                container.start()
        except GpufleetError as error:
            raise _cause_of_refusal(step, error) from error
        step.start = self._own.watch(container, step.name)

    def _wait(self, steps: Sequence[Step]) -> None:
        """Wait until the steps' new containers serve."""
        if not self._settings.wait or not steps:
            return
        for step in steps:
            step.start = step.start or self._own.watch(required(step.new), step.name)
        wait_for([required(step.start) for step in steps], self._settings.limits, self._progress)

    def _keep_running(self, step: Step) -> None:
        """Give the new container the restart policy of its spec."""
        if step.spec is None or step.new is None:
            return
        step.new.reload()
        if restart_policy(step.new) != wanted_policy(step.spec):
            with engine_errors(f"setting the restart policy of {step.name}"):
                step.new.update(restart_policy=wanted_policy(step.spec))

    # Back

    def _put_back(self, group: Sequence[Step], error: GpufleetError) -> None:
        """Remove the new servers of a failed group, and restore the old ones.

        New servers that replaced none and are ready stay. What becomes of the old ones is added to `error`.
        """
        alone = all(step.old is None for step in group)
        for step in group:
            if step.new is not None and not (alone and step.start is not None and step.start.ready):
                self._give_up(step, error)
        stay = [step.name for step in group if alone and step.start and step.start.ready]
        with contextlib.suppress(GpufleetError):
            self._plan.answered(stay, [step.name for step in group if step.old is None and step.name not in stay])
        with contextlib.suppress(GpufleetError):
            self._files.drop_unused_copies()
        olds = [step for step in group if step.old is not None]
        if not olds:
            return
        self._await_docker(error)
        lost: list[str] = []
        starts: list[Start] = []
        for step in olds:
            self._progress.phase(f"{step.name}: failed ({error.name}), putting the old server back")
            try:
                starts += self._restore(step)
            except GpufleetError as problem:
                lost.append(f"The old server of {step.name} could not be put back: {problem.as_text()}")
        problems = self._wait_for_old(starts)
        error.details["drains"] = self._stopping.drains
        error.details["restored"] = not problems and not lost
        error.details["restored_servers"] = [step.name for step in olds]
        error.message += _told_of_old(olds, lost, problems, answered=bool(starts) and self._settings.wait)

    def _restore(self, step: Step) -> list[Start]:
        """Restore the old server of a step; return its start, if it was started and its address is known."""
        old = required(step.old)
        runs = step.was_running or step.resumed
        with engine_errors(f"starting the old server of {step.name}"):
            self._own.restore(old, step.name, start=runs, policy=step.old_policy)
            return [self._own.watch(old, f"{step.name} (old)")] if runs and read_spec(old.labels) else []

    def _wait_for_old(self, starts: Sequence[Start]) -> list[str]:
        """Wait until old servers serve again; return why they do not."""
        if not starts or not self._settings.wait:
            return []
        try:
            wait_for(starts, self._settings.limits, self._progress)
        except GpufleetError as problem:
            return [problem.as_text()]
        return []

    def _await_docker(self, error: GpufleetError) -> None:
        """Wait for a while until the Docker engine answers: one that is being restarted can put nothing back."""

        def answers() -> bool:
            try:
                with engine_errors("answering"):
                    return bool(self._own.client.ping())
            except GpufleetError:
                self._progress.phase(f"failed ({error.name}), waiting for the Docker engine to put the old server back")
                return False

        until(answers, ENGINE_AWAY_S, 1.0)

    def _give_up(self, step: Step, error: GpufleetError) -> None:
        """Remove a new server that failed; one that cannot be removed must not keep the old one from coming back."""
        new = required(step.new)
        try:
            self._own.remove(new)
        except GpufleetError as problem:
            error.message += f" The new server of {step.name} could not be removed: {problem.as_text()}"
            # The next run removes it by this name.
            with contextlib.suppress(GpufleetError), engine_errors(f"renaming {new.name}"):
                new.rename(step.name + NEXT)


def _removed(group: Sequence[Step]) -> list[str]:
    """Return the replicas of a group that are no longer wanted."""
    return [base_name(step.name) for step in group if step.spec is None]


def _told_of_old(olds: Sequence[Step], lost: Sequence[str], problems: Sequence[str], *, answered: bool) -> str:
    """Return what became of the old servers, to be added to the error of the new ones."""
    names = ", ".join(step.name for step in olds)
    if lost:
        return " " + " ".join([*lost, *problems]) + " The next run of the play tries again."
    if problems:
        return f" The old server of {names} was put back, but it does not answer: " + " ".join(problems)
    if answered:
        return f" The old server of {names} was put back and answers again."
    return f" The old server of {names} was put back as it was."


def _cause_of_refusal(step: Step, error: GpufleetError) -> GpufleetError:
    """Return why the Docker engine refused to create or start a container, if the cause is a known one."""
    diagnosis = diagnose([error.evidence], what=f"The server {step.name} did not start")
    diagnosis.details["server"] = step.name
    return diagnosis if diagnosis.name != "unknown-failure" else error


def _unexpected(group: Sequence[Step], problem: Exception) -> GpufleetError:
    """Return the error for a failure of a kind that is not expected in the middle of a replacement."""
    names = ", ".join(step.name for step in group)
    return GpufleetError(
        f"Replacing {names} failed: {type(problem).__name__}.",
        name="unexpected-failure",
        remedy="See whether the host's disk is full or read-only; otherwise report this with the traceback (-vvv).",
        evidence=str(problem),
    )
