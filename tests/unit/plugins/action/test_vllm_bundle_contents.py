# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bundle has to hold follows from the inventory; what the inventory does not tell is named."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.vllm_bundle_contents import ActionModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.test_vllm_plans import HostVars

# There is no loader of collections here, so the defaults that are lookups of this one have values.
LOOKUPS = {"vllm_accuracy_wheels": ""}
ALL = {**LOOKUPS, "vllm_accept_license": True, "vllm_max_model_len": 8192, "vllm_bundle_dir": "/not/there"}
H200 = {**ALL, "vllm_bundle_gpus": [{"name": "NVIDIA H200", "count": 8}], "vllm_bundle_distribution": "debian:12"}
B200 = {**ALL, "vllm_gpus": [{"name": "NVIDIA B200", "count": 8}], "vllm_bundle_distribution": "rockylinux:9"}
ROUTER = {**ALL, "vllm_bundle_distribution": "debian:12"}
RELEASES = {
    "packages/debian-12-amd64": 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n',
    "packages/rockylinux-9-amd64": 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n',
}


def run(hosts: dict[str, dict[str, Any]], routers: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    variables = {"hostvars": HostVars({**hosts, **routers})}
    return run_action(ActionModule, {"hosts": list(hosts), "routers": list(routers), **more}, variables)[0]


def test_every_fact_that_lacks_is_named_with_its_host() -> None:
    hosts = {"a": {**H200, "vllm_bundle_distribution": ""}, "b": {**H200, "vllm_bundle_gpus": []}, "c": H200}
    result = run(hosts, {"lb": ALL})
    assert result["error"]["name"] == "bundle-facts-missing"
    problems = result["error"]["details"]["problems"]
    assert [problem.split(":")[0] for problem in problems] == ["b", "a", "lb"]
    assert "vllm_bundle_distribution" in problems[1]
    assert "vllm_bundle_gpus" in result["msg"]


def test_no_host_is_asked_and_each_thing_is_gathered_once() -> None:
    hosts = {"a": H200, "b": H200, "c": B200}
    systems = run(hosts, {"lb": ROUTER})["systems"]
    assert [system["folder"] for system in systems] == list(RELEASES)
    found = run(hosts, {"lb": ROUTER}, releases=RELEASES)
    assert [image["source"] for image in found["images"]] == ["pull"]
    assert [model["model"].rpartition("-")[2] for model in found["models"]] == ["FP8", "FP4"]
    assert found["hosts"]["a"] == found["hosts"]["b"]
    assert found["hosts"]["lb"] == {
        "packages": "packages/debian-12-amd64",
        "wheels": "packages/debian-12-amd64/wheels",
    }


def test_a_host_that_serves_and_is_of_the_router_gets_what_both_need() -> None:
    found = run({"a": H200}, {"a": H200}, releases=RELEASES)
    assert {"docker.io", "haproxy"} <= set(found["packages"][0]["packages"])
    assert found["hosts"]["a"]["image"]


def test_a_list_may_be_a_text_and_empty() -> None:
    host = {**H200, "docker_packages": "docker.io, iptables,", "vllm_accuracy_requirements": ""}
    found = run({"a": host}, {}, releases=RELEASES)
    assert found["packages"][0]["packages"][-2:] == ["docker.io", "iptables"]
    assert found["accuracy"] == []


def test_packages_are_those_that_the_roles_install() -> None:
    debian, rocky = run({"a": H200, "c": B200}, {"lb": ROUTER}, releases=RELEASES)["packages"]
    assert {"docker.io", "iptables", "haproxy", "python3-venv"} <= set(debian["packages"])
    assert [vendor["name"] for vendor in debian["vendors"]] == ["nvidia-container-toolkit"]
    assert "nvidia-container-toolkit=1.19.1-1" in debian["toolkit"]
    assert {"docker-ce", "python3-pip"} <= set(rocky["packages"])
    assert [vendor["name"] for vendor in rocky["vendors"]] == ["docker", "nvidia-container-toolkit"]
    assert rocky["vendors"][0]["url"] == "https://download.docker.com/linux/centos/9/x86_64/stable"
    assert rocky["vendors"][0]["fingerprints"]


@pytest.mark.parametrize(
    ("more", "absent"),
    [
        ({"docker_manage": "false"}, "docker.io"),
        ({"nvidia_container_toolkit_manage": False}, "nvidia-container-toolkit=1.19.1-1"),
    ],
)
def test_what_the_site_brings_itself_is_left_out(more: dict[str, Any], absent: str) -> None:
    (entry,) = run({"a": {**H200, **more}}, {}, releases=RELEASES)["packages"]
    assert absent not in entry["packages"] + entry["toolkit"]


def test_the_data_of_tasks_come_from_the_hub_that_servers_ask() -> None:
    mirror = {"HF_ENDPOINT": "https://hub.example.com"}
    found = run({"a": {**H200, "vllm_environment": mirror}}, {}, releases=RELEASES)
    assert found["accuracy"][0]["environment"]["HF_ENDPOINT"] == mirror["HF_ENDPOINT"]


def test_what_a_shared_address_needs_is_told_as_not_gathered() -> None:
    found = run({"a": H200}, {"lb": {**ROUTER, "router_virtual_address": "10.0.0.9"}}, releases=RELEASES)
    assert found["notes"] == ["lb: keepalived and curl, for router_virtual_address, are not part of the bundle"]


def test_a_folder_of_the_host_is_told_as_not_gathered() -> None:
    host = {**H200, "vllm_model": "/srv/models/own", "vllm_tensor_parallel_size": 1}
    found = run({"a": host}, {}, releases=RELEASES)
    assert found["models"] == []
    assert "/srv/models/own" in found["notes"][0]
    own_tasks = run({"a": {**host, "vllm_accuracy_tasks_dir": "/files/tasks"}}, {}, releases=RELEASES)
    assert own_tasks["accuracy"][0]["tasks"] == []
