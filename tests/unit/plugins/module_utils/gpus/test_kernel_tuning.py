# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container in which kernels are tuned, and what becomes of its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import kernel_tuning

OPTIONS = ServerOptions(
    image="vllm/vllm-openai:v0.26.0",
    image_id="sha256:1",
    model_source={"argument": "some/model", "mount": ""},
    device="cuda",
    gpu_access="cdi",
    network_mode="host",
    hf_home="/hf",
    cache_dir="/cache",
    config_dir="/etc/gpufleet",
    python_path="",
    volumes=("/opt/tables:/tables:ro",),
)
PLAN: Any = {
    "replicas": [
        {
            "name": "vllm-0",
            "gpus": [2, 3],
            "gpu_uuids": ["GPU-2", "GPU-3"],
            "host": "127.0.0.1",
            "port": 8000,
            "tensor_parallel_size": 2,
            "config": {},
            "environment": {"VLLM_TUNED_CONFIG_FOLDER": "/tables", "OMP_NUM_THREADS": "1"},
        }
    ]
}


@pytest.fixture
def job(tmp_path: Path) -> jobs.Job:
    return kernel_tuning.job_of(PLAN, OPTIONS, str(tmp_path / "run-1"), "vllm-tune-moe-tables")


def test_it_has_one_gpu_and_no_network(job: jobs.Job) -> None:
    (request,) = job.options["device_requests"]
    assert request["DeviceIDs"] == ["nvidia.com/gpu=GPU-2"]
    assert job.network_mode == "none"


def test_it_has_the_caches_of_servers_and_not_their_control(job: jobs.Job, tmp_path: Path) -> None:
    assert "/hf:/root/.cache/huggingface" in job.volumes
    assert "/cache/triton:/root/.triton" in job.volumes
    assert f"{tmp_path}/run-1:/tune" in job.volumes
    assert not any("control" in volume for volume in job.volumes)


def test_what_is_tuned_already_is_not_what_it_is_compared_with(job: jobs.Job) -> None:
    assert "VLLM_TUNED_CONFIG_FOLDER" not in job.environment
    assert job.environment["OMP_NUM_THREADS"] == "1"


def test_what_an_interrupted_run_left_is_known_by_its_name(job: jobs.Job) -> None:
    assert job.name == "vllm-tune-moe-tables"
    assert job.command[-2:] == ("/tune/tune_moe_kernels.py", "/tune")


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (16, 14), (128, 16)])
def test_workers_leave_processors_for_others(cpus: int, workers: int) -> None:
    assert kernel_tuning.workers_for(cpus) == workers


def test_the_program_and_its_request_are_in_the_folder(
    job: jobs.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_job(_client: Any, _job: jobs.Job, *, timeout: float, on_lines: Any) -> jobs.Ended:
        assert "def best_for" in (tmp_path / "tune_moe_kernels.py").read_text(encoding="utf-8")
        request = json.loads((tmp_path / "request.json").read_text(encoding="utf-8"))
        on_lines(["WARNING of vLLM", "E=4.json: 1 of 3, 16 tokens: 66.0 us"])
        (tmp_path / "answer.json").write_text(json.dumps({"tables": [], "why": request["model"]}), encoding="utf-8")
        assert timeout == 60
        return jobs.Ended(0, [])

    monkeypatch.setattr(jobs, "run_job", run_job)
    progress = Progress(str(tmp_path / "progress"))
    found = kernel_tuning.tune(None, job, str(tmp_path), {"model": "m"}, 60, progress)  # type: ignore[arg-type]
    assert found == {"tables": [], "why": "m"}
    assert "16 tokens: 66.0 us" in (tmp_path / "progress").read_text(encoding="utf-8")


def test_no_answer_is_told_with_the_last_lines(job: jobs.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = jobs.Ended(1, ["torch.OutOfMemoryError: CUDA out of memory"])
    monkeypatch.setattr(jobs, "run_job", lambda *_args, **_more: ended)
    with pytest.raises(GpufleetError) as caught:
        kernel_tuning.tune(None, job, str(tmp_path), {}, 60, Progress(None))  # type: ignore[arg-type]
    assert caught.value.name == "tuning-failed"
    assert "CUDA out of memory" in caught.value.evidence
