# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is and has, in one look, with the standard library alone.

The parts are independent: one that cannot be told is None and its reason stands in C(errors); nothing raises.
"""

from __future__ import annotations

import ctypes
import importlib.util
import ipaddress
import json
import os
import platform
import re
import socket
import stat
import subprocess
import sys
import time
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import (
    PCI_BRIDGE_CLASS,
    container_id,
    kernel_module,
    list_folder,
    nvidia_pci_devices,
    program_name,
    program_path,
    read_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon import predates_toolkit
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import (
    daemon_config,
    engine,
    image,
    pull_settings,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import reach
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.python import ca_bundle, venv
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.model_shape import snapshot

MIB = 1024 * 1024
# What decides which kernels vLLM's CPU build has, and their names on Arm.
CPU_FLAGS = (
    "avx",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
# Docker's names of architectures.
PLATFORMS = {"x86_64": "linux/amd64", "amd64": "linux/amd64", "aarch64": "linux/arm64", "arm64": "linux/arm64"}
PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
LARGEST_CONFIG = MIB
LARGEST_INDEX = 32 * MIB
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
MOST_PARTS = 10000
OTHER_WEIGHTS = (".bin", ".pt", ".gguf")
LISTEN = "0A"
CLOCK_UNSYNCHRONISED = 0x40


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
) -> dict[str, Any]:
    """Return everything that the roles ask of a host, as plain data; see DOCUMENTATION and RETURN of host_info."""
    errors: dict[str, str] = {}

    def part(name: str, look: Callable[[], Any]) -> Any:
        try:
            return look()
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
            return None

    result: dict[str, Any] = {
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
        "model": part("model", lambda: model(model_path) if model_path else None),
        "weights": part("weights", lambda: [weights(path) for path in weights_paths or []]),
    }
    found_engine: dict[str, Any] = result["engine"] or {}
    folders = [*(paths or []), *([found_engine["image_dir"]] if found_engine.get("image_dir") else [])]
    result["disks"] = part("disks", lambda: {path: disk(path, root) for path in folders})
    asked = image_reference if found_engine.get("running") else ""
    result["image"] = part("image", lambda: image(docker_host, asked) if asked else None)
    others = (image_alternatives or []) if found_engine.get("running") else []
    result["image_alternatives"] = part(
        "image_alternatives", lambda: {name: found for name in others if (found := image(docker_host, name))}
    )
    questions: dict[str, Callable[[], dict[str, Any]]] = {}
    if registry and not result["image"] and not result["image_alternatives"]:
        to_come = engine_to_come(registry_proxy, registry_no_proxy, registry_mirrors, insecure_registries)
        questions["registry"] = lambda: reach.registry(registry, {**pull_settings(docker_host, root), **to_come})
    if hub and not any(entry["complete"] for entry in result["weights"] or []):
        way = hub_route(hub_proxy, hub_no_proxy, hub_ca_bundle or (result["ca_bundle"] or {}).get("path", ""))
        questions["hub"] = lambda: reach.ask(hub, way)
    result["reach"] = part("reach", lambda: reach.ask_all(questions))
    containers = found_engine.get("containers", [])
    result["address_available"] = part("address_available", lambda: address_available(host))
    result["ports"] = part("ports", lambda: ports_in_use(ports or [], host, containers, root))
    result["errors"] = errors
    return result


def system(root: str = "/") -> dict[str, Any]:
    """Return architecture, kernel, distribution, system Python, init system and effective user id."""
    release = dict(
        re.findall(r"^(\w+)=[\"']?(.*?)[\"']?$", read_text(root, "etc/os-release"), re.MULTILINE),
    )
    machine = platform.machine()
    return {
        "architecture": machine,
        "platform": PLATFORMS.get(machine, f"linux/{machine}"),
        "kernel": platform.release(),
        "operating_system": platform.system(),
        "distribution": {
            "id": release.get("ID", ""),
            "version_id": release.get("VERSION_ID", ""),
            "codename": release.get("VERSION_CODENAME", ""),
            "like": release.get("ID_LIKE", "").split(),
            "name": release.get("PRETTY_NAME", ""),
        },
        "init": "systemd" if os.path.isdir(os.path.join(root, "run/systemd/system")) else _first_process(root),
        "euid": os.geteuid(),
        "python": {
            "executable": sys.executable,
            "version": platform.python_version(),
            "makes_environments": makes_environments(),
        },
    }


def makes_environments() -> bool:
    """Return whether this Python can make a virtual environment with pip in it, and Ansible's pip module can run.

    Debian keeps ensurepip in a package of its own, and the module needs packaging or setuptools.
    """
    found = {name for name in ("ensurepip", "packaging", "setuptools") if importlib.util.find_spec(name)}
    return "ensurepip" in found and len(found) > 1


def _first_process(root: str) -> str:
    return read_text(root, "proc/1/comm").strip()


def cpu(root: str = "/") -> dict[str, Any]:
    """Return the processors that this host may use, their model and those instruction sets that matter here."""
    text = read_text(root, "proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    model_name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return {
        "count": len(os.sched_getaffinity(0)),
        "model": model_name.group(1).strip() if model_name else "",
        "flags": [flag for flag in CPU_FLAGS if flag in present],
    }


def memory(root: str = "/") -> dict[str, int]:
    """Return C(total_mib) and C(available_mib) of the host's memory."""
    values: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", read_text(root, "proc/meminfo"), re.MULTILINE))
    return {
        "total_mib": int(values["MemTotal"]) // 1024,
        "available_mib": int(values["MemAvailable"]) // 1024,
    }


def shared_memory(root: str = "/") -> dict[str, int]:
    """Return C(total_mib) and C(free_mib) of /dev/shm."""
    state = os.statvfs(os.path.join(root, "dev/shm"))
    return {
        "total_mib": state.f_blocks * state.f_frsize // MIB,
        "free_mib": state.f_bavail * state.f_frsize // MIB,
    }


class _Timex(ctypes.Structure):
    """The head of the kernel's struct timex; the rest is only room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_char * 256),
    )


def engine_to_come(proxy: str, no_proxy: str, mirrors: list[str] | None, insecure: list[str] | None) -> dict[str, Any]:
    """Return those settings of engine_probe.pull_settings that the engine does not have yet, but is about to get."""
    proxies = {"http": proxy, "https": proxy, "no": no_proxy} if proxy else None
    found = {"proxies": proxies, "mirrors": mirrors, "insecure": insecure}
    return {name: value for name, value in found.items() if value}


def hub_route(proxy: str, no_proxy: str, bundle: str) -> reach.Route:
    """Return how a server in a container gets to the hub: by the proxy that it is given and no other."""
    proxies = {"http": proxy, "https": proxy, "no": no_proxy} if proxy else {}
    return reach.Route(proxies, [bundle] if bundle else [])


def clock(root: str = "/", asked_at: float | None = None) -> dict[str, Any]:
    """Return the host's idea of now.

    Args:
        root: the folder below which run is mounted.
        asked_at: the asker's idea of now, in seconds of the epoch.

    Returns:
        C(synchronised), None when the kernel does not tell, C(epoch) in seconds and C(ahead_seconds): how much the host
        is ahead of the asker, the question's way here included, or None.
    """
    synchronised: bool | None = None
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) >= 0:
        synchronised = not timex.status & CLOCK_UNSYNCHRONISED
    if os.path.exists(os.path.join(root, "run/systemd/timesync/synchronized")):
        synchronised = True
    now = time.time()
    ahead = None if asked_at is None else round(now - asked_at, 3)
    return {"synchronised": synchronised, "epoch": round(now, 3), "ahead_seconds": ahead}


def proxies() -> list[str]:
    """Return the names of the proxy variables that are set; their values may hold passwords."""
    return sorted(name for name in os.environ if name.lower() in PROXY_VARIABLES and os.environ[name])


def nvidia(root: str = "/") -> dict[str, Any]:
    """Return what there is of NVIDIA's driver and tools, without asking the driver: that is gpu_info's part."""
    devices = [name for name in list_folder(root, "dev") if name.startswith("nvidia")]
    specs = [
        os.path.join("/", folder, name)
        for folder in ("etc/cdi", "var/run/cdi")
        for name in list_folder(root, folder)
        if name.endswith((".yaml", ".yml", ".json"))
    ]
    running = _running_programs(root)
    return {
        "pci_devices": nvidia_pci_devices(root),
        "nvswitches": len(nvidia_pci_devices(root, PCI_BRIDGE_CLASS)),
        "kernel_module": kernel_module(root),
        "cards": nvidia_cards(root),
        "device_files": devices,
        "device_files_unlinked": [name for name in devices if not _linked(os.path.join(root, "dev"), name)],
        "cdi_specs": specs,
        "container_toolkit": tool("nvidia-ctk"),
        "docker_predates_toolkit": predates_toolkit(root),
        # The kernel keeps 15 characters of a program's name.
        "fabric_manager": {**tool("nv-fabricmanager"), "running": "nv-fabricmanager"[:15] in running},
        "persistence_daemon": {"running": "nvidia-persistenced"[:15] in running},
    }


def nvidia_cards(root: str = "/") -> list[dict[str, str]]:
    """Return C(pci_bus_id), C(name) and C(uuid) of the GPUs that the loaded driver drives, in the order of the bus."""
    folder = os.path.join(root, "proc/driver/nvidia/gpus")
    cards = []
    for bus in list_folder(folder):
        lines = [line.partition(":") for line in read_text(folder, bus, "information").splitlines()]
        about = {name.strip(): value.strip() for name, _colon, value in lines}
        cards.append({"pci_bus_id": bus, "name": about.get("Model", ""), "uuid": about.get("GPU UUID", "")})
    return cards


def _linked(folder: str, name: str) -> bool:
    """Return whether a device file has its link in /dev/char, where systemd looks for it; others need none."""
    state = os.stat(os.path.join(folder, name))
    number = f"{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}"
    return not stat.S_ISCHR(state.st_mode) or os.path.exists(os.path.join(folder, "char", number))


def _running_programs(root: str) -> set[str]:
    return {read_text(root, "proc", pid, "comm").strip() for pid in list_folder(root, "proc") if pid.isdigit()}


def tool(name: str) -> dict[str, Any]:
    """Return C(path) and C(version) of a program, both None when it is not installed."""
    path = program_path(name)
    if path is None:
        return {"path": None, "version": None}
    try:
        done = run_program([path, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return {"path": path, "version": None}
    found = re.search(r"\d+\.\d+(?:\.\d+)*(?:-rc\.\d+)?", done.stdout + done.stderr)
    return {"path": path, "version": found.group(0) if found else None}


def disk(path: str, root: str = "/") -> dict[str, Any]:
    """Return the room where a path is, or would be made.

    Returns:
        C(existing) (the path or its nearest existing parent), C(mount), C(device), C(filesystem), C(total_bytes),
        C(free_bytes) (what this user may use), C(writable) and C(device_number): paths with the same share their room.
    """
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    state = os.statvfs(existing)
    mount, device, filesystem = _mount(os.path.realpath(existing), root)
    return {
        "existing": existing,
        "mount": mount,
        "device": device,
        "device_number": os.stat(existing).st_dev,
        "filesystem": filesystem,
        "total_bytes": state.f_blocks * state.f_frsize,
        "free_bytes": state.f_bavail * state.f_frsize,
        "writable": os.access(existing, os.W_OK) and not state.f_flag & os.ST_RDONLY,
    }


def _mount(path: str, root: str) -> tuple[str, str, str]:
    """Return mount point, device and file system that hold a path: the longest mount point above it, mounted last."""
    best = ("/", "", "")
    for line in read_text(root, "proc/self/mountinfo").splitlines():
        fields, _dash, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), fields.split()[4])
        holds = path == point or path.startswith(point.rstrip("/") + "/")
        if holds and len(point) >= len(best[0]):
            filesystem, device = rest.split()[:2]
            best = (point, device, filesystem)
    return best


def address_available(host: str) -> bool:
    """Return whether this host can listen on an address, or on the address of a name."""
    for family, kind, protocol, _name, address in _resolve(host):
        with socket.socket(family, kind, protocol) as probe_socket:
            try:
                probe_socket.bind(address)
            except OSError:
                continue
            return True
    return False


def ports_in_use(
    ports: list[int], host: str, containers: list[dict[str, Any]], root: str = "/"
) -> list[dict[str, Any]]:
    """Return who holds each port on an address.

    Args:
        ports: TCP ports to look at.
        host: the address on which they are wanted.
        containers: what C(engine) told.
        root: the folder below which proc is mounted.

    Returns:
        For each port C(port), C(free), C(ours) (a container of this collection holds it), C(container) (its name),
        C(pid) and C(process) (name only), None or empty when not known.
    """
    wanted = {str(address[0]) for *_kind, address in _resolve(host)}
    held = [entry for entry in _listeners(root) if entry["port"] in ports and _clash(entry["address"], wanted)]
    owners = _owners({entry["inode"] for entry in held}, root)
    result = []
    for port in ports:
        listening = [entry["inode"] for entry in held if entry["port"] == port]
        pid = next((owners[inode] for inode in listening if inode in owners), None)
        holder = _publisher(port, wanted, containers)
        if holder is None and pid is not None:
            holder = _by_id(container_id(pid, root), containers)
        result.append(
            {
                "port": port,
                "free": not listening and holder is None,
                "ours": bool(holder and holder["ours"]),
                "container": holder["name"] if holder else "",
                "pid": pid,
                "process": program_name(read_text(root, "proc", str(pid), "comm")) if pid is not None else "",
            }
        )
    return result


def _publisher(port: int, wanted: set[str], containers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the container that publishes a port.

    Without its userland proxy the engine publishes by packet filter, and nobody is seen to listen.
    """
    for container in containers:
        for published in container["ports"]:
            if published["port"] == port and _clash(published["host"], wanted):
                return container
    return None


def _by_id(identifier: str, containers: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((container for container in containers if identifier and container["id"] == identifier), None)


def _resolve(host: str) -> list[Any]:
    return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def _clash(address: str, wanted: set[str]) -> bool:
    """Return whether listening on an address keeps others from listening on the wanted ones."""
    held = ipaddress.ip_address(address)
    for name in wanted:
        want = ipaddress.ip_address(name)
        # "::" takes the IPv4 addresses too, unless told otherwise, which /proc/net does not show.
        if held == want or _covers(held, want) or _covers(want, held):
            return True
    return False


def _covers(one: Any, other: Any) -> bool:
    return bool(one.is_unspecified and (one.version == 6 or other.version == 4))


def _listeners(root: str) -> list[dict[str, Any]]:
    """Return C(address), C(port) and C(inode) of every listening TCP socket, from /proc/net."""
    found = []
    for name in ("tcp", "tcp6"):
        for line in read_text(root, "proc/net", name).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == LISTEN:
                address, port = fields[1].split(":")
                found.append({"address": _address(address), "port": int(port, 16), "inode": fields[9]})
    return found


def _address(text: str) -> str:
    """Return an address of /proc/net as people write it: the kernel prints words of 32 bits in its own byte order."""
    words = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _owners(inodes: set[str], root: str) -> dict[str, int]:
    """Return socket inode to process id, as far as this user may look."""
    owners: dict[str, int] = {}
    if not inodes:
        return owners
    for pid in list_folder(root, "proc"):
        if not pid.isdigit():
            continue
        folder = os.path.join(root, "proc", pid, "fd")
        for descriptor in list_folder(folder):
            try:
                target = os.readlink(os.path.join(folder, descriptor))
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                owners.setdefault(target[8:-1], int(pid))
        if len(owners) == len(inodes):
            break
    return owners


def model(path: str) -> dict[str, Any]:
    """Return what a model folder holds, or the current snapshot of a repository's folder in the Hugging Face cache.

    Returns:
        C(path), C(exists), C(config) and C(quantization) (config.json and hf_quant_config.json, None when missing,
        broken or larger than 1 MiB), C(config_error), C(tokenizer) (whether there is one), C(safetensors) (C(name) and
        C(size) in bytes), C(total_bytes), C(index_total_bytes) (what the index promises, or None),
        C(missing_files) (named by the index but not there), C(cut_files) (shorter than they say themselves) and
        C(complete).
    """
    path = snapshot(path)
    result: dict[str, Any] = {"path": path, "exists": os.path.isdir(path)}
    config, error = _json(os.path.join(path, "config.json"), LARGEST_CONFIG)
    names = list_folder(path)
    weights: list[dict[str, Any]] = [
        {"name": name, "size": os.path.getsize(os.path.join(path, name))}
        for name in names
        if name.endswith(".safetensors") and os.path.isfile(os.path.join(path, name))
    ]
    index = _json(os.path.join(path, "model.safetensors.index.json"), LARGEST_INDEX)[0] or {}
    total = sum(entry["size"] for entry in weights)
    names_of, metadata = _object(index.get("weight_map")), _object(index.get("metadata"))
    promised = metadata.get("total_size")
    promised = promised if isinstance(promised, (int, float)) else None
    there = {entry["name"] for entry in weights}
    missing = sorted(set(map(str, names_of.values())) - there) or _missing_parts(there)
    cut = [entry["name"] for entry in weights if not _is_whole(os.path.join(path, entry["name"]), entry["size"])]
    result.update(
        config=config,
        config_error=error,
        quantization=_json(os.path.join(path, "hf_quant_config.json"), LARGEST_CONFIG)[0],
        tokenizer=any(name in names for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")),
        safetensors=weights,
        total_bytes=total,
        index_total_bytes=promised,
        missing_files=missing,
        cut_files=cut,
        complete=bool(config and weights and not missing and not cut and total >= (promised or 0)),
    )
    return result


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _missing_parts(names: set[str]) -> list[str]:
    """Return the files that lack of a model in numbered parts, such as C(model-00002-of-00005.safetensors)."""
    parts = [match for match in map(PART.fullmatch, names) if match]
    wanted = {
        f"{match[1]}-{number:05d}-of-{match[2]}.safetensors"
        for match in parts
        for number in range(1, min(int(match[2]), MOST_PARTS) + 1)
    }
    return sorted(wanted - names)


def weights(folder: str) -> dict[str, Any]:
    """Return what there is of a model's weights: C(folder) as asked for, and the rest in the words of C(model).

    C(other_formats) tells of files with weights whose completeness is not known here.
    """
    found = model(folder)
    names = list_folder(found["path"])
    return {
        "folder": folder,
        **{key: found[key] for key in ("path", "exists", "complete", "total_bytes")},
        "other_formats": any(name == "params.json" or name.endswith(OTHER_WEIGHTS) for name in names),
    }


def _is_whole(path: str, size: int) -> bool:
    """Return whether a safetensors file is as long as its own header says; an interrupted copy is shorter.

    The format: eight bytes with the length of the header, the header in JSON with each tensor's place, the tensors.
    """
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(size, LARGEST_INDEX):
                return False
            header = json.loads(stream.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(size >= 8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return False


def _json(path: str, largest: int) -> tuple[dict[str, Any] | None, str]:
    """Return a file's JSON object and an empty text, or None and why there is none."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        return None, f"There is no {name}."
    if os.path.getsize(path) > largest:
        return None, f"{name} is larger than {largest} bytes."
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        return None, f"{name} is not JSON: {error}"
    if not isinstance(content, dict):
        return None, f"{name} is not a JSON object."
    return content, ""
