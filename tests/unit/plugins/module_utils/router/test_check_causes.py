# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The causes in what HAProxy 2.6 says of health checks, as it said it to servers that were made so."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.check_causes import check_causes
from ansible_collections.gpufleet.vllm.tests.unit.conftest import write_below

HEAD = "# pxname,svname,status,check_status,check_code,last_chk,check_desc\n"


def cause(row: str, root: str = "/none") -> str:
    """Return the cause of one server, and its remedy; empty without one."""
    found = check_causes(f"{HEAD}api,FRONTEND,OPEN,,,,\nreplicas,gpu-01:vllm-0,{row}\nreplicas,BACKEND,UP,,,,\n", root)
    assert set(found) <= {"gpu-01:vllm-0"}
    return " ".join(found["gpu-01:vllm-0"]) if found else ""


@pytest.mark.parametrize(
    ("row", "text", "remedy"),
    [
        ("DOWN,L4CON,,Connection refused,Layer4 connection problem", "connection refused", "vllm_host"),
        ("DOWN,L4CON,,General socket error (No route to host),Layer4 connection problem", "no route", "firewalld"),
        ("DOWN,L4CON,,General socket error (Network is unreachable),Layer4 connection problem", "no route", "routes"),
        ("DOWN,L4CON,,General socket error (Permission denied),Layer4 connection problem", "forbids", "setsebool"),
        ("DOWN,* L4TOUT,,,Layer4 timeout", "no answer to a connection", "firewalls"),
        ("DOWN,L7STS,401,Unauthorized,Layer7 wrong status", "refuses the router's key (401)", "gpufleet.vllm.router"),
        ("DOWN,L7STS,503,Service Unavailable,Layer7 wrong status", "not ready (503)", "starts"),
        ("DOWN,L7STS,500,Internal Server Error,Layer7 wrong status", "answers 500 to /health", "status"),
        ("DOWN,* L7TOUT,,,Layer7 timeout", "does not answer /health", "status"),
        ("DOWN,SOCKERR,,Connection reset by peer,Socket error", "Socket error (Connection reset by peer)", "status"),
        ("MAINT (resolution),,,,", "cannot resolve its name", "vllm_router_address"),
        ("UP,INI,,,Initializing", "not checked yet", "Wait"),
        ("UP 1/2,L4CON,,Connection refused,Layer4 connection problem", "connection refused", "vllm_host"),
    ],
)
def test_each_cause_is_told_with_what_to_do(row: str, text: str, remedy: str) -> None:
    assert text in cause(row) and remedy in cause(row)


@pytest.mark.parametrize("row", ["UP,L7OK,200,OK,Layer7 check passed", "DRAIN,* L7OK,200,OK,Layer7 check passed"])
def test_a_check_that_passed_has_no_cause(row: str) -> None:
    assert cause(row) == ""


@pytest.mark.parametrize(
    ("enforce", "boolean", "named"), [("1", "0 0", True), ("1", "1 1", False), ("0", "0 0", False)]
)
def test_selinux_is_named_where_it_forbids(tmp_path: Path, enforce: str, boolean: str, named: bool) -> None:
    write_below(tmp_path, "sys/fs/selinux/enforce", enforce)
    write_below(tmp_path, "sys/fs/selinux/booleans/haproxy_connect_any", boolean)
    denied = "DOWN,L4CON,,General socket error (Permission denied),Layer4 connection problem"
    assert ("SELinux forbids" in cause(denied, str(tmp_path))) is named
