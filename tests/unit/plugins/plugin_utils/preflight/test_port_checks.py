# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight says of ports that cannot be closed."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.look_ahead import Outlook
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import port_checks
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import Case


def found(program: str | None = None, *, running: bool = True, **wished: Any) -> list[str]:
    """Return what is found of a host whose servers listen on all addresses."""
    host_info: Any = {"programs": {"iptables": program}, "engine": {"running": running}}
    wanted = {"vllm_host": "0.0.0.0", "vllm_api_key": "k", "vllm_restrict_ports": True, "vllm_port": 9000, **wished}
    case = Case(host_info, {}, wishes.read(wanted), Outlook(None, []), {})
    findings = [finding for check in port_checks.CHECKS for finding in check(case)]
    assert {(finding.name, finding.severity) for finding in findings} <= {("ports-open", "warning")}
    return [finding.found for finding in findings]


def test_a_host_without_iptables_is_told_with_what_is_open() -> None:
    (text,) = found()
    assert "0.0.0.0" in text and "(9000)" in text


@pytest.mark.parametrize(
    "given",
    [
        {"program": "/usr/sbin/iptables"},
        {"running": False},
        {"vllm_host": "127.0.0.1"},
        {"vllm_restrict_ports": "false"},
    ],
)
def test_where_nothing_is_open_or_nothing_can_be_told_it_is_silent(given: dict[str, Any]) -> None:
    assert found(**given) == []
