# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a host's GPUs, judged from what NVML and the kernel's log tell.

A sickness is a reason to give a GPU no work; a warning is one to look after it. What may pass by itself, such as a
throttled clock, is a warning until it has been there for some readings in a row.
"""

from __future__ import annotations

import ctypes

from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.light_nvml import (
    GPU_IS_LOST,
    LINK_ERRORS,
    RECOVERY_ACTION,
    Fabric,
    Gpu,
    LostError,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.xid_catalogue import APPLICATION, XIDS

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes a tenth of a run
    from collections.abc import Mapping
    from typing import Any

SICK, WARNING = "sick", "warning"
MOST_LINKS = 36
LINK_TO_SWITCH = 2
RECOVERIES = {
    1: "reset-required",
    2: "reboot-required",
    3: "reset-required",
    4: "reset-required",
    5: "recovery-domain",
    6: "reset-required",
    7: "reboot-required",
}
# Bits of the reasons for slow clocks. What the hardware does by itself is a sickness if it lasts, the rest is told.
THROTTLES = {0x08: "hw-slowdown", 0x20: "sw-thermal", 0x40: "hw-thermal", 0x80: "power-brake"}
HARD_THROTTLES = ("hw-slowdown", "hw-thermal", "power-brake")
LASTS = 3
FABRIC_COMPLETED, FABRIC_UNHEALTHY, FABRIC_LIMITED = 3, 2, 3
WORDS = 160


class Findings:
    """What is found in one run.

    Args:
        state: what earlier runs since boot have left.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.found: list[dict[str, str]] = []
        self.unread: list[dict[str, str]] = []
        self.link_errors: dict[str, dict[str, int]] = {}
        self._state = state

    def add(self, gpu: str, uuid: str, reason: str, severity: str, evidence: str) -> None:
        """Note a finding."""
        self.found.append(
            {"gpu": gpu, "uuid": uuid, "reason": reason, "severity": severity, "evidence": evidence[:WORDS]}
        )

    def lasting(self, gpu: Gpu, reason: str, severity: str, evidence: str) -> None:
        """Note a finding that may pass by itself: a warning until it has been there for some runs."""
        seen = self._state.setdefault("seen", {})
        key = f"{gpu.uuid}/{reason}"
        seen[key] = seen.get(key, 0) + 1
        there = severity if seen[key] >= LASTS else WARNING
        self.add(str(gpu.index), gpu.uuid, reason, there, f"{evidence}, in {seen[key]} readings in a row")

    def look(self, gpu: Gpu) -> None:
        """Read one GPU."""
        known = self._state.setdefault("uuids", {})
        gpu.uuid = gpu.uuid or known.get(str(gpu.index), "")
        if gpu.uuid:
            known[str(gpu.index)] = gpu.uuid
        before = set(self._state.get("seen", {}))
        try:
            if gpu.lost:
                raise LostError(gpu.lost)
            for reading in (self._memory, self._links, self._fabric, self._clocks, self._fields):
                reading(gpu)
        except LostError as error:
            lost = error.args[0] == GPU_IS_LOST
            self.add(
                str(gpu.index),
                gpu.uuid,
                "off-the-bus" if lost else "reset-required",
                SICK,
                f"NVML says {'GPU is lost' if lost else 'reset required'}",
            )
        self.unread += [{"gpu": str(gpu.index), "reading": reading} for reading in gpu.unread]
        # What was not found this time has passed.
        now = {f"{entry['uuid']}/{entry['reason']}" for entry in self.found}
        for key in before - now:
            if key.startswith(f"{gpu.uuid}/"):
                del self._state["seen"][key]

    def _memory(self, gpu: Gpu) -> None:
        errors = gpu.number(
            "ecc", "nvmlDeviceGetTotalEccErrors", ctypes.c_uint(1), ctypes.c_uint(0), kind=ctypes.c_ulonglong
        )
        if errors:
            evidence = f"{errors} uncorrected memory errors since the driver was loaded"
            self.add(str(gpu.index), gpu.uuid, "ecc-uncorrected", SICK, evidence)
        rows = [ctypes.c_uint() for _row in range(4)]
        if gpu.read("remapped-rows", "nvmlDeviceGetRemappedRows", *map(ctypes.byref, rows)):
            count = f"{rows[0].value} rows replaced after corrected errors, {rows[1].value} after uncorrected ones"
            for flag, reason in ((rows[2], "row-remap-pending"), (rows[3], "row-remap-failed")):
                if flag.value:
                    self.add(str(gpu.index), gpu.uuid, reason, SICK, count)

    def _links(self, gpu: Gpu) -> None:
        active, all_of_them, switched = 0, 0, False
        for link in range(MOST_LINKS):
            up = gpu.number("nvlink", "nvmlDeviceGetNvLinkState", ctypes.c_uint(link))
            if up is None:
                break
            all_of_them += 1
            active += bool(up)
            if link == 0 and up:
                kind = gpu.number("nvlink", "nvmlDeviceGetNvLinkRemoteDeviceType", ctypes.c_uint(link))
                switched = kind == LINK_TO_SWITCH
        if "nvlink" in gpu.unread:
            return
        most = self._state.setdefault("links", {})
        # A card without bridges has links that never were up; all links to a switch are.
        wanted = all_of_them if switched else max(active, most.get(gpu.uuid, 0))
        most[gpu.uuid] = max(wanted, most.get(gpu.uuid, 0))
        if active < most[gpu.uuid]:
            evidence = f"{active} of {most[gpu.uuid]} NVLinks are up"
            self.add(str(gpu.index), gpu.uuid, "nvlink-down", SICK, evidence)

    def _fabric(self, gpu: Gpu) -> None:
        for version, size in ((3, ctypes.sizeof(Fabric)), (2, Fabric.summary.offset)):
            info = Fabric(version=size | version << 24)
            if gpu.read("fabric", "nvmlDeviceGetGpuFabricInfoV", ctypes.byref(info)):
                break
        else:
            return
        if info.state == 0:
            return
        if info.state != FABRIC_COMPLETED:
            self.lasting(gpu, "fabric-not-started", SICK, f"the fabric's state is {info.state}, not {FABRIC_COMPLETED}")
        elif info.status or info.summary == FABRIC_UNHEALTHY:
            self.add(str(gpu.index), gpu.uuid, "fabric-unhealthy", SICK, f"status {info.status}, health {info.summary}")
        elif info.summary == FABRIC_LIMITED:
            self.add(str(gpu.index), gpu.uuid, "fabric-limited", WARNING, "limited capacity")

    def _clocks(self, gpu: Gpu) -> None:
        reasons = gpu.number("clocks", "nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong) or 0
        found = [word for bit, word in THROTTLES.items() if reasons & bit]
        for word in found:
            # The general one says nothing beside its cause.
            if word != "hw-slowdown" or not {"hw-thermal", "power-brake"} & set(found):
                severity = SICK if word in HARD_THROTTLES else WARNING
                self.lasting(gpu, word, severity, f"clocks are held down (reasons {reasons:#x})")
        if gpu.number("persistence", "nvmlDeviceGetPersistenceMode") == 0:
            self.add(str(gpu.index), gpu.uuid, "persistence-off", WARNING, "persistence mode is off")

    def _fields(self, gpu: Gpu) -> None:
        values = gpu.fields()
        action = values.get(RECOVERY_ACTION, 0)
        if action:
            reason = RECOVERIES.get(action, "recovery-unknown")
            severity = SICK if reason in ("reset-required", "reboot-required") else WARNING
            self.add(str(gpu.index), gpu.uuid, reason, severity, f"NVML's recovery action is {action}")
        counts = {word: values[field] for field, word in LINK_ERRORS.items() if field in values}
        if not counts:
            return
        self.link_errors[str(gpu.index)] = counts
        before = self._state.setdefault("recoveries", {})
        if counts.get("recovery", 0) > before.get(gpu.uuid, counts.get("recovery", 0)):
            evidence = f"NVLinks had to recover {counts['recovery'] - before[gpu.uuid]} times since the last reading"
            self.add(str(gpu.index), gpu.uuid, "nvlink-errors", WARNING, evidence)
        before[gpu.uuid] = counts.get("recovery", 0)

    def judge_xids(self, log: Mapping[str, Mapping[str, Any]], names: Mapping[str, tuple[str, str]]) -> None:
        """Judge the XID events since boot.

        Args:
            log: for each GPU's place on the bus its events by number, each C(count), C(at) and C(text).
            names: index and UUID of each GPU by that place.
        """
        forgiven = float(self._state.get("repaired", -1))
        for place, events in log.items():
            gpu, uuid = names.get(place, (place, ""))
            for number, event in events.items():
                kind = XIDS.get(int(number))
                if event["at"] <= forgiven or (kind and kind.whose == APPLICATION):
                    continue
                words = kind.words if kind else "not in NVIDIA's catalogue as of this release"
                severity = SICK if kind and kind.is_sickness() else WARNING
                evidence = f"{words} ({event['count']} times since boot): {event['text']}"
                self.add(gpu, uuid, f"xid-{number}", severity, evidence)
