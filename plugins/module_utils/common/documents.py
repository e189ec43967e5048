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
    capacity: Capacity
    decisions: list[Decision]
    warnings: list[str]


# What host_info tells


class DistributionInfo(TypedDict):
    """The Linux distribution, from /etc/os-release."""

    id: str
    version_id: str
    codename: str
    like: list[str]
    name: str


class PythonInfo(TypedDict):
    """The Python that ran the module."""

    executable: str
    version: str
    makes_environments: bool


class SystemInfo(TypedDict):
    """The operating system."""

    architecture: str
    platform: str
    kernel: str
    operating_system: str
    distribution: DistributionInfo
    init: str
    euid: int
    python: PythonInfo


class CpuInfo(TypedDict):
    """The processors."""

    count: int
    model: str
    flags: list[str]


class MemoryInfo(TypedDict):
    """The main memory."""

    total_mib: int
    available_mib: int


class SharedMemoryInfo(TypedDict):
    """The file system /dev/shm."""

    total_mib: int
    free_mib: int


class ClockInfo(TypedDict):
    """The clock. `synchronised` is None when the kernel does not tell."""

    synchronised: bool | None
    epoch: float
    ahead_seconds: float | None


class BundleInfo(TypedDict):
    """The CA bundle that pip is configured to use, and where that is configured."""

    path: str
    source: str


class VenvInfo(TypedDict):
    """A virtual environment, and whether it meets the requirements."""

    path: str
    exists: bool
    reason: str
    python: str
    python_version: str | None
    distributions: dict[str, str]
    missing: list[str]
    satisfied: bool


class PublishedPort(TypedDict):
    """A port of the host that a container publishes."""

    host: str
    port: int


class ContainerInfo(TypedDict):
    """A container of the engine."""

    id: str
    name: str
    state: str
    image: str
    ours: bool
    replica: str
    ports: list[PublishedPort]


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
    containers: list[ContainerInfo]


class DaemonConfigInfo(TypedDict):
    """The file /etc/docker/daemon.json. `valid` is None when it may not be read."""

    path: str
    exists: bool
    valid: bool | None
    error: str
    key_names: list[str]
    content: dict[str, Any]


class KernelModuleInfo(TypedDict):
    """The loaded NVIDIA kernel module."""

    version: str
    open: bool


class CardInfo(TypedDict):
    """A GPU that the loaded driver drives."""

    pci_bus_id: str
    name: str
    uuid: str


class ToolInfo(TypedDict):
    """A program; None when it is not installed."""

    path: str | None
    version: str | None


class FabricManagerInfo(ToolInfo):
    """The fabric manager, and whether it runs."""

    running: bool


class PersistenceInfo(TypedDict):
    """The persistence daemon."""

    running: bool


class NvidiaInfo(TypedDict):
    """What there is of NVIDIA's devices, driver and tools."""

    pci_devices: list[str]
    nvswitches: int
    kernel_module: KernelModuleInfo | None
    cards: list[CardInfo]
    device_files: list[str]
    device_files_unlinked: list[str]
    cdi_specs: list[str]
    container_toolkit: ToolInfo
    docker_predates_toolkit: bool
    fabric_manager: FabricManagerInfo
    persistence_daemon: PersistenceInfo


class DiskInfo(TypedDict):
    """The file system that holds a path, or would hold it."""

    existing: str
    mount: str
    device: str
    device_number: int
    filesystem: str
    total_bytes: int
    free_bytes: int
    writable: bool


class PortInfo(TypedDict):
    """A TCP port and who holds it."""

    port: int
    free: bool
    ours: bool
    container: str
    pid: int | None
    process: str


class WeightsFile(TypedDict):
    """A file of weights."""

    name: str
    size: int


class ModelInfo(TypedDict, total=False):
    """What the folder of a model holds. The planner also takes one of which a user knows a part only."""

    path: str
    exists: bool
    config: dict[str, Any] | None
    config_error: str
    quantization: dict[str, Any] | None
    tokenizer: bool
    safetensors: list[WeightsFile]
    total_bytes: int
    index_total_bytes: float | None
    missing_files: list[str]
    cut_files: list[str]
    complete: bool


class WeightsInfo(TypedDict):
    """What there is of a model's weights."""

    folder: str
    path: str
    exists: bool
    complete: bool
    total_bytes: int
    other_formats: bool


class ImageInfo(TypedDict):
    """An image that the engine has."""

    id: str
    size_bytes: int
    platform: str
    environment: dict[str, str]


class ReachInfo(TypedDict):
    """How a server answered."""

    url: str
    reachable: bool
    status: int | None
    cause: str
    reason: str
    proxied: bool


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
