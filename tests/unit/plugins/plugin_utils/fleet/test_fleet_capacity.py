# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of how many hosts hold how many requests at once."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.fleet_capacity import (
    Target,
    capacity,
    capacity_lines,
)


def plan(held: int | None, *, model: str = "acme/one", names: str = "", hardware: str = "8 x A") -> Any:
    """Return a plan of four replicas, with what the capacity is judged by."""
    config = {"served-model-name": names} if names else {}
    return {
        "model": model,
        "hardware": hardware,
        "replicas": [{"name": f"vllm-{number}", "config": config} for number in range(4)],
        "capacity": {"max_concurrent_requests": held},
        "decisions": [],
        "warnings": [],
    }


def target(requests: int, *, out: Any = "25%", model: str | None = "acme/one") -> Target:
    return Target(requests, (1024, 512), out, model)


def judged(plans: dict[str, Any], wanted: Target, missing: int = 0) -> list[dict[str, Any]]:
    return capacity(plans, dict.fromkeys(plans, wanted), missing)


def test_hosts_that_hold_enough_during_a_change_too() -> None:
    found = judged({f"h{number}": plan(128) for number in range(1, 9)}, target(3000))
    assert [(result["holds"], result["out_at_once"], result["holds_during_change"]) for result in found] == [
        (4096, 2, 3072)
    ]
    assert capacity_lines(found) == [
        "",
        "3,000 requests at once (vllm_target_requests) of 1024 + 512 tokens, to acme/one:",
        "which   hosts  requests/host  together  these alone: hosts  and with a change",
        "h[1:8]  8      512            4,096     6                   7",
        "  Enough: 8 hosts hold 4,096, and 3,072 while a change has 2 hosts out (vllm_max_unavailable: 25%).",
    ]


def test_hosts_that_hold_enough_only_while_all_serve() -> None:
    found = judged({f"h{number}": plan(128) for number in range(1, 9)}, target(4096))
    assert found[0]["enough"] is True
    assert found[0]["enough_during_change"] is False
    assert found[0]["kinds"][0]["further_during_change"] == 2
    assert capacity_lines(found)[-2:] == [
        "  Enough only while all serve: 8 hosts hold 4,096, but 3,072 while a change has 2 hosts out"
        " (vllm_max_unavailable: 25%).",
        "  For a change without waiting requests add 2 more hosts like h[1:8].",
    ]


def test_hosts_of_two_kinds_that_do_not_suffice() -> None:
    plans = {"a1": plan(64), "a2": plan(64), "b": plan(256, hardware="8 x B")}
    found = judged(plans, target(2000))
    assert [kind["holds"] for kind in found[0]["kinds"]] == [256, 1024]
    assert capacity_lines(found)[2:] == [
        "which   hosts  requests/host  together  these alone: hosts  and with a change",
        "a[1:2]  2      256            512       8                   10",
        "b       1      1,024          1,024     2                   3",
        "  Not enough: 3 hosts hold 1,536, 464 too few; 512 while a change has 1 host out (vllm_max_unavailable: 25%).",
        "  While all serve it takes 2 more hosts like a[1:2], or 1 more host like b.",
        "  With a change it takes 7 more hosts like a[1:2], or 2 more hosts like b.",
    ]


@pytest.mark.parametrize("out", ["25%", "10%", 1, 3, "50%"])
@pytest.mark.parametrize("wanted", [1, 511, 512, 513, 5000])
def test_what_is_said_to_be_needed_suffices_and_one_less_does_not(out: Any, wanted: int) -> None:
    """Told of its own numbers, the calculator agrees with itself: that many hosts are enough, one fewer are not."""
    [result] = judged({"h1": plan(128)}, target(wanted, out=out))
    kind = result["kinds"][0]
    for needed, key in ((kind["needed"], "enough"), (kind["needed_during_change"], "enough_during_change")):
        assert needed is not None
        for number in (needed, needed - 1):
            fleet = {f"h{index}": plan(128) for index in range(number)}
            enough = bool(fleet) and judged(fleet, target(wanted, out=out))[0][key]
            assert enough is (number == needed), (number, key)


def test_a_fleet_that_may_be_out_altogether_is_never_enough_during_a_change() -> None:
    found = judged({"h1": plan(128), "h2": plan(128)}, target(100, out="100%"))
    assert found[0]["kinds"][0]["needed_during_change"] is None
    assert "h[1:2]  2      512            1,024     1                   -" in capacity_lines(found)
    assert capacity_lines(found)[-1].strip().startswith("Enough only while all serve")


def test_each_model_is_judged_by_itself_and_one_without_a_target_not_at_all() -> None:
    plans = {"a": plan(128), "b": plan(64, model="acme/two"), "c": plan(64, model="acme/three")}
    targets = {
        "a": target(100),
        "b": target(10000, model="acme/two"),
        "c": target(0, model="acme/three"),
    }
    found = capacity(plans, targets, 0)
    assert [(result["names"], result["enough"]) for result in found] == [(["acme/one"], True), (["acme/two"], False)]


def test_hosts_with_one_name_are_judged_together_whatever_they_serve() -> None:
    plans = {
        "a": plan(128, model="acme/one-FP8", names="one auto"),
        "b": plan(128, model="acme/one-FP4", names="one"),
        "c": plan(128, model="acme/other"),
    }
    targets = {"a": target(600, model="x"), "b": target(600, model="y"), "c": target(600, model="z")}
    found = capacity(plans, targets, 0)
    assert [(result["hosts"], result["names"], result["enough"]) for result in found] == [
        (2, ["one"], True),
        (1, ["acme/other"], False),
    ]


def test_hosts_that_share_no_name_are_judged_together_if_their_variables_name_one_model() -> None:
    plans = {"a": plan(128, model="acme/one-FP8"), "b": plan(128, model="acme/one-FP4")}
    found = judged(plans, target(600, model=None))
    assert found[0]["holds"] == 1024
    assert capacity_lines(found)[-1] == (
        "  They share no name: a client reaches only the hosts whose model it names. Give them one more by"
        " vllm_served_model_name."
    )


def test_what_is_not_known_counts_as_nothing_and_is_said() -> None:
    plans = {"a": plan(128), "b": plan(None, hardware="8 x B")}
    found = judged(plans, target(600), missing=3)
    assert found[0]["kinds"][1]["needed"] is None
    lines = capacity_lines(found)
    assert "b      1      ?              ?         ?                   ?" in lines
    assert "  Not known, and counted as nothing: what b can hold." in lines
    assert "  Not counted: 3 hosts without a plan." in lines


def test_hosts_of_one_model_that_want_different_numbers() -> None:
    found = capacity({"a": plan(128), "b": plan(128)}, {"a": target(100), "b": target(700)}, 0)
    assert found[0]["target_requests"] == 700
    assert "  vllm_target_requests differs between these hosts (100, 700); the largest counts." in capacity_lines(found)


def test_a_share_that_is_none_is_refused_by_its_variable() -> None:
    with pytest.raises(GpufleetError, match="vllm_max_unavailable: 'some'"):
        judged({"a": plan(128)}, target(100, out="some"))
