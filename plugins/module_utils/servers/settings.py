# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a run goes about the servers of a host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.waiting import Limits


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to go about it.

    Attributes:
        config_dir: host folder of the replicas' configurations.
        hf_home: host folder of the Hugging Face cache.
        cache_dir: host folder of the compile caches.
        prefix: what the names of this deployment's containers begin with, before the dash.
        docker_host: address of the engine, for the run line.
        wait: whether to wait until servers are ready.
        limits: how long starts may take.
        drain_timeout: seconds that a server's running requests get before it is stopped.
        vram_timeout: seconds for the driver to free the memory of a stopped server's GPUs.
        watchdog: seconds for which a server may hang before it is ended, so that Docker starts it again; 0 for ever.
        check: only tell what would be done.
        check_config: whether the image's vLLM parses a new configuration before anything is touched.
        history_keep: number of deployments to keep in the host's history.
        plan: from which the servers are made; empty when they are not made from one.
        accepted_keys: keys that servers take besides `VLLM_API_KEY`.
        other_keys_for: see Keys.others_for.
    """

    config_dir: str
    hf_home: str
    cache_dir: str
    prefix: str
    docker_host: str
    wait: bool = True
    limits: Limits = dataclasses.field(default_factory=Limits)
    drain_timeout: int = 60
    vram_timeout: int = 60
    watchdog: int = 300
    check: bool = False
    check_config: bool = True
    history_keep: int = 10
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    accepted_keys: tuple[str, ...] = ()
    other_keys_for: int = 0
