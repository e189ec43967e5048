# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the page of status says of the routers."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.router_lines import certificate_lines, shared_lines


def test_the_end_of_each_routers_certificate_is_told() -> None:
    routers: dict[str, Any] = {
        "lb-01": {"certificate": {"not_after": "2027-12-24T16:00:00Z", "seconds_left": 10 * 24 * 3600 + 5}},
        "lb-02": {"certificate": {"not_after": "2026-01-01T00:00:00Z", "seconds_left": -5}},
        "plain": {"certificate": {}},
        "silent": {"msg": "not reached"},
    }
    assert certificate_lines(routers) == [
        "The certificate of lb-01 ends on 2027-12-24, in 10 days.",
        "The certificate of lb-02 ended on 2026-01-01: clients refuse it.",
    ]


def test_who_has_the_shared_address_is_told_and_who_does_not_know_what_is_drained() -> None:
    def router(held: bool, in_step: bool) -> dict[str, Any]:
        return {"shared": {"address": "10.0.0.10", "held": held, "in_step": in_step}}

    assert shared_lines({"lb-01": router(True, True), "lb-02": router(False, False), "lb-03": {"msg": "no"}}) == [
        "The routers share 10.0.0.10; lb-01 has it now.",
        "The router lb-02 was started since the last run: the playbook router tells it what is drained.",
    ]
    assert shared_lines({"lb-02": router(False, True)}) == [
        "The routers share 10.0.0.10; none that was asked has it now."
    ]
    assert shared_lines({"lb-01": {"shared": {}}}) == []
