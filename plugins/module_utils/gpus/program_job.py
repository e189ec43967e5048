# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program of ours that works on GPUs, in a container of the serving image: a request as JSON in, an answer out."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python, jobs

if TYPE_CHECKING:
    from docker import DockerClient

# The Python of the image's vLLM is found by LAUNCH, which gives it a text; that runs the file, as workers do.
RUN_FILE = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def command(program: ModuleType, folder: str) -> tuple[str, ...]:
    """Return the command of the container.

    Args:
        program: of in_container.
        folder: where the container has the request, and is to leave the answer.
    """
    return ("/bin/sh", "-c", image_python.LAUNCH, "vllm", RUN_FILE, f"{folder}/{_file_of(program)}", folder)


def answer(
    client: DockerClient,
    job: jobs.Job,
    program: ModuleType,
    folder: str,
    request: Mapping[str, Any],
    timeout: float,
    *,
    what: str,
    name: str,
    remedy: str,
    on_lines: Callable[[list[str]], None] | None = None,
) -> Any:
    """Run the program and return its answer.

    Args:
        client: the Docker SDK's client.
        job: the container.
        program: of in_container.
        folder: of the host, which the container mounts.
        request: what the program reads.
        timeout: seconds.
        what: what the program does, to complete the sentence "The program that ...".
        name: of the error.
        remedy: of the error.
        on_lines: called with the lines that the program has printed.

    Raises:
        GpufleetError: C(name), where it leaves no answer, and as jobs.run_job.
    """
    with open(os.path.join(folder, _file_of(program)), "w", encoding="utf-8") as stream:
        stream.write(inspect.getsource(program))
    with open(os.path.join(folder, "request.json"), "w", encoding="utf-8") as stream:
        json.dump(dict(request), stream)
    ended = jobs.run_job(client, job, timeout=timeout, on_lines=on_lines)
    try:
        with open(os.path.join(folder, "answer.json"), encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError) as error:
        raise GpufleetError(
            f"The program that {what} ended with exit status {ended.exit_code} and left no answer.",
            name=name,
            remedy=remedy,
            evidence="\n".join(ended.lines[-8:]),
            details={"log": ended.lines[-25:]},
        ) from error


def _file_of(program: ModuleType) -> str:
    return f"{program.__name__.rpartition('.')[2]}.py"
