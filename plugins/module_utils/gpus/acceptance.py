# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test of a host's GPUs before they serve: a program in a container of the serving image, and its answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan, Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import belongs_to, filters_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    ServerOptions,
    build_spec,
    gpu_arguments,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import program_job
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import nvidia_minors
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import accept_gpus

if TYPE_CHECKING:
    from docker import DockerClient

FOLDER = "/accept"
TESTS = ("memory", "bandwidth", "gemm", "allreduce")
SHARED_MEMORY = 1 << 30


def check_idle(client: DockerClient, prefix: str) -> None:
    """See that no server of the deployment runs on the host.

    Raises:
        GpufleetError: C(servers-running) or C(engine-error).
    """
    with engine_errors("looking for servers"):
        found = client.containers.list(filters=filters_of(prefix), ignore_removed=True)
    names = sorted(name for name in (str(container.name) for container in found) if belongs_to(prefix, name))
    if names:
        raise GpufleetError(
            f"{', '.join(names)} runs on this host, and its GPUs are not free.",
            name="servers-running",
            remedy="Accept hosts before they serve; one that serves is drained (playbook drain) and its servers are"
            " removed (playbook teardown with --limit) first.",
        )


def job_of(plan: Plan, options: ServerOptions, folder: str, name: str) -> jobs.Job:
    """Return the container in which the program runs, with all GPUs of the plan.

    Args:
        plan: of the host.
        options: what servers of it share.
        folder: of the host, with the request.
        name: of the container.
    """
    gpus = [gpu for replica in plan["replicas"] for gpu in replica["gpus"]]
    uuids = [uuid for replica in plan["replicas"] for uuid in replica["gpu_uuids"]]
    replica: Replica = {**plan["replicas"][0], "gpus": gpus, "gpu_uuids": uuids}
    spec = build_spec(replica, options, (), os.path.exists, nvidia_minors())
    return jobs.Job(
        name=name,
        image=spec["image_id"] or spec["image"],
        command=program_job.command(accept_gpus, FOLDER),
        environment={**spec["environment"], "HF_HUB_OFFLINE": "1"},
        volumes=(*options.volumes, f"{folder}:{FOLDER}"),
        network_mode="none",
        work_dir=os.path.dirname(folder),
        options={**gpu_arguments(spec), "shm_size": SHARED_MEMORY},
    )


def accept(client: DockerClient, job: jobs.Job, folder: str, request: Mapping[str, Any], timeout: float) -> Any:
    """Run the program and return its answer, see accept_gpus.

    Raises:
        GpufleetError: C(acceptance-failed), and as jobs.run_job.
    """
    return program_job.answer(
        client,
        job,
        accept_gpus,
        folder,
        request,
        timeout,
        what="tests the GPUs",
        name="acceptance-failed",
        remedy="See its last lines below, and the kernel's log for XID events.",
    )
