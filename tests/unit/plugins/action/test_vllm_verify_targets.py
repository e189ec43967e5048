# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action vllm_verify_targets returns for the stages."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.action.vllm_verify_targets import ActionModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

REPLICA = {"name": "vllm-0", "host": "0.0.0.0", "port": 8000, "gpus": [0], "config": {}, "environment": {}}
PLAN = {
    "model": "m",
    "precision": "fp8",
    "image": {"tag": "vllm:deploy"},
    "model_source": {"kind": "hub"},
    "replicas": [REPLICA],
}
GPU_INFO = {"gpus": [{"index": 0, "name": "NVIDIA H200"}], "driver_version": "580.159.04"}


def decided(**arguments: Any) -> dict[str, Any]:
    """Return what is decided of a host."""
    result, _display = run_action(ActionModule, {"gpu_info": GPU_INFO, **arguments}, check=True)
    return result


def test_the_replicas_of_the_applied_plan_are_verified_in_its_image() -> None:
    found = decided(plan=PLAN, floors={"any": {"t": {"m": 0.1}}, "fp8": {"t": {"m": 0.9}}})
    assert [target["url"] for target in found["targets"]] == ["http://127.0.0.1:8000"]
    assert (found["plan"], found["image"], found["model_source"]) == (PLAN, "vllm:deploy", {"kind": "hub"})
    assert (found["gpus"], found["driver"], found["floors"]) == (["NVIDIA H200"], "580.159.04", {"t": {"m": 0.9}})
    assert decided(plan=PLAN, image="another:1")["image"] == "another:1"


def test_an_address_has_nothing_of_the_plan_that_is_deployed_beside_it() -> None:
    found = decided(plan=PLAN, url="http://10.0.0.1:8000", url_ca="/etc/url.crt", ca_bundle="auto")
    assert [target["url"] for target in found["targets"]] == ["http://10.0.0.1:8000"]
    assert (found["plan"], found["image"], found["model_source"]) == ({}, "", {})
    assert (found["ca_path"], found["ca_bundle"]) == ("/etc/url.crt", "/etc/url.crt")


def test_a_host_of_which_nothing_is_known_has_no_target() -> None:
    found = decided(gpu_info={"skipped": True}, host_info={})
    assert (found["targets"], found["gpus"], found["driver"], found["image"]) == ([], [], "", "")


def test_an_address_that_is_none_fails() -> None:
    found = decided(url="http://gpu-01:port")
    assert (found["failed"], found["error"]["name"]) == (True, "invalid-url")
