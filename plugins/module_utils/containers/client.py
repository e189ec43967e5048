# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module needs of the Docker SDK: a connection, and its failures told as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.errors import ContainerError, ImageNotFound

LONGEST_EVIDENCE = 1500  # characters
ENGINE_REMEDY = (
    "The engine's own log tells more (journalctl -u docker). Once it works again, run the play again: it goes on where"
    " this one ended."
)
DEFAULT_DOCKER_HOST = "unix:///var/run/docker.sock"


def connect(docker_host: str, timeout: int = 60) -> DockerClient:
    """Return a client whose engine has answered.

    Args:
        docker_host: the engine's address, such as C(unix:///var/run/docker.sock).
        timeout: seconds to wait for each answer of the engine.

    Raises:
        GpufleetError: C(engine-not-running) when nothing answers at that address.
    """
    import docker
    import requests
    from docker.errors import DockerException

    try:
        client = docker.DockerClient(base_url=docker_host, timeout=timeout, version="auto")
        client.ping()
    except (DockerException, requests.exceptions.RequestException) as error:
        raise GpufleetError(
            f"No Docker engine answers at {docker_host}.",
            name="engine-not-running",
            remedy="Start it (systemctl start docker, or service docker start), let the role gpufleet.vllm.docker"
            " install one, or set vllm_docker_host to the address of the engine to use.",
            evidence=str(error),
        ) from error
    return client


@contextlib.contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Tell what the engine refuses inside the block as GpufleetError C(engine-error).

    Args:
        doing: what was being done, to complete the sentence "The Docker engine failed ...".
    """
    import requests
    from docker.errors import APIError, DockerException

    try:
        yield
    except (DockerException, requests.exceptions.RequestException) as error:
        explanation = error.explanation if isinstance(error, APIError) else ""
        raise GpufleetError(
            f"The Docker engine failed {doing}.",
            name="engine-error",
            remedy=ENGINE_REMEDY,
            evidence=str(explanation or error),
        ) from error


def image_missing(image: str, error: ImageNotFound, remedy: str) -> GpufleetError:
    """Return the error for an image that the engine does not have."""
    return GpufleetError(
        f"There is no image {image} on this host.",
        name="image-missing",
        remedy=remedy,
        evidence=str(error.explanation or error),
    )


def container_failed(doing: str, error: ContainerError, name: str) -> GpufleetError:
    """Return the error for a container that ran to its end and failed, with its last words.

    Args:
        doing: what did not work, as a sentence without its end, such as C(Converting m failed).
        error: what the SDK raised.
        name: of the error.
    """
    said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else str(error.stderr)
    return GpufleetError(
        f"{doing} (exit status {error.exit_status}).", name=name, evidence=said[-LONGEST_EVIDENCE:].strip()
    )


def event_error(event: dict[str, Any]) -> str:
    """Return what an event of the engine says went wrong, or C("")."""
    return str((event.get("errorDetail") or {}).get("message") or event.get("error") or "")


def variables_of(entries: Iterable[str] | None) -> dict[str, str]:
    """Return environment variables from a list of `NAME=value`."""
    pairs = (entry.partition("=") for entry in entries or [])
    return {name: value for name, _equals, value in pairs}
