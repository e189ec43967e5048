# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is and has, in one look, with the standard library alone.

The parts are independent: a part that cannot be read is None, and `errors` says why. Nothing raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, TypedDict, cast

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import (
    program_path,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import (
    DaemonConfigInfo,
    EngineInfo,
    ImageInfo,
    daemon_config,
    engine,
    image,
    pull_settings,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import hub_model as at_hub
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import reach, registries
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.boot import BootInfo, boot
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.nvidia import NvidiaInfo, nvidia
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import PortInfo, address_available, ports_in_use
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.python import BundleInfo, VenvInfo, ca_bundle, venv
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.reach import ReachInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.system import (
    ClockInfo,
    CpuInfo,
    DiskInfo,
    MemoryInfo,
    SharedMemoryInfo,
    SystemInfo,
    clock,
    cpu,
    disk,
    memory,
    proxies,
    shared_memory,
    system,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import (
    ModelInfo,
    WeightsInfo,
    look_at_model,
    weights,
)


class HostInfo(TypedDict, total=False):
    """What the module host_info tells of a host. It tells every part, and None for one that it could not look at.

    The controller may have asked no host: then every part is missing.
    """

    system: SystemInfo | None
    cpu: CpuInfo | None
    memory: MemoryInfo | None
    shm: SharedMemoryInfo | None
    clock: ClockInfo | None
    proxies: list[str] | None
    ca_bundle: BundleInfo | None
    venv: VenvInfo | None
    engine: EngineInfo | None
    daemon_config: DaemonConfigInfo | None
    nvidia: NvidiaInfo | None
    boot: BootInfo | None
    programs: dict[str, str | None] | None
    disks: dict[str, DiskInfo] | None
    address_available: bool | None
    ports: list[PortInfo] | None
    model: ModelInfo | None
    weights: list[WeightsInfo] | None
    image: ImageInfo | None
    image_alternatives: dict[str, ImageInfo] | None
    reach: dict[str, ReachInfo] | None
    errors: dict[str, str]


@dataclass(frozen=True)
class Questions:
    """What the roles ask of a host: the options of the module host_info, by their names."""

    docker_host: str
    venv: str | None = None
    requirements: Sequence[str] = ()
    paths: Sequence[str] = ()
    ports: Sequence[int] = ()
    host: str = "127.0.0.1"
    programs: Sequence[str] = ()
    model_path: str | None = None
    image_reference: str = ""
    image_alternatives: Sequence[str] = ()
    weights_paths: Sequence[str] = ()
    registry: str = ""
    registry_username: str = ""
    registry_password: str = field(default="", repr=False)
    registry_ca: str = ""
    registry_proxy: str = ""
    registry_no_proxy: str = ""
    registry_mirrors: Sequence[str] = ()
    insecure_registries: Sequence[str] = ()
    package_index: str = ""
    package_index_user: str = field(default="", repr=False)
    package_index_proxy: str = field(default="", repr=False)
    hub: str = ""
    hub_proxy: str = ""
    hub_no_proxy: str = ""
    hub_ca_bundle: str = ""
    hub_model: str = ""
    hub_revision: str = "main"
    hub_endpoint: str = at_hub.HUB
    hf_token: str = field(default="", repr=False)
    asked_at: float | None = None


class Parts:
    """What is known of the host so far.

    Attributes:
        found: each part by its name; None where it could not be read, or was not asked for.
        errors: why a part could not be read, by its name.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.errors: dict[str, str] = {}

    def read(self, name: str, look: Callable[[], Any]) -> None:
        """Read one part; an error of it is noted."""
        try:
            self.found[name] = look()
        except Exception as error:
            self.found[name] = None
            self.errors[name] = f"{type(error).__name__}: {error}"


def probe(questions: Questions, root: str = "/") -> HostInfo:
    """Return everything that the roles ask of a host, as plain data; see DOCUMENTATION and RETURN of host_info.

    Args:
        questions: what is asked.
        root: where the host's file system is mounted.
    """
    parts = Parts()
    _read_system(parts, questions, root)
    _read_files(parts, questions)
    _read_engine(parts, questions, root)
    _read_images(parts, questions)
    parts.read("reach", lambda: reach.ask_all(_addresses_to_ask(parts, questions, root)))
    _read_ports(parts, questions, root)
    return cast(HostInfo, {**parts.found, "errors": parts.errors})


def _read_system(parts: Parts, questions: Questions, root: str) -> None:
    """Read what the host's own files say of its hardware and its operating system."""
    parts.read("system", lambda: system(root))
    parts.read("cpu", lambda: cpu(root))
    parts.read("memory", lambda: memory(root))
    parts.read("shm", lambda: shared_memory(root))
    parts.read("clock", lambda: clock(root, questions.asked_at))
    parts.read("proxies", proxies)
    parts.read("ca_bundle", lambda: ca_bundle(root))
    parts.read("nvidia", lambda: nvidia(root))
    parts.read("boot", lambda: boot(root))


def _read_files(parts: Parts, questions: Questions) -> None:
    """Read what is installed and which weights are there."""
    folder = questions.venv
    parts.read("venv", lambda: venv(folder, list(questions.requirements)) if folder else None)
    parts.read("programs", lambda: {name: program_path(name) for name in questions.programs})
    parts.read("model", lambda: _model(questions, (parts.found["ca_bundle"] or {}).get("path", "")))
    parts.read("weights", lambda: [weights(path) for path in questions.weights_paths])


def _model(questions: Questions, host_bundle: str) -> ModelInfo | None:
    """Return what is told of the model: by its folder, or else by the hub where the host is to ask it."""
    found = look_at_model(questions.model_path) if questions.model_path else None
    if not questions.hub_model or (found and found.get("config")):
        return found
    way = hub_route(questions, host_bundle)
    name, revision = questions.hub_model, questions.hub_revision
    try:
        return at_hub.read(at_hub.HubQuestion(name, revision, questions.hub_endpoint, questions.hf_token, way))
    except reach.Unreachable as error:
        return {"path": name, "exists": False, "config": None, "config_error": f"The hub was asked: {error}."}


def _read_engine(parts: Parts, questions: Questions, root: str) -> None:
    """Read the state of the Docker engine, and how much room there is in the asked folders and in its own."""
    parts.read("engine", lambda: engine(questions.docker_host))
    parts.read("daemon_config", lambda: daemon_config(root))
    found = parts.found["engine"] or {}
    # With the containerd image store logs are not where images are.
    own = [found["image_dir"], found.get("root_dir") or found["image_dir"]] if found.get("image_dir") else []
    parts.read("disks", lambda: {path: disk(path, root) for path in [*questions.paths, *own]})


def _read_images(parts: Parts, questions: Questions) -> None:
    """Ask a running engine for the image, and for those that would do instead."""
    running = (parts.found["engine"] or {}).get("running")
    reference = questions.image_reference if running else ""
    others = questions.image_alternatives if running else ()
    address = questions.docker_host
    parts.read("image", lambda: image(address, reference) if reference else None)
    parts.read("image_alternatives", lambda: {name: found for name in others if (found := image(address, name))})


def _addresses_to_ask(parts: Parts, questions: Questions, root: str) -> dict[str, Callable[[], ReachInfo]]:
    """Return how to ask the registry and the hub, each only where what it has is not on the host yet."""
    found = parts.found
    to_ask: dict[str, Callable[[], ReachInfo]] = {}
    if questions.registry and not found["image"] and not found["image_alternatives"]:
        to_come = settings_to_come(questions)
        access = registries.Access(questions.registry_username, questions.registry_password, questions.registry_ca)
        to_ask["registry"] = lambda: registries.look(
            questions.registry, {**pull_settings(questions.docker_host, root), **to_come}, access
        )
    if questions.package_index and not (found["venv"] or {}).get("satisfied"):
        way = _route(proxies_of(questions.package_index_proxy, ""), questions, found)
        user = questions.package_index_user
        to_ask["package_index"] = lambda: reach.ask(questions.package_index, way, user=user)
    if questions.hub and not any(entry["complete"] for entry in found["weights"] or []):
        route = hub_route(questions, (found["ca_bundle"] or {}).get("path", ""))
        to_ask["hub"] = lambda: reach.ask(questions.hub, route)
    return to_ask


def _route(proxies: dict[str, str], questions: Questions, found: dict[str, Any]) -> reach.Route:
    """Return a way by these proxies, with the certificates that the site's bundle or the host's has."""
    bundle = questions.hub_ca_bundle or (found["ca_bundle"] or {}).get("path", "")
    return reach.Route(proxies, [bundle] if bundle else [])


def _read_ports(parts: Parts, questions: Questions, root: str) -> None:
    """Read whether the address can be listened on, and who holds the ports there."""
    host, containers = questions.host, (parts.found["engine"] or {}).get("containers", [])
    parts.read("address_available", lambda: address_available(host))
    parts.read("ports", lambda: ports_in_use(list(questions.ports), host, containers, root))


def settings_to_come(questions: Questions) -> dict[str, Any]:
    """Return the settings of `engine.pull_settings` that the engine does not have yet and is about to get."""
    settings = {
        "proxies": proxies_of(questions.registry_proxy, questions.registry_no_proxy),
        "mirrors": questions.registry_mirrors,
        "insecure": questions.insecure_registries,
    }
    return {name: value for name, value in settings.items() if value}


def hub_route(questions: Questions, host_bundle: str) -> reach.Route:
    """Return how a server in a container reaches the hub: by the proxy that it is given and no other.

    Args:
        questions: what is asked; its CA bundle wins over the host's.
        host_bundle: the host's own CA bundle; empty if it has none.
    """
    bundle = questions.hub_ca_bundle or host_bundle
    return reach.Route(proxies_of(questions.hub_proxy, questions.hub_no_proxy), [bundle] if bundle else [])


def proxies_of(proxy: str, no_proxy: str) -> dict[str, str]:
    """Return a proxy for both schemes in the form that `reach` takes; nothing without a proxy."""
    return {"http": proxy, "https": proxy, "no": no_proxy} if proxy else {}
