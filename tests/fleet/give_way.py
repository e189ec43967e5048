# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that serve leave the processors of a small machine to those that start.

Between requests that follow each other closely vLLM's worker spins. On a machine with fewer processors than servers a
starting one then takes minutes, most of which it waits; on hosts of their own, servers do not meet.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import LABEL_COLLECTION

if TYPE_CHECKING:
    from docker import DockerClient

SMALL_SHARE, FULL_SHARE = 48, 1024  # they count only while others want the processor, too
EVERY_S = 3.0


@contextlib.contextmanager
def giving_way(docker_host: str) -> Iterator[None]:
    """Give each container of this collection a small share of the processors while it is healthy, else a full one."""
    client = connect(docker_host)
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(EVERY_S):
            with contextlib.suppress(Exception):  # containers come and go
                share_out(client)

    thread = threading.Thread(target=look, name="give way", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        client.close()


def share_out(client: DockerClient) -> None:
    """Do so once."""
    for box in client.containers.list(filters={"label": LABEL_COLLECTION}):
        health = (box.attrs["State"].get("Health") or {}).get("Status")
        share = SMALL_SHARE if health == "healthy" else FULL_SHARE
        if box.attrs["HostConfig"]["CpuShares"] != share:
            box.update(cpu_shares=share)
