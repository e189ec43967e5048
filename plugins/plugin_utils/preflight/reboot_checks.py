# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight's checks of what a host lacks for its servers to come back by themselves after a reboot."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import boot
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import DEFAULT_ENGINE, Case
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import WARNING, Finding

NEEDED = "servers that come back after a reboot of the host"
# Words of systemd for a unit that may well be started at boot.
STARTED = ("enabled", "static", "generated", "alias")


def _no_systemd(case: Case) -> list[Finding]:
    init = case.part("system").get("init")
    if init in (None, "systemd") or case.docker_host not in DEFAULT_ENGINE:
        return []
    return [
        _finding(
            "reboot-no-systemd",
            f"Process 1 of this host is {init or 'unknown'}, not systemd.",
            "Have what starts this host make the GPUs' device files, if it has GPUs, and then start the Docker engine,"
            " which starts the servers; or run the playbook deploy after each reboot.",
        )
    ]


def _engine(case: Case) -> list[Finding]:
    units, engine = case.part("boot").get("units"), case.part("engine")
    if not units or not engine.get("running") or case.docker_host not in DEFAULT_ENGINE:
        return []  # the role docker enables the unit of an engine that it starts
    state = units[boot.ENGINE]
    if state in STARTED:
        return []
    if state:
        return [
            _finding(
                "reboot-engine-not-enabled",
                f"The Docker engine runs, but systemd does not start it at boot: {boot.ENGINE} is {state}.",
                f"Have it do so: systemctl {'unmask' if state == 'masked' else 'enable'} {boot.ENGINE}.",
            )
        ]
    return [
        _finding(
            "reboot-engine-not-enabled",
            f"The Docker engine runs, but systemd has no {boot.ENGINE}.",
            "See that what started it does so at every boot. Servers that it cannot start then wait for a person, for"
            f" the timer of this collection starts them only where the engine is {boot.ENGINE}.",
        )
    ]


def _device_files(case: Case) -> list[Finding]:
    units, wishes = case.part("boot").get("units"), case.wishes
    if not units or wishes.device != "cuda" or wishes.gpu_access == "none" or case.described:
        return []
    usual = case.docker_host in DEFAULT_ENGINE
    made = any(units[unit] in STARTED for unit in (boot.DEVICE_FILES, boot.PERSISTENCE))
    if made or (usual and wishes.start_at_boot) or not case.docker_host.startswith("unix:"):
        return []
    instead = "Set vllm_start_at_boot: true, or see" if usual else "See"
    return [
        _finding(
            "reboot-device-files",
            f"Neither {boot.DEVICE_FILES} nor {boot.PERSISTENCE} makes the GPUs' device files when this host boots.",
            f"{instead} that /dev/nvidia* are made before Docker starts (nvidia-modprobe): it does not start a server"
            " whose device files are missing, and does not try again.",
        )
    ]


def _fabric_manager(case: Case) -> list[Finding]:
    units, manager = case.part("boot").get("units"), case.part("nvidia").get("fabric_manager")
    if not units or not manager or not manager["running"] or units[boot.FABRIC_MANAGER] in ("", *STARTED):
        return []
    return [
        _finding(
            "reboot-fabric-manager",
            f"The fabric manager runs, but systemd does not start it at boot: {boot.FABRIC_MANAGER} is"
            f" {units[boot.FABRIC_MANAGER]}.",
            f"Have it do so: systemctl enable {boot.FABRIC_MANAGER}. Without it CUDA fails with error 802.",
        )
    ]


def _restart_policy(case: Case) -> list[Finding]:
    policy = case.wishes.restart_policy
    if policy in ("always", "unless-stopped"):
        return []
    why = (
        "Docker starts no server again, neither one that died nor after a reboot"
        if policy == "no"
        else "a server that ended with exit status 0 when the host went down is not started again"
    )
    return [_finding("reboot-restart-policy", f"vllm_restart_policy is {policy}: {why}.", "Set it to unless-stopped.")]


def _finding(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, WARNING, found, NEEDED, remedy)


CHECKS = (_no_systemd, _engine, _device_files, _fabric_manager, _restart_policy)
