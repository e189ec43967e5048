# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the program that tunes Triton kernels in a container of the serving image, on the first GPU of a plan.

The container has the mounts and the environment of a server, so that it finds the model's configuration as one, and
Triton's cache: what is compiled there is compiled for the servers, too.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan, Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python, jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    ServerOptions,
    build_spec,
    gpu_arguments,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import nvidia_minors
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import tune_moe_kernels
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONTROL_PATH

if TYPE_CHECKING:
    from docker import DockerClient

FOLDER = "/tune"
PROGRAM = "tune_moe_kernels.py"
# The Python of the image's vLLM is found by LAUNCH, which gives it a text; that runs the file, as workers do.
RUN_FILE = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
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
        command=("/bin/sh", "-c", image_python.LAUNCH, "vllm", RUN_FILE, f"{FOLDER}/{PROGRAM}", FOLDER),
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
    with open(os.path.join(folder, PROGRAM), "w", encoding="utf-8") as stream:
        stream.write(inspect.getsource(tune_moe_kernels))
    with open(os.path.join(folder, "request.json"), "w", encoding="utf-8") as stream:
        json.dump(dict(request), stream)
    progress.phase("tuning kernels", "starting")

    def tell(lines: list[str]) -> None:
        told = [line for line in lines if " tilings in " in line or " tokens: " in line]
        if told:
            progress.phase("tuning kernels", told[-1])

    ended = jobs.run_job(client, job, timeout=timeout, on_lines=tell)
    try:
        with open(os.path.join(folder, "answer.json"), encoding="utf-8") as stream:
            answer = json.load(stream)
    except (OSError, ValueError) as error:
        raise GpufleetError(
            f"The program that tunes kernels ended with exit status {ended.exit_code} and left no answer.",
            name="tuning-failed",
            remedy="See its last lines below. Is the GPU's memory free, and is this vLLM one of 0.12 to 0.33?",
            evidence="\n".join(ended.lines[-8:]),
            details={"log": ended.lines[-25:]},
        ) from error
    return dict(answer)
