# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of what serves on a host, C(<config_dir>/plan.json): written when servers have answered, not before.

The router, verification and people read it. A run takes its own plan over replica by replica, as their servers answer,
so that a run that fails or is killed leaves the plan of what serves. Before it changes a server it writes what it is
about to serve to C(plan.unfinished.json), and removes that at its end. A server that a killed run has started may
answer later: which one that is, the digests in that file tell.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import base_name, belongs_to, filters_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import base_url, read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import health_status
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.config_file import render_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.history_entries import fingerprint

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PLAN_FILE = "plan.json"
UNFINISHED_FILE = "plan.unfinished.json"
VARIABLE = "vllm_config_dir"  # moves both elsewhere


class AppliedPlan:
    """The applied plan of one host.

    Args:
        config_dir: folder that holds it.
        wanted: the plan of this run; empty for servers that are not made from one, whose plan is not kept.

    Attributes:
        changed: whether it was changed.
        difference: what this run makes of it, as Ansible shows it; empty if it stays as it is.

    Raises:
        GpufleetError: `config-secret` when the plan holds an API key or a token.
    """

    def __init__(self, config_dir: str, wanted: Mapping[str, Any]) -> None:
        self.changed = False
        self._folder = config_dir
        self._path = os.path.join(config_dir, PLAN_FILE)
        self._unfinished = os.path.join(config_dir, UNFINISHED_FILE)
        self._wanted = wanted
        self._answered: set[str] = set()
        after, before = render_plan(wanted) if wanted else "", read_text(self._path)
        both = {"before_header": self._path, "after_header": self._path, "before": before, "after": after}
        self.difference = [both] if after not in ("", before) else []

    def settle(self, containers: Mapping[str, Container], resumed: Collection[str]) -> None:
        """Take over what answers by now of a run that was killed.

        Args:
            containers: of this deployment, by name.
            resumed: those that this run goes on with; they have to show first that they serve.
        """
        if os.path.exists(self._unfinished):
            there = {name: container for name, container in containers.items() if name not in resumed}
            self._write(served_plan(self._folder, there))

    def begin(self, specs: Iterable[Spec]) -> None:
        """Note what is about to be served."""
        if self._wanted:
            servers = {spec["name"]: fingerprint([spec]) for spec in specs}
            text = json.dumps({"servers": servers, "plan": self._wanted}, indent=2, ensure_ascii=False) + "\n"
            write_file(self._unfinished, text, 0o640, variable=VARIABLE)

    def answered(self, names: Collection[str], gone: Collection[str] = ()) -> None:
        """Take over the replicas whose servers have answered, and drop those that serve no more."""
        if self._wanted and (names or gone):
            self._answered.update(names)
            before = read_plan(self._folder)
            plan = merged(before, self._wanted, self._answered, gone)
            if before or plan["replicas"]:
                self._write(plan)

    def complete(self) -> None:
        """Take over the whole plan: all its servers have answered, and no other is left."""
        if self._wanted:
            self._write(self._wanted)
            self._remove(self._unfinished)

    def forget(self, names: Collection[str], prefix: str, *, check: bool) -> list[str]:
        """Drop these replicas, or all of this prefix; with the last one the file goes. Return the file if it goes."""
        plan = read_plan(self._folder)
        replicas = plan.get("replicas") or []
        gone = names or [replica["name"] for replica in replicas if belongs_to(prefix, replica["name"])]
        stay = [replica for replica in replicas if replica["name"] not in gone]
        if len(stay) == len(replicas):
            return []
        self.changed = True
        if not check and stay:
            self._write({**plan, "replicas": stay})
        elif not check:
            self._remove(self._path)
        return [] if stay else [self._path]

    def _write(self, plan: Mapping[str, Any]) -> None:
        if plan:
            self.changed |= write_file(self._path, render_plan(plan), 0o640, keep=True, variable=VARIABLE)

    def _remove(self, path: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise write_failed(path, error, VARIABLE) from error


def read_plan(config_dir: str, name: str = PLAN_FILE) -> Mapping[str, Any]:
    """Return the document of that name; empty when there is none that can be read."""
    try:
        plan = json.loads(read_text(config_dir, name) or "{}")
    except ValueError:
        return {}
    return plan if isinstance(plan, dict) else {}


def merged(
    before: Mapping[str, Any], wanted: Mapping[str, Any], answered: Collection[str], gone: Collection[str] = ()
) -> Mapping[str, Any]:
    """Return the plan of a host that serves some replicas of a new plan, and others still of the one before.

    What is not told by replica, such as the image, is that of the new plan once all its replicas have answered.

    Args:
        before: the applied plan; empty if there is none.
        wanted: the new one.
        answered: replicas of the new one of which the servers have answered.
        gone: replicas of the one before that serve no more.
    """
    new = {replica["name"]: replica for replica in wanted["replicas"]}
    old = {replica["name"]: replica for replica in before.get("replicas") or [] if replica["name"] not in gone}
    taken_over = new.keys() <= set(answered)
    if taken_over and old.keys() <= new.keys():
        return wanted
    replicas = {**old, **{name: replica for name, replica in new.items() if name in answered}}
    return {**(wanted if taken_over or not before else before), "replicas": list(replicas.values())}


def served_plan(config_dir: str, containers: Mapping[str, Container]) -> Mapping[str, Any]:
    """Return the plan of what serves: the applied one, and of a run that was killed the replicas that answer by now.

    Args:
        config_dir: folder that holds both.
        containers: of the deployment, by name, `-previous` and `-next` included.
    """
    before, unfinished = read_plan(config_dir), read_plan(config_dir, UNFINISHED_FILE)
    servers = unfinished.get("servers") or {}
    answering = [name for name in servers if _serves(containers.get(name), servers[name])]
    if not answering:
        return before
    there = {base_name(name) for name in containers}
    gone = {replica["name"] for replica in before.get("replicas") or []} - there
    return merged(before, unfinished["plan"], answering, gone)


def _serves(container: Container | None, digest: str) -> bool:
    """Return whether the server of this digest answers in a container."""
    spec = read_spec(container.labels) if container else None
    return spec is not None and fingerprint([spec]) == digest and health_status(base_url(spec)) == 200


def plan_of_host(client: DockerClient, prefix: str, config_dir: str) -> Mapping[str, Any]:
    """Return the plan of what serves on a host; only what an interrupted run left makes it ask the engine."""
    if not os.path.exists(os.path.join(config_dir, UNFINISHED_FILE)):
        return read_plan(config_dir)
    with engine_errors("listing containers"):
        found = client.containers.list(all=True, filters=filters_of(prefix), ignore_removed=True)
    return served_plan(config_dir, {str(container.name): container for container in found})
