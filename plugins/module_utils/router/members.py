# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The replicas behind a router: who they are, and how a run over a part of the fleet keeps the rest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

SERVER_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
ENDPOINT = re.compile(r"/[A-Za-z0-9_./-]*")
ADDRESS = re.compile(r"[A-Za-z0-9_.:-]+")


@dataclass(frozen=True)
class Replica:
    """One server behind the router.

    Attributes:
        host: as the inventory calls it.
        name: as the plan calls it.
        address: where it is.
        port: where it listens.
        models: names by which requests may ask for its model; none if they are not known.
        requests: requests that its KV cache holds at once, by the plan; 0 if that is not known.
        max_num_seqs: requests that it works on at once at most; 0 if that is not known.
        max_model_len: tokens of the longest request; 0 if that is not known.
    """

    host: str
    name: str
    address: str
    port: int
    models: tuple[str, ...] = ()
    requests: int = 0
    max_num_seqs: int = 0
    max_model_len: int = 0

    def server(self) -> str:
        """Return its name in HAProxy's configuration."""
        return server_name(self.host, self.name)


def replica_of(host: str, entry: Mapping[str, Any]) -> Replica:
    """Return a replica of a host from what is written down of it, also by an earlier version that knew no models."""
    numbers = {name: int(entry.get(name) or 0) for name in ("requests", "max_num_seqs", "max_model_len")}
    models = tuple(str(name) for name in entry.get("models") or ())
    return Replica(host, str(entry["name"]), str(entry["address"]), int(entry["port"]), models, **numbers)


def server_name(host: str, replica: str) -> str:
    """Return a replica's name in HAProxy's configuration."""
    return f"{host}:{replica}"


def key_sum(key: str) -> str:
    """Return a client's key as the router keeps it."""
    return hashlib.sha256(f"Bearer {key}".encode()).hexdigest()


def replica_key_of(text: str) -> str:
    """Return the key in the text of C(replica.key); empty if it has none."""
    return text.strip().partition(" ")[2]


def read_replicas(text: str) -> list[Replica]:
    """Return the replicas in the text of C(replicas.json); none if it is not one."""
    try:
        return [replica_of(str(entry["host"]), entry) for entry in json.loads(text)]
    except (ValueError, TypeError, LookupError, AttributeError):
        return []


def merge(
    known: Mapping[str, Sequence[Replica]], unknown: Iterable[str], before: Sequence[Replica]
) -> tuple[list[Replica], dict[str, str]]:
    """Return the replicas that the router is to have, in order, and what is said of hosts that could not be asked.

    Where an earlier version wrote down what the router has, and so no models, and some hosts were not asked, the models
    of none count: a model would have only the hosts that were, which may be the one that is drained for its turn.

    Args:
        known: what each host that answered serves.
        unknown: hosts of the inventory that did not answer, or were not asked.
        before: what the router has now.

    Returns:
        The replicas; for each unknown host C(kept) or C(left out), and C(gone) for those that neither names any more.
    """
    kept = {host: [replica for replica in before if replica.host == host] for host in unknown}
    wanted = {**{host: list(replicas) for host, replicas in known.items()}, **kept}
    said = {replica.host: "gone" for replica in before if replica.host not in wanted}
    said.update({host: "kept" if replicas else "left out" for host, replicas in kept.items()})
    replicas = [replica for host in sorted(wanted) for replica in wanted[host]]
    if any(kept.values()) and not any(replica.models for replica in before):
        replicas = [replace(replica, models=()) for replica in replicas]
    return replicas, said


def one_key(keys: Mapping[str, str], replicas: Iterable[Replica]) -> str:
    """Return the key with which all replicas are asked; empty without replicas.

    Args:
        keys: of each host; empty where none is wanted.
        replicas: those behind the router; keys of other hosts do not count.

    Raises:
        GpufleetError: C(keys-differ).
    """
    first: dict[str, str] = {}
    for replica in replicas:
        first.setdefault(keys.get(replica.host, ""), replica.host)
    if len(first) > 1:
        raise GpufleetError(
            f"vllm_api_key differs between hosts behind the router, such as {' and '.join([*first.values()][:2])}.",
            name="keys-differ",
            remedy="Give all hosts the same vllm_api_key; clients may have keys of their own in router_api_keys.",
        )
    return next(iter(first), "")


def check_not_emptied(before: Sequence[Replica], replicas: Sequence[Replica], unsure: Mapping[str, str]) -> None:
    """Refuse to take the last replica out of a router while hosts of the inventory may well serve.

    Args:
        before: what the router has now.
        replicas: what it is to have.
        unsure: hosts of which it is not known that nothing is deployed there, and why they have no replica here.

    Raises:
        GpufleetError: C(router-emptied).
    """
    if not before or replicas or not unsure:
        return
    raise GpufleetError(
        f"The router would lose every replica that it has ({len(before)}), and each request would get 503:\n"
        + "\n".join(f"  - {host}: {why}" for host, why in sorted(unsure.items())),
        name="router-emptied",
        remedy="The router goes on with what it has. Fix what is said of each host, or run the playbook again with"
        " all hosts in --limit. It is emptied once each host was asked and has nothing deployed.",
    )
