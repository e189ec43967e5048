# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would fail, found before anything is touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import (
    host_port,
    is_running,
    publishing_addresses,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import base_name
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import endpoint
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import memory
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import (
    addresses_of,
    bind_problem,
    clash,
    listener,
    port_in_use,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import resolve_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import config_check
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replica_files import ReplicaFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Step, required

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container


# Docker itself sees the host's ports only where it runs: an engine elsewhere is not asked by binding them here.
LOCAL = "unix:"


def check_distinct_ports(specs: Sequence[Spec]) -> None:
    """Raise `port-in-use` if two replicas would take the same port."""
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


def check_ports(own: OwnContainers, settings: Settings, steps: Sequence[Step]) -> None:
    """Raise `port-in-use` or `address-not-available` if a server could not have its port, before any is stopped."""
    starting = [step for step in steps if step.spec and step.action in ("created", "replaced", "started")]
    if not starting:
        return
    kinds = ("created", "replaced", "removed", "none", "restarted")
    ours = {step.old.id: step.old for step in steps if step.old and step.action in kinds}
    # What an interrupted run left beside its replicas is put right before anything starts; a look, in check mode, meets
    # it still there.
    ours.update({box.id: box for name, box in own.by_name().items() if base_name(name) != name})
    with engine_errors("listing containers"):
        others = [box for box in own.client.containers.list(ignore_removed=True) if box.id not in ours]
    for step in starting:
        host, port = endpoint(required(step.spec))
        for container in others:
            if _publishes(container, host, port):
                raise port_in_use(step.name, host, port, f"the container {container.name}")
        held = any(
            _publishes(container, host, port) or host_port(container) == port
            for container in ours.values()
            if is_running(container)
        )
        if not held and settings.docker_host.startswith(LOCAL):
            _check_bind(step.name, host, port)


def _publishes(container: Container, host: str, port: int) -> bool:
    """Return whether a container publishes a port where a server should listen."""
    return any(clash(address, addresses_of(host)) for address in publishing_addresses(container, port))


def _check_bind(name: str, host: str, port: int) -> None:
    """Raise an error if this host cannot listen at an address of its own."""
    problem = bind_problem(host, port)
    if problem == errno.EADDRINUSE:
        raise port_in_use(name, host, port, listener(port))
    if problem == errno.EADDRNOTAVAIL:
        raise GpufleetError(
            f"This host has no address {host}, where replica {name} should listen.",
            name="address-not-available",
            remedy="Set vllm_host to an address of the host, 127.0.0.1 or 0.0.0.0.",
        )


def check_gpus(own: OwnContainers, steps: Sequence[Step]) -> None:
    """Raise `gpu-memory-held` if something else holds memory that a server needs, before any is stopped."""
    kinds = ("created", "replaced", "started", "restarted")
    needs = memory.needs([step.spec for step in steps if step.spec and step.action in kinds])
    if needs:
        memory.check_others(needs, {container.id for container in own.by_name().values() if container.id})


def check_configs(
    client: DockerClient, settings: Settings, files: ReplicaFiles, steps: Sequence[Step], progress: Progress
) -> list[str]:
    """Raise `config-refused` if the image's vLLM refuses the configuration of a server that is to be made.

    Returns:
        warnings about configurations that could not be checked.
    """
    candidates = [
        config_check.Candidate(step.spec, files.config_text(step.spec))
        for step in steps
        if step.spec and step.spec["image_id"].startswith("sha256:") and _is_unparsed(step)
    ]
    if not candidates:
        return []
    others = f"(and {len(candidates) - 1} more)" if len(candidates) > 1 else ""
    progress.phase(f"{candidates[0].spec['name']}: checking the configuration", others)
    return config_check.check_configs(client, candidates, settings.prefix, dry=settings.check)


def _is_unparsed(step: Step) -> bool:
    """Return whether the step makes a server of which the configuration, or what reads it, is new."""
    if step.resumed:
        return False
    return step.action == "created" or (step.action == "replaced" and config_check.matters(step.changes))


def check_image(client: DockerClient, spec: Spec) -> None:
    """Raise `image-moved` if the name, by which a container was made, stands for another image by now."""
    image = resolve_image(client, spec["image"])
    if image.id != spec["image_id"]:
        raise GpufleetError(
            f"The name {spec['image']} was given to another image while this run was at work.",
            name="image-moved",
            remedy="Another play works on this host. Run this one again when that one has ended.",
            evidence=f"{spec['image_id']} -> {image.id}",
        )


def check_model(model_source: Mapping[str, str]) -> None:
    """Raise `model-folder-missing` unless the folder to mount is there and holds a model."""
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
