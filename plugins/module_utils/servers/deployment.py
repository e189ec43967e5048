# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the wanted servers run on a host, and nothing of ours besides.

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

A replacement creates name-next (so that what the engine refuses is known before anything is stopped), names the old
container name-previous and stops it, names the new one name, starts it, and waits. Once the new server has answered a
real request, it gets its restart policy and the old container is removed. If it fails, it is removed and the old one
is named, configured and started as it was; the run then fails with the diagnosis of the new one.

Before a server is stopped it drains: it turns new requests away and gets a while for those it has (drain.py). The next
one that needs its GPUs starts when the driver says that their memory is free (vram.py).

A container mounts its own copy of the configuration, C(<config_dir>/active/<name>-<hash>.yaml), because the file of
the replica is rewritten before the server is replaced, and an old server that comes back must find what it had.

Servers that need a GPU or a port which another of them still holds are replaced together; all others one after another,
those that do not serve first and those that are no longer wanted last. A failure ends the run, so that those which have
not had their turn go on serving.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs, run_line
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import (
    engine_errors,
    image_missing,
    stop_container,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.mounts import CACHES, CONFIG_PATH
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import (
    COLLECTION,
    LABEL_COLLECTION,
    NEXT,
    PREVIOUS,
    belongs_to,
    filters_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    Change,
    ServerOptions,
    Spec,
    base_url,
    build_spec,
    create_arguments,
    diff_text,
    endpoint,
    read_spec,
    secret_changes,
    spec_changes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import memory as gpus_memory
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import nvidia_minors
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import Server
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.waiting import (
    Limits,
    Start,
    engine_ended,
    wait_for,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import bind_problem, listener, port_in_use
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import server_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import config_check
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.drain import Drain, drain_all
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.history import History, fingerprint

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

HEALTH_TIMEOUT_S = 5.0
ENGINE_AWAY_S = 300.0  # for so long an engine that does not answer is waited for before old servers are put back
HTTP_CONFLICT = 409
NETWORK_FILESYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "ceph",
    "gpfs",
    "glusterfs",
    "beegfs",
    "wekafs",
    "afs",
    "ocfs2",
    "gfs2",
    "panfs",
    "fuse.ceph",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.juicefs",
    "fuse.mount-s3",
    "fuse.s3fs",
    "fuse.sshfs",
)
VARIABLE = "vllm_config_dir"  # moves what is written here elsewhere
# Between asking a server without requests to stop and killing it; one that still has some gets the shorter time.
STOP_S, ABORT_S = 30, 5
NO_IMAGE = (
    "Have it there first with gpufleet.vllm.vllm_image (entry point image of the role gpufleet.vllm.vllm), or correct"
    " vllm_image and vllm_image_tag."
)
ON_FAILURE = (
    "vllm_restart_policy is on-failure: a vLLM whose engine died may exit with 0, and Docker does not restart it then."
    " unless-stopped does."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to go about it.

    Attributes:
        config_dir: host folder of the replicas' configurations.
        hf_home: host folder of the Hugging Face cache.
        cache_dir: host folder of the compile caches.
        prefix: what the names of this deployment's containers begin with, before the dash.
        docker_host: address of the engine, for the run line.
        wait: whether to wait until servers are ready.
        limits: how long starts may take.
        drain_timeout: seconds that a server's running requests get before it is stopped.
        vram_timeout: seconds for the driver to free the memory of a stopped server's GPUs.
        watchdog: seconds for which a server may hang before it is ended, so that Docker starts it again; 0 for ever.
        check: only tell what would be done.
        check_config: whether the image's vLLM parses a new configuration before anything is touched.
        history_keep: number of deployments to keep in the host's history.
    """

    config_dir: str
    hf_home: str
    cache_dir: str
    prefix: str
    docker_host: str
    wait: bool = True
    limits: Limits = dataclasses.field(default_factory=Limits)
    drain_timeout: int = 60
    vram_timeout: int = 60
    watchdog: int = 300
    check: bool = False
    check_config: bool = True
    history_keep: int = 10


@dataclasses.dataclass
class Step:
    """What is to be done about one replica.

    Attributes:
        name: of the replica.
        spec: what it should be; None for one that is no longer wanted.
        old: the container that runs it now, if any.
        changes: why C(old) cannot stay.
        action: none, created, replaced, started, restarted, updated or removed.
        why: for people.
        new: the container that takes over.
        resumed: whether C(new) was made by an earlier run that did not get to its end.
        aside: with C(resumed), the server that the earlier run has stopped for C(new), if it did.
        was_running: whether C(old) ran.
        old_policy: the restart policy that C(old) had.
        start: of the new container.
        drain: of the old container, or of the one that is restarted.
        serves: whether C(old) answers.
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
        return _resources(self.spec)

    def holds(self) -> set[str]:
        """Return the GPUs and ports that the old server holds, and those that the one set aside wants back."""
        boxes = [box for box in (self.old, self.aside) if box]
        return set().union(*(_resources(read_spec(box.labels)) for box in boxes))


def _resources(spec: Spec | None) -> set[str]:
    if spec is None:
        return set()
    return {f"gpu {gpu}" for gpu in spec["gpus"]} | {f"port {endpoint(spec)[1]}"}


class Deployment:
    """The servers of one host.

    Args:
        client: the Docker SDK's client.
        settings: how to go about it.
        secrets: environment variables that must not be seen; C(VLLM_API_KEY) among them if servers want a key.
        progress: told what is being done.
    """

    def __init__(
        self, client: DockerClient, settings: Settings, secrets: Mapping[str, str], progress: Progress
    ) -> None:
        self._client = client
        self._settings = settings
        self._secrets = dict(secrets)
        self._progress = progress
        self._recovered: list[str] = []
        self._unfinished: dict[str, Container] = {}
        self._waiting: set[str] = set()  # old servers that were not started again, for an unfinished one has their GPUs
        self._texts: dict[str, str] = {}
        self._changed_files = False
        self._drains: dict[str, dict[str, Any]] = {}
        self._warnings: list[str] = []
        self._recorded = ""
        self._history = History(client, settings.config_dir, settings.prefix, settings.history_keep)

    # States

    def present(
        self,
        replicas: Sequence[Mapping[str, Any]],
        wishes: ServerOptions,
        *,
        restart: bool = False,
        rolled_back_to: str = "",
    ) -> dict[str, Any]:
        """Have exactly these replicas run; with C(restart), restart those that need no replacement.

        Args:
            replicas: of the plan.
            wishes: what they share.
            restart: whether to restart those that need no replacement.
            rolled_back_to: id of the earlier deployment that this one brings back; empty if it brings back none.

        Returns:
            C(changed), C(replicas), C(removed), C(recovered), C(recorded), and C(diff) and C(warnings) for Ansible.

        Raises:
            GpufleetError: what would fail, before anything is touched; or why a server did not become ready.
        """
        minors = nvidia_minors()
        specs = [build_spec(replica, wishes, self._secrets, os.path.exists, minors) for replica in replicas]
        self._check_distinct(specs)
        if not self._settings.check:
            with self.recovered_on_failure():
                for spec in specs:
                    self._check_file(spec)
                    # Once, for whoever changes the file meanwhile must not change what is served and recorded.
                    self._texts[spec["name"]] = self._config_text(spec)
                check_model(wishes.model_source)
                for spec in specs:
                    server_files.check(spec, wishes.model_source, wishes.hf_home)
            self._recover({spec["name"]: spec for spec in specs})
        steps = self._steps(specs, restart)
        _join_unfinished(steps)
        if any(spec["restart_policy"].startswith("on-failure") for spec in specs):
            self._warnings.append(ON_FAILURE)
        self._check_ports(steps)
        self._check_gpus(steps)
        if self._settings.check_config:
            self._check_configs(steps)
        if not self._settings.check:
            self._make_folders()
            self._write_controls(specs)
            try:
                with engine_errors("changing the servers"):
                    self._act(steps)
            except GpufleetError as error:
                self._note(functools.partial(self._history.note_failed, specs, replicas, wishes, error))
                raise
            self._tidy(steps)
            if self._settings.wait:
                acted = bool(self._recovered) or any(step.action != "none" for step in steps)
                texts = {spec["name"]: self._config_text(spec) for spec in specs}
                brought_back = rolled_back_to if acted else ""
                self._note(functools.partial(self._history.note_ready, specs, replicas, wishes, texts, brought_back))
        return self._result(steps)

    def absent(self, names: Iterable[str], *, purge_caches: bool) -> dict[str, Any]:
        """Remove these replicas, or all of this prefix if C(names) is empty; with C(purge_caches) the caches too."""
        wanted = set(names)
        found = {name: box for name, box in self._containers().items() if not wanted or _base(name) in wanted}
        # A container may have been removed by hand, and its files, the one with secrets among them, be left.
        bases = sorted({_base(name) for name in found} | (wanted or self._with_files()))
        files = [path for name in bases for path in self._files_of(name)]
        caches = [path for path in (self._settings.hf_home, self._settings.cache_dir) if purge_caches]
        others = self._others_folders() if caches else {}
        caches = [check_removable(path, others) for path in caches if os.path.isdir(path)]
        history = self._history.paths() if not wanted else []
        if not self._settings.check:
            config_check.remove_left(self._client, self._settings.prefix)
            if not wanted:
                jobs.remove_left(self._client, prefix=self._settings.prefix)
            drains = {name: self._begin_drain(name, container) for name, container in sorted(found.items())}
            self._end_drains(list(drains.values()))
            for name, container in sorted(found.items()):
                self._progress.phase(f"{name}: stopping")
                self._stop(container, drains[name])
                self._remove(container)
            for name in bases:
                self._control(name).remove()
            for path in files:
                os.unlink(path)
            for folder in ("active", "control"):
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(self._settings.config_dir, folder))
            if not wanted:
                self._history.forget_all()
            for path in caches:
                self._progress.phase("removing caches", path)
                shutil.rmtree(path)
        removed = sorted(found)
        return {
            "changed": bool(found or files or history or caches),
            "replicas": [],
            "removed": removed,
            "removed_paths": files + history + caches,
            "drains": self._drains,
            "recovered": [],
            "recorded": "",
            "diff": [
                {"before_header": name, "after_header": name, "before": diff_text(read_spec(box.labels)), "after": ""}
                for name, box in sorted(found.items())
            ],
        }

    def running(self) -> str:
        """Return the fingerprint of the servers that are there, see history.select."""
        boxes = {name: box for name, box in self._containers().items() if _base(name) == name}
        return fingerprint(spec for spec in (read_spec(box.labels) for box in boxes.values()) if spec)

    def _note(self, record: Callable[[], str]) -> None:
        """Record something in the history; servers that serve are not a failure because that cannot be noted."""
        try:
            self._recorded = record()
        except (GpufleetError, OSError) as error:
            self._warnings.append(f"The deployment could not be recorded in the history of this host: {error}")

    # What is there

    def _containers(self) -> dict[str, Container]:
        """Return this deployment's containers by name, with -previous and -next."""
        with engine_errors("listing containers"):
            filters = filters_of(self._settings.prefix)
            found = self._client.containers.list(all=True, filters=filters, ignore_removed=True)
        named = ((str(box.name), box) for box in found)
        return {name: box for name, box in named if belongs_to(self._settings.prefix, name)}

    def _others_folders(self) -> dict[str, list[str]]:
        """Return the containers of this host's other deployments, with the folders that they mount."""
        prefix, label = self._settings.prefix, f"{LABEL_COLLECTION}={COLLECTION}"
        with engine_errors("listing containers"):
            found = self._client.api.containers(all=True, filters={"label": label})
        return {
            name: [mount["Source"] for mount in entry.get("Mounts") or [] if mount.get("Type") == "bind"]
            for entry in found
            for name in [str((entry.get("Names") or [""])[0]).lstrip("/")]
            if not belongs_to(prefix, name)
        }

    def _find(self, name: str) -> Container | None:
        from docker.errors import NotFound

        with engine_errors(f"looking for {name}"):
            try:
                return self._client.containers.get(name)
            except NotFound:
                return None

    # Checks before anything is touched

    def _check_distinct(self, specs: Sequence[Spec]) -> None:
        taken: dict[int, str] = {}
        for spec in specs:
            port = endpoint(spec)[1]
            if port in taken:
                raise GpufleetError(
                    f"The replicas {taken[port]} and {spec['name']} would both take port {port}.",
                    name="port-in-use",
                    remedy="Give each replica of a host a port of its own (vllm_port is the first one's).",
                )
            taken[port] = spec["name"]

    def _check_file(self, spec: Spec) -> None:
        path = self._config_path(spec["name"])
        if not os.path.isfile(path):
            raise GpufleetError(
                f"The configuration {path} of replica {spec['name']} is missing.",
                name="config-missing",
                remedy="Write it first with gpufleet.vllm.vllm_config (entry point config of the role"
                " gpufleet.vllm.vllm), and see that both use the same vllm_config_dir.",
            )

    def _check_ports(self, steps: Sequence[Step]) -> None:
        """Raise C(port-in-use) if a server could not have its port, before any is stopped."""
        starting = [step for step in steps if step.spec and step.action in ("created", "replaced", "started")]
        if not starting:
            return
        kinds = ("created", "replaced", "removed", "none", "restarted")
        ours = {step.old.id for step in steps if step.old and step.action in kinds}
        with engine_errors("listing containers"):
            others = [box for box in self._client.containers.list(ignore_removed=True) if box.id not in ours]
            own = [step.old for step in steps if step.old and step.old.id in ours]
        for step in starting:
            host, port = endpoint(_must(step.spec))
            for box in others:
                if port in published_ports(box):
                    raise port_in_use(step.name, host, port, f"the container {box.name}")
            held = any(port in published_ports(box) or _host_port(box) == port for box in own if _running(box))
            if not held and self._settings.docker_host.startswith("unix:"):
                problem = bind_problem(host, port)
                if problem == errno.EADDRINUSE:
                    raise port_in_use(step.name, host, port, listener(port))
                if problem == errno.EADDRNOTAVAIL:
                    raise GpufleetError(
                        f"This host has no address {host}, where replica {step.name} should listen.",
                        name="address-not-available",
                        remedy="Set vllm_host to an address of the host, 127.0.0.1 or 0.0.0.0.",
                    )

    def _check_gpus(self, steps: Sequence[Step]) -> None:
        """Raise C(gpu-memory-held) if somebody else holds memory that a server needs, before any is stopped."""
        kinds = ("created", "replaced", "started", "restarted")
        starting = [step for step in steps if step.spec and step.action in kinds]
        needs = gpus_memory.needs([_must(step.spec) for step in starting])
        if needs:
            gpus_memory.check_others(needs, {box.id for box in self._containers().values() if box.id})

    def _check_configs(self, steps: Sequence[Step]) -> None:
        """Raise C(config-refused) if the image's vLLM refuses the configuration of a server that is to be made."""
        candidates = [
            config_check.Candidate(step.spec, self._config_text(step.spec))
            for step in steps
            if step.spec and step.spec["image_id"].startswith("sha256:") and _unparsed(step)
        ]
        if candidates:
            first = candidates[0].spec["name"]
            others = f"(and {len(candidates) - 1} more)" if len(candidates) > 1 else ""
            self._progress.phase(f"{first}: checking the configuration", others)
            self._warnings += config_check.check_configs(
                self._client, candidates, self._settings.prefix, dry=self._settings.check
            )

    # What to do

    def _steps(self, specs: Sequence[Spec], restart: bool) -> list[Step]:
        steps = [self._step(spec, restart) for spec in specs]
        wanted = {spec["name"] for spec in specs}
        for name, container in sorted(self._containers().items()):
            # In check mode nothing was recovered, so leftovers of a wanted replica may still be there.
            if _base(name) not in wanted:
                why = ["not in the plan any more"]
                running = _running(container) or name in self._waiting
                steps.append(Step(name, None, container, action="removed", why=why, was_running=running))
        return steps

    def _step(self, spec: Spec, restart: bool) -> Step:
        name = spec["name"]
        container = self._find(name)
        if container is None:
            return Step(name, spec, None, action="created", why=["there was none"])
        if container.labels.get(LABEL_COLLECTION) != COLLECTION:
            raise GpufleetError(
                f"There is a container {name} that this collection did not make.",
                name="name-taken",
                remedy="Remove or rename it, or set vllm_container_prefix to a prefix of your own.",
                evidence=f"{container.name}: image {container.attrs['Config']['Image']}",
            )
        step = Step(name, spec, container, was_running=_running(container))
        status = health_status(base_url(spec)) if container.status == "running" else 0
        step.serves = status == 200
        step.changes = spec_changes(read_spec(container.labels), spec)
        step.changes += secret_changes(environment_of(container), self._secrets, read_spec(container.labels))
        if name in self._unfinished:
            step.action, step.resumed, step.aside = "replaced", True, self._unfinished[name]
            step.why = ["goes on with the replacement that an earlier run began"]
        elif step.changes:
            step.action, step.why = "replaced", [change.as_text() for change in step.changes]
        elif restart:
            step.action, step.why = "restarted", ["asked for (state restarted)"]
        elif not step.was_running:
            step.action, step.why = "started", [f"it was {container.status}"]
        elif container.status == "restarting":
            step.action, step.why = "restarted", ["it died again and again"]
        elif status == 503 and not self._control(name).closed():
            step.action, step.why = "restarted", ["its engine is dead: /health answers 503"]
        elif not step.serves and engine_ended(container):
            step.action, step.why = "restarted", ["its engine has ended, says its log, though its container runs"]
        elif _policy(container) != _policy_of(spec):
            step.action = "updated"
            step.changes = [Change("restart_policy", _policy(container)["Name"], spec["restart_policy"])]
            step.why = [change.as_text() for change in step.changes]
        return step

    # Doing it

    def _act(self, steps: Sequence[Step]) -> None:
        # A server that does not serve has nothing to lose, and the others go on serving meanwhile; so do those that are
        # not wanted any more, until what replaces them is known to work.
        steps = sorted(steps, key=lambda step: (step.action == "removed", step.serves))
        for step in steps:
            if step.action in ("restarted", "started"):
                self._restart(step)
        for group in _groups([step for step in steps if step.action in ("created", "replaced", "removed")]):
            if all(step.action == "removed" for step in group):
                self._end_all(group)
                for step in group:
                    self._remove(_must(step.old))
            else:
                self._replace(group)
        # Those that may stay: they may still be starting.
        waiting = [step for step in steps if step.action in ("none", "updated")]
        for step in waiting:
            step.new = step.old
        not_ready = [step for step in waiting if health_status(base_url(_must(step.spec))) != 200]
        self._wait(not_ready)
        for step in waiting:
            self._keep_running(step)

    def _restart(self, step: Step) -> None:
        """Start a server's own container, after ending it if it runs."""
        step.new = step.old
        if step.action == "restarted":
            self._end_all([step])
        self._start(step)
        self._wait([step])
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
        for step in group:
            self._keep_running(step)
            if step.old is not None and (self._settings.wait or step.new is None):
                self._remove(step.old)

    def _exchange(self, group: Sequence[Step]) -> None:
        """Stop the old servers of a group, start the new ones, and wait until they serve."""
        self._drain([step for step in group if step.old and not step.resumed])
        for step in group:
            if step.resumed:
                step.new, step.old = step.old, step.aside
            elif step.old:
                self._set_aside(step)
        for step in group:
            if step.new is not None:
                self._start(step)
        self._wait([step for step in group if step.new is not None])

    def _create_next(self, steps: Sequence[Step]) -> None:
        """Create the new containers, not started; none is left if the engine refuses one."""
        created: list[Container] = []
        for step in steps:
            spec = _must(step.spec)
            try:
                with engine_errors(f"creating the container of {step.name}"):
                    arguments = create_arguments(spec, self._secrets, self._copy_config(spec))
                    step.new = self._client.containers.create(name=step.name + NEXT, **arguments)
                created.append(step.new)
                self._check_image(spec)
            except GpufleetError as error:
                for container in created:
                    self._remove(container)
                self._drop_copies()
                raise self._refused(step, error) from error

    def _check_image(self, spec: Spec) -> None:
        """Raise C(image-moved) if the name, by which the container was made, stands for another image by now."""
        image = resolve_image(self._client, spec["image"])
        if image.id != spec["image_id"]:
            raise GpufleetError(
                f"The name {spec['image']} was given to another image while this run was at work.",
                name="image-moved",
                remedy="Another play works on this host. Run this one again when that one has ended.",
                evidence=f"{spec['image_id']} -> {image.id}",
            )

    def _set_aside(self, step: Step) -> None:
        from docker.errors import APIError

        old = _must(step.old)
        self._progress.phase(f"{step.name}: stopping the old server")
        step.old_policy = _kept_policy(old)
        with engine_errors(f"stopping the old server of {step.name}"):
            try:
                old.rename(step.name + PREVIOUS)
            except APIError:
                # Docker renames no container that is between two starts of a restart loop ("sandbox not found").
                old.update(restart_policy={"Name": "no"})
                self._stop(old, step.drain)
                old.rename(step.name + PREVIOUS)
                return
            old.update(restart_policy={"Name": "no"})
        self._stop(old, step.drain)

    # Ending servers

    def _control(self, name: str) -> Control:
        """Return the control folder of a replica, by the name of any of its containers."""
        return Control(os.path.join(self._settings.config_dir, "control", _base(name)))

    def _begin_drain(self, name: str, container: Container) -> Drain | None:
        """Have a server turn new requests away; None for one that does not run or whose address is not known."""
        with engine_errors(f"looking at {name}"):
            container.reload()
        spec = read_spec(container.labels)
        if spec is None or container.status != "running":
            return None
        return Drain(name, base_url(spec), self._control(name), self._settings.drain_timeout)

    def _end_drains(self, drains: Sequence[Drain | None]) -> None:
        """Wait for drains, and note what became of the requests."""
        begun = [drain for drain in drains if drain is not None]
        drain_all(begun, self._settings.drain_timeout, self._progress)
        self._drains.update({_base(drain.label): drain.as_result() for drain in begun})

    def _drain(self, steps: Sequence[Step]) -> None:
        """Let the old servers of some steps finish their requests, all at the same time."""
        for step in steps:
            step.drain = self._begin_drain(step.name, _must(step.old))
        self._end_drains([step.drain for step in steps])

    def _end_all(self, steps: Sequence[Step]) -> None:
        """Drain and stop the servers of some steps; those that a failure leaves running take requests again."""
        try:
            self._drain(steps)
            for step in steps:
                self._progress.phase(f"{step.name}: stopping")
                self._stop(_must(step.old), step.drain)
        finally:
            for step in steps:
                self._control(step.name).open()

    def _stop(self, container: Container, drain: Drain | None) -> None:
        """Stop a server that has drained; one that still has requests loses them."""
        from docker.errors import NotFound

        spec = read_spec(container.labels) or {}
        own_drain = int((spec.get("config") or {}).get("shutdown-timeout") or 0)
        seconds = ABORT_S if drain and drain.running else STOP_S
        if drain and not drain.turned_away and (drain.running or not drain.answered) and own_drain:
            # Not ours to close: then its vLLM turns requests away while it lets the others finish.
            seconds = min(own_drain, self._settings.drain_timeout) + ABORT_S
        with engine_errors(f"stopping {container.name}"), contextlib.suppress(NotFound):
            stop_container(container, seconds)
        self._control(str(container.name)).open()

    def _await_memory(self, spec: Spec) -> None:
        """Wait until the GPUs of a server have the memory that it takes."""
        needs = gpus_memory.needs([spec])
        if needs and not self._settings.check:
            gpus_memory.wait_until_free(needs, self._settings.vram_timeout, self._progress)

    def _write_controls(self, specs: Sequence[Spec]) -> None:
        """Write what the servers find in their control folders; it does not count as a change of theirs."""
        for spec in specs:
            control = self._control(spec["name"])
            watchdog = 0 if spec["restart_policy"] == "no" else self._settings.watchdog
            for path, text in control.files(watchdog).items():
                self._changed_files |= write_file(path, text, 0o644, variable=VARIABLE)

    def _start(self, step: Step) -> None:
        """Start the step's new container under its own name."""
        container = _must(step.new)
        if not _running(container):
            try:
                self._await_memory(_must(step.spec))
            except GpufleetError:
                # One that was stopped for this must not stay so because somebody took the memory meanwhile.
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
            raise self._refused(step, error) from error
        step.start = self._watch(container, step.name)

    def _watch(self, container: Container, label: str) -> Start:
        container.reload()
        spec = read_spec(container.labels)
        key = environment_of(container).get("VLLM_API_KEY", "")
        return Start(container, label, base_url(_must(spec)), key)

    def _refused(self, step: Step, error: GpufleetError) -> GpufleetError:
        """Return the cause of the engine's refusal to create or start a container, if it is a known one."""
        diagnosis = diagnose([error.evidence], what=f"The server {step.name} did not start")
        diagnosis.details["server"] = step.name
        return diagnosis if diagnosis.name != "unknown-failure" else error

    def _wait(self, steps: Sequence[Step]) -> None:
        """Wait until the steps' new containers serve."""
        if not self._settings.wait or not steps:
            return
        for step in steps:
            step.start = step.start or self._watch(_must(step.new), step.name)
        wait_for(
            [_must(step.start) for step in steps],
            self._settings.limits,
            self._progress,
        )

    def _keep_running(self, step: Step) -> None:
        """Give the new container the restart policy of its spec."""
        if step.spec is None or step.new is None:
            return
        step.new.reload()
        if _policy(step.new) != _policy_of(step.spec):
            with engine_errors(f"setting the restart policy of {step.name}"):
                step.new.update(restart_policy=_policy_of(step.spec))

    def _put_back(self, group: Sequence[Step], error: GpufleetError) -> None:
        """Remove the new servers of a failed group, and have the old ones as they were.

        New servers that replaced none and are ready stay. What becomes of the old ones is added to C(error).
        """
        alone = all(step.old is None for step in group)
        for step in group:
            if step.new is not None and not (alone and step.start is not None and step.start.ready):
                self._give_up(step, error)
        with contextlib.suppress(GpufleetError):
            self._drop_copies()
        olds = [step for step in group if step.old is not None]
        if not olds:
            return
        self._await_engine(error)
        problems: list[str] = []
        lost: list[str] = []
        starts: list[Start] = []
        for step in olds:
            old = _must(step.old)
            self._progress.phase(f"{step.name}: failed ({error.name}), putting the old server back")
            try:
                with engine_errors(f"starting the old server of {step.name}"):
                    self._restore(old, step.name, start=step.was_running or step.resumed, policy=step.old_policy)
                    # Without a spec it is not known where the server answers.
                    if (step.was_running or step.resumed) and read_spec(old.labels):
                        starts.append(self._watch(old, f"{step.name} (old)"))
            except GpufleetError as problem:
                lost.append(f"The old server of {step.name} could not be put back: {problem.as_text()}")
        if starts and self._settings.wait:
            try:
                wait_for(
                    starts,
                    self._settings.limits,
                    self._progress,
                )
            except GpufleetError as problem:
                problems.append(problem.as_text())
        names = ", ".join(step.name for step in olds)
        error.details["drains"] = self._drains
        error.details["restored"] = not problems and not lost
        error.details["restored_servers"] = [step.name for step in olds]
        if lost:
            error.message += " " + " ".join([*lost, *problems]) + " The next run of the play tries again."
        elif problems:
            error.message += f" The old server of {names} was put back, but it does not answer: " + " ".join(problems)
        elif starts and self._settings.wait:
            error.message += f" The old server of {names} was put back and answers again."
        else:
            error.message += f" The old server of {names} was put back as it was."

    def _await_engine(self, error: GpufleetError) -> None:
        """Wait for a while until the engine answers, for nothing can be put back by one that is being restarted."""
        deadline = time.monotonic() + ENGINE_AWAY_S
        while time.monotonic() < deadline:
            try:
                with engine_errors("answering"):
                    self._client.ping()
                return
            except GpufleetError:
                self._progress.phase(f"failed ({error.name}), waiting for the Docker engine to put the old server back")
                time.sleep(1)

    def _give_up(self, step: Step, error: GpufleetError) -> None:
        """Remove a new server that failed; one that cannot be removed must not keep the old one from coming back."""
        new = _must(step.new)
        try:
            self._remove(new)
        except GpufleetError as problem:
            error.message += f" The new server of {step.name} could not be removed: {problem.as_text()}"
            # The next run removes it by this name.
            with contextlib.suppress(GpufleetError), engine_errors(f"renaming {new.name}"):
                new.rename(step.name + NEXT)

    def _restore(self, old: Container, name: str, *, start: bool, policy: Any = None) -> None:
        """Name a container that was set aside as it was, give it its restart policy back, and start it.

        It takes requests again even if it was never stopped. After an interrupted run the policy is not known any more;
        then that of its spec counts.
        """
        self._control(name).open()
        old.reload()
        if old.name != name:
            old.rename(name)
        spec = read_spec(old.labels)
        policy = policy or (_policy_of(spec) if spec else None)
        if policy:
            old.update(restart_policy=policy)
        if start and not _running(old):
            if spec:
                # Whoever holds the memory of its GPUs: the old server is what there is, so it is started all the same.
                with contextlib.suppress(GpufleetError):
                    self._await_memory(spec)
            old.start()

    def _remove(self, container: Container) -> None:
        """Remove a container."""
        from docker.errors import APIError, NotFound

        with engine_errors(f"removing {container.name}"), contextlib.suppress(NotFound):
            try:
                container.remove(force=True)
            except APIError as error:
                # Somebody else is removing it at this moment: it will be gone as wanted.
                if error.status_code != HTTP_CONFLICT or "already in progress" not in str(error.explanation):
                    raise
                container.wait(condition="removed", timeout=STOP_S)

    # After an interrupted run

    def _recover(self, wanted: Mapping[str, Spec]) -> None:
        """Put right what an earlier run left unfinished, see the head of this file."""
        found = self._containers()
        for name in [name for name in found if name.endswith(NEXT)]:
            self._remove(found.pop(name))
            self._recovered.append(f"removed {name}, which an earlier run left")
        for name in wanted:
            if self._control(name).open():
                self._recovered.append(f"{name} takes requests again: its drain was interrupted")
        # Those that are wanted come first, so that it is known which GPUs an unfinished one has taken.
        left = [name for name in found if name.endswith(PREVIOUS)]
        for previous in sorted(left, key=lambda name: _base(name) not in wanted):
            name = _base(previous)
            self._recover_one(name, found.get(name), found[previous], wanted)

    def _recover_one(
        self, name: str, current: Container | None, previous: Container, wanted: Mapping[str, Spec]
    ) -> None:
        """Put one replica right of which the old container is still there."""
        spec = wanted.get(name)
        if current is not None and spec is not None and self._as_wanted(current, spec):
            if self._settings.wait:
                self._unfinished[name] = previous
            return
        current_spec = read_spec(current.labels) if current else None
        if current is not None and current_spec and health_status(base_url(current_spec)) == 200:
            with engine_errors(f"setting the restart policy of {name}"):
                current.update(restart_policy=_kept_policy(current))
            self._remove(previous)
            self._recovered.append(f"removed {previous.name}: the server that replaced it answers")
            return
        if current is not None:
            self._remove(current)
        taken = set().union(*(_resources(wanted[unfinished]) for unfinished in self._unfinished))
        if taken & _resources(read_spec(previous.labels)):
            self._waiting.add(name)
        with engine_errors(f"putting {previous.name} back"):
            self._restore(previous, name, start=name not in self._waiting)
        if name not in self._waiting:
            self._recovered.append(f"put the old server {name} back: its replacement was interrupted")

    @contextlib.contextmanager
    def recovered_on_failure(self) -> Iterator[None]:
        """Have the old servers serve that an interrupted run has stopped, if what is wanted now cannot be had."""
        try:
            yield
        except GpufleetError as error:
            with contextlib.suppress(GpufleetError):
                self._recover({})
            if self._recovered:
                error.message += f" What an interrupted run had left was put right: {'; '.join(self._recovered)}."
            raise

    def _as_wanted(self, container: Container, spec: Spec) -> bool:
        old = read_spec(container.labels)
        return not spec_changes(old, spec) and not secret_changes(environment_of(container), self._secrets, old)

    # Files

    def _config_path(self, name: str) -> str:
        return os.path.join(self._settings.config_dir, f"{name}.yaml")

    def _config_text(self, spec: Spec) -> str:
        """Return the text of the replica's configuration; in check mode nobody has written the file."""
        if spec["name"] in self._texts:
            return self._texts[spec["name"]]
        if self._settings.check:
            # JSON's texts and numbers are YAML's.
            entries = [f"{json.dumps(key)}: {json.dumps(value)}\n" for key, value in spec["config"].items()]
            return "".join(entries) or "{}\n"
        with open(self._config_path(spec["name"]), encoding="utf-8") as stream:
            return stream.read()

    def _files_of(self, name: str) -> list[str]:
        """Return the files that this class has written for a replica."""
        folder = self._settings.config_dir
        copies = os.path.join(folder, "active")
        own = [os.path.join(folder, name + suffix) for suffix in (".env", ".sh")]
        if os.path.isdir(copies):
            own += [os.path.join(copies, entry) for entry in sorted(os.listdir(copies)) if _copy_of(entry) == name]
        return [path for path in own if os.path.lexists(path)]

    def _with_files(self) -> set[str]:
        """Return the replicas of this prefix for which files were written, whether they have a container or not."""
        folder = self._settings.config_dir
        written = [os.path.basename(os.path.splitext(path)[0]) for path in glob.glob(os.path.join(folder, "*.sh"))]
        written += [_copy_of(os.path.basename(path)) for path in glob.glob(os.path.join(folder, "active", "*.yaml"))]
        return {name for name in written if belongs_to(self._settings.prefix, name)}

    def _make_folders(self) -> None:
        for path in [self._settings.hf_home, *(os.path.join(self._settings.cache_dir, name) for name in CACHES)]:
            if not os.path.isdir(path):
                os.makedirs(path, mode=0o755)

    def _copy_config(self, spec: Spec) -> str:
        """Return the copy of the replica's configuration that its container mounts, made if it is not there."""
        text = self._config_text(spec)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = os.path.join(self._settings.config_dir, "active", f"{spec['name']}-{digest}.yaml")
        # The image's user need not be root. Nothing in it is secret, and the folder keeps others on the host out.
        write_file(path, text, 0o644, folder_mode=0o750, variable=VARIABLE)
        return path

    def _tidy(self, steps: Sequence[Step]) -> None:
        """Write the run lines and secrets of the servers that run, and remove what belongs to none."""
        for step in steps:
            if step.spec is None:
                for path in self._files_of(_base(step.name)):
                    os.unlink(path)
                self._control(step.name).remove()
                continue
            folder = self._settings.config_dir
            secrets_file = os.path.join(folder, f"{step.name}.env")
            if self._secrets:
                secrets = run_line.secrets_text(self._secrets)
                self._changed_files |= write_file(secrets_file, secrets, 0o600, variable=VARIABLE)
            elif os.path.exists(secrets_file):
                os.unlink(secrets_file)
            text = run_line.script(self._run_line(step), step.name)
            path = os.path.join(folder, f"{step.name}.sh")
            self._changed_files |= write_file(path, text, 0o640, variable=VARIABLE)
        self._drop_copies()

    def _drop_copies(self) -> None:
        """Remove the copies of configurations that no container mounts."""
        copies = os.path.join(self._settings.config_dir, "active")
        mounted = {mounted_config(box) for box in self._containers().values()}
        for entry in sorted(os.listdir(copies)) if os.path.isdir(copies) else []:
            path = os.path.join(copies, entry)
            if path not in mounted and belongs_to(self._settings.prefix, _copy_of(entry)):
                os.unlink(path)

    def _run_line(self, step: Step) -> str:
        container = step.new or step.old
        spec = _must(step.spec)
        return run_line.docker_run_line(
            spec,
            config_file=(container and mounted_config(container)) or self._config_path(spec["name"]),
            secrets_file=os.path.join(self._settings.config_dir, f"{step.name}.env") if self._secrets else "",
            docker_host=self._settings.docker_host,
        )

    # Result

    def _result(self, steps: Sequence[Step]) -> dict[str, Any]:
        acted = [step for step in steps if step.action != "none"]
        return {
            "changed": bool(acted or self._recovered or self._changed_files or self._recorded),
            "replicas": [self._replica_result(step) for step in steps if step.spec],
            "removed": [step.name for step in steps if step.action == "removed"],
            "removed_paths": [],
            "drains": self._drains,
            "recovered": self._recovered,
            "recorded": self._recorded,
            "warnings": self._warnings,
            "diff": [
                {
                    "before_header": step.name,
                    "after_header": step.name,
                    "before": diff_text(read_spec(step.old.labels)) if step.old else "",
                    "after": diff_text(step.spec),
                }
                for step in acted
                if step.changes or step.action in ("created", "removed")
            ],
        }

    def _replica_result(self, step: Step) -> dict[str, Any]:
        spec = _must(step.spec)
        container = step.new or step.old
        start = step.start
        phases = start.watch.durations(time.time()) if start else []
        return {
            "name": step.name,
            "action": step.action,
            "why": step.why,
            "changes": [change.as_result() for change in step.changes],
            "container_id": container.id if container and not self._settings.check else "",
            "url": base_url(spec),
            "image": spec["image"],
            "image_id": spec["image_id"],
            "phases": phases,
            "ready_s": round(sum(phase["seconds"] for phase in phases), 1),
            "drain": self._drains.get(step.name, {}),
            "docker_run": self._run_line(step),
        }


# Small things


def _unparsed(step: Step) -> bool:
    """Return whether the step makes a server of which the configuration, or what reads it, is new."""
    if step.resumed:
        return False
    return step.action == "created" or (step.action == "replaced" and config_check.matters(step.changes))


def _must(value: Any) -> Any:
    """Return a value that the caller knows to be there."""
    if value is None:
        raise AssertionError("a step lacks what its action needs")
    return value


def _base(name: str) -> str:
    for suffix in (PREVIOUS, NEXT):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def _copy_of(entry: str) -> str:
    return entry.rpartition("-")[0]


def _running(container: Container) -> bool:
    return container.status in ("running", "restarting", "paused")


def _policy(container: Container) -> dict[str, Any]:
    policy = container.attrs["HostConfig"].get("RestartPolicy") or {}
    return {"Name": policy.get("Name") or "no", "MaximumRetryCount": policy.get("MaximumRetryCount") or 0}


def _policy_of(spec: Spec) -> Any:
    name, _colon, count = str(spec["restart_policy"]).partition(":")
    return {"Name": name or "no", "MaximumRetryCount": int(count or 0)}


def _kept_policy(container: Container) -> Any:
    """Return the restart policy that a container is to have; one of ours without any is in the middle of something."""
    policy, spec = _policy(container), read_spec(container.labels)
    return _policy_of(spec) if spec and policy["Name"] == "no" else policy


def _unexpected(group: Sequence[Step], problem: Exception) -> GpufleetError:
    """Return the error for what nobody thought of, in the middle of a replacement."""
    names = ", ".join(step.name for step in group)
    return GpufleetError(
        f"Replacing {names} failed: {type(problem).__name__}.",
        name="unexpected-failure",
        remedy="See whether the host's disk is full or read-only; otherwise report this with the traceback (-vvv).",
        evidence=str(problem),
    )


def _host_port(container: Container) -> int:
    """Return the port that one of our containers on the host's network takes; 0 for any other."""
    spec = read_spec(container.labels)
    return endpoint(spec)[1] if spec and not spec["publish"] else 0


def published_ports(container: Container) -> set[int]:
    """Return the host's ports that a container publishes."""
    bindings = container.attrs["HostConfig"].get("PortBindings") or {}
    return {int(entry["HostPort"]) for entries in bindings.values() for entry in entries or [] if entry.get("HostPort")}


def mounted_config(container: Container) -> str:
    """Return the host file that a container mounts as its configuration; empty if there is none."""
    for bind in container.attrs["HostConfig"].get("Binds") or []:
        source, _colon, rest = bind.partition(":")
        if rest.split(":")[0] == CONFIG_PATH:
            return str(source)
    return ""


def environment_of(container: Container) -> dict[str, str]:
    """Return the container's environment variables."""
    return _variables(container.attrs["Config"].get("Env"))


def _variables(entries: Iterable[str] | None) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in entries or [])
    return {name: value for name, _equals, value in pairs}


def health_status(url: str) -> int:
    """Return the HTTP status of the server's /health; 0 when nothing answers."""
    try:
        Server(url, timeout=HEALTH_TIMEOUT_S).request("GET", "/health")
    except GpufleetError as error:
        return int(error.details.get("status", 0))
    return 200


def check_model(model_source: Mapping[str, str]) -> None:
    """Raise C(model-folder-missing) unless the folder to mount is there and holds a model."""
    folder = model_source.get("mount") or ""
    if not folder:
        return
    missing = "there is no such folder"
    if os.path.isdir(folder):
        if os.path.isfile(os.path.join(folder, "config.json")):
            return
        missing = "it has no config.json"
    raise GpufleetError(
        f"The model folder {folder} is not usable: {missing}.",
        name="model-folder-missing",
        remedy="Set vllm_model to a folder on the host that holds config.json and the weights, or to a model's name at"
        " the hub.",
    )


def check_removable(path: str, others: Mapping[str, Iterable[str]] | None = None, root: str = "/") -> str:
    """Return a cache folder that may be removed with all it holds.

    Args:
        path: the folder.
        others: names of other deployments' containers to the host's folders that they mount.
        root: the folder below which proc is mounted.

    Raises:
        GpufleetError: C(cache-not-removable) for the root and folders just below it, for file systems of their own or
            of the network, and for what others mount.
    """
    real = os.path.realpath(path)
    why = ""
    if len([part for part in real.split("/") if part]) < 2 or real == os.path.expanduser("~"):
        why = "it is too high in the file system to be only a cache"
    mounts = _mounts(root)
    inside = sorted(point for point in mounts if _is_below(point, real))
    nearest = max((point for point in mounts if _is_below(real, point)), key=len, default="")
    if inside:
        why = why or f"{inside[0]} is a file system of its own ({mounts[inside[0]]})"
    elif mounts.get(nearest, "").startswith(NETWORK_FILESYSTEMS):
        why = why or f"{nearest} is {mounts[nearest]}, which other hosts may share"
    for name, folders in sorted((others or {}).items()):
        shared = [
            folder for folder in map(os.path.realpath, folders) if _is_below(folder, real) or _is_below(real, folder)
        ]
        why = why or (f"{name} of another deployment mounts {shared[0]}" if shared else "")
    if not why:
        return path
    raise GpufleetError(
        f"The cache folder {path} is not removed: {why}.",
        name="cache-not-removable",
        remedy="Remove by hand what you mean, without vllm_purge_caches. To purge all the rest, name folders of this"
        " deployment alone in vllm_hf_home and vllm_cache_dir for this run.",
    )


def _mounts(root: str) -> dict[str, str]:
    """Return the file systems by where they are mounted."""
    found = {}
    for line in read_text(root, "proc/mounts").splitlines():
        fields = line.split(" ")
        if len(fields) > 2:
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), fields[1])
            found[point] = fields[2]
    return found


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


@dataclasses.dataclass(frozen=True)
class Image:
    """An image on this host.

    Attributes:
        id: C(sha256:...), or C((not here yet)).
        python_path: the C(PYTHONPATH) that it sets.
    """

    id: str
    python_path: str = ""


def resolve_image(client: DockerClient, reference: str, *, missing_ok: bool = False) -> Image:
    """Return the image that a reference names here; one that is C((not here yet)) if it may be missing and is.

    Raises:
        GpufleetError: C(image-missing).
    """
    from docker.errors import ImageNotFound

    with engine_errors(f"looking for the image {reference}"):
        try:
            image = client.images.get(reference)
        except ImageNotFound as error:
            if missing_ok:
                return Image("(not here yet)")
            raise image_missing(reference, error, NO_IMAGE) from error
    return Image(str(image.id), _variables(image.attrs["Config"].get("Env")).get("PYTHONPATH", ""))


def _groups(steps: Sequence[Step]) -> Iterator[list[Step]]:
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


def _join_unfinished(steps: Sequence[Step]) -> None:
    """Make the servers that an interrupted replacement has started beside another a part of that replacement again.

    If that one fails, they have to give its GPUs back to the old server, as they would have had to then.
    """
    wanted_back = set().union(*(_resources(read_spec(step.aside.labels)) for step in steps if step.aside))
    for step in steps:
        if step.action in ("none", "updated") and step.needs() & wanted_back:
            step.action, step.resumed, step.changes = "created", True, []
            step.why = ["goes on with the replacement that an earlier run began"]


def _linked(one: Step, other: Step) -> bool:
    return bool(one.needs() & other.holds() or one.holds() & other.needs())
