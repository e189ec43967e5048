# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_preflight_summary: what it prints and returns."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from ansible_collections.gpufleet.vllm.plugins.action import vllm_preflight_summary
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action


def finding(name: str, severity: str = "error", found: str = "It is so.", item: str = "") -> dict[str, Any]:
    return {"name": name, "severity": severity, "found": found, "needed": "other", "remedy": "Do it.", "item": item}


def run(findings: dict[str, Any]) -> tuple[dict[str, Any], MagicMock]:
    return run_action(vllm_preflight_summary.ActionModule, {"findings": findings})


def test_each_finding_has_one_line_with_its_hosts() -> None:
    fleet = {
        "gpu-01": [finding("driver-too-old"), finding("clock", "warning")],
        "gpu-02": [finding("driver-too-old"), finding("disk-full", found="5 GiB are free.", item="/")],
        "gpu-03": [finding("driver-too-old"), finding("disk-full", found="9 GiB are free.", item="/")],
        "gpu-04": [finding("clock", "warning")],
        "gpu-05": [],
        "gpu-06": None,
    }
    result, display = run(fleet)
    printed = display.display.call_args.args[0].split("\n")
    assert result["changed"] is False
    assert printed == result["lines"]
    assert printed == [
        "Preflight of 6 hosts: 3 with errors, 1 with warnings only, 1 fit, 1 not judged",
        "  error   driver-too-old  gpu-[01:03] (3 hosts): It is so. Needed: other. Do it.",
        "  error   disk-full  gpu-[02:03] (2 hosts) (on gpu-02; others differ): 5 GiB are free. Needed: other. Do it.",
        "  warning clock  gpu-01, gpu-04 (2 hosts): It is so. Needed: other. Do it.",
        "  error   not-judged  gpu-06: the host was not reached, or failed before.",
    ]
    assert "gpu-03 error disk-full: 9 GiB are free." in display.v.call_args.args[0]


def test_two_of_a_kind_on_one_host_have_a_line_each() -> None:
    ports = [finding("port-in-use", item="port 8000"), finding("port-in-use", item="port 8001")]
    assert len(run({"a": ports})[0]["lines"]) == 3


def test_a_good_fleet_is_one_line() -> None:
    assert run({f"gpu-{number}": [] for number in range(500)})[0]["lines"] == ["Preflight of 500 hosts: 500 fit"]
