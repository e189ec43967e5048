# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The key of what servers compile: hosts with the same key compile the same, so one may have it from another.

It holds more than the compilers look at, and nothing by which equal hosts differ: a key that is too narrow costs a cold
start, one that is too wide gives a server what was compiled for something else.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import nvml
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import hub_cache
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.server_files import cached

SCHEMA = 1
# What is of the host, and what no compiler sees.
OWN_OPTIONS = ("host", "port", "shutdown-timeout")
OWN_VARIABLES = (
    *("NVIDIA_VISIBLE_DEVICES", "VLLM_HOST_IP"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
# Of x86 and of Arm: compilers make code for the processor that they run on.
PROCESSOR = ("model name", "flags", "CPU implementer", "CPU part", "Features")


def cache_key(replicas: Sequence[Replica], wishes: ServerOptions, root: str = "/") -> str:
    """Return the key of what these servers compile on this host; empty where something of it is not known.

    Args:
        replicas: of the plan.
        wishes: what they share.
        root: the folder below which proc is mounted.
    """
    hardware, model = _hardware(replicas, wishes.device, root), _model(replicas, wishes)
    if not (replicas and wishes.image_id and hardware and model):
        return ""
    parts = {
        "schema": SCHEMA,
        "image": wishes.image_id,
        "hardware": hardware,
        "model": model,
        "volumes": sorted(wishes.volumes),
        "servers": sorted({_server(replica, wishes.environment) for replica in replicas}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _server(replica: Replica, environment: Mapping[str, str]) -> str:
    """Return the options and variables of a server that may matter, as a text."""
    config = {name: value for name, value in replica["config"].items() if name not in OWN_OPTIONS}
    variables = {
        name: str(value)
        for name, value in {**(replica.get("environment") or {}), **environment}.items()
        if name.upper() not in OWN_VARIABLES
    }
    return json.dumps([config, variables, replica.get("tensor_parallel_size")], sort_keys=True)


def _hardware(replicas: Sequence[Replica], device: str, root: str) -> dict[str, Any]:
    """Return the processor, and the driver and the GPUs of these servers; nothing where they are not known."""
    processor = _processor(root)
    if device == "cpu" or not processor:
        return processor
    probed = nvml.probe(root)
    wanted = {str(gpu) for replica in replicas for gpu in (replica.get("gpu_uuids") or replica.get("gpus") or [])}
    gpus = [gpu for gpu in probed["gpus"] if {str(gpu["uuid"]), str(gpu["index"])} & wanted]
    kinds = sorted({f"{gpu['name']} {gpu['compute_capability']} {gpu['mig_mode']}" for gpu in gpus})
    if not gpus or not probed["driver_version"] or any(gpu["error"] for gpu in gpus):
        return {}
    return {**processor, "driver": probed["driver_version"], "gpus": kinds}


def _processor(root: str) -> dict[str, Any]:
    """Return what the first processor is and can."""
    first = read_text(root, "proc/cpuinfo").partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    found = {
        name.strip(): " ".join(sorted(value.split())) for name, _colon, value in lines if name.strip() in PROCESSOR
    }
    return {"machine": platform.machine(), **found} if found else {}


def _model(replicas: Sequence[Replica], wishes: ServerOptions) -> list[str]:
    """Return the model's name and the hash of its configuration; nothing where it is not on the host."""
    source = wishes.model_source
    folder = source.get("mount") or ""
    try:
        if not folder:
            replica = replicas[0]
            cache = hub_cache(
                wishes.hf_home, {**(replica.get("environment") or {}), **wishes.environment}, wishes.volumes
            )
            revision = str(replica["config"].get("revision") or "main")
            folder = cached(cache, source["argument"].partition(":")[0], revision)
        with open(os.path.join(folder, "config.json"), "rb") as stream:
            return [source["argument"], hashlib.sha256(stream.read()).hexdigest()]
    except (GpufleetError, OSError, LookupError):
        return []
