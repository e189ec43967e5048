# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each of preflight's findings, alone and with others."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import findings, source_checks
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import judge as preflight_judge

GIB = 1024**3
FOLDERS = {
    "config_dir": "/etc/gpufleet",
    "state_dir": "/var/lib/gpufleet",
    "hf_home": "/var/lib/gpufleet/huggingface",
    "cache_dir": "/var/lib/gpufleet/cache",
}
FP8 = "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8"
CACHED = f"{FOLDERS['hf_home']}/hub/models--nvidia--Llama-4-Scout-17B-16E-Instruct-FP8"
OURS, OTHERS, GONE = "a" * 64, "b" * 64, "c" * 64


def disk(mount: str, number: int, free_gib: float, **more: Any) -> dict[str, Any]:
    return {
        "existing": mount,
        "mount": mount,
        "device": f"/dev/disk{number}",
        "device_number": number,
        "filesystem": "ext4",
        "total_bytes": 1000 * GIB,
        "free_bytes": int(free_gib * GIB),
        "writable": True,
        **more,
    }


def container(name: str, identifier: str, state: str = "running", ours: bool = True) -> dict[str, Any]:
    return {"id": identifier, "name": name, "state": state, "ours": ours, "replica": name if ours else "", "ports": []}


def host_info(**parts: Any) -> dict[str, Any]:
    """Return what host_info tells of a good GPU host; C(parts) replace its own, or add to dictionaries."""
    good: dict[str, Any] = {
        "system": {
            "operating_system": "Linux",
            "architecture": "x86_64",
            "platform": "linux/amd64",
            "euid": 0,
            "distribution": {"id": "debian", "version_id": "12", "name": "Debian GNU/Linux 12 (bookworm)"},
        },
        "cpu": {"count": 64, "flags": []},
        "memory": {"total_mib": 2000000, "available_mib": 1900000},
        "shm": {"total_mib": 1000000, "free_mib": 1000000},
        "clock": {"synchronised": True, "epoch": 1.0, "ahead_seconds": 0.4},
        "engine": {"running": True, "reason": "", "image_dir": "/var/lib/docker", "containers": []},
        "daemon_config": {"path": "/etc/docker/daemon.json", "valid": True, "error": ""},
        "nvidia": {
            "pci_devices": ["0000:1b:00.0"],
            "nvswitches": 0,
            "kernel_module": {"version": "580.159.04", "open": True},
            "cards": [{"pci_bus_id": "0000:1b:00.0", "name": "NVIDIA H200", "uuid": "GPU-0"}],
            "device_files": ["nvidia0"],
            "fabric_manager": {"path": None, "version": None, "running": False},
            "persistence_daemon": {"running": False},
        },
        "disks": {
            "/var/lib/docker": disk("/", 1, 500),
            **{path: disk("/", 1, 500) for path in FOLDERS.values()},
        },
        "address_available": True,
        "ports": [],
        "weights": [],
        "image": None,
        "image_alternatives": {},
        "reach": {},
        "errors": {},
    }
    for name, value in parts.items():
        good[name] = {**good[name], **value} if isinstance(value, dict) and isinstance(good[name], dict) else value
    return good


def gpu(index: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "memory_total_mib": 143771,
        "memory_used_mib": 0,
        "memory_reserved_mib": 612,
        "mig_mode": False,
        "persistence_mode": True,
        "remapped_rows": {"corrected": 0, "uncorrected": 0, "pending": False, "failure": False},
        "fabric": None,
        "peers": [],
        "processes": [],
        "error": None,
        **more,
    }


def gpu_info(*gpus: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "state": "ok",
        "reason": "",
        "remedy": "",
        "driver_version": "580.159.04",
        "cuda_driver_version": "13.0",
        "gpus": list(gpus) or [gpu()],
        **more,
    }


def process(pid: int = 7, container: str = "", **more: Any) -> dict[str, Any]:
    return {
        "pid": pid,
        "name": "python3",
        "used_mib": 61440,
        "container": container,
        "replica": "",
        "supervised": bool(container),
        **more,
    }


def judge(
    info: Any = None,
    probe: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    **wished: Any,
) -> preflight_judge.Verdict:
    """Judge a host; the licence is accepted unless the wishes say otherwise. An empty C(probe) means nobody asked."""
    info = host_info() if info is None else info
    probe = gpu_info() if probe is None else probe
    boxes = [box for box in info["engine"]["containers"] if box["ours"] and box["state"] == "running"]
    own = [box["id"] for box in boxes if box["name"].startswith("vllm-")]
    host = {
        "architecture": info["system"]["architecture"],
        "cpus": info["cpu"]["count"],
        "memory_mib": info["memory"]["total_mib"],
        "own_containers": own,
        "gpus": probe.get("gpus") or [],
        "driver_version": probe.get("driver_version") or "",
        "gpu_state": probe.get("state") or "",
        "gpu_reason": probe.get("reason") or "",
        "gpu_remedy": probe.get("remedy") or "",
    }
    given = {"accept_license": True, **wished}
    wanted = wishes.read({f"vllm_{name}": value for name, value in given.items()})
    return preflight_judge.judge(host, info, probe, wanted, FOLDERS, **(engine or {}))


def told(verdict: preflight_judge.Verdict) -> dict[str, str]:
    """Return the findings as name to severity."""
    return {finding.name: finding.severity for finding in verdict.findings}


def only(verdict: preflight_judge.Verdict, name: str) -> findings.Finding:
    (found,) = [finding for finding in verdict.findings if finding.name == name]
    return found


def test_a_good_host_has_no_findings() -> None:
    assert judge().findings == []


def test_a_good_host_without_a_gpu_has_none_either() -> None:
    assert (
        judge(host_info(nvidia={"pci_devices": [], "cards": [], "kernel_module": None}), {}, device="cpu").findings
        == []
    )


# what is wrong -> the finding, its severity, and words of found, needed and remedy
SYSTEMS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "not root": ({"euid": 1000}, "not-root", "error", "ansible_become"),
    "not Linux": ({"operating_system": "FreeBSD"}, "not-linux", "error", "FreeBSD"),
    "architecture": (
        {"architecture": "riscv64", "platform": "linux/riscv64"},
        "unsupported-platform",
        "error",
        "x86_64 or aarch64",
    ),
    "distribution": (
        {"distribution": {"id": "arch", "version_id": "", "name": "Arch Linux"}},
        "unknown-distribution",
        "warning",
        "Arch Linux",
    ),
    "release": (
        {"distribution": {"id": "ubuntu", "version_id": "20.04", "name": "Ubuntu 20.04"}},
        "unknown-distribution",
        "warning",
        "docker_manage",
    ),
}


@pytest.mark.parametrize("case", SYSTEMS)
def test_systems(case: str) -> None:
    changes, name, severity, words = SYSTEMS[case]
    verdict = judge(host_info(system=changes))
    assert told(verdict) == {name: severity}
    assert words in findings.sentence(verdict.findings[0].as_result())


@pytest.mark.parametrize(
    "distribution",
    [("debian", "13"), ("ubuntu", "24.04"), ("rocky", "9.6"), ("almalinux", "9.4"), ("rhel", "9"), ("centos", "9")],
)
def test_supported_distributions(distribution: tuple[str, str]) -> None:
    name, version = distribution
    about = {"id": name, "version_id": version, "name": name}
    assert judge(host_info(system={"distribution": about})).findings == []


# ---- driver ----


@pytest.mark.parametrize(
    ("version", "wished", "needed"),
    [
        ("570.172.08", {"image_tag": "v0.12.0"}, "driver 575 or newer (vllm_min_driver is 575)"),
        ("575.57.08", {"image_tag": "v0.12.0"}, ""),
        ("575.57.08", {"image_tag": "v0.12.0", "min_driver": 580}, "driver 580 or newer (vllm_min_driver is 580)"),
        ("570.172.08", {"image_tag": "v0.12.0", "min_driver": 570}, ""),
        ("575.57.08", {}, "driver 580 or newer (the image has CUDA 13.0)"),
        ("575.57.08", {"image_tag": "v0.20.0"}, "driver 580 or newer (the image has CUDA 13.0)"),
        ("580.65.06", {"image_tag": "v0.20.0"}, ""),
    ],
)
def test_driver(version: str, wished: dict[str, Any], needed: str) -> None:
    verdict = judge(probe=gpu_info(driver_version=version), **wished)
    findings = [finding for finding in verdict.findings if finding.name != "known-hole"]
    assert [finding.needed for finding in findings] == ([needed] if needed else [])
    if needed:
        assert [(finding.name, finding.severity) for finding in findings] == [("driver-too-old", "error")]
        assert version in findings[0].found


@pytest.mark.parametrize(
    ("requirement", "severity"),
    [
        ("cuda>=13.0", None),
        ("cuda>=13.1", "error"),
        ("cuda>=13.1 brand=tesla,driver>=580,driver<581", None),
        ("cuda>=13.1 brand=geforce,driver>=580,driver<581", "error"),
        ("cuda>=13.1 arch>=9.0", "warning"),
    ],
)
def test_what_the_image_itself_asks_of_the_driver(requirement: str, severity: str | None) -> None:
    image = {"id": "sha256:1", "environment": {"NVIDIA_REQUIRE_CUDA": requirement}}
    found = told(judge(host_info(image=image)))
    assert found == ({"driver-too-old-for-image": severity} if severity else {})


def test_an_image_that_waives_its_requirement_is_believed() -> None:
    environment = {"NVIDIA_REQUIRE_CUDA": "cuda>=99.0", "NVIDIA_DISABLE_REQUIRE": "1"}
    assert judge(host_info(image={"environment": environment})).findings == []


# ---- the NVLink fabric ----

COMPLETED, NOT_STARTED = {"state": "completed"}, {"state": "not-started"}
MANAGER = {"path": "/usr/bin/nv-fabricmanager", "version": "580.159.04", "running": True}


@pytest.mark.parametrize(
    ("manager", "fabric", "switches", "name", "severity"),
    [
        (MANAGER, COMPLETED, 4, None, None),
        ({}, None, 0, None, None),
        ({}, COMPLETED, 0, None, None),
        ({}, NOT_STARTED, 4, "fabric-manager-missing", "error"),
        ({}, None, 4, "fabric-manager-missing", "error"),
        ({**MANAGER, "running": False}, NOT_STARTED, 4, "fabric-manager-stopped", "error"),
        ({**MANAGER, "version": "575.57.08", "running": False}, NOT_STARTED, 4, "fabric-manager-version", "error"),
        ({**MANAGER, "version": "575.57.08"}, COMPLETED, 4, "fabric-manager-version", "warning"),
        (MANAGER, {"state": "in-progress"}, 4, "fabric-not-ready", "error"),
    ],
)
def test_fabric(
    manager: dict[str, Any], fabric: dict[str, Any] | None, switches: int, name: str | None, severity: str | None
) -> None:
    info = host_info(nvidia={"nvswitches": switches, "fabric_manager": manager})
    verdict = judge(info, gpu_info(gpu(0, fabric=fabric), gpu(1, fabric=fabric)))
    assert told(verdict) == ({name: severity} if name else {})
    if name:
        assert "nvidia-fabricmanager" in verdict.findings[0].remedy
    if name and name.startswith("fabric-manager"):
        assert "580.159.04" in verdict.findings[0].needed


@pytest.mark.parametrize(
    ("fabric", "name", "severity", "text"),
    [
        ({**COMPLETED, "status": "success", "health": "healthy"}, None, None, ""),
        ({**COMPLETED, "status": "success", "health": None}, None, None, ""),
        ({**COMPLETED, "status": "Not Supported"}, "fabric-failed", "error", "with the error Not Supported"),
        ({**COMPLETED, "status": "success", "health": "unhealthy"}, "fabric-failed", "error", "is unhealthy"),
        ({**COMPLETED, "health": "limited-capacity"}, "fabric-limited", "warning", "limited capacity"),
    ],
)
def test_a_fabric_that_was_set_up_but_does_not_work(
    fabric: dict[str, Any], name: str | None, severity: str | None, text: str
) -> None:
    """The planner and preflight by one rule."""
    info = host_info(nvidia={"nvswitches": 4, "fabric_manager": MANAGER})
    verdict = judge(info, gpu_info(gpu(0, fabric=fabric), gpu(1, fabric=fabric)))
    assert told(verdict) == ({name: severity} if name else {})
    if name:
        assert text in verdict.findings[0].found


def test_one_card_whose_fabric_failed_is_left_out_as_in_the_plan() -> None:
    info = host_info(nvidia={"nvswitches": 4, "fabric_manager": MANAGER})
    cards = gpu_info(gpu(0, fabric=COMPLETED), gpu(1, fabric={**COMPLETED, "health": "unhealthy"}))
    assert told(judge(info, cards)) == {"fabric-failed": "warning"}
    assert told(judge(info, cards, gpu_selection="all")) == {"fabric-failed": "error"}


# ---- GPUs ----


def test_no_gpu_does_not_hide_what_else_is_wrong() -> None:
    info = host_info(
        nvidia={"pci_devices": [], "kernel_module": None, "cards": [], "device_files": []},
        ports=[{"port": 8000, "free": False, "ours": False, "container": "", "pid": 9, "process": "nginx"}],
        clock={"ahead_seconds": -4000.0},
        disks={path: disk("/", 1, 20) for path in ["/var/lib/docker", *FOLDERS.values()]},
    )
    verdict = judge(
        info, {"state": "no-device", "gpus": [], "reason": "The driver finds no GPU."}, accept_license=False
    )
    assert told(verdict) == {
        "no-gpu": "error",
        "licence-not-accepted": "error",
        "port-in-use": "error",
        "clock-wrong": "error",
        "disk-full": "error",
    }
    assert "The driver finds no GPU." in only(verdict, "no-gpu").found


def test_every_finding_about_gpus_at_once() -> None:
    probe = gpu_info(
        gpu(0, mig_mode=True, persistence_mode=False),
        gpu(1, processes=[process(41)], memory_used_mib=61440),
        gpu(2, error="The GPU is lost.", compute_capability=None, name=None),
        gpu(3, remapped_rows={"pending": True, "failure": True}),
        gpu(4, name="NVIDIA A100", compute_capability="8.0"),
        driver_version="570.1",
    )
    verdict = judge(probe=probe, accept_license=False)
    assert told(verdict) == {
        "mig-enabled": "error",
        "driver-too-old": "error",
        "licence-not-accepted": "error",
        "gpu-lost": "warning",
        "gpu-in-use": "warning",
        "persistence-mode-off": "warning",
        "gpu-memory-failing": "warning",
        "gpu-reset-pending": "warning",
        "unsupported-gpu": "warning",
    }
    assert "nvidia-smi -i 0 -mig 0" in only(verdict, "mig-enabled").remedy
    assert "GPU 3" in only(verdict, "gpu-reset-pending").found


def test_a_lost_gpu_alone_is_an_error() -> None:
    lost = gpu(0, error="The GPU is lost.", compute_capability=None, name=None, memory_total_mib=None)
    assert told(judge(probe=gpu_info(lost))) == {"gpu-lost": "error"}


def test_only_unsupported_gpus_are_an_error_told_once() -> None:
    verdict = judge(probe=gpu_info(gpu(0, name="NVIDIA A100", compute_capability="8.0")), accept_license=False)
    assert told(verdict) == {"unsupported-gpu": "error", "licence-not-accepted": "error"}


def test_the_persistence_daemon_is_enough() -> None:
    info = host_info(nvidia={"persistence_daemon": {"running": True}})
    assert judge(info, gpu_info(gpu(0, persistence_mode=False))).findings == []


def test_hardware_that_the_inventory_describes_is_not_looked_for() -> None:
    info = host_info(nvidia={"pci_devices": [], "kernel_module": None, "cards": [], "device_files": []})
    assert judge(info, {}, gpus=[{"name": "NVIDIA H200", "count": 8}]).findings == []


def test_a_new_host_is_judged_by_what_the_kernel_tells() -> None:
    verdict = judge(host_info(nvidia={"kernel_module": {"version": "570.1", "open": True}}), {}, accept_license=False)
    assert told(verdict) == {"driver-too-old": "error", "licence-not-accepted": "error", "gpus-not-asked": "info"}


def test_a_new_host_without_a_driver_is_told_so() -> None:
    info = host_info(nvidia={"kernel_module": None, "cards": [], "device_files": []})
    found = only(judge(info, {}), "no-gpu")
    assert found.severity == "error"
    assert "no NVIDIA driver is loaded, and 1 NVIDIA GPU(s) are on its PCI bus" in found.found


# ---- who holds GPU memory ----


def holding(
    holder: dict[str, Any], *containers: dict[str, Any], **wished: Any
) -> tuple[preflight_judge.Verdict, dict[str, str]]:
    info = host_info(engine={"containers": list(containers)})
    verdict = judge(info, gpu_info(gpu(processes=[holder], memory_used_mib=61440)), **wished)
    return verdict, told(verdict)


def test_somebody_elses_process_is_never_ours_to_end() -> None:
    for reclaim in (False, True):
        verdict, found = holding(process(4190042), reclaim_orphans=reclaim)
        assert found == {"gpu-in-use": "error"}
        assert "python3 (pid 4190042, 61440 MiB)" in verdict.findings[0].found
        assert verdict.orphans == []


def test_somebody_elses_container_is_never_ours_to_end() -> None:
    verdict, found = holding(process(7, OTHERS), container("train", OTHERS, ours=False), reclaim_orphans=True)
    assert (found, verdict.orphans) == ({"gpu-in-use": "error"}, [])


def test_our_own_servers_are_no_finding() -> None:
    assert holding(process(7, OURS), container("vllm-0", OURS))[1] == {}


@pytest.mark.parametrize(
    ("holder", "box", "why", "ends"),
    [
        (process(7, OURS), container("vllm-0", OURS, "exited"), "its container vllm-0 is exited", ""),
        (process(7, GONE, replica="vllm-0", supervised=False), None, "the container of vllm-0 is gone", ""),
        (process(7, OURS), container("old-0", OURS), "its container old-0 is no longer of this deployment", "old-0"),
    ],
)
def test_orphans_may_be_reclaimed(holder: dict[str, Any], box: dict[str, Any] | None, why: str, ends: str) -> None:
    boxes = [box] if box else []
    verdict, found = holding(holder, *boxes)
    assert found == {"gpu-orphans": "error"}
    assert why in verdict.findings[0].found
    assert "vllm_reclaim_orphans" in verdict.findings[0].remedy
    verdict, found = holding(holder, *boxes, reclaim_orphans=True)
    assert found == {"gpu-orphans": "info"}
    assert [(orphan["pid"], orphan["container"]) for orphan in verdict.orphans] == [(7, ends)]


def test_a_server_of_ours_under_another_engine_is_left_alone() -> None:
    verdict, found = holding(process(7, GONE, replica="vllm-0", supervised=True), reclaim_orphans=True)
    assert (found, verdict.orphans) == ({"gpu-in-use": "error"}, [])


def test_an_orphan_beside_somebody_else_does_not_hide_him() -> None:
    orphan = process(8, GONE, replica="vllm-0", supervised=False)
    probe = gpu_info(gpu(0, processes=[process(7), orphan], memory_used_mib=122880))
    assert told(judge(probe=probe)) == {"gpu-in-use": "error", "gpu-orphans": "error"}
    assert told(judge(probe=probe, reclaim_orphans=True)) == {"gpu-in-use": "error", "gpu-orphans": "info"}


def test_orphans_on_gpus_of_other_deployments_are_not_looked_at() -> None:
    info = host_info(engine={"containers": [container("other-0", OURS)]})
    probe = gpu_info(gpu(0), gpu(1, processes=[process(7, OURS)], memory_used_mib=61440))
    verdict = judge(info, probe, gpu_selection=[0], reclaim_orphans=True)
    assert verdict.orphans == []
    assert told(verdict) == {}


# ---- disks ----


def disks(**free: float) -> dict[str, Any]:
    """Return disks of their own for images and weights, and one for the rest."""
    return {
        "/var/lib/docker": disk("/var/lib/docker", 1, free["images"]),
        FOLDERS["hf_home"]: disk("/srv", 2, free["weights"]),
        FOLDERS["cache_dir"]: disk("/", 3, free["rest"]),
        FOLDERS["state_dir"]: disk("/", 3, free["rest"]),
        FOLDERS["config_dir"]: disk("/", 3, free["rest"]),
    }


@pytest.mark.parametrize(
    ("free", "items"),
    [
        ({"images": 31, "weights": 109, "rest": 3}, {}),
        ({"images": 29, "weights": 109, "rest": 3}, {"/var/lib/docker": "error"}),
        ({"images": 30.2, "weights": 109, "rest": 3}, {"/var/lib/docker": "warning"}),
        ({"images": 31, "weights": 108, "rest": 3}, {"/srv": "error"}),
        ({"images": 1, "weights": 1, "rest": 1}, {"/var/lib/docker": "error", "/srv": "error", "/": "warning"}),
    ],
)
def test_room_on_several_disks(free: dict[str, float], items: dict[str, str]) -> None:
    verdict = judge(host_info(disks=disks(**free)))
    assert {finding.item: finding.severity for finding in verdict.findings} == items
    assert set(told(verdict)) <= {"disk-full"}


def test_images_of_the_containerd_image_store_are_kept_packed_and_unpacked_in_a_folder_of_containerds_own() -> None:
    engine = {"running": True, "root_dir": "/srv/docker", "image_dir": "/var/lib/containerd", "containers": []}
    places = {**disks(images=500, weights=200, rest=3), "/srv/docker": disk("/data", 7, 0.1)}
    places["/var/lib/containerd"] = disk("/", 8, 31)
    found = [one for one in judge(host_info(engine=engine, disks=places)).findings if one.name == "disk-full"]
    assert [(one.item, one.severity) for one in found] == [("/", "error"), ("/data", "warning")]
    assert "42.0 GiB (image 42.0 in /var/lib/containerd)" in found[0].needed
    assert "root in /etc/containerd/config.toml" in found[0].remedy and "data-root" not in found[0].remedy
    assert "logs 0.5 in /srv/docker" in found[1].needed


def test_room_on_one_disk_is_counted_together() -> None:
    one = {path: disk("/", 1, 139) for path in ["/var/lib/docker", *FOLDERS.values()]}
    found = only(judge(host_info(disks=one)), "disk-full")
    assert (found.severity, found.item) == ("warning", "/")
    assert "139.0 GiB are free on / (ext4 on /dev/disk1)" in found.found
    assert found.needed.startswith("141.2 GiB (image 30.0 in /var/lib/docker, weights 108.7 in ")


def test_what_is_there_already_needs_no_room() -> None:
    small = {path: disk(path, 1, 1) for path in ["/var/lib/docker", *FOLDERS.values()]}
    weights = [{"folder": CACHED, "path": CACHED, "exists": True, "complete": True, "total_bytes": 1}]
    image = {"id": "sha256:1", "environment": {}}
    assert judge(host_info(disks=small, weights=weights, image=image)).findings == []


def test_a_part_of_the_weights_counts() -> None:
    weights = [{"folder": CACHED, "path": CACHED, "exists": True, "complete": False, "total_bytes": 60 * GIB}]
    verdict = judge(host_info(disks=disks(images=31, weights=49, rest=3), weights=weights))
    assert verdict.findings == []


def test_the_images_size_can_be_told() -> None:
    assert told(judge(host_info(disks=disks(images=31, weights=200, rest=3)), image_size_gib=60)) == {
        "disk-full": "error"
    }


def test_random_weights_need_no_room() -> None:
    room = disks(images=31, weights=1, rest=3)
    assert judge(host_info(disks=room), extra_config={"load-format": "dummy"}).findings == []


def test_a_folder_that_cannot_be_written() -> None:
    found = only(judge(host_info(disks={"/etc/gpufleet": disk("/etc", 9, 5, writable=False)})), "not-writable")
    assert (found.severity, found.item) == ("error", "/etc/gpufleet")


# ---- memory, ports, clock, engine ----


@pytest.mark.parametrize(
    ("memory", "running", "severity"),
    [
        ({"total_mib": 5000, "available_mib": 4000}, False, "error"),
        ({"total_mib": 64000, "available_mib": 4000}, False, "warning"),
        ({"total_mib": 64000, "available_mib": 4000}, True, None),
    ],
)
def test_memory(memory: dict[str, int], running: bool, severity: str | None) -> None:
    boxes = [container("vllm-0", OURS)] if running else []
    found = told(judge(host_info(memory=memory, engine={"containers": boxes})))
    assert found == ({"too-little-memory": severity} if severity else {})


@pytest.mark.parametrize(
    ("shm", "size", "severity"),
    [
        ({"total_mib": 64, "free_mib": 64}, 1, None),
        ({"total_mib": 64, "free_mib": 10}, 1, "warning"),
        ({"total_mib": 64, "free_mib": 64}, 2, "error"),
        ({"total_mib": 64000, "free_mib": 64}, 2, "warning"),
    ],
)
def test_shared_memory(shm: dict[str, int], size: int, severity: str | None) -> None:
    cards = [gpu(0, peers=[1]), gpu(1, peers=[0])]
    verdict = judge(host_info(shm=shm), gpu_info(*cards), tensor_parallel_size=size)
    assert told(verdict) == ({"too-little-shm": severity} if severity else {})


def test_every_port_in_use_is_told() -> None:
    taken = [
        {"port": 8000, "free": False, "ours": True, "container": "vllm-0", "pid": 1, "process": ""},
        {"port": 8001, "free": False, "ours": False, "container": "", "pid": 9, "process": "nginx"},
        {"port": 8002, "free": False, "ours": True, "container": "other-0", "pid": 1, "process": ""},
        {"port": 8003, "free": False, "ours": False, "container": "", "pid": 9, "process": "nginx"},
    ]
    verdict = judge(host_info(ports=taken), gpu_info(gpu(0), gpu(1), gpu(2)), tensor_parallel_size=1)
    assert [(finding.name, finding.item) for finding in verdict.findings] == [
        ("port-in-use", "port 8001"),
        ("port-in-use", "port 8002"),
    ]
    assert "nginx (pid 9)" in verdict.findings[0].found


def test_an_address_that_is_not_the_hosts() -> None:
    assert told(judge(host_info(address_available=False))) == {"address-not-available": "error"}


@pytest.mark.parametrize(
    ("clock", "expected", "words"),
    [
        ({"ahead_seconds": 29.0}, {}, ""),
        ({"ahead_seconds": None, "synchronised": None}, {}, ""),
        ({"ahead_seconds": 31.0}, {"clock-wrong": "warning"}, "31 s ahead of the controller's"),
        ({"ahead_seconds": -3601.0}, {"clock-wrong": "error"}, "60 min behind the controller's"),
        ({"ahead_seconds": -86400.0 * 900}, {"clock-wrong": "error"}, "900 days behind"),
        ({"ahead_seconds": 1.0, "synchronised": False}, {"clock-not-synchronised": "warning"}, "No time service"),
    ],
)
def test_clock(clock: dict[str, Any], expected: dict[str, str], words: str) -> None:
    verdict = judge(host_info(clock=clock))
    assert told(verdict) == expected
    assert words in "".join(finding.found for finding in verdict.findings)


NO_ENGINE = {"running": False, "reason": "There is no socket.", "dockerd": None, "containers": []}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"engine-to-come": "info"}),
        ({"manage_engine": False}, {"engine-not-running": "error"}),
        ({"docker_host": "unix:///run/mine.sock"}, {"engine-not-running": "error"}),
    ],
)
def test_engine(settings: dict[str, Any], expected: dict[str, str]) -> None:
    assert told(judge(host_info(engine=NO_ENGINE), engine=settings)) == expected


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"kind": "docker", "rootless": False, "config_path": "/etc/docker/daemon.json"}, {}),
        ({"kind": "docker", "config_path": ""}, {}),
        ({"kind": "podman", "version": "5.4.0"}, {"engine-is-podman": "error"}),
        ({"kind": "snap", "config_path": "/var/snap/docker/1/daemon.json"}, {"engine-is-snap": "error"}),
        ({"kind": "docker", "rootless": True}, {"engine-is-rootless": "warning"}),
        ({"kind": "docker", "config_path": "/srv/daemon.json"}, {"daemon-config-not-read": "warning"}),
    ],
)
def test_an_engine_of_another_kind_is_told(about: dict[str, Any], expected: dict[str, str]) -> None:
    assert told(judge(host_info(engine=about))) == expected


def test_an_unfinished_replacement_of_this_deployment_is_told() -> None:
    boxes = [container("vllm-0-previous", OURS, "exited"), container("other-0-previous", OTHERS, "exited")]
    boxes.append(container("vllm-1-previous", GONE, "exited", ours=False))
    found = only(judge(host_info(engine={"containers": boxes})), "replacement-unfinished")
    assert (found.severity, found.item) == ("warning", "vllm-0-previous")
    assert "rollback" in found.remedy


def test_a_broken_daemon_json() -> None:
    config = {"valid": False, "error": "It is not JSON: line 3"}
    found = only(judge(host_info(daemon_config=config)), "daemon-config-invalid")
    assert (found.severity, found.found) == ("error", "/etc/docker/daemon.json: It is not JSON: line 3")


def test_a_part_that_could_not_be_seen_is_told() -> None:
    info: Any = host_info(
        errors={"memory": "PermissionError: no"}, memory=None, shm=None, nvidia=None, disks=None, clock=None
    )
    info["memory"] = None
    verdict = preflight_judge.without_wishes(info, GpufleetError("2 problems", name="invalid-wishes"))
    assert told(verdict) == {"invalid-wishes": "error", "not-seen": "warning"}


# ---- where things come from ----


def answer(**more: Any) -> dict[str, Any]:
    return {
        "url": "https://r/v2/",
        "reachable": True,
        "status": 200,
        "cause": "",
        "reason": "",
        "proxied": False,
        **more,
    }


NO_WAY = {"reachable": False, "status": None, "cause": "dns", "reason": "its name cannot be resolved"}
NO_TRUST = {**NO_WAY, "cause": "certificate", "reason": "its certificate is not trusted"}


@pytest.mark.parametrize(
    ("reach", "wished", "expected"),
    [
        ({"registry": answer(), "hub": answer(status=200)}, {}, {}),
        ({"registry": answer(**NO_WAY)}, {}, {"registry-unreachable": "error"}),
        ({"registry": answer(**NO_TRUST)}, {}, {"registry-untrusted": "error"}),
        ({"registry": answer(status=401)}, {}, {"registry-unauthorised": "error"}),
        ({"registry": answer(status=404)}, {}, {"image-not-found": "error"}),
        ({"registry": answer(status=404)}, {"image_source": "present"}, {"image-missing": "error"}),
        ({"registry": answer(status=None)}, {}, {}),
        ({"package_index": answer(status=404)}, {}, {}),
        ({"package_index": answer(status=401)}, {}, {"package-index-unauthorised": "error"}),
        ({"package_index": answer(**NO_WAY)}, {}, {"package-index-unreachable": "error"}),
        ({"package_index": answer(**NO_TRUST)}, {}, {"package-index-untrusted": "error"}),
        ({"hub": answer(**NO_WAY)}, {}, {"hub-unreachable": "error"}),
        ({"hub": answer(**NO_TRUST)}, {}, {"hub-untrusted": "error"}),
        ({"hub": answer(status=404)}, {}, {"model-not-found": "error"}),
        ({"hub": answer(status=401)}, {}, {"hub-unauthorised": "error"}),
        ({"hub": answer(status=401)}, {"hf_token": "hf_x"}, {}),
    ],
)
def test_sources(reach: dict[str, Any], wished: dict[str, Any], expected: dict[str, str]) -> None:
    assert told(judge(host_info(reach=reach), **wished)) == expected


def test_a_hub_out_of_reach_is_told_once() -> None:
    reach = {"hub": answer(reachable=False, cause="refused", reason="the connection is refused")}
    assert told(judge(host_info(reach=reach), model="org/m")) == {"hub-unreachable": "error"}
    assert told(judge(host_info(), model="org/m")) == {"model-size-unknown": "error"}


def test_offline_everything_must_be_there() -> None:
    assert told(judge(offline=True)) == {"image-missing": "error", "weights-missing": "error", "offline": "info"}
    weights = [{"folder": CACHED, "path": CACHED, "exists": True, "complete": True, "total_bytes": 1}]
    there = host_info(weights=weights, image={"id": "sha256:1", "environment": {}})
    assert told(judge(there, offline=True)) == {"offline": "info"}
    assert told(judge(offline=True, image_archive="/srv/image.tar", model="/srv/model", tensor_parallel_size=1)) == {
        "offline": "info"
    }


IMAGE_THERE = {"image": {"id": "sha256:1", "environment": {}}}


@pytest.mark.parametrize(
    "wished",
    [
        {"extra_config": {"load-format": "mistral"}},
        {"extra_config": {"download-dir": "/data"}},
        {"volumes": ["models:/root/.cache/huggingface"]},
        {"environment": {"HF_HUB_CACHE": "/inside"}},
    ],
)
def test_offline_what_the_probe_cannot_know_is_left_to_the_role(wished: dict[str, Any]) -> None:
    assert told(judge(host_info(**IMAGE_THERE), offline=True, **wished)) == {"offline": "info"}


def test_with_weights_from_the_fleet_one_host_that_has_them_is_enough() -> None:
    found = told(judge(host_info(**IMAGE_THERE), offline=True, weights_from="fleet"))
    assert found == {"offline": "info", "weights-missing": "warning"}
    hub = {"reachable": False, "url": "https://huggingface.co", "cause": "timeout", "reason": "no answer"}
    info = host_info(reach={"hub": {**hub, "proxied": False}}, **IMAGE_THERE)
    assert told(judge(info, weights_from="fleet"))["hub-unreachable"] == "warning"
    assert told(judge(info))["hub-unreachable"] == "error"


def test_offline_weights_of_another_kind_are_left_to_the_role() -> None:
    weights = [{"folder": CACHED, "path": CACHED, "exists": True, "complete": False, "total_bytes": 0}]
    found = judge(host_info(weights=weights, **IMAGE_THERE), offline=True)
    assert told(found) == {"offline": "info", "weights-missing": "error"}
    weights[0]["other_formats"] = True
    assert told(judge(host_info(weights=weights, **IMAGE_THERE), offline=True)) == {"offline": "info"}


def test_weights_in_a_cache_elsewhere_are_asked_for_and_found() -> None:
    volumes = ["/mine:/root/.cache/huggingface"]
    read = wishes.read({"vllm_accept_license": True, "vllm_model": "o/m", "vllm_volumes": volumes})
    assert source_checks.questions(read, "/hf")["weights_paths"] == ["/mine/hub/models--o--m"]
    mine = "/mine/hub/" + CACHED.rpartition("/")[2]
    weights = [{"folder": mine, "path": mine, "exists": True, "complete": True, "total_bytes": 1}]
    there = host_info(weights=weights, **IMAGE_THERE)
    assert told(judge(there, offline=True, volumes=volumes)) == {"offline": "info"}
    lacks = only(judge(host_info(**IMAGE_THERE), offline=True, volumes=volumes), "weights-missing")
    assert "the Hugging Face cache (/mine/hub, by vllm_volumes)" in lacks.found


B300: dict[str, Any] = {"name": "NVIDIA B300 SXM6 AC", "compute_capability": "10.3", "memory_total_mib": 275040}
FP4_THERE = {"complete": True, "total_bytes": 70 * GIB, "folder": CACHED.replace("FP8", "FP4"), "exists": True}


@pytest.mark.parametrize("there", [True, False])
def test_the_image_is_the_one_that_the_cards_need(there: bool) -> None:
    """Which release it is, a B300's, is known after the host was asked for both."""
    image: dict[str, Any] = {"vllm/vllm-openai:v0.26.0": {"environment": {}}} if there else {}
    info = host_info(image=None if there else {"environment": {}}, image_alternatives=image, weights=[FP4_THERE])
    found = told(judge(info, gpu_info(gpu(**B300)), profile="recipe", offline=True))
    assert found == {"offline": "info", **({} if there else {"image-missing": "error"})}


def test_an_older_cuda_is_no_way_out_for_a_b300() -> None:
    probe = gpu_info(gpu(**B300), driver_version="575.57.08")
    remedy = only(judge(host_info(weights=[FP4_THERE]), probe), "driver-too-old").remedy
    assert "driver 580" in remedy
    assert "older CUDA" not in remedy


def test_both_releases_are_asked_for_where_none_is_wished() -> None:
    recipe = {"vllm_profile": "recipe"}
    asked = source_checks.questions(wishes.read(recipe), "/hf")
    assert asked["image_reference"] == "vllm/vllm-openai:v0.12.0"
    assert asked["image_alternatives"] == ["vllm/vllm-openai:v0.26.0"]
    for wished in ({"vllm_image_tag": "v0.20.2"}, {"vllm_version": "0.20.2"}, {"vllm_device": "cpu"}):
        assert source_checks.questions(wishes.read({**recipe, **wished}), "/hf")["image_alternatives"] == []
    assert source_checks.questions(wishes.read({}), "/hf")["image_alternatives"] == []


@pytest.mark.parametrize(
    ("wished", "expected"),
    [
        ({}, []),
        ({"image_tag": "v0.33.0"}, []),
        ({"profile": "recipe"}, ["CVE-2026-22778", "CVE-2026-48746", "CVE-2026-22807", "CVE-2026-114051"]),
        ({"image_tag": "v0.14.1"}, ["CVE-2026-48746", "CVE-2026-114051"]),
        ({"extra_config": {"trust-remote-code": True}}, ["CVE-2026-114053"]),
        ({"extra_config": {"trust-remote-code": False}}, []),
    ],
)
def test_known_holes(wished: dict[str, Any], expected: list[str]) -> None:
    found = judge(**wished).findings
    assert [finding.item for finding in found if finding.severity == "warning"] == expected
    assert all("vllm_image_tag" in finding.remedy for finding in found)


def test_an_archive_that_is_not_there() -> None:
    there = disk("/", 1, 500, existing="/srv/image.tar")
    missing = disk("/", 1, 500, existing="/srv")
    for about, expected in ((there, {}), (missing, {"archive-missing": "error"})):
        found = judge(host_info(disks={"/srv/image.tar": about}), image_archive="/srv/image.tar")
        assert told(found) == expected


def test_an_image_that_should_be_present() -> None:
    assert told(judge(image_source="present")) == {"image-missing": "error"}


# what is asked, by the wishes
QUESTIONS: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {
    "by default": (
        {},
        "vllm/vllm-openai:v0.26.0",
        f"https://huggingface.co/{FP8}/resolve/main/config.json",
        ["FP8", "FP4"],
    ),
    "offline": ({"offline": True}, "", "", ["FP8", "FP4"]),
    "a mirror": (
        {"environment": {"HF_ENDPOINT": "https://hub.example.org/"}, "model": "org/m", "image": "r.example.org/v"},
        "r.example.org/v:v0.26.0",
        "https://hub.example.org/org/m/resolve/main/config.json",
        ["m"],
    ),
    "a folder": ({"model": "/srv/m"}, "vllm/vllm-openai:v0.26.0", "", []),
    "an archive": ({"image_archive": "/srv/i.tar", "model": "/srv/m"}, "", "", []),
    "random weights": (
        {"model": "org/m", "extra_config": {"load-format": "dummy"}},
        "vllm/vllm-openai:v0.26.0",
        "",
        ["m"],
    ),
    "processors": ({"device": "cpu"}, "", "", ["SmolLM2-135M-Instruct"]),
    "a model of the hub on processors": (
        {"device": "cpu", "model": "org/m", "offline": True},
        "",
        "",
        ["/hf/hub/models--org--m"],
    ),
    "a revision": (
        {"model": "org/m", "extra_config": {"revision": "v2"}, "image_source": "present"},
        "",
        "https://huggingface.co/org/m/resolve/v2/config.json",
        ["models--org--m/refs/v2"],
    ),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_questions(case: str) -> None:
    wished, registry, hub, weights = QUESTIONS[case]
    read = wishes.read({f"vllm_{name}": value for name, value in wished.items()})
    asked = source_checks.questions(read, "/hf")
    assert (asked["registry"], asked["hub"]) == (registry, hub)
    assert len(asked["weights_paths"]) == len(weights)
    assert all(path.endswith(name) for path, name in zip(asked["weights_paths"], weights, strict=True))
    folder = read.model if (read.model or "").startswith("/") else (asked["weights_paths"] if read.model else [""])[0]
    assert asked["model_path"] == folder


# ---- how it is told ----


def test_the_refusal_has_everything_and_no_finding_is_told_twice() -> None:
    verdict = judge(host_info(clock={"ahead_seconds": 900.0}), accept_license=False)
    error = findings.refusal([finding.as_result() for finding in verdict.findings])
    assert error is not None
    text = error.as_text()
    assert error.message == "Preflight found 2 errors on this host; nothing was changed."
    assert text.count("clock-wrong") == text.count("licence-not-accepted") == 1
    assert "Needed: less than 30 s between them" in text
    assert [entry["name"] for entry in error.details["findings"]] == ["clock-wrong", "licence-not-accepted"]


def test_warnings_alone_do_not_refuse() -> None:
    verdict = judge(host_info(clock={"synchronised": False}))
    assert findings.refusal([finding.as_result() for finding in verdict.findings]) is None


def test_every_error_says_what_is_needed_and_what_mends_it() -> None:
    info = host_info(
        system={"euid": 5, "platform": "linux/riscv64", "architecture": "riscv64"},
        clock={"ahead_seconds": 900.0},
        engine={**NO_ENGINE, "containers": []},
        address_available=False,
        reach={"registry": answer(**NO_WAY), "hub": answer(**NO_WAY)},
        disks={path: disk("/", 1, 1, writable=False) for path in ["/var/lib/docker", *FOLDERS.values()]},
        memory={"total_mib": 100, "available_mib": 1},
    )
    verdict = judge(info, gpu_info(gpu(mig_mode=True), driver_version="470.1"), engine={"manage_engine": False})
    errors = [finding for finding in verdict.findings if finding.severity == "error"]
    assert len(errors) >= 14
    assert [finding.name for finding in errors if not (finding.found and finding.needed and finding.remedy)] == []
