# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight says a host lacks to come back after a reboot."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.look_ahead import Outlook
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import reboot_checks
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import Case

UNITS = {
    "docker.service": "enabled",
    "nvidia-fabricmanager.service": "",
    "nvidia-persistenced.service": "",
    "gpufleet-device-files.service": "",
    "gpufleet-start-servers.timer": "",
}


def found(
    units: dict[str, str] | None = None, *, init: str = "systemd", manager: bool = False, **wished: Any
) -> dict[str, str]:
    """Return what is found of a host whose engine runs: the remedies, by the findings' names."""
    host_info: Any = {
        "system": {"init": init},
        "boot": {"units": {**UNITS, **(units or {})}, "files": {}} if init == "systemd" else None,
        "engine": {"running": True},
        "nvidia": {"fabric_manager": {"path": "/usr/bin/nv-fabricmanager", "running": manager}},
    }
    wished = {f"vllm_{name}": value for name, value in wished.items()}
    docker_host = wished.pop("vllm_docker_host", "unix:///var/run/docker.sock")
    case = Case(host_info, {}, wishes.read(wished), Outlook(None, []), {}, docker_host)
    findings = [finding for check in reboot_checks.CHECKS for finding in check(case)]
    assert {finding.severity for finding in findings} <= {"warning"}
    return {finding.name: finding.remedy for finding in findings}


def test_a_host_that_the_roles_prepare_lacks_nothing() -> None:
    assert found() == {}
    assert found({"docker.service": "static"}) == {}


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("disabled", "systemctl enable docker.service"),
        ("masked", "systemctl unmask docker.service"),
        ("enabled-runtime", "systemctl enable docker.service"),
        ("", "See that what started it does so at every boot."),
    ],
)
def test_an_engine_that_does_not_come_back_is_told(state: str, remedy: str) -> None:
    said = found({"docker.service": state})
    assert list(said) == ["reboot-engine-not-enabled"] and remedy in said["reboot-engine-not-enabled"]
    assert found({"docker.service": state}, docker_host="tcp://10.0.0.1:2375") == {}


def test_device_files_that_nobody_makes_are_told_where_deploy_does_not() -> None:
    assert list(found(start_at_boot=False)) == ["reboot-device-files"]
    assert list(found(docker_host="unix:///run/other.sock")) == ["reboot-device-files"]
    assert found({"nvidia-persistenced.service": "enabled"}, start_at_boot=False) == {}
    assert found(start_at_boot=False, device="cpu") == {}
    assert found(start_at_boot=False, gpu_access="none") == {}


def test_a_fabric_manager_that_does_not_come_back_is_told() -> None:
    stopped = {"nvidia-fabricmanager.service": "disabled"}
    assert "systemctl enable nvidia-fabricmanager" in found(stopped, manager=True)["reboot-fabric-manager"]
    assert found(stopped) == {}
    assert found({"nvidia-fabricmanager.service": "enabled"}, manager=True) == {}


def test_no_systemd_is_told_alone() -> None:
    assert list(found(init="runit")) == ["reboot-no-systemd"]
    assert found(init="runit", docker_host="tcp://10.0.0.1:2375") == {}


@pytest.mark.parametrize("policy", ["no", "on-failure", "on-failure:3"])
def test_policies_that_bring_no_server_back_are_told(policy: str) -> None:
    assert list(found(restart_policy=policy)) == ["reboot-restart-policy"]
    assert found(restart_policy="always") == {}


@pytest.mark.parametrize("policy", [False, "never", "always:3", "on-failure:", ["no"]])
def test_a_policy_that_docker_does_not_know_is_refused(policy: Any) -> None:
    with pytest.raises(GpufleetError, match=r"vllm_restart_policy: .*unless-stopped"):
        wishes.read({"vllm_restart_policy": policy})
