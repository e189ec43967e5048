# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's GPUs are and how they are, asked of the driver through NVML (pynvml, distribution nvidia-ml-py).

Nothing here raises for what a driver answers: a host without a library, driver or device is a result with its own
C(state), and a GPU that stopped answering is an entry with an C(error) beside the others.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import container_id, program_name, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import kernel_module, nvidia_pci_devices
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.orphans import is_supervised, replica_of

if TYPE_CHECKING:
    from pynvml import NVMLError


# Values of NVML's own enumerations (nvml.h). pynvml versions differ in which of these they name.
ARCHITECTURES = {
    2: "kepler",
    3: "maxwell",
    4: "pascal",
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
GPU_NOT_FOUND = 28

FABRIC_STATES = {0: "not-supported", 1: "not-started", 2: "in-progress", 3: "completed"}
FABRIC_HEALTH = {1: "healthy", 2: "unhealthy", 3: "limited-capacity"}
NVLINK_TO_GPU = 0
NVLINK_TO_SWITCH = 2
# More than any card has; the driver says itself where its links end.
NVLINK_MAX_LINKS = 36
AFFINITY_SCOPE_NODE = 0

FAILURES = {
    LIBRARY_NOT_FOUND: "no-library",
    DRIVER_NOT_LOADED: "no-driver",
    LIB_RM_VERSION_MISMATCH: "driver-mismatch",
    NOT_FOUND: "no-device",
    GPU_NOT_FOUND: "no-device",
    NO_PERMISSION: "insufficient-permissions",
}


def _mib(size: int | None) -> int | None:
    """Return bytes as MiB, a part of one counted as one, as nvidia-smi does."""
    return None if size is None else -(-size // MIB)


def probe(root: str = "/") -> dict[str, Any]:
    """Return the host's GPUs and driver as plain data.

    Args:
        root: the folder below which proc and sys are mounted.

    Returns:
        C(state) (C(ok), C(degraded), C(no-library), C(no-driver), C(driver-mismatch), C(no-device) or
        C(insufficient-permissions)), C(reason) and C(remedy) (texts, empty when all is well), C(driver_version),
        C(cuda_driver_version), C(kernel_module) (C(version) and C(open), or None), C(pci_devices) (bus ids of the
        NVIDIA GPUs that the kernel sees, with or without a driver) and C(gpus) (see C(_describe)).
    """
    import pynvml

    result: dict[str, Any] = {
        "state": "ok",
        "reason": "",
        "remedy": "",
        "driver_version": None,
        "cuda_driver_version": None,
        "kernel_module": kernel_module(root),
        "pci_devices": nvidia_pci_devices(root),
        "gpus": [],
    }
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {**result, **_init_failure(error, result["kernel_module"], result["pci_devices"])}
    try:
        result["driver_version"] = _ask(pynvml.nvmlSystemGetDriverVersion)
        result["cuda_driver_version"] = _cuda_version(_ask(pynvml.nvmlSystemGetCudaDriverVersion))
        count = _ask(pynvml.nvmlDeviceGetCount) or 0
        result["gpus"] = _describe_all(count, root)
    finally:
        _ask(pynvml.nvmlShutdown)
    result.update(_verdict(result["gpus"], result["pci_devices"]))
    return result


def memory(root: str = "/") -> list[dict[str, Any]]:
    """Return the memory of the host's GPUs and who holds it, without the rest that probe() asks for.

    Returns:
        for each GPU that answers C(index), C(uuid), C(name), C(memory_total_mib), C(memory_used_mib),
        C(memory_free_mib), C(memory_reserved_mib) (MiB, None when not told) and C(processes) (see C(_processes));
        nothing when NVML does not start, or pynvml is not there.
    """
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    gpus = []
    try:
        for index in range(_ask(pynvml.nvmlDeviceGetCount) or 0):
            # A card that is lost is the planner's to leave out; here it has no memory to tell of.
            with contextlib.suppress(pynvml.NVMLError):
                gpus.append(_memory_of(index, root))
    finally:
        _ask(pynvml.nvmlShutdown)
    return gpus


def _memory_of(index: int, root: str) -> dict[str, Any]:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    unknown = dict.fromkeys(("memory_total_mib", "memory_used_mib", "memory_free_mib", "memory_reserved_mib"))
    return {
        "index": index,
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "name": pynvml.nvmlDeviceGetName(handle),
        **unknown,
        **_memory(handle),
        "processes": _processes(handle, root),
    }


def _describe_all(count: int, root: str) -> list[dict[str, Any]]:
    import pynvml

    gpus: list[dict[str, Any]] = []
    handles: dict[int, Any] = {}
    for index in range(count):
        gpu = _blank(index)
        gpus.append(gpu)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            _describe(gpu, handle, root)
        except pynvml.NVMLError as error:
            gpu["error"] = _device_error(error)
        except UnicodeDecodeError:
            gpu["error"] = "The driver's answer about this GPU is not text; its information ROM may be corrupt."
        else:
            handles[index] = handle
    _add_peers(gpus, handles)
    return gpus


def _blank(index: int) -> dict[str, Any]:
    """Return a GPU of which nothing is known yet: every key is always there, whatever the driver can tell."""
    keys = (
        "uuid pci_bus_id name compute_capability architecture memory_total_mib memory_used_mib memory_free_mib"
        " memory_reserved_mib mig_mode ecc remapped_rows power_limit_watts persistence_mode numa_node nvlink fabric"
    )
    return {"index": index, **dict.fromkeys(keys.split()), "peers": [], "processes": [], "error": None}


def _describe(gpu: dict[str, Any], handle: Any, root: str) -> None:
    """Fill in one GPU; what the driver or the card does not support stays None.

    Raises:
        NVMLError: the GPU does not answer any more. What was learned before is kept.
    """
    import pynvml

    gpu["uuid"] = pynvml.nvmlDeviceGetUUID(handle)
    gpu["pci_bus_id"] = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId).lower()
    gpu["name"] = pynvml.nvmlDeviceGetName(handle)
    gpu["compute_capability"] = "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    architecture = _ask(pynvml.nvmlDeviceGetArchitecture, handle)
    gpu["architecture"] = ARCHITECTURES.get(architecture, None if architecture is None else "unknown")
    gpu.update(_memory(handle))
    gpu["mig_mode"] = _enabled((_ask(pynvml.nvmlDeviceGetMigMode, handle) or [None])[0])
    gpu["ecc"] = _ecc(handle)
    gpu["remapped_rows"] = _remapped_rows(handle)
    milliwatts = _ask(pynvml.nvmlDeviceGetPowerManagementLimit, handle)
    gpu["power_limit_watts"] = None if milliwatts is None else round(milliwatts / 1000)
    gpu["persistence_mode"] = _enabled(_ask(pynvml.nvmlDeviceGetPersistenceMode, handle))
    gpu["numa_node"] = _numa_node(handle)
    gpu["nvlink"] = _nvlink(handle)
    gpu["fabric"] = _fabric(handle)
    gpu["processes"] = _processes(handle, root)


def _memory(handle: Any) -> dict[str, int | None]:
    """Return the card's memory in MiB: used is without what the driver reserves, as nvidia-smi shows it."""
    import pynvml

    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if memory is None:
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        return {}
    reserved = getattr(memory, "reserved", None)
    return {
        "memory_total_mib": _mib(memory.total),
        "memory_used_mib": _mib(memory.used),
        "memory_free_mib": _mib(memory.free),
        "memory_reserved_mib": _mib(reserved),
    }


def _ecc(handle: Any) -> dict[str, Any] | None:
    import pynvml

    mode = _ask(pynvml.nvmlDeviceGetEccMode, handle)
    if mode is None:
        return None
    kinds = {
        "corrected_volatile": (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC),
        "uncorrected_volatile": (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
        "corrected_aggregate": (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_AGGREGATE_ECC),
        "uncorrected_aggregate": (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_AGGREGATE_ECC),
    }
    counts = {name: _ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, *kind) for name, kind in kinds.items()}
    return {"mode": _enabled(mode[0]), **counts}


def _remapped_rows(handle: Any) -> dict[str, Any] | None:
    import pynvml

    rows = _ask(pynvml.nvmlDeviceGetRemappedRows, handle)
    if rows is None:
        return None
    corrected, uncorrected, pending, failure = rows
    return {"corrected": corrected, "uncorrected": uncorrected, "pending": bool(pending), "failure": bool(failure)}


def _numa_node(handle: Any) -> int | None:
    """Return the NUMA node of the processors nearest to the GPU."""
    import pynvml

    nodes = _ask(pynvml.nvmlDeviceGetMemoryAffinity, handle, 1, AFFINITY_SCOPE_NODE)
    mask = nodes[0] if nodes is not None else 0
    return (mask & -mask).bit_length() - 1 if mask else None


def _nvlink(handle: Any) -> dict[str, Any] | None:
    """Return C(active_links), C(inactive_links), C(switched) and the bus ids of directly linked GPUs, or None."""
    import pynvml

    active = inactive = 0
    switched = False
    remote_gpus: set[str] = set()
    for link in range(NVLINK_MAX_LINKS):
        state = _ask(pynvml.nvmlDeviceGetNvLinkState, handle, link)
        if state is None:
            break
        if not state:
            inactive += 1
            continue
        active += 1
        kind = _ask(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link)
        if kind == NVLINK_TO_SWITCH:
            switched = True
        elif kind == NVLINK_TO_GPU:
            remote = _ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
            if remote is not None:
                remote_gpus.add(_text(remote.busId).lower())
    if not active and not inactive:
        return None
    return {
        "active_links": active,
        "inactive_links": inactive,
        "switched": switched,
        "remote_gpus": sorted(remote_gpus),
    }


def _fabric(handle: Any) -> dict[str, Any] | None:
    """Return how far the fabric manager has brought this GPU into the NVLink fabric; None where there is no fabric."""
    import pynvml

    for structure in ("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t"):
        if not hasattr(pynvml, structure):
            continue
        info = getattr(pynvml, structure)()
        if _ask(pynvml.nvmlDeviceGetGpuFabricInfoV, handle, ctypes.byref(info)) is not None:
            break
    else:
        return None
    state = FABRIC_STATES.get(info.state, "unknown")
    if state == "not-supported":
        return None
    return {
        "state": state,
        "status": "success" if info.status == 0 else str(pynvml.NVMLError(info.status)),
        "cluster_uuid": bytes(info.clusterUuid).hex(),
        "clique_id": info.cliqueId,
        "health": FABRIC_HEALTH.get(getattr(info, "healthSummary", 0)),
    }


def _processes(handle: Any, root: str) -> list[dict[str, Any]]:
    """Return the compute processes that hold this GPU's memory.

    Each has C(pid), C(name), C(used_mib), C(container), C(replica) (the server of this collection that it belongs to,
    or an empty text) and C(supervised) (whether a container engine started it and still looks after it).
    """
    import pynvml

    found = []
    for process in _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []:
        used = process.usedGpuMemory
        found.append(
            {
                "pid": process.pid,
                "name": _process_name(process.pid, root),
                "used_mib": _mib(used),
                "container": container_id(process.pid, root),
                "replica": replica_of(process.pid, root),
                "supervised": is_supervised(process.pid, root),
            }
        )
    return sorted(found, key=lambda process: int(process["pid"]))


def _process_name(pid: int, root: str) -> str | None:
    import pynvml

    try:
        name = _ask(pynvml.nvmlSystemGetProcessName, pid)
    except UnicodeDecodeError:
        name = None
    return program_name(name or read_text(root, "proc", str(pid), "comm")) or None


def _add_peers(gpus: list[dict[str, Any]], handles: dict[int, Any]) -> None:
    """Set each GPU's C(peers): the indexes of those it reaches over NVLink, directly or through a switch."""
    import pynvml

    by_bus = {gpu["pci_bus_id"]: gpu["index"] for gpu in gpus if gpu["pci_bus_id"]}
    for index, handle in handles.items():
        nvlink = gpus[index]["nvlink"]
        if not nvlink or not nvlink["active_links"]:
            continue
        peers = {by_bus[bus] for bus in nvlink["remote_gpus"] if bus in by_bus}
        for other, other_handle in handles.items():
            if other == index:
                continue
            try:
                status = _ask(pynvml.nvmlDeviceGetP2PStatus, handle, other_handle, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            except pynvml.NVMLError:
                continue
            if status == pynvml.NVML_P2P_STATUS_OK:
                peers.add(other)
        gpus[index]["peers"] = sorted(peers)


def _ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the driver answers, or None where it does not support the question.

    Raises:
        NVMLError: the GPU is lost or must be reset; then no other question makes sense either.
    """
    import pynvml

    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in (GPU_IS_LOST, RESET_REQUIRED):
            raise
        return None


def _init_failure(error: NVMLError, module: dict[str, Any] | None, devices: list[str]) -> dict[str, str]:
    """Return C(state), C(reason) and C(remedy) of an NVML that did not start."""
    state = FAILURES.get(error.value, "degraded")
    seen = f"{len(devices) or 'no'} NVIDIA GPU(s) on this host's PCI bus"
    loaded = f"the loaded kernel module is {module['version']}" if module else "no NVIDIA kernel module is loaded"
    install = (
        "Install the NVIDIA driver, 580 or newer, from the distribution's or NVIDIA's repository and load it with"
        " `modprobe nvidia`; on a host without a GPU set vllm_device: cpu."
    )
    if module and state == "no-driver":
        install = "Make the driver's device files with `nvidia-modprobe -c 0 -u`, or install its user-space part anew."
    texts = {
        "no-library": (f"libnvidia-ml.so.1 cannot be loaded; {seen}, {loaded}.", install),
        "no-driver": (f"The NVIDIA driver does not answer; {seen}, {loaded}. dmesg says more.", install),
        "driver-mismatch": (
            f"The driver's libraries and its kernel module are of different versions; {loaded}.",
            "The driver was upgraded under a running kernel module: reboot the host, or stop every GPU process and"
            " reload the modules with `rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && modprobe nvidia`.",
        ),
        "no-device": _no_device(devices),
        "insufficient-permissions": (
            "The NVIDIA device files cannot be opened by this user.",
            "Run the task with become: true, or give the user access to /dev/nvidia* and /dev/nvidiactl.",
        ),
        "degraded": (
            f"NVML did not start: {error}; {seen}, {loaded}.",
            "Look for NVRM and Xid lines in `dmesg`; in a container that lost its GPUs, recreate the container.",
        ),
    }
    reason, remedy = texts[state]
    return {"state": state, "reason": reason, "remedy": remedy}


def _verdict(gpus: list[dict[str, Any]], devices: list[str]) -> dict[str, str]:
    """Return C(state), C(reason) and C(remedy) of a driver that answers."""
    if not gpus:
        reason, remedy = _no_device(devices)
        return {"state": "no-device", "reason": reason, "remedy": remedy}
    lost = [gpu for gpu in gpus if gpu["error"]]
    if not lost:
        return {"state": "ok", "reason": "", "remedy": ""}
    indexes = ", ".join(str(gpu["index"]) for gpu in lost)
    return {
        "state": "degraded",
        "reason": f"{len(lost)} of {len(gpus)} GPUs cannot be used (index {indexes}): {lost[0]['error']}",
        "remedy": "Look for Xid lines in `dmesg`, then reset the GPU with `nvidia-smi --gpu-reset` or power-cycle the"
        " host; a GPU that falls off the bus again needs its vendor's service.",
    }


def _no_device(devices: list[str]) -> tuple[str, str]:
    if not devices:
        return (
            "The driver is loaded but finds no GPU, and no NVIDIA GPU is on this host's PCI bus.",
            "Check the card's seating and power, or the virtual machine's passthrough; on a host without a GPU set"
            " vllm_device: cpu.",
        )
    return (
        f"The driver is loaded but drives none of the {len(devices)} NVIDIA GPU(s) on this host's PCI bus"
        f" ({', '.join(devices)}).",
        "Look for NVRM lines in `dmesg`: Blackwell needs the open kernel module, and a GPU bound to vfio-pci belongs to"
        " a virtual machine.",
    )


def _device_error(error: NVMLError) -> str:
    if error.value == GPU_IS_LOST:
        return "The GPU is lost: it has fallen off the bus or stopped answering."
    if error.value == RESET_REQUIRED:
        return "The GPU must be reset before it can be used again."
    return f"NVML cannot read this GPU: {error}."


def _cuda_version(version: int | None) -> str | None:
    return None if version is None else f"{version // 1000}.{version % 1000 // 10}"


def _enabled(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
