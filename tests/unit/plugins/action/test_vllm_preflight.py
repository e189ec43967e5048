# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_preflight: what it asks, finds and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action import vllm_preflight
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import probe
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import Questions
from ansible_collections.gpufleet.vllm.tests.fakes.hub import Hub, Repository
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action import conftest

RunAction = Callable[..., dict[str, Any]]
RunOnStub = Callable[..., "list[dict[str, Any]]"]


@pytest.fixture
def run_action() -> RunAction:
    """Run the action as a task would."""

    def run(variables: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        result, _display = conftest.run_action(vllm_preflight.ActionModule, arguments, variables)
        assert result["changed"] is False
        return result

    return run


@pytest.fixture
def judge(run_action: RunAction, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Judge this machine, as host_info sees it, with what gpu_info told on the stub; return names to severities."""
    folders = {name: str(tmp_path / name) for name in vllm_preflight.FOLDERS}
    seen = probe.probe(Questions(f"unix://{tmp_path}/none.sock", paths=list(folders.values()), ports=[8000]))

    def run(gpu_info: dict[str, Any], nvidia: dict[str, Any] | None = None, **wished: Any) -> dict[str, str]:
        host_info = {**seen, "nvidia": {**(seen["nvidia"] or {}), **(nvidia or {})}}
        variables = {f"vllm_{name}": value for name, value in {"accept_license": True, **wished}.items()}
        result = run_action(variables, host_info=host_info, gpu_info=gpu_info, **folders)
        return {finding["name"]: finding["severity"] for finding in result["findings"]}

    return run


# scenario of the stub -> what must be found about its GPUs
SCENARIOS = {
    "h200": {},
    "h200-driver-570": {"driver-too-old": "error"},
    "h200-driver-575": {"driver-too-old": "error"},
    "h200-foreign-process": {"gpu-in-use": "error"},
    "h200-mig": {"mig-enabled": "error"},
    "h200-persistence-off": {"persistence-mode-off": "warning"},
    "b200-x8-no-fabric-manager": {"fabric-manager-missing": "error"},
    "b200-x8-lost-gpu": {"gpu-lost": "warning"},
    "h100-x8-ecc-errors": {"gpu-reset-pending": "warning"},
    "a100-x8": {"unsupported-gpu": "error"},
    "no-driver": {"no-gpu": "error"},
    "no-device": {"no-gpu": "error"},
    "driver-mismatch": {"no-gpu": "error"},
    "everything-at-once": {
        "driver-too-old": "error",
        "fabric-manager-missing": "error",
        "gpu-in-use": "warning",
        "mig-enabled": "warning",
        "persistence-mode-off": "warning",
        "unsupported-gpu": "error",
    },
}
# What this machine lacks has nothing to do with the scenario.
ABOUT_THIS_MACHINE = {
    "clock-not-synchronised",
    "daemon-config-not-read",
    "disk-full",
    "engine-is-podman",
    "engine-is-rootless",
    "engine-is-snap",
    "engine-not-running",
    "engine-to-come",
    "not-root",
    "port-in-use",
    "reboot-engine-not-enabled",
    "reboot-no-systemd",
    "too-little-memory",
    "too-little-shm",
    "unknown-distribution",
}


@pytest.fixture(scope="module")
def probes(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What gpu_info tells in each scenario, by the real pynvml on the stub."""
    on_nvml_stub: RunOnStub = request.getfixturevalue("on_nvml_stub")
    return dict(zip(SCENARIOS, on_nvml_stub(*SCENARIOS), strict=True))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_the_driver_tells_becomes_findings(
    judge: Callable[..., dict[str, str]], probes: dict[str, dict[str, Any]], scenario: str
) -> None:
    found = judge(probes[scenario])
    assert {name: severity for name, severity in found.items() if name not in ABOUT_THIS_MACHINE} == SCENARIOS[scenario]


def test_findings_about_gpus_come_together_with_all_others(
    judge: Callable[..., dict[str, str]], probes: dict[str, dict[str, Any]]
) -> None:
    found = judge(probes["everything-at-once"], accept_license=False, image_size_gib=10**6, offline=True)
    assert {"driver-too-old", "fabric-manager-missing", "licence-not-accepted", "disk-full", "weights-missing"} <= {
        name for name, severity in found.items() if severity == "error"
    }


def test_a_skipped_probe_is_no_probe(judge: Callable[..., dict[str, str]]) -> None:
    nvidia = {"device_files": ["nvidia0"], "cards": [{"pci_bus_id": "0", "name": "NVIDIA H200", "uuid": "GPU-0"}]}
    found = judge({"skipped": True, "changed": False}, nvidia)
    assert found["gpus-not-asked"] == "info"
    assert "no-gpu" not in found


def test_it_asks_by_the_wishes(run_action: RunAction) -> None:
    asked = run_action({"vllm_model": "org/model"}, stage="ask", hf_home="/hf")["questions"]
    assert asked["hub"] == "https://huggingface.co/org/model/resolve/main/config.json"
    assert asked["weights_paths"] == ["/hf/hub/models--org--model"]
    assert asked["model_path"] == "/hf/hub/models--org--model"


def test_hosts_ask_the_hub_of_the_model_where_the_controller_gets_no_answer(run_action: RunAction) -> None:
    """Here nothing listens at the hub's address."""
    revision = {"vllm_extra_config": {"revision": "v2"}}
    asked = run_action({"vllm_model": "org/model", **revision}, stage="ask", hf_home="/hf")["questions"]
    assert (asked["hub_model"], asked["hub_revision"]) == ("org/model", "v2")
    for other in ({"vllm_model": "/srv/m"}, {}, {"vllm_model": "org/model", "vllm_offline": True}):
        assert run_action(other, stage="ask", hf_home="/hf")["questions"]["hub_model"] == ""


def test_a_model_of_mistrals_own_format_is_asked_for_by_its_own_file(run_action: RunAction) -> None:
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 100}
    files = {"params.json": json.dumps(params).encode(), "consolidated.safetensors": b"x"}
    with Hub({"org/m": Repository({"main": files})}).running() as hub:
        variables = {"vllm_model": "org/m", "vllm_environment": {"HF_ENDPOINT": hub.url}}
        asked = run_action(variables, stage="ask", hf_home="/hf")["questions"]
    assert (asked["hub"], asked["hub_model"]) == (f"{hub.url}/org/m/resolve/main/params.json", "")


def test_invalid_wishes_ask_nobody_and_are_a_finding_beside_others(run_action: RunAction) -> None:
    wrong = {"vllm_port": 99999}
    asked = run_action(wrong, stage="ask", hf_home="/hf")["questions"]
    assert (asked["registry"], asked["hub"]) == ("", "")
    clock = {"ahead_seconds": 4000.0}
    result = run_action(wrong, host_info={"clock": clock})
    assert [finding["name"] for finding in result["findings"]] == ["invalid-wishes", "clock-wrong"]
    assert "vllm_port" in result["findings"][0]["found"]


FINDING = {"name": "no-gpu", "severity": "error", "found": "None.", "needed": "one", "remedy": "Buy it.", "item": ""}


def test_errors_are_enforced_with_their_names_as_data(run_action: RunAction) -> None:
    result = run_action({}, stage="enforce", findings=[FINDING])
    assert result["failed"] is True
    assert "error no-gpu: None. Needed: one. Buy it." in result["msg"]
    assert result["error"]["name"] == "preflight-failed"
    assert result["error"]["details"]["findings"] == [{"name": "no-gpu", "severity": "error", "item": ""}]


def test_warnings_are_not(run_action: RunAction) -> None:
    result = run_action({}, stage="enforce", findings=[{**FINDING, "severity": "warning"}])
    assert "failed" not in result
