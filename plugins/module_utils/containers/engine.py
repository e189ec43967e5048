# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A look at the Docker engine with the standard library alone, for hosts that have no Docker SDK yet.

GET requests and nothing else; whatever works with the engine uses the SDK (client.py).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from collections.abc import Mapping
from typing import Any, TypedDict
from urllib.parse import quote, urlsplit
from urllib.request import getproxies_environment

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import (
    program_name,
    program_path,
    read_text,
    start_of_process,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_options import (
    config_of,
    peer_of,
    words_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import ContainerInfo

COLLECTION_LABEL = "io.gpufleet.collection"
REPLICA_LABEL = "io.gpufleet.replica"
# The keys of daemon.json that are safe to show: proxies and logging options may hold passwords.
SHOWN_KEYS = (
    "cdi-spec-dirs",
    "data-root",
    "default-runtime",
    "exec-opts",
    "features",
    "hosts",
    "live-restore",
    "log-driver",
    "runtimes",
    "storage-driver",
    "userland-proxy",
)


DOCKER_ROOT = "/var/lib/docker"
CONTAINERD_ROOT = "/var/lib/containerd"
CONTAINERD_CONFIG = "/etc/containerd/config.toml"
# What an engine with the containerd image store says of itself, and where the host's own containerd answers.
CONTAINERD_STORE = "io.containerd.snapshotter"
CONTAINERD_SOCKETS = ("/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock")
# Variables of an image that say which CUDA and driver it needs; the container toolkit reads them.
REQUIREMENT_VARIABLES = ("CUDA_VERSION", "NVIDIA_REQUIRE_CUDA", "NVIDIA_DISABLE_REQUIRE")
# What the engine shows instead of a proxy's user and password.
MASKED_USER = "xxxxx:xxxxx@"
# What is told of an engine that does not answer.
UNKNOWN: EngineInfo = {
    "running": False,
    "reason": "",
    "docker_host": "",
    "dockerd": None,
    "containers": [],
    "version": None,
    "api_version": None,
    "os": None,
    "architecture": None,
    "root_dir": None,
    "storage_driver": None,
    "cgroup_driver": None,
    "runtimes": None,
    "default_runtime": None,
    "cdi_spec_dirs": None,
    "image_dir": None,
    "kind": None,
    "rootless": None,
    "config_path": None,
    "own_proxies": False,
}
# The proxies that this collection gave the engine, as variables of its service.
OWN_PROXIES = "/etc/docker/gpufleet-proxies.env"
PROXY_VARIABLES = {"http": "HTTP_PROXY", "https": "HTTPS_PROXY", "no": "NO_PROXY"}
# Where the host's own daemon answers.
DEFAULT_HOSTS = ("unix:///var/run/docker.sock", "unix:///run/docker.sock")
PODMAN, SNAP, DOCKER = "podman", "snap", "docker"
PID_FILES = ("/var/run/docker.pid", "/run/docker.pid")
NVIDIA_HOOK = "nvidia-container-runtime-hook"


class EngineInfo(TypedDict):
    """The Docker engine. What only a running one can tell is None while it does not run."""

    running: bool
    reason: str
    docker_host: str
    dockerd: str | None
    version: str | None
    api_version: str | None
    os: str | None
    architecture: str | None
    root_dir: str | None
    storage_driver: str | None
    cgroup_driver: str | None
    runtimes: list[str] | None
    default_runtime: str | None
    cdi_spec_dirs: list[str] | None
    image_dir: str | None
    kind: str | None
    rootless: bool | None
    config_path: str | None
    own_proxies: bool
    containers: list[ContainerInfo]


class DaemonConfigInfo(TypedDict):
    """The file /etc/docker/daemon.json. `valid` is None when it may not be read."""

    path: str
    exists: bool
    valid: bool | None
    error: str
    key_names: list[str]
    content: dict[str, Any]


class ImageInfo(TypedDict):
    """An image that the engine has."""

    id: str
    size_bytes: int
    platform: str
    environment: dict[str, str]


class NotThere(ValueError):
    """The engine has nothing of that name."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine(docker_host: str, timeout: float = 5.0) -> EngineInfo:
    """Return whether an engine answers, what it is and which containers it knows.

    Args:
        docker_host: C(unix:///...) or C(tcp://host:port) without TLS.
        timeout: seconds to wait for each answer.

    Returns:
        C(running), C(reason) (why not, for a person), C(version), C(api_version), C(os), C(architecture), C(root_dir),
        C(storage_driver), C(cgroup_driver), C(runtimes) (names), C(default_runtime), C(cdi_spec_dirs), C(image_dir)
        (the folder on this host that images are kept in, None for an engine on another host), C(kind) (C(docker),
        C(snap) for Docker's snap, C(podman)), C(rootless), C(config_path) (the file that its daemon reads, empty if
        that is not known), C(own_proxies) (whether this collection gave it proxies), C(containers) (every one: see
        C(_container)) and C(dockerd) (path of the daemon's program).
    """
    result: EngineInfo = {
        **UNKNOWN,
        "docker_host": docker_host,
        "dockerd": program_path("dockerd"),
        "own_proxies": os.path.exists(OWN_PROXIES),
        "containers": [],
        "image_dir": _image_dir(docker_host, {}),
    }
    try:
        version = _get(docker_host, "/version", timeout)
        info = _get(docker_host, "/info", timeout)
        containers = _get(docker_host, "/containers/json?all=1", timeout)
    except PermissionError:
        result["reason"] = f"This user may not open {docker_host}; run with become: true."
        return result
    except FileNotFoundError:
        result["reason"] = f"There is no socket at {docker_host}: no engine is installed or it is not started."
        return result
    except (OSError, http.client.HTTPException, ValueError) as error:
        result["reason"] = f"No engine answers at {docker_host}: {error}"
        return result
    result.update(
        {
            "running": True,
            "version": version.get("Version"),
            "api_version": version.get("ApiVersion"),
            "os": version.get("Os"),
            "architecture": version.get("Arch"),
            "root_dir": info.get("DockerRootDir"),
            "storage_driver": info.get("Driver"),
            "cgroup_driver": info.get("CgroupDriver"),
            "runtimes": sorted(info.get("Runtimes") or {}),
            "default_runtime": info.get("DefaultRuntime"),
            "cdi_spec_dirs": info.get("CDISpecDirs") or [],
            "image_dir": _image_dir(docker_host, info),
            "kind": _kind(version, info),
            "rootless": "name=rootless" in (info.get("SecurityOptions") or []) or bool(info.get("Rootless")),
            "config_path": config_of(process_of(docker_host) or 0),
            "containers": sorted((_container(entry) for entry in containers), key=lambda found: str(found["name"])),
        }
    )
    return result


def _kind(version: dict[str, Any], info: dict[str, Any]) -> str:
    """Return what answers: Docker, Docker's snap, or Podman, which speaks for Docker at its own socket."""
    names = [str(part.get("Name")) for part in version.get("Components") or []]
    if any("podman" in name.lower() for name in names):
        return PODMAN
    return SNAP if str(info.get("DockerRootDir") or "").startswith("/var/snap/") else DOCKER


def _image_dir(docker_host: str, info: dict[str, Any]) -> str | None:
    """Return where the engine keeps images; before there is one, where it is configured to or would keep them."""
    if not docker_host.startswith("unix:"):
        return None
    if CONTAINERD_STORE in str(info.get("DriverStatus") or ""):
        address = str((info.get("Containerd") or {}).get("Address") or CONTAINERD_SOCKETS[0])
        if address in CONTAINERD_SOCKETS:
            moved = re.search(r'^root\s*=\s*["\'](/[^"\']+)', read_text(CONTAINERD_CONFIG), flags=re.MULTILINE)
            return moved[1] if moved else CONTAINERD_ROOT
        # A containerd of the daemon's own, where the host has none.
        return os.path.join(str(info.get("DockerRootDir") or DOCKER_ROOT), "containerd", "daemon")
    configured = daemon_config()["content"].get("data-root")
    return str(info.get("DockerRootDir") or configured or DOCKER_ROOT)


def image(docker_host: str, reference: str, timeout: float = 5.0) -> ImageInfo | None:
    """Return an image that the engine has, or None when it has none of that name.

    Returns:
        C(id), C(size_bytes), C(platform) and C(environment) (those of its variables that say which driver it needs).

    Raises:
        OSError, http.client.HTTPException, ValueError: the engine gives no usable answer.
    """
    try:
        found = _get(docker_host, f"/images/{quote(reference)}/json", timeout)
    except NotThere:
        return None
    variables = dict(entry.partition("=")[::2] for entry in (found.get("Config") or {}).get("Env") or [])
    return {
        "id": found.get("Id", ""),
        "size_bytes": found.get("Size") or 0,
        "platform": f"{found.get('Os')}/{found.get('Architecture')}",
        "environment": {name: variables[name] for name in REQUIREMENT_VARIABLES if name in variables},
    }


def pull_settings(docker_host: str, root: str = "/", timeout: float = 5.0) -> dict[str, Any]:
    """Return how the engine gets to registries; the addresses of proxies may hold passwords.

    Returns:
        C(proxies) (scheme to address, C(no) to exceptions), C(mirrors) (of Docker Hub) and C(insecure) (registries and
        networks that need no trusted certificate). Before there is an engine: what it would take from daemon.json and
        from this host's environment.
    """
    try:
        info = _get(docker_host, "/info", timeout)
    except (OSError, http.client.HTTPException, ValueError):
        return _future_settings(root)
    registries = info.get("RegistryConfig") or {}
    indexes = registries.get("IndexConfigs") or {}
    proxies = {"http": info.get("HttpProxy"), "https": info.get("HttpsProxy"), "no": info.get("NoProxy")}
    hidden = [name for name, value in proxies.items() if MASKED_USER in str(value)]
    written = _future_settings(root)["proxies"] if hidden else {}
    # The engine does not tell a proxy's password; the files and variables that it was told by may.
    proxies.update({name: written[name] for name in hidden if name in written})
    return {
        "proxies": {name: value for name, value in proxies.items() if value},
        "mirrors": registries.get("Mirrors") or [],
        "insecure": [
            *(registries.get("InsecureRegistryCIDRs") or []),
            *(name for name, about in indexes.items() if not about.get("Secure", True)),
        ],
    }


def _future_settings(root: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(root, "etc/docker/daemon.json") or "{}")
    except ValueError:
        content = {}
    content = content if isinstance(content, dict) else {}
    named = content.get("proxies") or {}
    own = {"http": named.get("http-proxy"), "https": named.get("https-proxy"), "no": named.get("no-proxy")}
    given = variables_in(read_text(root, OWN_PROXIES.lstrip("/")))
    ours = {scheme: given.get(name) for scheme, name in PROXY_VARIABLES.items()}
    proxies = {**getproxies_environment(), **_set(ours), **_set(own)}
    return {
        "proxies": proxies,
        "mirrors": content.get("registry-mirrors") or [],
        "insecure": content.get("insecure-registries") or [],
    }


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def variables_in(text: str) -> dict[str, str]:
    """Return the variables in a file of C(NAME="value") lines."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name: value.strip('"') for name, _equals, value in pairs}


def _container(entry: dict[str, Any]) -> ContainerInfo:
    """Return C(id), C(name), C(state), C(image), C(ours), C(replica) and the published C(ports) of one container."""
    labels = entry.get("Labels") or {}
    published = {
        (port.get("IP") or "0.0.0.0", port["PublicPort"])  # noqa: S104 - an address that the engine tells
        for port in entry.get("Ports") or []
        if port.get("PublicPort") and port.get("Type") == "tcp"
    }
    return {
        "id": entry.get("Id", ""),
        "name": (entry.get("Names") or [""])[0].lstrip("/"),
        "state": entry.get("State", ""),
        "image": entry.get("Image", ""),
        "ours": COLLECTION_LABEL in labels,
        "replica": labels.get(REPLICA_LABEL, ""),
        "ports": [{"host": host, "port": port} for host, port in sorted(published)],
    }


def _get(docker_host: str, path: str, timeout: float) -> Any:
    """Return the engine's JSON answer.

    Raises:
        OSError, http.client.HTTPException, ValueError: no usable answer.
    """
    address = urlsplit(docker_host)
    connection: http.client.HTTPConnection
    if address.scheme == "unix":
        connection = _UnixConnection(address.path, timeout)
    elif address.scheme in ("tcp", "http") and address.hostname:
        connection = http.client.HTTPConnection(address.hostname, address.port or 2375, timeout=timeout)
    else:
        raise ValueError("host_info reads engines at unix:///... and tcp://host:port only")
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status == 404:
        raise NotThere(f"{path} answered 404")
    if answer.status != 200:
        raise ValueError(f"{path} answered {answer.status} {answer.reason}")
    return json.loads(body)


def daemon_config(root: str = "/") -> DaemonConfigInfo:
    """Return the state of /etc/docker/daemon.json.

    Returns:
        C(path), C(exists), C(valid) (an absent or empty file is valid), C(error) (what is wrong with it), C(key_names)
        (all, sorted) and C(content) (the values of those keys that hold no secret).
    """
    path = os.path.join(root, "etc/docker/daemon.json")
    text = read_text(path)
    result: DaemonConfigInfo = {
        "path": path,
        "exists": os.path.exists(path),
        "valid": True,
        "error": "",
        "key_names": [],
        "content": {},
    }
    if result["exists"] and not os.access(path, os.R_OK):
        return {**result, "valid": None, "error": "This user may not read it; run with become: true."}
    if not text.strip():
        return result
    try:
        content = json.loads(text)
    except ValueError as error:
        return {**result, "valid": False, "error": f"It is not JSON: {error}"}
    if not isinstance(content, dict):
        return {**result, "valid": False, "error": "It is not a JSON object."}
    shown = {key: content[key] for key in SHOWN_KEYS if key in content}
    return {**result, "key_names": sorted(content), "content": shown}


def daemon_pid(root: str = "/") -> int | None:
    """Return the process id of the host's own daemon, None when it does not run."""
    for path in PID_FILES:
        text = read_text(root, path.lstrip("/")).strip()
        # The command line of a process that has ended and still stands in the table is empty.
        if text.isdigit() and program_name(read_text(root, "proc", text, "cmdline")) == "dockerd":
            return int(text)
    return None


def process_of(docker_host: str, root: str = "/") -> int | None:
    """Return the process id of the dockerd that answers at an address; None when it is not of this host."""
    peer = peer_of(docker_host)
    if peer and words_of(peer, root):
        return peer
    # Where systemd listens, and hands the socket over, it counts as the one that listens.
    return daemon_pid(root) if docker_host in DEFAULT_HOSTS else None


def started_at(pid: int, root: str = "/") -> float | None:
    """Return when a process started, in seconds since the epoch; None when that cannot be told."""
    ticks = start_of_process(pid, root)
    boot = [line.split()[1] for line in read_text(root, "proc/stat").splitlines() if line.startswith("btime ")]
    if not ticks or not boot:
        return None
    return int(boot[0]) + int(ticks) / os.sysconf("SC_CLK_TCK")


def predates_toolkit(root: str = "/") -> bool:
    """Tell whether the daemon started before the toolkit's hook was installed.

    A daemon looks for the hook once, at its start: without it C(--gpus) stays unknown to it.
    """
    pid, hook = daemon_pid(root), program_path(NVIDIA_HOOK)
    start = started_at(pid, root) if pid else None
    return bool(start and hook and os.stat(hook).st_ctime > start)
