# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a replica's container should be, as plain data, and how that differs from what it is.

The data (the spec) holds everything that matters for the container except the values of secrets. It is kept as a
label on the container, so that a later run can tell what changed without asking how Docker spells it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable, cast

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bare, bracketed, reachable
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import NetworkOfSpec, Replica, Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import KEY_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import (
    COLLECTION,
    LABEL_COLLECTION,
    LABEL_REPLICA,
    LABEL_SPEC,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import (
    CA_BUNDLE_PATH,
    CA_BUNDLE_VARIABLES,
    CACHES,
    CONFIG_PATH,
    CONTROL_PATH,
    DOOR_MODULE,
    HEALTH_PROGRAM,
    HF_HOME,
    joined_volumes,
    target_of,
)

DEFAULT_PORT = 8000
GPU_ACCESS = ("gpus", "cdi", "runtime", "devices", "none")


# The health check's first hour of failures does not count: a cold start takes minutes. It asks twice, so what it waits
# for each answer is less than half of its timeout.
HEALTH = {"interval_s": 15, "timeout_s": 20, "retries": 3, "start_period_s": 3600}
HEALTH_ANSWER_S = 8


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What all replicas of a host have in common.

    Attributes:
        image: the reference to run.
        image_id: the id behind it, `sha256:...`; empty when the image is not there yet.
        model_source: of the plan: `argument` for `vllm serve` and the host folder `mount`, if any.
        device: `cuda` or `cpu`.
        gpu_access: how GPUs reach the container, one of GPU_ACCESS or `auto`.
        network_mode: `bridge` or `host`.
        hf_home: host folder of the Hugging Face cache.
        cache_dir: host folder of the compile caches.
        config_dir: host folder of the configurations; below `control` it has a folder for each replica, through which
            the host tells the server things.
        volumes: further mounts, as `source:target[:options]`.
        environment: further variables; they win over the plan's.
        restart_policy: Docker's name of it.
        log_max_size: size at which Docker rotates the log, such as `100m`.
        log_max_files: number of log files kept.
        ca_bundle: host file with certificate authorities; empty for none.
        ipc_mode: `host` or `private`.
        shm_size: size of the shared memory when ipc_mode is private, such as `16g`.
        labels: further labels.
        python_path: the image's own `PYTHONPATH`, which ours must not hide.
    """

    image: str
    image_id: str
    model_source: Mapping[str, str]
    device: str
    gpu_access: str
    network_mode: str
    hf_home: str
    cache_dir: str
    config_dir: str
    volumes: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    restart_policy: str = "unless-stopped"
    log_max_size: str = "100m"
    log_max_files: int = 5
    ca_bundle: str = ""
    ipc_mode: str = "host"
    shm_size: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python_path: str = ""


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between what a container is and what it should be."""

    field: str
    before: Any
    after: Any

    def as_text(self) -> str:
        """Return the change as a person reads it: C(config.max-num-seqs: 256 -> 128)."""
        return f"{self.field}: {_value(self.before)} -> {_value(self.after)}"

    def as_result(self) -> dict[str, Any]:
        """Return the change as data."""
        return {"field": self.field, "before": self.before, "after": self.after}


def build_spec(
    replica: Replica,
    options: ServerOptions,
    secrets: Iterable[str],
    device_exists: Callable[[str], bool],
    minors: Mapping[str, int] | None = None,
) -> Spec:
    """Return the spec of one replica's container.

    Args:
        replica: an entry of the plan's `replicas`.
        options: what all replicas share; its environment holds no secrets (split_secrets).
        secrets: names of the variables that reach the container besides; their values are no part of a spec.
        device_exists: tells whether a device file is there.
        minors: number of the device file of each GPU by its UUID, see nvidia_minors; by default its index.
    """
    access = _gpu_access(options)
    argument = options.model_source["argument"]
    return {
        "schema": 1,
        "name": replica["name"],
        "image": options.image,
        "image_id": options.image_id,
        "command": ["serve", argument, "--config", CONFIG_PATH, "--middleware", f"{DOOR_MODULE}.Door"],
        "config": dict(replica["config"]),
        "environment": _environment(replica, options),
        "secrets": sorted(secrets),
        "takes_keys": True,
        "volumes": _volumes(replica["name"], options),
        "gpu_access": access,
        "gpus": _gpu_ids(replica) if access != "none" else [],
        "devices": _device_files(replica, access, device_exists, minors or {}),
        **_network(replica, options),
        "ipc_mode": options.ipc_mode,
        "shm_size": options.shm_size if options.ipc_mode != "host" else "",
        "restart_policy": options.restart_policy,
        "log_max_size": options.log_max_size,
        "log_max_files": options.log_max_files,
        "labels": dict(options.labels),
    }


def _gpu_access(options: ServerOptions) -> str:
    """Return how the container gets its GPUs, one of GPU_ACCESS."""
    if options.device == "cpu":
        return "none"
    return "gpus" if options.gpu_access == "auto" else options.gpu_access


def _gpu_ids(replica: Replica) -> list[str]:
    """Return the UUIDs of the replica's GPUs, or their indexes if the plan has no UUIDs."""
    return [str(gpu) for gpu in (replica.get("gpu_uuids") or replica.get("gpus") or [])]


def _environment(replica: Replica, options: ServerOptions) -> dict[str, str]:
    """Return the container's variables: ours, then the plan's, then the user's, of which the last one wins."""
    access = _gpu_access(options)
    environment = {"HF_HOME": HF_HOME}
    if options.ca_bundle:
        environment.update(dict.fromkeys(CA_BUNDLE_VARIABLES, CA_BUNDLE_PATH))
    if access == "runtime":
        gpus = ",".join(_gpu_ids(replica))
        environment.update({"NVIDIA_VISIBLE_DEVICES": gpus, "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"})
    elif access in ("cdi", "devices"):
        # CUDA's images ask for all GPUs; where nvidia is Docker's default runtime, they would get them.
        environment["NVIDIA_VISIBLE_DEVICES"] = "void"
    for given in (replica.get("environment") or {}, options.environment):
        environment.update({str(name): str(value) for name, value in given.items()})
    python_path = environment.get("PYTHONPATH", options.python_path)
    environment["PYTHONPATH"] = ":".join(part for part in (CONTROL_PATH, python_path) if part)
    return environment


def _volumes(name: str, options: ServerOptions) -> list[str]:
    """Return the mounts of a replica's container, the user's among them."""
    source = options.model_source
    volumes = [f"{options.hf_home}:{HF_HOME}"]
    volumes += [f"{options.cache_dir}/{folder}:{target}" for folder, target in CACHES.items()]
    volumes.append(f"{options.config_dir}/control/{name}:{CONTROL_PATH}:ro")
    if source.get("mount"):
        volumes.append(f"{source['mount']}:{source['argument']}:ro")
    if options.ca_bundle:
        volumes.append(f"{options.ca_bundle}:{CA_BUNDLE_PATH}:ro")
    return joined_volumes(volumes, options.volumes)


def _network(replica: Replica, options: ServerOptions) -> NetworkOfSpec:
    """Return how the server is reached: from outside, and by the health check inside the container."""
    config = replica["config"]
    port = int(config.get("port", DEFAULT_PORT))
    if options.network_mode == "host":
        publish, host = "", reachable(str(config.get("host", "127.0.0.1")))
    else:
        publish, host = f"{bracketed(replica['host'])}:{replica['port']}:{port}", "127.0.0.1"
    return {"network_mode": options.network_mode, "health_port": port, "publish": publish, "health_host": host}


def _device_files(replica: Replica, access: str, exists: Callable[[str], bool], minors: Mapping[str, int]) -> list[str]:
    """Return the device files that Docker itself gives to a container.

    With `devices` only Docker gives them. With `gpus` and `runtime` the toolkit's hook does so behind Docker's back,
    and the container loses them when systemd reloads its units (nvidia-container-toolkit #48), unless Docker knows
    them.
    """
    if access not in ("devices", "gpus", "runtime"):
        return []
    indexes, uuids = replica.get("gpus") or [], replica.get("gpu_uuids") or []
    pairs = itertools.zip_longest(indexes, (minors.get(uuid) for uuid in uuids[: len(indexes)]))
    cards = [
        f"/dev/nvidia{index if minor is None or not exists(f'/dev/nvidia{minor}') else minor}" for index, minor in pairs
    ]
    files = [*cards, "/dev/nvidiactl", "/dev/nvidia-uvm"]
    optional = ["/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"]
    if access == "devices":
        return files + [path for path in optional if exists(path)]
    return [path for path in files + optional if exists(path)] if cards else []


def base_url(spec: Spec) -> str:
    """Return the address of the server as seen from its host, such as C(http://127.0.0.1:8000)."""
    host, port = endpoint(spec)
    return f"http://{reachable(host)}:{port}"


def endpoint(spec: Spec) -> tuple[str, int]:
    """Return the host address and port that the server takes on its host."""
    if spec["publish"]:
        host, port, _container_port = spec["publish"].rsplit(":", 2)
        return bare(host), int(port)
    return str(spec["config"].get("host", "0.0.0.0")), int(spec["health_port"])  # noqa: S104


def health_command(spec: Spec) -> str:
    """Return the shell command of Docker's health check; the image may have no curl, so it is Python's."""
    address = f"{spec['health_host']}:{spec['health_port']}"
    return f"python3 {CONTROL_PATH}/{HEALTH_PROGRAM} {address} --timeout {HEALTH_ANSWER_S}"


def labels(spec: Spec) -> dict[str, str]:
    """Return the container's labels, the spec itself among them."""
    return {
        **spec["labels"],
        LABEL_COLLECTION: COLLECTION,
        LABEL_REPLICA: spec["name"],
        LABEL_SPEC: json.dumps(spec, sort_keys=True, separators=(",", ":")),
    }


def create_arguments(spec: Spec, secrets: Mapping[str, str], config_file: str) -> dict[str, Any]:
    """Return the arguments of the Docker SDK's C(containers.create) for a spec.

    The restart policy is not among them: a server gets it once it is ready, so that the first death of one that cannot
    start is seen and not restarted away.

    Args:
        spec: what build_spec returned.
        secrets: environment variables that the spec does not hold.
        config_file: the host file mounted as the configuration.
    """
    from docker.types import LogConfig

    arguments: dict[str, Any] = {
        "image": spec["image"],
        "entrypoint": ["vllm"],
        "command": spec["command"],
        "environment": {**spec["environment"], **secrets},
        "volumes": [f"{config_file}:{CONFIG_PATH}:ro", *spec["volumes"]],
        "network_mode": spec["network_mode"],
        "ipc_mode": spec["ipc_mode"],
        "init": True,
        "labels": labels(spec),
        "log_config": LogConfig(
            type="json-file", config={"max-size": spec["log_max_size"], "max-file": str(spec["log_max_files"])}
        ),
        "healthcheck": {
            "test": ["CMD-SHELL", health_command(spec)],
            "interval": HEALTH["interval_s"] * 10**9,
            "timeout": HEALTH["timeout_s"] * 10**9,
            "retries": HEALTH["retries"],
            "start_period": HEALTH["start_period_s"] * 10**9,
        },
    }
    if spec["publish"]:
        host, port = endpoint(spec)
        arguments["ports"] = {f"{spec['publish'].rsplit(':', 1)[1]}/tcp": (host, port)}
    if spec["shm_size"]:
        arguments["shm_size"] = spec["shm_size"]
    arguments.update(gpu_arguments(spec))
    return arguments


def gpu_arguments(spec: Spec) -> dict[str, Any]:
    """Return those of the arguments of C(containers.create) that give the container its GPUs."""
    from docker.types import DeviceRequest

    arguments: dict[str, Any] = {}
    if spec["gpu_access"] == "gpus":
        arguments["device_requests"] = [DeviceRequest(driver="nvidia", device_ids=spec["gpus"], capabilities=[["gpu"]])]
    elif spec["gpu_access"] == "cdi":
        devices = [f"nvidia.com/gpu={gpu}" for gpu in spec["gpus"]]
        arguments["device_requests"] = [DeviceRequest(driver="cdi", device_ids=devices)]
    elif spec["gpu_access"] == "runtime":
        arguments["runtime"] = "nvidia"
    if spec["devices"]:
        arguments["devices"] = [f"{path}:{path}:rwm" for path in spec["devices"]]
    return arguments


def read_spec(container_labels: Mapping[str, str]) -> Spec | None:
    """Return the spec on a container's label, or None when it has none that this collection can read."""
    try:
        spec = json.loads(container_labels.get(LABEL_SPEC, ""))
    except ValueError:
        return None
    return cast("Spec", spec) if isinstance(spec, dict) and spec.get("schema") == 1 else None


def spec_changes(before: Spec | None, after: Spec) -> list[Change]:
    """Return what changed between two specs, field by field; nothing when the container may stay as it is."""
    if before is None:
        return [Change("spec", "not made by this version of the collection", "made by it")]
    old, new = _flat(before), _flat(after)
    changes = [
        Change(field, old.get(field), new.get(field))
        for field in sorted({*old, *new} - set(INFORMATIVE))
        if (old.get(field) or None) != (new.get(field) or None)
    ]
    if _other_nodes(before.get("devices") or [], after["devices"]):
        changes.append(Change("devices", before["devices"], after["devices"]))
    return changes


def _other_nodes(before: Iterable[str], after: Iterable[str]) -> bool:
    """Return whether the GPUs have other device files; one that came or went is of the same GPUs."""
    old, new = (set(filter(GPU_NODE.fullmatch, paths)) for paths in (before, after))
    return not (old <= new or new <= old)


def secret_changes(
    actual_environment: Mapping[str, str], secrets: Mapping[str, str], spec: Spec | None
) -> list[Change]:
    """Return which secrets have other values than a container has, without the values.

    A server that takes other keys than the one that it was started with (door.py) is not replaced for another one.

    Args:
        actual_environment: the container's own variables.
        secrets: what it should have.
        spec: the container's spec, which names the secrets that it was given.
    """
    known = set(spec.get("secrets", [])) if spec else set()
    if spec and spec.get("takes_keys"):
        known.discard(KEY_VARIABLE)
    return [
        Change(f"secret {name}", "(hidden)", "(hidden, changed)")
        for name in sorted(secrets)
        if name in known and actual_environment.get(name, "") != secrets[name]
    ]


# Fields that do not count as a change by themselves: names, what follows from other fields, what Docker can change in
# place, how long vLLM drains itself (it counts from the next replacement on), and device files, see _other_nodes: the
# driver makes them when something first needs them.
NAMES = ("schema", "name", "image", "health_host", "health_port", "restart_policy", "takes_keys")
INFORMATIVE = (*NAMES, "config.shutdown-timeout", "devices")
GPU_NODE = re.compile(r"/dev/nvidia\d+")


def what_matters(spec: Spec) -> dict[str, Any]:
    """Return what must differ between two specs for one to replace the other, one level of fields."""
    return {field: value for field, value in all_fields(spec).items() if field not in INFORMATIVE}


def all_fields(spec: Spec) -> dict[str, Any]:
    """Return what is set in a spec, but for names and what follows from other fields, as one level of fields."""
    return {field: value for field, value in _flat(spec).items() if value}


def _flat(spec: Spec) -> dict[str, Any]:
    """Return the spec as one level of fields: mappings by key, mounts by their target."""
    flat: dict[str, Any] = {}
    fields: Mapping[str, Any] = spec
    for field, value in fields.items():
        if field in NAMES:
            continue
        if isinstance(value, dict):
            flat.update({f"{field}.{key}": entry for key, entry in value.items()})
        elif field == "volumes":
            flat.update({f"volume {target_of(entry)}": entry for entry in value})
        else:
            flat[field] = value
    return flat


def _value(value: Any) -> str:
    if value is None or value == "":
        return "(not set)"
    if isinstance(value, str):
        return value[:19] if value.startswith("sha256:") else value
    return json.dumps(value)


def diff_text(spec: Spec | None) -> str:
    """Return a spec as the text of a diff."""
    return json.dumps(spec, indent=2, sort_keys=True) + "\n" if spec else ""
