# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the program that tunes Triton kernels in a container of the serving image, on the first GPU of a plan.

The container has the mounts and the environment of a server, so that it finds the model's configuration as one, and
Triton's cache: what is compiled there is compiled for the servers, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan, Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    ServerOptions,
    build_spec,
    gpu_arguments,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import program_job
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import nvidia_minors
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import tune_moe_kernels
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONTROL_PATH

if TYPE_CHECKING:
    from docker import DockerClient

FOLDER = "/tune"
# Each worker has a context on the GPU of its own, and compiles for as long as others do.
MOST_WORKERS = 16


def workers_for(cpus: int) -> int:
    """Return how many processes compile at once."""
    return max(1, min(cpus - 2, MOST_WORKERS))


def job_of(plan: Plan, options: ServerOptions, folder: str, name: str) -> jobs.Job:
    """Return the container in which the program runs.

    Args:
        plan: of the host; the first GPU of its first server is taken.
        options: what servers of it share.
        folder: of the host, with the request.
        name: of the container.
    """
    first = plan["replicas"][0]
    replica: Replica = {**first, "gpus": first["gpus"][:1], "gpu_uuids": first["gpu_uuids"][:1]}
    spec = build_spec(replica, options, (), os.path.exists, nvidia_minors())
    volumes = [volume for volume in spec["volumes"] if f":{CONTROL_PATH}:" not in volume]
    # What servers use by now must not be what their kernels are compared with; and there is no network to look around.
    environment = {name: value for name, value in spec["environment"].items() if name != "VLLM_TUNED_CONFIG_FOLDER"}
    return jobs.Job(
        name=name,
        image=spec["image_id"] or spec["image"],
        command=program_job.command(tune_moe_kernels, FOLDER),
        environment={**environment, "HF_HUB_OFFLINE": "1"},
        volumes=(*volumes, f"{folder}:{FOLDER}"),
        network_mode="none",
        work_dir=os.path.dirname(folder),
        options=gpu_arguments(spec),
    )


def tune(
    client: DockerClient, job: jobs.Job, folder: str, request: Mapping[str, Any], timeout: float, progress: Progress
) -> dict[str, Any]:
    """Run the program and return its answer, see tune_moe_kernels.

    Raises:
        GpufleetError: C(tuning-failed), and as jobs.run_job.
    """
    progress.phase("tuning kernels", "starting")

    def tell(lines: list[str]) -> None:
        told = [line for line in lines if " tilings in " in line or " tokens: " in line]
        if told:
            progress.phase("tuning kernels", told[-1])

    answer = program_job.answer(
        client,
        job,
        tune_moe_kernels,
        folder,
        request,
        timeout,
        what="tunes kernels",
        name="tuning-failed",
        remedy="See its last lines below. Is the GPU's memory free, and is this vLLM one of 0.12 to 0.33?",
        on_lines=tell,
    )
    return dict(answer)
