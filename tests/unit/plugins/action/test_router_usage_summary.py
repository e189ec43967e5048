# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the table and the file of who used what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.action.router_usage_summary import ActionModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.usage import Use, as_row
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

ONE = as_row(("2027-01-01", "a", "m"), Use(2, 1, 1024, 4096, 10, 20, 1))
STREAMS = as_row(("2027-01-01", "b", "m\x1b[2J"), Use(3, 0, 1, 1, 0, 0, 0))


def test_routers_are_added_up_and_one_that_is_missing_is_told_first(tmp_path: Path) -> None:
    routers: dict[str, Any] = {
        "lb-1": {"usage": [ONE]},
        "lb-2": {"usage": [ONE, STREAMS]},
        "lb-3": {"msg": "no\nroute"},
        "lb-4": {},
    }
    file = tmp_path / "reports" / "usage.csv"
    result, display = run_action(ActionModule, {"routers": routers, "file": str(file)})
    lines = result["lines"]
    assert display.display.call_args.args[0] == "\n".join(lines)
    assert lines[0] == "lb-3 is missing, so these are not all requests: no route"
    assert lines[1].endswith("it was not asked") and lines[2] == "7 requests at 2 routers"
    assert lines[4].split() == ["2027-01-01", "a", "m", "4", "2", "2.0", "KiB", "8.0", "KiB", "20", "40", "2"]
    assert "\x1b" not in "\n".join(lines) and lines[5].split()[-3:] == ["-", "-", "0"]
    assert lines[6].split()[:3] == ["Total", "7", "2"]
    assert lines[-1] == f"As CSV: {file}"
    first, second, _third = file.read_text(encoding="utf-8").splitlines()
    assert first == "day,client,model,requests,failures,bytes_in,bytes_out,tokens_in,tokens_out,with_tokens"
    assert second == "2027-01-01,a,m,4,2,2048,8192,20,40,2"
    assert not run_action(ActionModule, {"routers": routers, "file": str(file)})[0]["changed"]


def test_check_mode_and_no_router_leave_the_file_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "usage.csv"
    given = {"routers": {"lb-1": {"usage": [ONE]}}, "file": str(file)}
    assert run_action(ActionModule, given, check=True)[0]["changed"] and not file.exists()
    run_action(ActionModule, given)
    before = file.read_text(encoding="utf-8")
    none = run_action(ActionModule, {"routers": {"lb-1": {"msg": "down"}}, "file": str(file)})[0]
    assert (none["changed"], file.read_text(encoding="utf-8")) == (False, before)
    assert none["lines"][-1] == "No request is in the log of any router for that time."
    assert run_action(ActionModule, {**given, "file": ""})[0]["changed"] is False


def test_a_file_that_cannot_be_written_is_told_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    given = {"routers": {"lb-1": {"usage": [ONE]}}, "file": str(tmp_path / "file" / "usage.csv")}
    result = run_action(ActionModule, given)[0]
    assert result["failed"] and result["error"]["name"] == "usage-not-written"
    assert "router_usage_file" in result["msg"]
