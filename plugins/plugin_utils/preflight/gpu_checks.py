# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight's checks of driver, NVLink fabric and GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import NOTHING, Nothing, Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import belongs_to
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import KernelModuleInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.orphans import ALIVE
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.nvidia import FabricManagerInfo
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import cuda_requirement, gpus, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import (
    Case,
    has_driver,
    selected,
    without_orphans,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ERROR, INFO, WARNING, Finding


def _driver_version(case: Case) -> str:
    module: KernelModuleInfo | Nothing = case.part("nvidia").get("kernel_module") or {}
    return str(case.gpu_info.get("driver_version") or module.get("version") or "")


def _concerns_gpus(case: Case) -> bool:
    return case.wishes.device == "cuda" and not case.described


def _driver(case: Case) -> list[Finding]:
    """Judge the driver by vllm_min_driver, by what the planner knows of the image and by what the image itself says."""
    found, plan = _driver_version(case), case.outlook.plan
    if not _concerns_gpus(case) or not found:
        return []
    major = int(found.partition(".")[0])
    cuda = (
        versions.cuda_of(versions.parse(plan["image"]["vllm_version"]) or versions.OLDEST, _tag(plan)) if plan else ""
    )
    oldest = versions.oldest_driver(cuda, case.wishes.min_driver)
    if major < oldest:
        wished = oldest == case.wishes.min_driver
        reason = f"vllm_min_driver is {oldest}" if wished else f"the image has CUDA {cuda}"
        instead = "set vllm_min_driver if the image is known to run with this one"
        older_cuda = "set vllm_image_tag to a vLLM with an older CUDA"
        if any(str(gpu.get("compute_capability")) == "10.3" for gpu in case.gpu_info.get("gpus") or []):
            older_cuda = "use GPUs of another kind: these need CUDA 13"
        return [
            Finding(
                "driver-too-old",
                ERROR,
                f"The driver is {found}.",
                f"driver {oldest} or newer ({reason})",
                f"Install driver {oldest} or newer and reboot, or " + (instead if wished else older_cuda) + ".",
            )
        ]
    return _image_requirement(case, found)


def _tag(plan: Plan) -> str:
    return str(plan["image"]["reference"]).rsplit(":", 1)[-1]


def _image_requirement(case: Case, driver: str) -> list[Finding]:
    environment = case.part("image").get("environment") or {}
    cuda = str(case.gpu_info.get("cuda_driver_version") or "")
    met = cuda_requirement.is_met(environment, driver, cuda)
    if met:
        return []
    return [
        Finding(
            "driver-too-old-for-image",
            WARNING if met is None else ERROR,
            f"The driver {driver} runs CUDA up to {cuda or 'an unknown version'}; the image asks for"
            f" NVIDIA_REQUIRE_CUDA={environment['NVIDIA_REQUIRE_CUDA']}.",
            "a driver that meets one of these alternatives, or the container toolkit does not start the server",
            "Install a newer driver and reboot, or set vllm_image_tag to a vLLM with an older CUDA.",
        )
    ]


def _fabric(case: Case) -> list[Finding]:
    """Judge the NVLink fabric: behind NVSwitches CUDA fails with error 802 until the fabric manager has set it up."""
    if not _concerns_gpus(case):
        return []
    nvidia = case.part("nvidia")
    manager: FabricManagerInfo | Nothing = nvidia.get("fabric_manager") or {}
    states = {str(gpu["fabric"]["state"]) for gpu in case.gpu_info.get("gpus") or [] if gpu.get("fabric")}
    # What the planner says of one that is completed is told by _fabric_health.
    waiting = sorted(states - {"completed"})
    driver, version = _driver_version(case), manager.get("version")
    matches = not driver or not version or version == driver
    needed = f"nvidia-fabricmanager {driver}, the driver's own version, running".replace("  ", " ")
    install = f"Install nvidia-fabricmanager of version {driver or 'the driver'} and start it:"
    start = "systemctl enable --now nvidia-fabricmanager"
    if not waiting and (states or not nvidia.get("nvswitches")):
        # The fabric is up, or there is none. A manager of another version refuses its next start.
        if states and version and not matches:
            return [_fabric_finding("fabric-manager-version", WARNING, manager, needed, f"{install} {start}.")]
        return []
    if not manager.get("path") and not manager.get("running"):
        return [_fabric_finding("fabric-manager-missing", ERROR, manager, needed, f"{install} {start}.", waiting)]
    if not matches:
        return [_fabric_finding("fabric-manager-version", ERROR, manager, needed, f"{install} {start}.", waiting)]
    if not manager.get("running"):
        return [_fabric_finding("fabric-manager-stopped", ERROR, manager, needed, f"Start it: {start}.", waiting)]
    if waiting:
        logs = "`journalctl -u nvidia-fabricmanager` says why; `systemctl restart nvidia-fabricmanager` tries again."
        return [_fabric_finding("fabric-not-ready", ERROR, manager, "a fabric in state completed", logs, waiting)]
    return []


def _fabric_health(case: Case) -> list[Finding]:
    """Judge a fabric that has been set up, but with an error, or of which a part has failed since."""
    if not _concerns_gpus(case):
        return []
    cards = [gpu for gpu in case.gpu_info.get("gpus") or [] if (gpu.get("fabric") or {}).get("state") == "completed"]
    faults = {gpu["index"]: gpus.fabric_fault(gpu["fabric"]) for gpu in cards}
    broken = [f"GPU {index}: its NVLink fabric is {fault}" for index, fault in faults.items() if fault]
    limited = [str(gpu["index"]) for gpu in cards if not faults[gpu["index"]] and gpus.fabric_limited(gpu["fabric"])]
    logs = f"Look at {gpus.FABRIC_LOGS}; then reset the GPU or reboot."
    found = []
    if broken:
        rest = "no plan is possible with it" if "gpu-lost" in case.refused else "it is left out of the plan"
        severity = ERROR if "gpu-lost" in case.refused else WARNING
        needed = "a fabric that is completed with success, and healthy"
        found.append(Finding("fabric-failed", severity, f"{'; '.join(broken)} ({rest}).", needed, logs))
    if limited:
        told = f"GPU {', '.join(limited)}: the NVLink fabric has limited capacity."
        found.append(Finding("fabric-limited", WARNING, told, "a healthy fabric: some links or switches failed", logs))
    return found


def _fabric_finding(
    name: str,
    severity: str,
    manager: FabricManagerInfo | Nothing,
    needed: str,
    remedy: str,
    waiting: Sequence[str] = (),
) -> Finding:
    version = f" {manager['version']}" if manager.get("version") else ""
    is_there = "is not installed" if not manager.get("path") else "runs" if manager.get("running") else "does not run"
    state = f"; the NVLink fabric is {' and '.join(waiting)}" if waiting else ""
    return Finding(name, severity, f"The fabric manager{version} {is_there}{state}.", needed, remedy)


def _cards(case: Case) -> list[gpus.Gpu]:
    cards = selected(case.gpu_info.get("gpus") or [], case.wishes)
    return gpus.from_probe(without_orphans(cards, case.orphans), _own(case))


def _own(case: Case) -> list[str]:
    return [
        container["id"]
        for container in case.part("engine").get("containers") or []
        if container.get("ours")
        and container.get("state") in ALIVE
        and belongs_to(case.wishes.container_prefix, str(container["name"]))
    ]


def _listed(cards: Iterable[gpus.Gpu]) -> str:
    return ", ".join(str(card.index) for card in cards)


def _lost(case: Case) -> list[Finding]:
    lost = [gpu for gpu in case.gpu_info.get("gpus") or [] if gpu.get("error")]
    if not _concerns_gpus(case) or not lost:
        return []
    refused = "gpu-lost" in case.refused
    rest = "no plan is possible with it" if refused else "it is left out of the plan"
    return [
        Finding(
            "gpu-lost",
            ERROR if refused else WARNING,
            "; ".join(f"GPU {gpu['index']}: {gpu['error']}" for gpu in lost) + f" ({rest})",
            "GPUs that answer",
            "Look for Xid lines in `dmesg`, then reset it (`nvidia-smi --gpu-reset -i N`) or power-cycle the host; or"
            " name the others in vllm_gpu_selection.",
        )
    ]


def _mig(case: Case) -> list[Finding]:
    divided = [card for card in _cards(case) if card.mig] if _concerns_gpus(case) else []
    if not divided:
        return []
    off = " && ".join(f"nvidia-smi -i {card.index} -mig 0" for card in divided)
    return [
        Finding(
            "mig-enabled",
            ERROR if "mig-enabled" in case.refused else WARNING,
            f"MIG is on for GPU {_listed(divided)}.",
            "undivided cards: slices of a card cannot work together, and each process sees one of them alone",
            f"Turn it off when nothing uses the card: {off} (then reset the GPU or reboot), or name only the other GPUs"
            " in vllm_gpu_selection.",
        )
    ]


def _unsupported(case: Case) -> list[Finding]:
    other = [card for card in _cards(case) if card.generation == "unsupported" and not card.error]
    if not _concerns_gpus(case) or not other or "unsupported-gpu" in case.refused:
        return []
    return [
        Finding(
            "unsupported-gpu",
            WARNING,
            f"GPU {_listed(other)} ({other[0].name}, compute capability {other[0].capability}) is left out.",
            "Hopper (9.0) or Blackwell (10.x, 12.0)",
            "Nothing, if the other GPUs are enough.",
        )
    ]


def _persistence(case: Case) -> list[Finding]:
    off = [gpu for gpu in case.gpu_info.get("gpus") or [] if gpu.get("persistence_mode") is False]
    if not _concerns_gpus(case) or not off or (case.part("nvidia").get("persistence_daemon") or NOTHING).get("running"):
        return []
    listed = ", ".join(str(gpu["index"]) for gpu in off)
    return [
        Finding(
            "persistence-mode-off",
            WARNING,
            f"Persistence mode is off for GPU {listed}.",
            "persistence mode on: else a card forgets its limits whenever no process uses it, and is set up anew",
            "Start nvidia-persistenced (systemctl enable --now nvidia-persistenced), or run nvidia-smi -pm 1.",
        )
    ]


def _health(case: Case) -> list[Finding]:
    if not _concerns_gpus(case):
        return []
    cards = case.gpu_info.get("gpus") or []
    broken = [str(gpu["index"]) for gpu in cards if (gpu.get("remapped_rows") or {}).get("failure")]
    pending = [str(gpu["index"]) for gpu in cards if (gpu.get("remapped_rows") or {}).get("pending")]
    found = []
    if broken:
        found.append(
            Finding(
                "gpu-memory-failing",
                WARNING,
                f"GPU {', '.join(broken)} has run out of spare memory rows.",
                "memory without errors",
                "Have the card replaced, and until then name only the others in vllm_gpu_selection.",
            )
        )
    if pending:
        found.append(
            Finding(
                "gpu-reset-pending",
                WARNING,
                f"GPU {', '.join(pending)} replaces memory rows after errors at its next reset.",
                "a reset",
                f"When nothing uses it: nvidia-smi --gpu-reset -i {','.join(pending)}, or reboot.",
            )
        )
    return found


def _holders(case: Case) -> list[Finding]:
    """Tell who else holds memory of the cards: others, that only their owner may end, and what is left of ours."""
    if not _concerns_gpus(case):
        return []
    found = []
    used = [card for card in _cards(case) if card.used_by]
    refused = "gpu-in-use" in case.refused
    if used:
        rest = "" if refused else " These GPUs are left out of the plan."
        found.append(
            Finding(
                "gpu-in-use",
                ERROR if refused and not case.freed else WARNING,
                "In use by others: " + "; ".join(f"GPU {card.index} by {card.used_by}" for card in used) + f".{rest}",
                "GPUs that no other process uses",
                "Let its owner end it (the collection never does), or name other GPUs in vllm_gpu_selection.",
            )
        )
    return found + _left(case, refused)


def _left(case: Case, refused: bool) -> list[Finding]:
    if not case.orphans:
        return []
    listed = "; ".join(
        f"GPU {entry['gpu']}: pid {entry['pid']} ({entry['used_mib'] or '?'} MiB), {entry['why']}"
        for entry in case.orphans
    )
    reclaim = case.wishes.reclaim_orphans
    if reclaim:
        return [Finding("gpu-orphans", INFO, f"Left by servers of this collection: {listed}. They will be ended.")]
    return [
        Finding(
            "gpu-orphans",
            ERROR if refused else WARNING,
            f"Left by servers of this collection: {listed}.",
            "their memory",
            "If they are no longer wanted, end them by a run with -e vllm_reclaim_orphans=true.",
        )
    ]


def _unprobed(case: Case) -> list[Finding]:
    if not _concerns_gpus(case) or case.gpu_info or not has_driver(case.host_info):
        return []
    return [
        Finding(
            "gpus-not-asked",
            INFO,
            "The driver was not asked, because the Python library for it is not on this host yet: who holds GPU memory,"
            " MIG, persistence mode and the NVLink fabric were not looked at. A deployment installs it into vllm_venv"
            " and looks then.",
        )
    ]


CHECKS = (_driver, _fabric, _fabric_health, _lost, _mig, _unsupported, _persistence, _health, _holders, _unprobed)
