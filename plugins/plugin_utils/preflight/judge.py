# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would fail on a host later, judged from what is known of it now: nothing here asks or changes anything.

Every check is a function of the same case and returns its findings; none depends on another's, so that all that is
wrong with a host is told at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import PLATFORMS
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import NOTHING
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import rough_duration
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import PREVIOUS, belongs_to
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import orphans
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import port_holder, port_in_use
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import HostInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.system import DistributionInfo
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.look_ahead import Outlook, look_ahead
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import (
    engine_checks,
    gpu_checks,
    port_checks,
    reboot_checks,
    source_checks,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import (
    DEFAULT_ENGINE,
    Case,
    has_driver,
    selected,
    without_orphans,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.disk_checks import (
    disk_findings,
    disk_needs,
    unwritable,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import (
    ERROR,
    WARNING,
    Finding,
    from_error,
    ordered,
)

# The distributions that the roles know packages of; see the README for those that they were run on.
DISTRIBUTIONS = {
    "debian": ("12", "13"),
    "ubuntu": ("22.04", "24.04"),
    "rhel": ("9",),
    "rocky": ("9",),
    "almalinux": ("9",),
    "centos": ("9",),
}
# A certificate or token that was made a moment ago is not valid yet on a host that is this far behind.
CLOCK_WARNING_S, CLOCK_ERROR_S = 30.0, 300.0
# Main memory that vLLM takes beside the GPU's, for each GPU, and shared memory of a replica's workers. Estimates.
WORKER_GIB = 6.0
SHM_MIB_OF_WORKERS, SHM_MIB = 1024, 64


@dataclass(frozen=True)
class Verdict:
    """What a host was found to be.

    Attributes:
        findings: the errors first.
        orphans: what the module vllm_orphans may reclaim.
    """

    findings: list[Finding]
    orphans: list[dict[str, Any]] = field(default_factory=list)


def judge(
    host: Mapping[str, Any],
    host_info: HostInfo,
    gpu_info: Mapping[str, Any],
    wishes: Wishes,
    folders: Mapping[str, str],
    *,
    docker_host: str = DEFAULT_ENGINE[0],
    manage_engine: bool = True,
) -> Verdict:
    """Judge a host.

    Args:
        host: see planner.plan.
        host_info: what the module of that name told.
        gpu_info: what the module of that name told; empty when it was not asked.
        wishes: what the user wants.
        folders: C(hf_home), C(cache_dir), C(state_dir), C(config_dir) and C(ca_bundle).
        docker_host: address of the engine.
        manage_engine: whether the role docker may install or start one.
    """
    containers = (host_info.get("engine") or NOTHING).get("containers") or []
    left = (
        []
        if wishes.gpus
        else orphans.find(selected(host.get("gpus") or [], wishes), containers, wishes.container_prefix)
    )
    without = {**host, "gpus": without_orphans(host.get("gpus") or [], left)}
    cards = [card["name"] for card in (host_info.get("nvidia") or NOTHING).get("cards") or []]
    host = {**host, **_unasked(host_info, gpu_info)}
    outlook = look_ahead(without if wishes.reclaim_orphans else host, wishes, cards)
    if not gpu_info and has_driver(host_info):
        # The driver was not asked, so that it names no GPU proves nothing.
        outlook = replace(outlook, errors=[error for error in outlook.errors if error.name != "no-gpu"])
    freed = False
    if left and "gpu-in-use" in outlook.names:
        freed = "gpu-in-use" not in look_ahead(without, wishes, cards).names
    host_info = source_checks.with_planned_image(host_info, outlook.plan, wishes)
    case = Case(host_info, gpu_info, wishes, outlook, folders, docker_host, manage_engine, left, freed)
    findings = [finding for check in CHECKS for finding in check(case)]
    return Verdict(ordered([*findings, *_plan(case, findings)]), left)


def _unasked(host_info: HostInfo, gpu_info: Mapping[str, Any]) -> dict[str, str]:
    """Return why a host whose driver was not asked has no GPU that could be used."""
    if gpu_info or has_driver(host_info):
        return {}
    devices = (host_info.get("nvidia") or NOTHING).get("pci_devices") or []
    seen = f"{len(devices)} NVIDIA GPU(s) are" if devices else "no NVIDIA GPU is"
    return {"gpu_reason": f"no NVIDIA driver is loaded, and {seen} on its PCI bus."}


def without_wishes(host_info: HostInfo, error: GpufleetError) -> Verdict:
    """Judge a host for which nothing can be planned, because the variables are invalid."""
    case = Case(host_info, {}, Wishes(device="cpu"), Outlook(None, []), {})
    findings = [finding for check in (_system, _clock, engine_checks.engine, _unseen) for finding in check(case)]
    return Verdict(ordered([from_error(error, "valid variables"), *findings]))


# The host


def _system(case: Case) -> list[Finding]:
    system = case.part("system")
    if not system:
        return []
    found = []
    if system["operating_system"] != "Linux":
        found.append(Finding("not-linux", ERROR, f"This host runs {system['operating_system']}.", "Linux"))
    if system["platform"] not in PLATFORMS:
        found.append(
            Finding(
                "unsupported-platform",
                ERROR,
                f"This host's architecture is {system['architecture']}.",
                "x86_64 or aarch64, for which there are vLLM images",
                "Take the host out of the inventory.",
            )
        )
    if system["euid"] != 0:
        found.append(
            Finding(
                "not-root",
                ERROR,
                f"The play works here as user id {system['euid']}.",
                "user id 0",
                "Set ansible_become: true for this host, or connect as root.",
            )
        )
    return found + _distribution(system["distribution"])


def _distribution(distribution: DistributionInfo) -> list[Finding]:
    known = DISTRIBUTIONS.get(distribution["id"])
    version = distribution["version_id"]
    if known and (version in known or version.split(".")[0] in known):
        return []
    listed = "Debian 12 and 13, Ubuntu 22.04 and 24.04, and RHEL 9 and its kin"
    return [
        Finding(
            "unknown-distribution",
            WARNING,
            f"This host runs {distribution['name'] or 'a distribution without a name'}.",
            f"a distribution that the roles know packages of: {listed}",
            "Install the Docker engine, the driver and the container toolkit yourself, and set docker_manage: false.",
        )
    ]


def _memory(case: Case) -> list[Finding]:
    """Judge main memory for servers on GPUs; for those on processors the planner does."""
    memory, plan = case.part("memory"), case.outlook.plan
    if not memory or plan is None or plan["device"] != "cuda" or case.described:
        return []
    workers = sum(replica["tensor_parallel_size"] for replica in plan["replicas"])
    wanted = workers * WORKER_GIB
    total, available = memory["total_mib"] / 1024, memory["available_mib"] / 1024
    running = any(container.get("ours") for container in case.part("engine").get("containers") or [])
    if total >= wanted and (available >= wanted or running):
        return []
    return [
        Finding(
            "too-little-memory",
            ERROR if total < wanted else WARNING,
            f"This host has {total:.1f} GiB of memory, of which {available:.1f} GiB are available.",
            f"about {wanted:.0f} GiB: {WORKER_GIB:.0f} for each of {workers} GPU worker(s)",
            "Stop what uses the memory, or run fewer servers: vllm_replicas.",
        )
    ]


def _shared_memory(case: Case) -> list[Finding]:
    shm, plan = case.part("shm"), case.outlook.plan
    if not shm or plan is None:
        return []
    together = [replica for replica in plan["replicas"] if replica["tensor_parallel_size"] > 1]
    wanted = SHM_MIB_OF_WORKERS * len(together) or SHM_MIB
    if shm["free_mib"] >= wanted:
        return []
    return [
        Finding(
            "too-little-shm",
            ERROR if shm["total_mib"] < wanted and together else WARNING,
            f"Of {shm['total_mib']} MiB of /dev/shm, {shm['free_mib']} are free.",
            f"{wanted} MiB, by which the workers of a server talk to each other",
            "Remove what fills it, or enlarge it: mount -o remount,size=16G /dev/shm (and in /etc/fstab).",
        )
    ]


def _disks(case: Case) -> list[Finding]:
    disks = case.part("disks")
    wanted = disk_needs(case.outlook.plan, case.host_info, case.wishes, case.folders)
    written = [case.folders[name] for name in ("config_dir", "state_dir", "hf_home", "cache_dir")]
    return [*disk_findings(wanted, disks), *unwritable(dict.fromkeys(written), disks)]


def _ports(case: Case) -> list[Finding]:
    seen = {entry["port"]: entry for entry in case.host_info.get("ports") or []}
    plan, prefix = case.outlook.plan, case.wishes.container_prefix
    count = case.wishes.replicas or 1
    wanted = (
        [(replica["name"], replica["port"]) for replica in plan["replicas"]]
        if plan and case.outlook.own_cards
        else [(f"{prefix}-{number}", case.wishes.port + number) for number in range(count)]
    )
    found = []
    for name, port in wanted:
        entry = seen.get(port)
        if entry is None or entry["free"] or (entry["ours"] and belongs_to(prefix, str(entry["container"]))):
            continue
        error = port_in_use(name, case.wishes.host, port, port_holder(entry))
        found.append(Finding(error.name, ERROR, error.message, "a free port", error.remedy, item=f"port {port}"))
    return found


def _address(case: Case) -> list[Finding]:
    if case.host_info.get("address_available") is not False:
        return []
    return [
        Finding(
            "address-not-available",
            ERROR,
            f"This host has no address {case.wishes.host}.",
            "an address of the host for the servers to listen on",
            "Set vllm_host to an address of the host, 127.0.0.1 or 0.0.0.0.",
        )
    ]


def _clock(case: Case) -> list[Finding]:
    clock = case.part("clock")
    ahead = clock.get("ahead_seconds")
    fix = "Start the host's time service: systemctl enable --now chronyd (or systemd-timesyncd)"
    if ahead is not None and abs(ahead) >= CLOCK_WARNING_S:
        return [
            Finding(
                "clock-wrong",
                ERROR if abs(ahead) >= CLOCK_ERROR_S else WARNING,
                f"The clock is {rough_duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the controller's.",
                f"less than {CLOCK_WARNING_S:.0f} s between them: certificates and tokens are valid by the clock",
                f"{fix}, then `chronyc makestep`; or fix the controller's clock.",
            )
        ]
    if clock.get("synchronised") is False:
        return [
            Finding(
                "clock-not-synchronised",
                WARNING,
                "No time service keeps the clock; it is right now.",
                "a clock that stays right",
                f"{fix}.",
            )
        ]
    return []


def _unfinished(case: Case) -> list[Finding]:
    """Return the old servers that an interrupted replacement has stopped and that nothing has started again."""
    names = [
        str(container["name"]) for container in case.part("engine").get("containers") or [] if container.get("ours")
    ]
    prefix = case.wishes.container_prefix
    return [
        Finding(
            "replacement-unfinished",
            WARNING,
            f"A replacement of {name[: -len(PREVIOUS)]} was interrupted; the old server is kept as {name}.",
            "",
            "The next deploy or upgrade that gets as far as the servers puts it right. Where the variables cannot be"
            " met any more, the playbook rollback brings back what served before.",
            item=name,
        )
        for name in sorted(names)
        if name.endswith(PREVIOUS) and belongs_to(prefix, name)
    ]


# What the planner refuses, and what could not be seen


# The planner's refusals that a check above tells in its own words.
TOLD_BY = {
    "driver-too-old": {"driver-too-old"},
    "gpu-in-use": {"gpu-in-use", "gpu-orphans"},
    "gpu-lost": {
        "gpu-lost",
        "fabric-manager-missing",
        "fabric-manager-stopped",
        "fabric-manager-version",
        "fabric-not-ready",
        "fabric-failed",
    },
    "mig-enabled": {"mig-enabled"},
    # Who cannot be asked for the weights cannot tell how large they are.
    "model-size-unknown": {"hub-unauthorised", "hub-unreachable", "hub-untrusted", "model-not-found"},
    "unsupported-platform": {"unsupported-platform"},
}
NEEDED = {
    "architecture-not-supported": "a vLLM that serves the model's architecture",
    "does-not-fit": "GPUs, or memory, that hold the model",
    "licence-not-accepted": "your acceptance of the model's licence",
    "model-size-unknown": "the model's own numbers, or yours",
    "no-gpu": "an NVIDIA Hopper or Blackwell GPU with a working driver",
    "no-model-folder": "a folder with the model",
    "too-few-gpus": "as many GPUs as are wished for",
    "unsupported-gpu": "Hopper (9.0) or Blackwell (10.x, 12.0)",
}


def _plan(case: Case, findings: Iterable[Finding]) -> list[Finding]:
    told = {finding.name for finding in findings if finding.severity == ERROR}
    return [
        from_error(error, NEEDED.get(error.name, "wishes that can be met"))
        for error in case.outlook.errors
        if not told & TOLD_BY.get(error.name, set())
    ]


def _unseen(case: Case) -> list[Finding]:
    return [
        Finding(
            "not-seen",
            WARNING,
            f"The host's {name} could not be looked at: {reason}",
            "an answer to judge by",
            "Run as root, and report it if that does not help.",
            item=name,
        )
        for name, reason in sorted((case.host_info.get("errors") or {}).items())
    ]


CHECKS: tuple[Callable[[Case], list[Finding]], ...] = (
    _system,
    *gpu_checks.CHECKS,
    _memory,
    _shared_memory,
    _disks,
    _address,
    _ports,
    _clock,
    engine_checks.engine,
    _unfinished,
    *source_checks.CHECKS,
    *reboot_checks.CHECKS,
    *port_checks.CHECKS,
    _unseen,
)
