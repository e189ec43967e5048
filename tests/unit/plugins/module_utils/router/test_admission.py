# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may be taken out of the router, and why not."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.admission import Limit, obstacle
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import BackendServer


def fleet(
    hosts: int, states: dict[str, str] | None = None, *, replicas: int = 1, sessions: int = 0
) -> dict[str, BackendServer]:
    """Return the servers of so many hosts h1, h2, …; those of hosts with a state are all in that one, or down."""
    of = states or {}
    return {
        f"h{host}:vllm-{replica}": BackendServer(
            f"h{host}:vllm-{replica}",
            state if (state := of.get(f"h{host}", "ready")) != "down" else "ready",
            state != "down",
            "UP",
            sessions,
        )
        for host in range(1, hosts + 1)
        for replica in range(replicas)
    }


def found(
    servers: dict[str, BackendServer], host: str = "h1", turns: dict[str, str] | None = None, **limit: Any
) -> GpufleetError | None:
    """Return what is in the way of a host."""
    return obstacle([host], servers, turns or {}, Limit(**{"most": "25%", **limit}))


@pytest.mark.parametrize(
    ("hosts", "most", "out", "let_through"),
    [
        (40, "25%", 9, True),
        (40, "25%", 10, False),
        (9, "25%", 1, True),
        (9, "25%", 2, False),
        (3, "25%", 0, True),
        (3, "25%", 1, False),
        (3, "2", 1, True),
        (3, "1", 1, False),
        (8, "50%", 3, True),
        (8, "50%", 4, False),
    ],
)
def test_so_many_hosts_may_be_out_and_one_always(hosts: int, most: str, out: int, let_through: bool) -> None:
    states = {f"h{number + 2}": ("drain", "maint", "down")[number % 3] for number in range(out)}
    told = found(fleet(hosts, states), most=most)
    assert (told is None) is let_through
    if told:
        assert told.name == "too-many-unavailable"
        assert f"{out} of {hosts} hosts get no requests already" in told.message
        assert f"vllm_max_unavailable ({most})" in told.message


def test_it_passes_only_where_a_host_is_out_for_a_turn() -> None:
    servers = fleet(4, {"h2": "drain"})
    told = found(servers)
    assert told and not told.details["passes"] and "h2 (drained or not answering)" in told.message
    told = found(servers, turns={"h2": "ctl 7 1"})
    assert (
        told
        and told.details == {"passes": True, "turns": {"h2": "ctl 7 1"}}
        and "h2 (taken out by a run)" in told.message
    )
    # Of a run that is over, the mark of a host that gets requests says nothing.
    told = found(servers, turns={"h3": "ctl 7 1"})
    assert told and not told.details["passes"]


def test_the_last_one_is_left_unless_it_may_go() -> None:
    servers = fleet(2, {"h2": "drain"}, replicas=2)
    told = found(servers, most="2")
    assert told and (told.name, told.details["passes"]) == ("no-other-serves", False)
    assert "Without h1:vllm-0, h1:vllm-1 the router" in told.message
    assert "vllm_allow_outage" in told.remedy
    assert found(servers, most="2", allow_outage=True) is None
    told = found(fleet(1))
    assert told and told.name == "no-other-serves"


def test_a_host_that_gets_no_requests_is_let_through() -> None:
    assert found(fleet(3, {"h1": "down", "h2": "drain", "h3": "maint"})) is None
    assert found(fleet(3, {"h2": "drain"}), "unknown") is None
    assert found(fleet(3, {"h2": "drain"}), "h1", most="") is None


def test_one_replica_that_serves_is_enough_for_a_host_to_count_as_in() -> None:
    servers = fleet(3, replicas=2)
    servers["h2:vllm-0"] = BackendServer("h2:vllm-0", "ready", False, "DOWN", 0)
    assert found(servers) is None


def test_requests_that_the_others_cannot_carry_keep_it_in_until_they_have_ended() -> None:
    busy = fleet(4, sessions=80)
    assert found(busy, requests_per_replica=107) is None
    told = found(busy, requests_per_replica=106)
    assert told and (told.name, told.details["passes"]) == ("too-busy", True)
    assert "320 requests are running, and the 3 replicas that are left can carry 318" in told.message
    assert found(busy, requests_per_replica=106, allow_outage=True) is None
    assert found(busy) is None, "not known"


@pytest.mark.parametrize("value", ["0", "0%", "101%", "-1", "a quarter", "2.5"])
def test_a_limit_that_is_none_is_named(value: str) -> None:
    with pytest.raises(GpufleetError, match="vllm_max_unavailable: ") as raised:
        found(fleet(3), most=value)
    assert raised.value.name == "invalid-wishes" and "'10%'" in raised.value.remedy


def test_the_last_one_of_a_model_is_left_and_one_of_which_a_name_is_served_is_not() -> None:
    def serving(name: str, *routes: str, sessions: int = 0) -> BackendServer:
        return BackendServer(name, "ready", True, "UP", sessions, frozenset(routes))

    kinds = [serving("h1:a", "model:scout", "model:fp8"), serving("h2:a", "model:scout", "model:fp4")]
    servers = {server.name: server for server in [*kinds, serving("h3:a", "model:small", sessions=99)]}
    told = found(servers, "h3", most="2")
    assert told and told.name == "no-other-serves" and "no replica that serves the same model" in told.message
    # Requests of other models are none that its own others have to carry.
    assert found(servers, "h1", most="2", requests_per_replica=10) is None
    del servers["h2:a"]
    told = found(servers, "h1", most="2")
    assert told and told.name == "no-other-serves"
