# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is and has, in one look, with the standard library alone.

The parts are independent: one that cannot be told is None and its reason stands in C(errors); nothing raises.
"""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import NOTHING, HostInfo, ReachInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import (
    program_path,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import (
    daemon_config,
    engine,
    image,
    pull_settings,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import reach
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.nvidia import nvidia
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import address_available, ports_in_use
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.python import ca_bundle, venv
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.system import (
    clock,
    cpu,
    disk,
    memory,
    proxies,
    shared_memory,
    system,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import look_at_model, weights

LISTEN = "0A"


def probe(
    *,
    docker_host: str,
    venv_path: str | None = None,
    requirements: list[str] | None = None,
    paths: list[str] | None = None,
    ports: list[int] | None = None,
    host: str = "127.0.0.1",
    model_path: str | None = None,
    programs: list[str] | None = None,
    image_reference: str = "",
    image_alternatives: list[str] | None = None,
    weights_paths: list[str] | None = None,
    registry: str = "",
    registry_proxy: str = "",
    registry_no_proxy: str = "",
    registry_mirrors: list[str] | None = None,
    insecure_registries: list[str] | None = None,
    hub: str = "",
    hub_proxy: str = "",
    hub_no_proxy: str = "",
    hub_ca_bundle: str = "",
    asked_at: float | None = None,
    root: str = "/",
) -> HostInfo:
    """Return everything that the roles ask of a host, as plain data; see DOCUMENTATION and RETURN of host_info."""
    errors: dict[str, str] = {}

    def part(name: str, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
            return None

    result: HostInfo = {
        "system": part("system", lambda: system(root)),
        "cpu": part("cpu", lambda: cpu(root)),
        "memory": part("memory", lambda: memory(root)),
        "shm": part("shm", lambda: shared_memory(root)),
        "clock": part("clock", lambda: clock(root, asked_at)),
        "proxies": part("proxies", proxies),
        "ca_bundle": part("ca_bundle", lambda: ca_bundle(root)),
        "venv": part("venv", lambda: venv(venv_path, requirements or []) if venv_path else None),
        "engine": part("engine", lambda: engine(docker_host)),
        "daemon_config": part("daemon_config", lambda: daemon_config(root)),
        "nvidia": part("nvidia", lambda: nvidia(root)),
        "programs": part("programs", lambda: {name: program_path(name) for name in programs or []}),
        "model": part("model", lambda: look_at_model(model_path) if model_path else None),
        "weights": part("weights", lambda: [weights(path) for path in weights_paths or []]),
    }
    found_engine: Any = result["engine"] or {}
    folders = [*(paths or []), *([found_engine["image_dir"]] if found_engine.get("image_dir") else [])]
    result["disks"] = part("disks", lambda: {path: disk(path, root) for path in folders})
    asked = image_reference if found_engine.get("running") else ""
    result["image"] = part("image", lambda: image(docker_host, asked) if asked else None)
    others = (image_alternatives or []) if found_engine.get("running") else []
    result["image_alternatives"] = part(
        "image_alternatives", lambda: {name: found for name in others if (found := image(docker_host, name))}
    )
    questions: dict[str, Callable[[], ReachInfo]] = {}
    if registry and not result["image"] and not result["image_alternatives"]:
        to_come = engine_to_come(registry_proxy, registry_no_proxy, registry_mirrors, insecure_registries)
        questions["registry"] = lambda: reach.registry(registry, {**pull_settings(docker_host, root), **to_come})
    if hub and not any(entry["complete"] for entry in result["weights"] or []):
        way = hub_route(hub_proxy, hub_no_proxy, hub_ca_bundle or (result["ca_bundle"] or NOTHING).get("path", ""))
        questions["hub"] = lambda: reach.ask(hub, way)
    result["reach"] = part("reach", lambda: reach.ask_all(questions))
    containers = found_engine.get("containers", [])
    result["address_available"] = part("address_available", lambda: address_available(host))
    result["ports"] = part("ports", lambda: ports_in_use(ports or [], host, containers, root))
    result["errors"] = errors
    return result


def engine_to_come(proxy: str, no_proxy: str, mirrors: list[str] | None, insecure: list[str] | None) -> dict[str, Any]:
    """Return those settings of engine_probe.pull_settings that the engine does not have yet, but is about to get."""
    proxies = {"http": proxy, "https": proxy, "no": no_proxy} if proxy else None
    found = {"proxies": proxies, "mirrors": mirrors, "insecure": insecure}
    return {name: value for name, value in found.items() if value}


def hub_route(proxy: str, no_proxy: str, bundle: str) -> reach.Route:
    """Return how a server in a container gets to the hub: by the proxy that it is given and no other."""
    proxies = {"http": proxy, "https": proxy, "no": no_proxy} if proxy else {}
    return reach.Route(proxies, [bundle] if bundle else [])
