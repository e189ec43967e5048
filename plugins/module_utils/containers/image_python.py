# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks something of an image by a script for the Python that its vLLM runs on, in a container that is removed at once.

The script prints its answer as the rest of a line that begins with ANSWER_MARK; whatever else it or a library prints is
evidence for the case that there is no answer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CACHES, CONFIG_PATH, HF_HOME

if TYPE_CHECKING:
    from docker import DockerClient

ANSWER_MARK = "gpufleet-answer:"

# The interpreter is that of the program `vllm`, which need not be the image's python3.
LAUNCH = """
program=$(command -v vllm)
read -r first < "${program:-/dev/null}"
case "$first" in
"#!"*python*) set -- ${first#"#!"} -c "$@" ;;
*) set -- python3 -c "$@" ;;
esac
exec "$@"
"""


class NoAnswerError(Exception):
    """The script gave no answer, with the reason."""


def ask(
    client: DockerClient,
    image: str,
    script: str,
    arguments: Sequence[str],
    *,
    name: str,
    label: tuple[str, str],
    doing: str,
    timeout: float,
    options: Mapping[str, Any],
) -> str:
    """Run C(script) in a container of its own, without a network, and return its answer.

    Args:
        client: the engine.
        image: id or reference of the image.
        script: text of the Python script.
        arguments: its further arguments.
        name: of the container.
        label: name and value of a label, by which remove_left finds what an interrupted run left.
        doing: what the container does, to complete "The Docker engine failed creating the container that ...".
        timeout: seconds to wait for the answer.
        options: further arguments of the Docker SDK's C(containers.create).

    Raises:
        GpufleetError: C(engine-error) when the engine refuses the container; its evidence is what the engine said.
        NoAnswerError: it ran and gave no answer.
    """
    import requests
    from docker.types import LogConfig

    remove_left(client, *label)
    with engine_errors(f"creating the container that {doing}"):
        container = client.containers.create(
            image,
            name=name,
            entrypoint=["/bin/sh", "-c", LAUNCH, "vllm"],
            command=[script, *arguments],
            network_mode="none",
            init=True,
            labels=dict([label]),
            healthcheck={"test": ["NONE"]},
            log_config=LogConfig(type="json-file", config={}),
            **options,
        )
    try:
        with engine_errors(f"starting the container that {doing}"):
            container.start()
            try:
                status = container.wait(timeout=timeout).get("StatusCode")
            except (requests.exceptions.ReadTimeout, requests.exceptions.ConnectionError) as error:
                raise NoAnswerError(f"no answer within {timeout:.0f} s") from error
            said = container.logs(stdout=True, stderr=True).decode("utf-8", "replace")
        return answer_in(said, status)
    finally:
        with contextlib.suppress(GpufleetError), engine_errors(f"removing the container that {doing}"):
            container.remove(force=True, v=True)


def answer_in(said: str, status: int | None) -> str:
    """Return the answer in what a script printed before it ended with C(status).

    Raises:
        NoAnswerError: there is none.
    """
    answers = [line[len(ANSWER_MARK) :] for line in said.splitlines() if line.startswith(ANSWER_MARK)]
    if not answers:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "it printed nothing")
        raise NoAnswerError(f"it ended with exit code {status}: {last}")
    return answers[-1]


def remove_left(client: DockerClient, label: str, value: str) -> None:
    """Remove containers with this label that an interrupted run left and that have ended since."""
    with engine_errors("removing containers of earlier checks"):
        filters: dict[str, Any] = {"label": f"{label}={value}", "status": ["exited", "created", "dead"]}
        for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
            container.remove(force=True, v=True)


def mounts(
    volumes: Iterable[str], *, dry: bool, without: Sequence[str] = (HF_HOME, CONFIG_PATH, *CACHES.values())
) -> list[str]:
    """Return a server's mounts as such a container has them: read-only, without our caches and what is not there.

    Args:
        volumes: of the server, as C(source:target[:options]).
        dry: leave named volumes out too, which Docker makes when they are missing.
        without: targets that the container has no use for.
    """
    result = []
    for volume in volumes:
        source, _colon, rest = volume.partition(":")
        target, _colon, options = rest.partition(":")
        if not target or target in without:
            continue
        if not os.path.exists(source) if source.startswith("/") else dry:
            continue
        kept = [option for option in options.split(",") if option not in ("", "rw", "ro")]
        result.append(":".join([source, target, ",".join(["ro", *kept])]))
    return result
