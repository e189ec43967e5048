# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documents that cross rooms and the wire: the plan of a host, and what the module host_info tells of it.

They are plain data. The types below say which keys they have. The documentation of the modules vllm_plan, host_info and
vllm_server says the same to users, and tests/unit/plugins/module_utils/common/test_documents.py compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypedDict

# An empty mapping, which stands for a part that is not known.
Nothing = Mapping[str, NoReturn]
NOTHING: Nothing = MappingProxyType({})


# The plan


class ModelSource(TypedDict):
    """Where the weights come from, and what `vllm serve` is given."""

    kind: str
    location: str
    mount: str
    argument: str


class ImageOfPlan(TypedDict):
    """The image that serves."""

    reference: str
    tag: str
    platform: str
    vllm_version: str
    source: str
    archive: str
    digest: str


class ReplicaConfig(TypedDict):
    """The configuration of one server."""

    name: str
    config: dict[str, Any]


class Replica(ReplicaConfig):
    """One server of a plan. The option `replicas` of the module vllm_server takes it."""

    gpus: list[int]
    gpu_uuids: list[str]
    host: str
    port: int
    tensor_parallel_size: int
    environment: dict[str, str]


class MoeTables(TypedDict):
    """Tuned tables of the MoE kernel: files that servers find in a folder of theirs."""

    folder: str
    files: dict[str, str]


class Capacity(TypedDict):
    """What the memory model expects of one replica; None is not known."""

    weights_gib_per_gpu: float | None
    kv_cache_gib_per_gpu: float | None
    kv_cache_tokens: int | None
    max_concurrent_requests: int | None


class Decision(TypedDict):
    """One choice and its reason. A value of None says that the option is not sent."""

    field: str
    value: Any
    reason: str


class Plan(TypedDict):
    """What should run on a host."""

    schema_version: int
    device: str
    hardware: str
    model: str
    model_source: ModelSource
    precision: str
    profile: str
    image: ImageOfPlan
    gpu_access: str
    network_mode: str
    replicas: list[Replica]
    moe_tables: MoeTables | None
    capacity: Capacity
    decisions: list[Decision]
    warnings: list[str]


# What host_info tells


class NetworkOfSpec(TypedDict):
    """How a server is reached."""

    network_mode: str
    publish: str
    health_port: int
    health_host: str


class _SpecOfAnyVersion(NetworkOfSpec):
    """What every spec has, also one on the label of a container that an early version of the collection made."""

    schema: int
    name: str
    image: str
    image_id: str
    command: list[str]
    config: dict[str, Any]
    environment: dict[str, str]
    volumes: list[str]
    gpu_access: str
    gpus: list[str]
    devices: list[str]
    ipc_mode: str
    shm_size: str
    restart_policy: str
    log_max_size: str
    log_max_files: int
    labels: dict[str, str]


class Spec(_SpecOfAnyVersion, total=False):
    """What a replica's container should be."""

    secrets: list[str]
    takes_keys: bool
