# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The containers of one deployment on this host, and what every step of a run does with them."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import (
    is_running,
    key_to_ask_with,
    wanted_policy,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import (
    COLLECTION,
    LABEL_COLLECTION,
    base_name,
    belongs_to,
    filters_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import base_url, read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import memory
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import health_status
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.waiting import Start, engine_ended
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.history_entries import fingerprints
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Found

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container


HTTP_CONFLICT = 409
REMOVAL_S = 30


class OwnContainers:
    """The containers of one deployment.

    Args:
        client: the Docker SDK's client.
        settings: how to go about it.
        progress: told what is being done.
    """

    def __init__(self, client: DockerClient, settings: Settings, progress: Progress) -> None:
        self.client = client
        self._settings = settings
        self._progress = progress

    def by_name(self) -> dict[str, Container]:
        """Return this deployment's containers by name, `-previous` and `-next` included."""
        with engine_errors("listing containers"):
            filters = filters_of(self._settings.prefix)
            found = self.client.containers.list(all=True, filters=filters, ignore_removed=True)
        named = ((str(container.name), container) for container in found)
        return {name: container for name, container in named if belongs_to(self._settings.prefix, name)}

    def running(self) -> tuple[str, str]:
        """Return the fingerprints of the servers that are there, see history_entries.select."""
        specs = (read_spec(container.labels) for name, container in self.by_name().items() if base_name(name) == name)
        return fingerprints(spec for spec in specs if spec)

    def folders_of_others(self) -> dict[str, list[str]]:
        """Return the containers of this host's other deployments, with the folders that they mount."""
        with engine_errors("listing containers"):
            found = self.client.api.containers(all=True, filters={"label": f"{LABEL_COLLECTION}={COLLECTION}"})
        return {
            name: [mount["Source"] for mount in entry.get("Mounts") or [] if mount.get("Type") == "bind"]
            for entry in found
            for name in [str((entry.get("Names") or [""])[0]).lstrip("/")]
            if not belongs_to(self._settings.prefix, name)
        }

    def find(self, name: str) -> Container | None:
        """Return the container of this name, whoever made it; None if there is none."""
        from docker.errors import NotFound

        with engine_errors(f"looking for {name}"):
            try:
                return self.client.containers.get(name)
            except NotFound:
                return None

    def look_at(self, spec: Spec) -> Found:
        """Return what is there of a replica.

        Raises:
            GpufleetError: `name-taken` for a container that this collection did not make.
        """
        container = self.find(spec["name"])
        if container is None:
            return Found()
        if container.labels.get(LABEL_COLLECTION) != COLLECTION:
            raise GpufleetError(
                f"There is a container {spec['name']} that this collection did not make.",
                name="name-taken",
                remedy="Remove or rename it, or set vllm_container_prefix to a prefix of your own.",
                evidence=f"{container.name}: image {container.attrs['Config']['Image']}",
            )
        return Found(
            container,
            health=health_status(base_url(spec)) if container.status == "running" else 0,
            closed=self.control(spec["name"]).closed(),
            engine_ended=functools.partial(engine_ended, container),
        )

    def control(self, name: str) -> Control:
        """Return the control folder of a replica, by the name of any of its containers."""
        return Control(os.path.join(self._settings.config_dir, "control", base_name(name)))

    def watch(self, container: Container, label: str) -> Start:
        """Return the start of a server of ours that runs, to be waited for."""
        container.reload()
        spec = read_spec(container.labels)
        if spec is None:
            raise AssertionError(f"{container.name} has no spec, so its address is not known")
        return Start(container, label, base_url(spec), key_to_ask_with(container, self._settings.config_dir))

    def await_memory(self, spec: Spec) -> None:
        """Wait until the GPUs of a server have the memory that it takes."""
        needs = memory.needs([spec])
        if needs and not self._settings.check:
            memory.wait_until_free(needs, self._settings.vram_timeout, self._progress)

    def restore(self, old: Container, name: str, *, start: bool, policy: Any = None) -> None:
        """Give a container that was set aside its name and restart policy back, and start it.

        It takes requests again even if it was never stopped. After an interrupted run its policy is not known any
        more; then the policy of its spec counts.
        """
        self.control(name).open()
        old.reload()
        if old.name != name:
            old.rename(name)
        spec = read_spec(old.labels)
        policy = policy or (wanted_policy(spec) if spec else None)
        if policy:
            old.update(restart_policy=policy)
        if start and not is_running(old):
            if spec:
                # The old server is what there is, so it is started even if something else holds its GPUs' memory.
                with contextlib.suppress(GpufleetError):
                    self.await_memory(spec)
            old.start()

    def remove(self, container: Container) -> None:
        """Remove a container, whether it runs or not."""
        from docker.errors import APIError, NotFound

        with engine_errors(f"removing {container.name}"), contextlib.suppress(NotFound):
            try:
                container.remove(force=True)
            except APIError as error:
                # Something else is removing it at this moment: it will be gone as wanted.
                if error.status_code != HTTP_CONFLICT or "already in progress" not in str(error.explanation):
                    raise
                container.wait(condition="removed", timeout=REMOVAL_S)
