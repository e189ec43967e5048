# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the report of a verification run over all hosts, and show its summary."""

from __future__ import annotations

import datetime
import json
import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import document as report_document
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import over_time, plots
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report.plain import plain, without

ARGUMENTS: dict[str, Any] = {
    "hosts": {"type": "dict", "required": True},
    "report_dir": {"type": "str", "required": True},
    "outlier_tolerance": {"type": "float", "default": 0.1},
    "tags": {"type": "list", "elements": "str", "default": []},
    "keep_earlier": {"type": "bool", "default": False},
    "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
}
NOT_WRITTEN = "No report was written; that of an earlier run, if there is one, is as it was."
NO_PLOTS = "The plots are left out: matplotlib is not installed beside ansible-core (pip install matplotlib)."


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_report."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Write both files, print the summary, and return which hosts failed and why."""
        created = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        document = report_document.build(plain(arguments["hosts"]), created, arguments["outlier_tolerance"])
        folder = os.path.abspath(os.path.expanduser(arguments["report_dir"]))
        page = os.path.join(folder, "report.html")
        nothing = report_document.nothing_verified(document, arguments["tags"])
        written = not (nothing or arguments["keep_earlier"] or self._task.check_mode)
        lines = report_document.summary_lines(document, f"Report: {page}" if written else NOT_WRITTEN)
        failed = {
            entry["name"]: "; ".join(failure["message"] for failure in entry["failures"]) or nothing
            for entry in document["hosts"]
            if entry["failures"] or nothing
        }
        hidden = [secret for secret in arguments["secrets"] if secret]
        entries = over_time.entries_of(document)
        document["trends"] = over_time.trends(over_time.read(folder), entries)
        failure: dict[str, Any] = {}
        if written:
            try:
                self._write(document, folder, hidden)
                self._keep(entries, folder, hidden)
            except GpufleetError as error:
                failure = error.as_failure()  # the summary is shown all the same
        self._display.display(without("\n".join(["", *lines, ""]), hidden))
        return {
            **failure,
            "verdict": document["verdict"],
            "failed_hosts": {name: without(text, hidden) for name, text in failed.items()},
            "report": page if written else "",
            "summary": [without(line, hidden) for line in lines],
        }

    def _write(self, document: dict[str, Any], folder: str, hidden: list[str]) -> None:
        """Write both files.

        Raises:
            GpufleetError: C(report-not-written).
        """
        notes: list[str] = []
        try:
            drawn = plots.draw(document)
        except ImportError:
            drawn = {}
            notes.append(NO_PLOTS)
            self._display.warning(NO_PLOTS)
        texts = {
            "report.json": json.dumps(document, indent=2) + "\n",
            "report.html": report_document.html(document, drawn, notes),
        }
        for name, text in texts.items():
            replace_file(
                os.path.join(folder, name),
                without(text, hidden),
                what="report",
                name="report-not-written",
                variable="vllm_report_dir",
            )

    def _keep(self, entries: list[dict[str, Any]], folder: str, hidden: list[str]) -> None:
        """Add what was measured to what earlier runs have.

        Raises:
            GpufleetError: C(report-not-written).
        """
        try:
            over_time.append(folder, without("".join(json.dumps(entry) + "\n" for entry in entries), hidden))
        except OSError as error:
            raise GpufleetError(
                f"What was measured cannot be kept in {os.path.join(folder, over_time.FILE)}.",
                name="report-not-written",
                remedy="Set vllm_report_dir to a folder on the controller that you may write to.",
                evidence=str(error),
            ) from error
