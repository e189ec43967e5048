# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout refuses in a job of AWX."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.vllm_rollout import ActionModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.job_runner import refuse_in_job
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

# What AWX gives a job: alone, as a node of a workflow, and as a slice.
JOB: dict[str, Any] = {"awx_job_id": 7, "awx_job_launch_type": "manual", "awx_job_template_name": "upgrade"}
NODE = {**JOB, "awx_job_launch_type": "workflow", "awx_workflow_job_id": 6, "awx_workflow_job_name": "every night"}
SLICE = {**NODE, "awx_workflow_job_name": "upgrade"}


@pytest.mark.parametrize("job", [JOB, NODE])
def test_a_job_whose_state_stays_is_let_in(job: dict[str, Any]) -> None:
    refuse_in_job(job, "/srv/gpufleet/rollout")
    with pytest.raises(GpufleetError) as told:
        refuse_in_job(job, "reports/rollout")
    assert told.value.name == "state-not-kept"
    assert "vllm_state_url" in told.value.remedy


@pytest.mark.parametrize("prefix", ["awx", "tower"])
def test_a_slice_is_refused_under_either_name(prefix: str) -> None:
    with pytest.raises(GpufleetError) as told:
        refuse_in_job({name.replace("awx", prefix): value for name, value in SLICE.items()}, "/srv/gpufleet/rollout")
    assert told.value.name == "sliced-job"
    assert "Job Slicing" in told.value.remedy


def test_outside_of_awx_nothing_is_refused() -> None:
    refuse_in_job({}, "reports/rollout")
    refuse_in_job({"awx_job_template_name": "upgrade", "awx_workflow_job_name": "upgrade"}, "reports/rollout")


def test_the_action_refuses_before_anything_is_arranged(tmp_path: Any) -> None:
    arguments = {"step": "arrange", "state_dir": str(tmp_path / "state"), "all_hosts": ["a"], "hosts": {"a": {}}}
    result, _display = run_action(ActionModule, arguments, {**SLICE, "groups": {"all": ["a"]}})
    assert (result["failed"], result["error"]["name"]) == (True, "sliced-job")
    assert not (tmp_path / "state").exists()
