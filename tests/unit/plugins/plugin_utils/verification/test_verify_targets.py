# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which servers a verification tries, and with what."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.verification import verify_targets

GPU_INFO = {
    "gpus": [{"index": index, "name": f"NVIDIA H{index}00"} for index in range(3)],
    "driver_version": "580.159.04",
}


def targets(plan: dict[str, Any], **parts: Any) -> list[dict[str, Any]]:
    """Return the targets of a plan."""
    given = {"url": "", "model": "", "environment": {}, "gpu_info": GPU_INFO, **parts}
    return verify_targets.targets(plan, **given)


def target(config: dict[str, Any] | None = None, *, capacity: Any = None, **parts: Any) -> dict[str, Any]:
    """Return the target of a plan with one replica."""
    replica = {"name": "vllm-0", "host": "0.0.0.0", "port": 8000, "gpus": [1, 2], "config": config or {}, **parts}
    (found,) = targets({"model": "m", "replicas": [replica], **({"capacity": capacity} if capacity else {})})
    return found


@pytest.mark.parametrize(
    ("listens", "expected"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("10.0.0.1", "10.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_a_replica_is_asked_where_its_own_host_reaches_it(listens: str, expected: str) -> None:
    assert target(host=listens)["url"] == f"http://{expected}:8000"


def test_a_replica_has_its_own_gpus_and_variables() -> None:
    found = target(environment={"A": "1"})
    assert (found["name"], found["model"], found["gpus"]) == ("vllm-0", "m", [1, 2])
    assert found["hardware"] == {"gpus": ["NVIDIA H100", "NVIDIA H200"], "driver": "580.159.04"}
    assert found["environment"] == found["plan"]["environment"] == {"A": "1"}


@pytest.mark.parametrize(
    ("config", "capacity", "expected"),
    [
        ({"max-num-seqs": 64}, {"max_concurrent_requests": 200}, 64),
        ({"max-num-seqs": "64"}, None, 64),
        ({}, {"max_concurrent_requests": 200}, 200),
        ({}, {"max_concurrent_requests": None}, 512),
        ({}, None, 512),
    ],
)
def test_how_much_a_server_takes_at_once(config: dict[str, Any], capacity: Any, expected: int) -> None:
    assert target(config, capacity=capacity)["concurrency"] == [expected]


@pytest.mark.parametrize(("given", "expected"), [(4096, 4096), ("4096", 4096), ("32k", 0), ("auto", 0), (None, 0)])
def test_a_length_that_is_no_number_is_left_to_the_server(given: Any, expected: int) -> None:
    assert target({"max-model-len": given} if given else {})["max_model_len"] == expected


def test_a_server_at_an_address_takes_the_place_of_the_plan() -> None:
    (found,) = targets({}, url="https://llm.example.com:8443/v1", model="m", environment={"HTTPS_PROXY": "p"})
    assert (found["name"], found["url"]) == ("endpoint-llm.example.com-8443", "https://llm.example.com:8443/v1")
    assert (found["model"], found["gpus"], found["concurrency"]) == ("m", [], [512])
    assert found["environment"] == {"HTTPS_PROXY": "p"}
    # It is not known what it runs.
    assert found["plan"] == verify_targets.comparable({}, {}) and found["plan"]["environment"] == {}
    assert targets({}) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://gpu-01:8000", "endpoint-gpu-01-8000"),
        ("http://gpu-01", "endpoint-gpu-01"),
        ("http://[2001:db8::1]:8000", "endpoint-2001-db8-1-8000"),
    ],
)
def test_the_name_of_an_address_is_one_of_a_container(url: str, expected: str) -> None:
    assert verify_targets.endpoint_name(url) == expected


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(GpufleetError, match=r"vllm_url is 'http://gpu-01:port'") as caught:
        verify_targets.endpoint_name("http://gpu-01:port")
    assert caught.value.name == "invalid-url"


@pytest.mark.parametrize(
    ("url_ca", "bundle", "server", "containers"),
    [
        ("", "auto", "", "/etc/pip.crt"),
        ("", "", "", ""),
        ("", "/etc/ours.crt", "/etc/ours.crt", "/etc/ours.crt"),
        ("/etc/url.crt", "auto", "/etc/url.crt", "/etc/url.crt"),
    ],
)
def test_whom_the_stages_trust(url_ca: str, bundle: str, server: str, containers: str) -> None:
    """What pip trusts on a host may be a mirror's authority alone, so it says nothing of servers."""
    host_info = {"ca_bundle": {"path": "/etc/pip.crt"}}
    assert verify_targets.authorities(url_ca, bundle, host_info) == (server, containers)


@pytest.mark.parametrize("host_info", [{}, {"ca_bundle": None}])
def test_a_host_without_authorities_of_its_own_has_none(host_info: dict[str, Any]) -> None:
    assert verify_targets.authorities("", "auto", host_info) == ("", "")


def test_the_floors_of_a_precision_win_over_those_of_any() -> None:
    floors = {"any": {"gsm8k": {"a": 0.5, "b": 0.6}, "mmlu": {"c": 0.7}}, "fp8": {"gsm8k": {"a": 0.9}}}
    assert verify_targets.floors_of(floors, "fp8") == {"gsm8k": {"a": 0.9, "b": 0.6}, "mmlu": {"c": 0.7}}
    assert verify_targets.floors_of(floors, "fp4") == verify_targets.floors_of(floors, "") == floors["any"]
    assert verify_targets.floors_of({}, "fp8") == {}
