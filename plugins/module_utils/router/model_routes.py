# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replicas serve which model, and so where the router sends a request by the model that it names.

Where all replicas serve the same names, requests go to the one backend that has them all. Elsewhere each set of
replicas that serves a name has a backend of its own, whose servers track those of the first: health checks and drains
are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import BACKEND, MODEL_BACKEND
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica

UNNAMED = MODEL_BACKEND + "unnamed"
SHOWN = 50


@dataclass(frozen=True)
class Route:
    """Replicas that requests for some models go to.

    Attributes:
        backend: its name in HAProxy's configuration.
        names: of the models; none for the replicas of which no names are known.
        replicas: that serve each of them.
    """

    backend: str
    names: tuple[str, ...]
    replicas: tuple[Replica, ...]


def routes(replicas: Sequence[Replica]) -> list[Route]:
    """Return where requests go by their models, each name once."""
    serving: dict[str, list[Replica]] = {}
    for replica in replicas:
        for name in replica.models or ("",):
            serving.setdefault(name, []).append(replica)
    names_of: dict[tuple[Replica, ...], list[str]] = {}
    for name in sorted(serving):
        names_of.setdefault(tuple(serving[name]), []).append(name)
    if len(names_of) == 1:
        return [Route(BACKEND, tuple(filter(None, names)), of) for of, names in names_of.items()]
    found: dict[str, Route] = {}
    for of, names in names_of.items():
        known = tuple(filter(None, names))
        backend = _free(found, MODEL_BACKEND + re.sub(r"[^A-Za-z0-9_.-]", "_", known[0])[:60]) if known else UNNAMED
        found[backend] = Route(backend, known, of)
    return list(found.values())


def _free(taken: Mapping[str, Route], name: str) -> str:
    number = 2
    free = name
    while free in taken or free == UNNAMED:
        free, number = f"{name}_{number}", number + 1
    return free


def has_several(found: Sequence[Route]) -> bool:
    """Return whether the model decides where a request goes."""
    return len(found) > 1


def all_named(found: Sequence[Route]) -> bool:
    """Return whether the names of all replicas are known, so that every other one is none."""
    return bool(found) and all(route.names for route in found)


def names_shown(found: Sequence[Route]) -> str:
    """Return the names that there are, for a person."""
    names = sorted(name for route in found for name in route.names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def map_text(found: Sequence[Route]) -> str:
    """Return the file by which HAProxy finds the backend of a model."""
    return "".join(f"{name} {route.backend}\n" for route in found for name in route.names)


def list_text(found: Sequence[Route]) -> str:
    """Return the answer to C(GET /v1/models): every model once."""
    rows = {name: route for route in found for name in route.names}
    return json.dumps({"object": "list", "data": [_row(name, rows[name]) for name in sorted(rows)]})


def _row(name: str, route: Route) -> dict[str, object]:
    lengths = [replica.max_model_len for replica in route.replicas]
    length = {"max_model_len": min(lengths)} if all(lengths) else {}
    return {**model_object(name), **length}


def model_object(name: str) -> dict[str, object]:
    """Return a model as OpenAI's API tells of it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
