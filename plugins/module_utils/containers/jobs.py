# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that run for minutes in a throw-away container beside a server."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import (
    DEFAULT_DOCKER_HOST,
    engine_errors,
    image_missing,
)

if TYPE_CHECKING:
    from docker import DockerClient

LABEL = "io.gpufleet.job"
LABEL_WORK_DIR = "io.gpufleet.job.work-dir"
# Stands for the current folder until the rest of a command line is quoted.
CURRENT_FOLDER = "/CURRENT"
KEPT_LINES = 200
POLLED_LINES = 5
POLL_S = 1.0
NO_IMAGE = (
    "Deploy first (playbook gpufleet.vllm.deploy), or name an image with vLLM that is on the host in vllm_verify_image."
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What runs in the container.

    Attributes:
        name: of the container; a job's that an interrupted run left under it is removed.
        image: reference of the image.
        command: program and arguments, in the place of the image's own entry point.
        environment: variables of the container; may hold secrets, which reach no message.
        volumes: mounts, as C(docker run --volume) takes them.
        working_dir: folder of the container to start in.
        network_mode: of the container, as C(docker run --network) takes it.
        work_dir: folder of the host whose lock its run holds, see work_folder; empty for none.
        options: further arguments of the Docker SDK's C(containers.create), such as its GPUs.
    """

    name: str
    image: str
    command: tuple[str, ...]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    working_dir: str = "/"
    network_mode: str = "host"
    work_dir: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How it ended: the exit status and the last lines of its output, without the bars that show progress."""

    exit_code: int
    lines: list[str]


def run_job(
    client: DockerClient,
    job: Job,
    *,
    timeout: float,
    on_poll: Callable[[], None] = lambda: None,
    on_lines: Callable[[list[str]], None] | None = None,
) -> Ended:
    """Run C(job) to its end; its container is gone afterwards, however this ends.

    Args:
        client: the engine.
        job: what to run.
        timeout: seconds after which it is ended.
        on_poll: called about once a second meanwhile; what it raises ends the job.
        on_lines: called as often with the last lines of the output; what it raises ends the job.

    Raises:
        GpufleetError: C(image-missing), C(job-too-slow), C(name-taken), C(interrupted) (by SIGTERM), C(engine-error),
            or what C(on_poll) and C(on_lines) raise.
    """
    from docker.errors import ImageNotFound, NotFound
    from docker.types import LogConfig

    with engine_errors(f"running {job.name}"), _terminable(job.name):
        _make_way(client, job)
        try:
            container = client.containers.create(
                job.image,
                name=job.name,
                entrypoint=list(job.command[:1]),
                command=list(job.command[1:]),
                environment=job.environment,
                volumes=list(job.volumes),
                working_dir=job.working_dir,
                network_mode=job.network_mode,
                init=True,
                labels={LABEL: job.name, **({LABEL_WORK_DIR: _plain(job.work_dir)} if job.work_dir else {})},
                log_config=LogConfig(type="json-file", config={"max-size": "50m"}),
                **job.options,
            )
        except ImageNotFound as error:
            raise image_missing(job.image, error, NO_IMAGE) from error
        try:
            container.start()
            deadline = time.monotonic() + timeout
            while True:
                container.reload()
                if container.status in ("exited", "dead"):
                    break
                if time.monotonic() > deadline:
                    raise GpufleetError(
                        f"{job.name} had not ended after {timeout:.0f} s.",
                        name="job-too-slow",
                        remedy="Ask for less (fewer prompts, a smaller vllm_accuracy_limit), or raise the time limit of"
                        " the stage.",
                        evidence="\n".join(_lines(container.logs(tail=20))[-5:]),
                    )
                on_poll()
                if on_lines:
                    on_lines(_lines(container.logs(tail=POLLED_LINES)))
                time.sleep(POLL_S)
            return Ended(container.attrs["State"]["ExitCode"], _lines(container.logs(tail=KEPT_LINES * 5)))
        finally:
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)


def _make_way(client: DockerClient, job: Job) -> None:
    """Remove what an interrupted run left under the name of a job.

    Raises:
        GpufleetError: C(name-taken) when it is somebody else's container.
    """
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        container = client.containers.get(job.name)
        if LABEL not in container.labels:
            raise GpufleetError(
                f"There is a container {job.name} that this collection did not make.",
                name="name-taken",
                remedy="Remove or rename it, or set vllm_container_prefix to a prefix of your own.",
                evidence=f"{container.name}: image {container.attrs['Config']['Image']}",
            )
        container.remove(force=True, v=True)


class _TerminatedError(BaseException):
    """SIGTERM came. It is no Exception, so that code which expects failures on the way does not take it for one."""


@contextlib.contextmanager
def _terminable(name: str) -> Iterator[None]:
    """Let SIGTERM end the block through its `finally` clauses, as `interrupted`; further ones are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except _TerminatedError as error:
        raise GpufleetError(
            f"{name} was ended from outside (SIGTERM).",
            name="interrupted",
            remedy="Run the play again.",
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def remove_left(client: DockerClient, *, work_dir: str = "", prefix: str = "") -> list[str]:
    """Remove the containers of jobs that killed runs left, which may still load a server; return their names.

    Args:
        client: the engine.
        work_dir: of the jobs; its lock must be held, see work_folder.
        prefix: vllm_container_prefix of the deployment whose jobs they are, besides those of the folder.

    Raises:
        GpufleetError: C(engine-error).
    """
    from docker.errors import NotFound

    removed = []
    with engine_errors("removing what an interrupted run left"):
        for container in client.containers.list(all=True, ignore_removed=True, filters={"label": LABEL}):
            of_folder = bool(work_dir) and container.labels.get(LABEL_WORK_DIR) == _plain(work_dir)
            of_prefix = bool(prefix) and re.fullmatch(
                rf"{re.escape(prefix)}-(\d+-(accuracy|benchmark)|weights(-look)?|moe-tables)", container.labels[LABEL]
            )
            if of_folder or of_prefix:
                with contextlib.suppress(NotFound):
                    container.remove(force=True, v=True)
                removed.append(str(container.name))
    return removed


def _plain(folder: str) -> str:
    return os.path.abspath(folder)


def _lines(data: bytes) -> list[str]:
    """Return the last lines of a log; of a line that was written over and over, its last state."""
    kept: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    for line in data.decode("utf-8", "replace").split("\n"):
        text = line.rstrip("\r ").rpartition("\r")[2].rstrip()
        if text:
            kept.append(text)
    return list(kept)


def docker_line(job: Job, secrets: Iterable[str], folder: str, docker_host: str) -> str:
    """Return the C(docker run) command that repeats a job by hand.

    Args:
        job: what ran.
        secrets: names of its variables whose values stay in variables of the shell.
        folder: of the results, which is gone; the command leaves them in the current folder.
        docker_host: address of the engine.
    """
    hidden = set(secrets)
    words = ["docker"] if docker_host in ("", DEFAULT_DOCKER_HOST) else ["docker", "--host", docker_host]
    words += ["run", "--rm", "--network", "host"]
    for volume in job.volumes:
        words += ["--volume", volume.replace(folder, CURRENT_FOLDER, 1) if volume.startswith(folder) else volume]
    for name, value in sorted(job.environment.items()):
        words += ["--env", name if name in hidden else f"{name}={value}"]
    if job.working_dir != "/":
        words += ["--workdir", job.working_dir]
    line = shlex.join([*words, "--entrypoint", job.command[0], job.image, *job.command[1:]])
    return line.replace(CURRENT_FOLDER, '"$PWD"')


@contextlib.contextmanager
def work_folder(parent: str, operation: str, client: DockerClient | None = None) -> Iterator[str]:
    """Yield an empty folder below C(parent) and remove it afterwards; one run at a time may hold one there.

    Args:
        parent: made if it is not there.
        operation: what is being done, for the message of whoever comes second.
        client: the engine, from which the containers go that a killed run left, whatever its server; None for none.

    Raises:
        GpufleetError: C(busy), as host_lock, and as remove_left.
    """
    os.makedirs(parent, mode=0o755, exist_ok=True)
    with host_lock(os.path.join(parent, ".lock"), operation):
        if client is not None:
            remove_left(client, work_dir=parent)
        for entry in os.listdir(parent):
            if entry.startswith("run-"):  # left by a run that was killed
                shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)
        folder = tempfile.mkdtemp(prefix="run-", dir=parent)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
