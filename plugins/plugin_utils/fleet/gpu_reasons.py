# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person is told of a finding about a GPU: what it means, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.xid_catalogue import (
    CHECK,
    DOUBLE_BIT,
    IGNORE,
    LINK,
    NEW_LINK,
    REBOOT,
    RESET,
    RESTART,
    XIDS,
)

_RESET = "Drain the host and reset the GPU when nothing uses it (nvidia-smi --gpu-reset -i {gpu}), or reboot the host."
_REBOOT = "Drain the host and power-cycle it; a GPU that is lost again needs its vendor's service."
_LINKS = (
    "Look at nvidia-smi nvlink --status -i {gpu} and at the fabric manager (systemctl status nvidia-fabricmanager),"
    " then reset all GPUs of the host, or reboot it."
)
_COOL = "See the host's fans, air intake and room temperature, and nvidia-smi -q -d PERFORMANCE,TEMPERATURE -i {gpu}."
_POWER = "See the host's power supplies and their cables; its firmware's log says which one asks for less."
# Reason -> what it means, and the remedy.
REASONS = {
    "off-the-bus": ("it has fallen off the bus", _REBOOT),
    "missing": ("a server has it, and the driver does not list it any more", _REBOOT),
    "reset-required": ("it must be reset before it can be used", _RESET),
    "reboot-required": ("the host must be rebooted before it can be used", _REBOOT),
    "recovery-domain": ("its NVLink domain has to be recovered", _LINKS),
    "recovery-unknown": (
        "the driver asks for an action that this release does not know",
        "See nvidia-smi -q -i {gpu}.",
    ),
    "ecc-uncorrected": ("its memory had errors that could not be corrected", _RESET),
    "row-remap-pending": ("it replaces memory rows after errors at its next reset", _RESET),
    "row-remap-failed": ("it has no memory rows left to replace broken ones", "Have the card replaced."),
    "nvlink-down": ("NVLinks are down", _LINKS),
    "nvlink-errors": ("its NVLinks recover from errors", _LINKS),
    "fabric-not-started": ("it has not joined the NVLink fabric", "Restart nvidia-fabricmanager, and see its log."),
    "fabric-unhealthy": ("its NVLink fabric is unhealthy", _LINKS),
    "fabric-limited": ("its NVLink fabric has limited capacity", _LINKS),
    "hw-thermal": ("the hardware slows it down because it is too hot", _COOL),
    "sw-thermal": ("the driver slows it down because it is too hot", _COOL),
    "hw-slowdown": ("the hardware slows it down", _COOL),
    "power-brake": ("the host's power supply slows it down", _POWER),
    "persistence-off": (
        "persistence mode is off",
        "Start nvidia-persistenced (systemctl enable --now nvidia-persistenced), or run nvidia-smi -pm 1.",
    ),
}
_ACTIONS = {
    RESET: _RESET,
    DOUBLE_BIT: _RESET,
    LINK: _LINKS,
    NEW_LINK: _LINKS,
    REBOOT: _REBOOT,
    CHECK: "See the power cables of the card.",
    RESTART: "Its server was restarted or has to be; reset the GPU when it suits.",
    IGNORE: "It works on; tell the card's vendor if it comes again.",
}
READING_REMEDY = "Nothing is done about it. See nvidia-smi -q and journalctl --unit gpufleet-gpu-health on the host."
AGE_REMEDY = "See systemctl status gpufleet-gpu-health.timer and journalctl --unit gpufleet-gpu-health on the host."
# After so many intervals without a new report the last one is out of date.
MOST_INTERVALS = 5


def explained(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as C(status) tells it.

    Args:
        report: what the module vllm_server_info returned as C(gpu_health); empty where there is none.

    Returns:
        C(findings), each with C(gpu), C(reason), C(severity), C(evidence), C(message) and C(remedy), the sick ones
        first, and C(age_s), the report's age; empty where there is no report.
    """
    if not report:
        return {}
    findings = [_explained(entry) for entry in report.get("findings", [])]
    findings.sort(key=lambda entry: str(entry["severity"]))
    by_gpu: dict[str, list[str]] = {}
    for entry in report.get("unread", []):
        by_gpu.setdefault(entry["gpu"], []).append(entry["reading"])
    for gpu, readings in by_gpu.items():
        what = "the GPUs" if gpu == "all" else f"GPU {gpu}"
        findings.append(
            {
                "gpu": gpu,
                "reason": "reading-failed",
                "severity": "warning",
                "evidence": ", ".join(readings),
                "message": f"{what}: cannot be read ({', '.join(readings)})",
                "remedy": READING_REMEDY,
            }
        )
    age = int(report.get("age_s", 0))
    if age > MOST_INTERVALS * int(report.get("interval", 0)):
        text = f"the GPUs were last looked at {age} s ago"
        rest = {"gpu": "all", "severity": "warning", "evidence": "", "message": text, "remedy": AGE_REMEDY}
        findings.append({**rest, "reason": "report-old"})
    return {"findings": findings, "age_s": age}


def _explained(entry: Mapping[str, str]) -> dict[str, str]:
    reason, gpu = entry["reason"], entry["gpu"]
    words, remedy = REASONS.get(reason, ("", ""))
    if reason.startswith("xid-"):
        number = reason.partition("-")[2]
        kind = XIDS.get(int(number))
        words = f"XID {number}, {kind.words}" if kind else f"XID {number}, which this release does not know"
        remedy = _ACTIONS.get(kind.action, _RESET) if kind else "See NVIDIA's catalogue of XID errors."
    rest = {name: entry[name] for name in ("gpu", "reason", "severity", "evidence")}
    return {**rest, "message": f"GPU {gpu}: {words or reason}", "remedy": remedy.replace("{gpu}", gpu)}
