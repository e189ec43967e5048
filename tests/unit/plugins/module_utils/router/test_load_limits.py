# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the router lets in, by the plans of its replicas."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config, load_limits, router_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS


def settings(**changes: Any) -> router_settings.RouterSettings:
    """Return the settings of the module's defaults with changes."""
    options = {name: option.get("default") for name, option in ARGUMENTS.items()}
    return router_settings.as_settings({**options, "api_keys": ["one", "two"], **changes}, "", "")


def replica(requests: int = 0, max_num_seqs: int = 0, host: str = "h") -> Replica:
    """Return a replica that carries so many."""
    return Replica(host, "vllm-0", "10.0.0.1", 8000, ("m",), requests, max_num_seqs)


@pytest.mark.parametrize(
    ("of", "changes", "limit"),
    [
        (replica(60, 100), {}, 120),
        (replica(30, 256), {}, 256),
        (replica(0, 64), {}, 128),
        (replica(0, 0), {}, 0),
        (replica(60, 100), {"requests_factor": 3.5}, 210),
        (replica(60, 100), {"max_requests_per_replica": "12"}, 12),
        (replica(60, 100), {"max_requests_per_replica": 0}, 0),
    ],
)
def test_a_replica_gets_what_its_cache_holds_times_a_factor(of: Replica, changes: dict[str, Any], limit: int) -> None:
    assert load_limits.replica_limit(settings(**changes), of) == limit


def test_the_fleet_carries_the_sum_and_nothing_is_known_where_one_is_not() -> None:
    fleet = [replica(100, host=f"h{number}") for number in range(64)]
    assert load_limits.room(settings(), fleet) == load_limits.queue_limit(settings(), fleet) == 12800
    found = load_limits.limits(settings(), fleet)
    assert (found.connections, found.address, found.key) == (51200, 12800, 9600)
    assert load_limits.limits(settings(api_keys=["one"]), fleet).key == 0, "the only one may have all"
    unknown = load_limits.limits(settings(), [*fleet, replica()])
    assert (unknown.connections, unknown.key) == (8192, 0)
    assert load_limits.limits(settings(max_connections="100", max_connections_per_address=7), fleet).address == 7


def test_what_does_not_fit_gets_503_where_there_is_a_limit() -> None:
    def rules(*fleet: Replica, **changes: Any) -> list[str]:
        text = config.config(settings(**changes), fleet, "/etc/x").partition("\nbackend replicas\n")[2]
        return [line for line in text.partition("\n\n")[0].splitlines() if "return status 503" in line]

    (full,) = rules(replica(10))
    assert full.endswith("hdr Retry-After 5 if { queue(replicas) ge 20 }")
    (at_once,) = rules(replica(10), max_queue="0")
    assert at_once.endswith("if { be_conn(replicas) gt 20 }")
    assert rules(replica()) == []


@pytest.mark.parametrize("name", router_settings.LIMITS)
def test_a_limit_that_is_none_is_refused_by_its_variable(name: str) -> None:
    with pytest.raises(GpufleetError, match=f"router_{name}: 'many' is neither a number nor auto"):
        settings(**{name: "many"})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"operators": ["10.0.0.0/8", "monitor"]}, "router_operators: 'monitor'"),
        ({"requests_factor": 0.5}, "router_requests_factor"),
        ({"max_connections": "0"}, "router_max_connections"),
    ],
)
def test_a_limit_that_shuts_everyone_out_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(GpufleetError, match=named):
        router_settings.check_settings(settings(**changes), [], allow_unauthenticated=False)
