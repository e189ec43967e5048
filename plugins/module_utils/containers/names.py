# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and labels by which this collection knows its containers."""

from __future__ import annotations

import re
from typing import Any, TypedDict

LABEL_COLLECTION = "io.gpufleet.collection"
LABEL_REPLICA = "io.gpufleet.replica"
LABEL_SPEC = "io.gpufleet.spec"
COLLECTION = "gpufleet.vllm"
PREVIOUS = "-previous"
NEXT = "-next"
VERSION = "0.1.0"


class PublishedPort(TypedDict):
    """A port of the host that a container publishes."""

    host: str
    port: int


class ContainerInfo(TypedDict):
    """A container of the engine."""

    id: str
    name: str
    state: str
    image: str
    ours: bool
    replica: str
    ports: list[PublishedPort]


def belongs_to(prefix: str, container: str) -> bool:
    """Return whether a container is one of a deployment's, C(-next) and C(-previous) included.

    Another deployment on the host may have a prefix that begins with this one's: vllm and vllm-small.

    Args:
        prefix: vllm_container_prefix of the deployment.
        container: the container's name.
    """
    return re.fullmatch(rf"{re.escape(prefix)}-\d+({PREVIOUS}|{NEXT})?", container) is not None


def filters_of(prefix: str) -> dict[str, Any]:
    """Return the filters by which the engine lists little more than a deployment's containers, see belongs_to."""
    return {"label": f"{LABEL_COLLECTION}={COLLECTION}", "name": f"^/?{re.escape(prefix)}-[0-9]+"}


def base_name(name: str) -> str:
    """Return the replica that a container of ours belongs to, from the container's name."""
    for suffix in (PREVIOUS, NEXT):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name
