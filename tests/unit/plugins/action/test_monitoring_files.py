# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action monitoring_files makes of the variables of hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.gpufleet.vllm.plugins.action.monitoring_files import KINDS, ROUTER_DEFAULTS, ActionModule
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.thresholds import THRESHOLDS
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

ROLES = Path(__file__).resolve().parents[4] / "roles"
SHOWN = "notAfter=Nov 30 12:00:00 2027 GMT\n-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----"
REPLICA = {"name": "vllm-0", "host": "0.0.0.0", "port": 8000, "gpus": [0]}
PLAN = {"model": "m", "hardware": "1 x H200", "precision": "fp8", "image": {"reference": "v:1"}, "replicas": [REPLICA]}
MEMBER = {"plan": PLAN, "address": "", "ansible_host": "10.0.0.11"}
ROUTER = {"router_metrics_port": 9443, "router_metrics_host": "0.0.0.0", "router_metrics_token": "T0k3n"}
HOSTS: dict[str, Any] = {
    "gpu-01": {"ansible_host": "10.0.0.11", "__monitoring_member": MEMBER},
    "gpu-02": {},
    "lb-1": {"ansible_host": "10.0.0.1", **ROUTER},
}


def made(hosts: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Return the task's result, for the usual hosts unless others are given."""
    hosts = HOSTS if hosts is None else hosts
    members = [host for host in hosts if host.startswith("gpu")]
    routers = [host for host in hosts if host.startswith("lb")]
    given = {"kinds": list(KINDS), "members": members, "routers": routers, "node_hosts": members, **arguments}
    result, _display = run_action(ActionModule, given, {"hostvars": hosts})
    return result


def texts(result: dict[str, Any]) -> dict[str, str]:
    """Return the files by kind and name."""
    return {f"{file['kind']}/{file['name']}": file["content"] for file in result["files"]}


def test_every_kind_is_made_and_none_holds_the_token() -> None:
    result = made(token_path="/etc/token", certificates={"lb-1": SHOWN})
    files = texts(result)
    assert {name.partition("/")[0] for name in files} == set(KINDS)
    assert "T0k3n" not in json.dumps(result)
    (entry,) = json.loads(files["targets/gpufleet-vllm.json"])
    assert entry["targets"] == ["10.0.0.1:9443"] and entry["labels"]["router"] == "lb-1"
    jobs = {job["job_name"]: job for job in yaml.safe_load(files["scrape/gpufleet.yml"])["scrape_configs"]}
    assert jobs["vllm"]["authorization"] == {"credentials_file": "/etc/token"} and jobs["vllm"]["scheme"] == "https"
    assert "vector(1827576000)" in files["rules/gpufleet-rules.yml"]
    assert result["authorities"] == "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
    assert result["left_out"] == []


def test_without_a_router_replicas_are_asked_where_they_are() -> None:
    hosts = {"gpu-01": HOSTS["gpu-01"]}
    files = texts(made(hosts, kinds=["targets", "scrape"]))
    assert json.loads(files["targets/gpufleet-vllm.json"])[0]["targets"] == ["10.0.0.11:8000"]
    jobs = yaml.safe_load(files["scrape/gpufleet.yml"])["scrape_configs"]
    assert "authorization" not in jobs[0] and "scheme" not in jobs[0]


def test_a_host_that_was_not_asked_keeps_its_targets() -> None:
    had = json.dumps([{"targets": ["10.0.0.1:9443"], "labels": {"host": "gpu-02", "replica": "vllm-0"}}])
    entries = json.loads(texts(made(kinds=["targets"], before=had))["targets/gpufleet-vllm.json"])
    assert [entry["labels"]["host"] for entry in entries] == ["gpu-01", "gpu-02"]


def test_thresholds_that_are_not_valid_fail_the_task() -> None:
    result = made(thresholds={"queue": 3})
    assert result["failed"] and result["error"]["name"] == "invalid-thresholds"


def test_what_a_router_has_by_default_is_what_its_role_says() -> None:
    defaults = yaml.safe_load((ROLES / "router" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    assert {name: defaults[name] for name in ROUTER_DEFAULTS} == ROUTER_DEFAULTS


def test_the_documented_thresholds_are_those_that_count() -> None:
    specs = yaml.safe_load((ROLES / "monitoring" / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    options = specs["argument_specs"]["main"]["options"]["monitoring_thresholds"]["options"]
    told = {name: " ".join(option["description"]).rpartition(". ")[2] for name, option in options.items()}
    assert told == {name: f"{default:g} unless given." for name, (default, *_range) in THRESHOLDS.items()}
