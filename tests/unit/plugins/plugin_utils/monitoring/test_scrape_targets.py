# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to scrape of a fleet: through a router, without one, and of hosts that were not asked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.prometheus_config import Scraping, jobs
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.scrape_targets import (
    Fleet,
    Router,
    as_text,
    host_entries,
    replica_entries,
    router_entries,
)

PLAN = {
    "model": "org/m",
    "hardware": "2 x NVIDIA H200",
    "precision": "fp8",
    "profile": "balanced",
    "image": {"reference": "vllm/vllm-openai:v0.26.0", "tag": "vllm/vllm-openai:deploy"},
    "replicas": [{"name": "vllm-0", "gpus": [0, 1], "host": "0.0.0.0", "port": 8000}],
}
LABELS = {
    "host": "gpu-01",
    "replica": "vllm-0",
    "model": "org/m",
    "gpu": "0,1",
    "hardware": "2 x NVIDIA H200",
    "precision": "fp8",
    "profile": "balanced",
    "image": "vllm/vllm-openai:v0.26.0",
}
LB = Router("lb-1", "10.0.0.1", 9443, "0.0.0.0", tls=True)
FLEET = Fleet(plans={"gpu-01": PLAN, "gpu-03": {}}, addresses={"gpu-01": "10.0.0.11"}, unknown=["gpu-02"], routers=[LB])
DIRECT = replace(FLEET, routers=[], left_out=[])


def direct(host: str, listens: str) -> str:
    return FLEET.addresses[host] if listens != "127.0.0.1" else ""


def test_a_replica_is_asked_through_the_router() -> None:
    (entry,) = replica_entries(FLEET, direct, "")
    assert entry == {
        "targets": ["10.0.0.1:9443"],
        "labels": {**LABELS, "router": "lb-1", "__metrics_path__": "/replicas/gpu-01:vllm-0/metrics"},
    }
    assert router_entries(FLEET) == [{"targets": ["10.0.0.1:9443"], "labels": {"router": "lb-1"}}]


def test_routers_that_share_an_address_are_asked_there() -> None:
    shared = replace(FLEET, routers=[replace(LB, shared="10.0.0.100"), replace(LB, name="lb-2", address="10.0.0.2")])
    assert [entry["targets"] for entry in replica_entries(shared, direct, "")] == [["10.0.0.100:9443"]]
    assert [entry["targets"] for entry in router_entries(shared)] == [["10.0.0.1:9443"], ["10.0.0.2:9443"]]


@pytest.mark.parametrize(
    ("router", "said"),
    [
        (replace(LB, port=0), "lb-1: router_metrics_port is 0, so nothing is known of the router"),
        (replace(LB, listens="127.0.0.1"), "lb-1: its metrics listen on 127.0.0.1 alone (router_metrics_host)"),
    ],
)
def test_a_listener_that_is_not_reached_is_told_and_replicas_are_asked_directly(router: Router, said: str) -> None:
    fleet = replace(FLEET, routers=[router], left_out=[])
    assert replica_entries(fleet, direct, "") == [{"targets": ["10.0.0.11:8000"], "labels": LABELS}]
    assert router_entries(fleet) == [] and fleet.left_out == [said]


def test_a_listener_of_the_monitoring_host_itself_is_reached() -> None:
    fleet = replace(FLEET, routers=[replace(LB, listens="127.0.0.1")], here=["lb-1"])
    assert [entry["targets"] for entry in replica_entries(fleet, direct, "")] == [["127.0.0.1:9443"]]
    assert host_entries(fleet, ["gpu-01", "lb-1", "gpu-01"], 9100) == [
        {"targets": ["10.0.0.11:9100"], "labels": {"host": "gpu-01"}},
        {"targets": ["127.0.0.1:9100"], "labels": {"host": "lb-1"}},
    ]


def test_a_replica_that_is_not_reached_is_told() -> None:
    plan = {**PLAN, "replicas": [{"name": "vllm-0", "gpus": [], "host": "127.0.0.1", "port": 8000}]}
    fleet = replace(DIRECT, plans={"gpu-01": plan}, left_out=[])
    assert replica_entries(fleet, direct, "") == []
    assert fleet.left_out == ["gpu-01: vllm-0 listens on 127.0.0.1 alone, and no router's metrics are reached"]


def test_hosts_that_were_not_asked_keep_what_they_had_and_others_go() -> None:
    had = [{"targets": ["x:1"], "labels": {**LABELS, "host": host}} for host in ("gone", "gpu-01", "gpu-02", "gpu-03")]
    entries = replica_entries(FLEET, direct, as_text(had))
    assert [(entry["labels"]["host"], entry["targets"]) for entry in entries] == [
        ("gpu-01", ["10.0.0.1:9443"]),
        ("gpu-02", ["x:1"]),
    ]
    assert [entry["labels"]["host"] for entry in replica_entries(FLEET, direct, "no list")] == ["gpu-01"]
    assert json.loads(as_text(entries)) == entries and as_text([]) == "[\n]\n"


def test_no_job_holds_a_secret() -> None:
    how = Scraping(
        15, "/t", through_router=True, tls=True, token="/etc/token", ca="/etc/ca.pem", node_password="/etc/pw"
    )
    by_name = {job["job_name"]: job for job in jobs(how)}
    assert by_name["vllm"]["authorization"] == {"credentials_file": "/etc/token"}
    assert by_name["vllm"]["tls_config"] == {"ca_file": "/etc/ca.pem"} and by_name["vllm"]["scheme"] == "https"
    assert by_name["gpufleet-node"]["basic_auth"]["password_file"] == "/etc/pw"
    # A replica that is asked directly is not shown the router's token.
    plain = {job["job_name"]: job for job in jobs(replace(how, through_router=False))}
    assert plain["vllm"].keys() == {"job_name", "scrape_interval", "file_sd_configs"}
