# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries at the servers themselves whether they take a key, before the router asks them with no other."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import listed
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.security import Endpoint, request_status

TIMEOUT_S = 5.0
AT_ONCE = 32
TAKES, REFUSES = (200,), (401, 403)
SHOWN = 5


def check_key(replicas: Sequence[Replica], key: str, before: str | None) -> list[str]:
    """Refuse a key for the replicas with which fewer of them could be asked than with the one before.

    Replicas that do not answer have no say: one that comes back and refuses the key gets no requests.

    Args:
        replicas: those that the router is to have.
        key: with which it is to ask them; empty for none.
        before: with which it asks them now; None where it asks none yet.

    Returns:
        The hosts whose servers refuse the key nevertheless.

    Raises:
        GpufleetError: C(router-key-refused).
    """
    answers = _answers(replicas, key)
    refusing = sorted({replica.host for replica, status in zip(replicas, answers) if status in REFUSES})
    if not refusing:
        return []
    take = sum(status in TAKES for status in answers)
    took = 0 if before is None else sum(status in TAKES for status in _answers(replicas, before))
    if take >= max(took, 1):
        return refusing
    raise GpufleetError(
        f"The servers of {listed(refusing, SHOWN)} refuse vllm_api_key; every request to them would get 401.",
        name="router-key-refused",
        remedy="The router goes on with the key that it has. Have all servers take the new one, too: the playbook"
        " gpufleet.vllm.router does that, and gpufleet.vllm.deploy for servers that an earlier release made. Hosts"
        " outside --limit and those that cannot be reached do not get it; take one that is gone out of the inventory.",
        details={"hosts": refusing},
    )


def refused_by(hosts: Sequence[str]) -> str:
    """Return the warning for hosts that refuse a key with which the others can be asked."""
    return (
        f"The servers of {listed(hosts, SHOWN)} refuse vllm_api_key, with which the others are asked: they get no"
        " requests, or answer them with 401, until gpufleet.vllm.router or gpufleet.vllm.deploy has given them the key."
    )


def _answers(replicas: Sequence[Replica], key: str) -> list[int]:
    """Return the status of each replica's list of models; 0 where it does not answer."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda replica: _answer(replica, key), replicas))


def _answer(replica: Replica, key: str) -> int:
    endpoint = Endpoint(replica.address, replica.port, "", False, "", key, TIMEOUT_S)
    try:
        return request_status(endpoint, "GET", "/v1/models", key, {})[0]
    except (OSError, http.client.HTTPException, ValueError):
        return 0
