# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs exactly the wanted servers on a host.

A GPU holds one model, so a server is replaced by stopping the old one first. The steps are such that the run may be
ended after any of them and the next run knows from the containers alone where it stopped:

==================================== ==================================================================================
containers that a run finds          what it does
==================================== ==================================================================================
name                                 nothing unfinished
name-next (and others)               removes name-next, which was never started or could not be removed
name-previous                        names it name again and starts it: the old server was stopped, none had taken over
name as wanted, name-previous        goes on waiting for name: ready, it removes name-previous; failed, it puts back
                                     (and until then starts no other old server on the GPUs of name)
name not as wanted, name-previous    name answers: removes name-previous; it does not: puts name-previous back
==================================== ==================================================================================

The other files of this room each have a part of this: recovery.py repairs what an earlier run left, steps.py decides,
checks.py finds what would fail, replacement.py acts and puts the old servers back, stopping.py drains and stops,
replica_files.py writes the replicas' files, applied_plan.py the plan. Before a server is stopped it drains: it turns
new requests away and gets a while for those it has. The next one that needs its GPUs starts when their memory is free.

Servers that need a GPU or a port which another of them still holds are replaced together; all others one after another,
those that do not serve first and those that are no longer wanted last. A failure ends the run, so that those which have
not had their turn go on serving.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Replica, Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import base_name
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions, build_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import nvidia_minors
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import server_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import checks, config_check, keys, outcome
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.applied_plan import AppliedPlan
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.caches import check_removable
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.history import History
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.recovery import Recovery
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replacement import Replacement
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replica_files import ReplicaFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import (
    Step,
    join_unfinished,
    step_for,
    steps_for_unwanted,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.stopping import Stopping

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

ON_FAILURE = (
    "vllm_restart_policy is on-failure: a vLLM whose engine died may exit with 0, and Docker does not restart it then."
    " unless-stopped does."
)


class Deployment:
    """The servers of one host.

    Args:
        client: the Docker SDK's client.
        settings: how to go about it.
        secrets: environment variables that must not be seen; `VLLM_API_KEY` among them if servers want a key.
        progress: told what is being done.
    """

    def __init__(
        self, client: DockerClient, settings: Settings, secrets: Mapping[str, str], progress: Progress
    ) -> None:
        self._client = client
        self._settings = settings
        self._secrets = dict(secrets)
        self._progress = progress
        self._own = OwnContainers(client, settings, progress)
        self._files = ReplicaFiles(self._own, settings, self._secrets)
        self._stopping = Stopping(self._own, settings, progress)
        self._recovery = Recovery(self._own, settings, self._secrets)
        self._history = History(client, settings.config_dir, settings.prefix, settings.history_keep, settings.plan)
        self._plan = AppliedPlan(settings.config_dir, settings.plan)
        self._warnings: list[str] = []
        self._recorded = ""

    # States

    def present(
        self,
        replicas: Sequence[Replica],
        wishes: ServerOptions,
        *,
        restart: bool = False,
        rolled_back_to: str = "",
    ) -> dict[str, Any]:
        """Run exactly these replicas.

        Args:
            replicas: of the plan.
            wishes: what they share.
            restart: whether to restart those that need no replacement.
            rolled_back_to: id of the earlier deployment that this one brings back; empty if it brings back none.

        Returns:
            `changed`, `replicas`, `removed`, `recovered`, `recorded`, and `diff` and `warnings` for Ansible.

        Raises:
            GpufleetError: what would fail, before anything is touched; or why a server did not become ready.
        """
        minors = nvidia_minors()
        specs = [build_spec(replica, wishes, self._secrets, os.path.exists, minors) for replica in replicas]
        checks.check_distinct_ports(specs)
        if not self._settings.check:
            with self.recovered_on_failure():
                self._check_files(specs, wishes)
            self._recovery.recover({spec["name"]: spec for spec in specs})
            self._plan.settle(self._own.by_name(), self._recovery.unfinished)
        steps = self._steps(specs, restart)
        if any(spec["restart_policy"].startswith("on-failure") for spec in specs):
            self._warnings.append(ON_FAILURE)
        self._check(steps)
        if self._settings.check:
            self._files.write_keys(specs)
        else:
            self._apply(steps, specs, functools.partial(self._history.note_failed, specs, replicas, wishes))
            if self._settings.wait:
                acted = bool(self._recovery.recovered) or any(step.action != "none" for step in steps)
                texts = {spec["name"]: self._files.config_text(spec) for spec in specs}
                brought_back = rolled_back_to if acted else ""
                self._note(functools.partial(self._history.note_ready, specs, replicas, wishes, texts, brought_back))
        return self._result(steps)

    def absent(self, names: Iterable[str], *, purge_caches: bool) -> dict[str, Any]:
        """Remove these replicas, or all of this prefix if `names` is empty; with `purge_caches` the caches too."""
        wanted = set(names)
        found = {
            name: container
            for name, container in sorted(self._own.by_name().items())
            if not wanted or base_name(name) in wanted
        }
        # A container may have been removed by hand, and its files, the one with secrets among them, be left.
        bases = sorted({base_name(name) for name in found} | (wanted or self._files.replicas()))
        files = [path for name in bases for path in self._files.written_for(name)]
        caches = self._removable_caches() if purge_caches else []
        history = self._history.paths() if not wanted else []
        if not self._settings.check:
            self._remove_servers(found, everything=not wanted)
            self._remove_files(bases, files, caches, everything=not wanted)
        plan = self._plan.forget(wanted, self._settings.prefix, check=self._settings.check)
        return {
            "changed": bool(found or files or history or caches or self._plan.changed),
            "replicas": [],
            "removed": list(found),
            "removed_paths": files + plan + history + caches,
            "drains": self._stopping.drains,
            "keys_changed": [],
            "recovered": [],
            "recorded": "",
            "diff": [outcome.difference_of(name, container, None) for name, container in found.items()],
        }

    def recovered_on_failure(self) -> contextlib.AbstractContextManager[None]:
        """If what is wanted cannot be had, let the old servers serve that an interrupted run has stopped."""
        return self._recovery.on_failure()

    # Present

    def _check_files(self, specs: Sequence[Spec], wishes: ServerOptions) -> None:
        """Raise an error unless configurations and model files are there."""
        for spec in specs:
            self._files.read_config(spec)
        checks.check_model(wishes.model_source)
        for spec in specs:
            server_files.check(spec, wishes.model_source, wishes.hf_home)

    def _steps(self, specs: Sequence[Spec], restart: bool) -> list[Step]:
        """Return what has to be done, for each replica that is wanted or there."""
        unfinished = self._recovery.unfinished
        steps = [
            step_for(spec, self._own.look_at(spec), self._secrets, aside=unfinished.get(spec["name"]), restart=restart)
            for spec in specs
        ]
        wanted = {spec["name"] for spec in specs}
        steps += steps_for_unwanted(self._own.by_name(), wanted, self._recovery.waiting)
        join_unfinished(steps)
        return steps

    def _check(self, steps: Sequence[Step]) -> None:
        """Raise an error if a step would fail, before any is done."""
        checks.check_ports(self._own, self._settings, steps)
        checks.check_gpus(self._own, steps)
        if self._settings.check_config:
            self._warnings += checks.check_configs(self._client, self._settings, self._files, steps, self._progress)

    def _apply(self, steps: Sequence[Step], specs: Sequence[Spec], failed: Callable[[GpufleetError], str]) -> None:
        """Do the steps; a failure is noted in the history."""
        self._files.make_folders()
        self._files.write_controls(specs)
        self._files.write_keys(specs)
        if any(step.action != "none" for step in steps):
            self._plan.begin(specs)
        replacement = Replacement(
            self._own, self._settings, self._secrets, self._files, self._stopping, self._plan, self._progress
        )
        try:
            with engine_errors("changing the servers"):
                replacement.do(steps)
        except GpufleetError as error:
            self._note(functools.partial(failed, error))
            raise
        self._warnings += replacement.warnings
        if self._settings.wait:
            self._plan.complete()
        self._files.tidy(steps)

    def _note(self, record: Callable[[], str]) -> None:
        """Record something in the history; a deployment that serves has not failed because that cannot be noted."""
        try:
            self._recorded = record()
        except (GpufleetError, OSError) as error:
            self._warnings.append(f"The deployment could not be recorded in the history of this host: {error}")

    # Absent

    def _removable_caches(self) -> list[str]:
        """Return the cache folders that are there; raise `cache-not-removable` for one that may not be removed."""
        others = self._own.folders_of_others()
        there = [path for path in (self._settings.hf_home, self._settings.cache_dir) if os.path.isdir(path)]
        return [check_removable(path, others) for path in there]

    def _remove_servers(self, found: Mapping[str, Container], *, everything: bool) -> None:
        """Drain, stop and remove containers, and what interrupted runs left beside them."""
        config_check.remove_left(self._client, self._settings.prefix)
        if everything:
            jobs.remove_left(self._client, prefix=self._settings.prefix)
        drains = {name: self._stopping.begin(name, container) for name, container in found.items()}
        self._stopping.finish(list(drains.values()))
        for name, container in found.items():
            self._progress.phase(f"{name}: stopping")
            self._stopping.stop(container, drains[name])
            self._own.remove(container)

    def _remove_files(
        self, replicas: Collection[str], files: Collection[str], caches: Collection[str], *, everything: bool
    ) -> None:
        """Remove the files of replicas, and the caches named; with `everything` the history too."""
        for name in replicas:
            self._own.control(name).remove()
        for path in files:
            os.unlink(path)
        for folder in ("active", "control"):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self._settings.config_dir, folder))
        if everything:
            self._history.forget_all()
        for path in caches:
            self._progress.phase("removing caches", path)
            shutil.rmtree(path)

    def _result(self, steps: Sequence[Step]) -> dict[str, Any]:
        acted = [step for step in steps if step.action != "none"]
        files = self._files
        changed = bool(acted or self._recovery.recovered or files.changed or files.keys_changed or self._recorded)
        return {
            **({"would_change": bool(acted)} if self._settings.check else {}),
            "changed": changed or self._plan.changed or (self._settings.check and bool(self._plan.difference)),
            "replicas": [
                outcome.replica_outcome(step, self._stopping, self._files, check=self._settings.check)
                for step in steps
                if step.spec
            ],
            "removed": [step.name for step in steps if step.action == "removed"],
            "removed_paths": [],
            "keys_changed": files.keys_changed,
            "drains": self._stopping.drains,
            "recovered": self._recovery.recovered,
            "recorded": self._recorded,
            "warnings": self._warnings,
            "diff": [
                *outcome.differences_of(acted),
                *map(keys.difference_of, files.keys_changed),
                *self._plan.difference,
            ],
        }
