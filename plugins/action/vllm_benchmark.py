# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.vllm_benchmark) in the background, and compare what it measured with what is stored here."""

from __future__ import annotations

import datetime
import os
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import baseline, gates
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction

NONE = "none is stored for these GPUs, driver, image, plan and load (vllm_benchmark_save_baseline: true stores one)"
NONE_BEFORE = "none is stored of what served before, for these GPUs, driver and load"
NOT_STORED = "it was not stored (vllm_benchmark_save_baseline), because a gate of this measurement failed"


class ActionModule(LongTaskAction):
    """Shows the module's phases live, then judges its figures by the baseline on the controller."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result with C(baseline) and the gates of the comparison."""
        given = str(self._task.args.get("baseline_dir") or "")
        folder = os.path.abspath(os.path.expanduser(given)) if given else ""
        if folder and boolean(self._task.args.get("follow_baseline", False)):
            self._task.args = {**self._task.args, "stored_concurrency": baseline.concurrencies(folder)}
        result = super().run(tmp, task_vars)
        if not folder or not result.get("points"):
            return result
        try:
            return compared(
                result,
                folder,
                instead=dict(self._task.args.get("baseline_for") or {}),
                fail=boolean(self._task.args.get("fail_on_gates", True)),
                save=boolean(self._task.args.get("save_baseline", False)),
                tolerance=float(self._task.args.get("tolerance", 0.05)),
                standard_errors=float(self._task.args.get("standard_errors", 2)),
                host=str((task_vars or {}).get("inventory_hostname", "")),
            )
        except GpufleetError as error:
            return {**result, **error.as_failure()}


def compared(
    result: dict[str, Any],
    folder: str,
    *,
    save: bool,
    tolerance: float,
    standard_errors: float,
    fail: bool = True,
    instead: dict[str, Any] | None = None,
    host: str = "",
) -> dict[str, Any]:
    """Return the module's result, judged by the stored benchmark or stored as one.

    Args:
        result: of the module.
        folder: of the stored benchmarks.
        save: whether to store it; then it is compared with none.
        tolerance: share of a stored figure by which a figure may be worse.
        standard_errors: differences of fewer than these count as noise.
        fail: whether a gate that failed fails the task.
        instead: parts of C(comparable) of what it is compared with, if that is not its own kind.
        host: where it was measured.

    Raises:
        GpufleetError: as baseline.load and baseline.save.
    """
    key = baseline.key_of({**result["comparable"], **({} if save else instead or {})})
    told = {"key": key, "found": False, "saved": "", "date": "", "servers": 0, "why": ""}
    if save:
        if gates.failed(result["gates"]):
            return _warned({**result, "baseline": {**told, "why": NOT_STORED}})
        return {**result, "baseline": {**told, "saved": _save(folder, key, result, host)}}
    stored = baseline.load(folder, key)
    if stored is None:
        return {**result, "baseline": {**told, "why": NONE_BEFORE if instead else NONE}}
    points = baseline.reference(stored["entries"])
    if not instead and not gates.common_concurrency(result["points"], points):
        # Somebody asked for other loads, such as a curve; it is a change that must not go on without a comparison.
        why = gates.nothing_compared(result["points"], points)["text"]
        return _warned({**result, "baseline": {**told, "why": why}})
    found = gates.regression_gates(result["points"], points, tolerance=tolerance, standard_errors=standard_errors)
    date = max((str(entry["date"]) for entry in stored["entries"]), default="")
    judged = {
        **result,
        "gates": [*result["gates"], *found],
        "baseline": {**told, "found": True, "date": date, "servers": len(stored["entries"])},
    }
    return gates.verdict(judged, fail=fail)


def _warned(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result with a warning of why nothing was stored or compared; it has its place in the report, too."""
    why = result["baseline"]["why"]
    return {**result, "warnings": [*result.get("warnings", []), why]}


def _save(folder: str, key: str, result: dict[str, Any], host: str) -> str:
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    server = str(result.get("name", ""))
    return baseline.save(folder, key, result["comparable"], result["points"], date, host=host, server=server)
