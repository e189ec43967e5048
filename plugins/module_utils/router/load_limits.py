# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much the router lets in: what the plans of its replicas hold, where no variable says another number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

LEAST_CONNECTIONS = 8192
# Of the limit of the fleet, for one of several keys: the others always find room.
SHARE_OF_KEY = 0.75
# Of all connections, for one address; and what is kept for those who ask how the router is.
SHARE_OF_ADDRESS, RESERVED = 0.25, 0.0625


@dataclass(frozen=True)
class Limits:
    """What is let in at once; 0 is no limit.

    Attributes:
        connections: of clients, beyond which requests are refused.
        reserved: more connections, which get such an answer.
        address: connections of one address.
        key: requests of one key.
        large: requests that went over the reader.
    """

    connections: int
    reserved: int
    address: int
    key: int
    large: int


def replica_limit(settings: RouterSettings, replica: Replica) -> int:
    """Return how many requests a replica gets at once: what its cache holds times a factor, or what it works on."""
    if settings.max_requests_per_replica is not None:
        return settings.max_requests_per_replica
    if not replica.requests:
        return math.ceil(replica.max_num_seqs * settings.requests_factor)
    return max(math.ceil(replica.requests * settings.requests_factor), replica.max_num_seqs)


def room(settings: RouterSettings, replicas: Sequence[Replica]) -> int:
    """Return how many requests these replicas get at once; 0 where one of them has no limit."""
    of = [replica_limit(settings, replica) for replica in replicas]
    return sum(of) if all(of) else 0


def queue_limit(settings: RouterSettings, replicas: Sequence[Replica]) -> int:
    """Return how many requests may wait for these replicas: as many as run, unless a variable says another number."""
    return room(settings, replicas) if settings.max_queue is None else settings.max_queue


def limits(settings: RouterSettings, replicas: Sequence[Replica]) -> Limits:
    """Return what the frontend lets in."""
    running = room(settings, replicas)
    connections = settings.max_connections
    if connections is None:
        # Each has a connection of its own, and as many are idle.
        connections = max(LEAST_CONNECTIONS, 2 * (running + queue_limit(settings, replicas)))
    reserved = max(math.ceil(connections * RESERVED), 16)
    address, key = settings.max_connections_per_address, settings.max_requests_per_key
    if address is None:
        address = math.ceil(connections * SHARE_OF_ADDRESS)
    if key is None:
        key = math.ceil(running * SHARE_OF_KEY) if settings.keys_there_are() > 1 else 0
    return Limits(connections, reserved, address, key, max(connections // 8, 16))
