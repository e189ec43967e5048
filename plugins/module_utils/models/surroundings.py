# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a download has around it: the image, the cache, secrets and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import HubCache, hub_cache
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.server_files import is_offline

FOREVER_S = 10 * 365 * 24 * 3600
TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Surroundings:
    """How the server will go to the hub, and how long the download may take.

    Attributes:
        image: reference or id of the serving image.
        hf_home: host folder of the Hugging Face cache.
        environment: variables of the server.
        secrets: those of them that must not be seen.
        volumes: further mounts of the server.
        ca_bundle: host file with certificate authorities; empty for none.
        network_mode: of the server.
        prefix: what the container's name begins with.
        offline: whether the hub may not be asked.
        timeout: seconds for the whole download; 0 for no deadline.
        stall_timeout: seconds without a further byte after which it is given up; 0 for never.
        retries: further attempts after a failure that may pass, counted anew whenever bytes came.
        backoff: seconds before the first of them; doubled before each next one.
        lock_timeout: seconds to wait for another run that fetches into the same cache.
    """

    image: str
    hf_home: str
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    volumes: Sequence[str] = ()
    ca_bundle: str = ""
    network_mode: str = "bridge"
    prefix: str = "vllm"
    offline: bool = False
    timeout: float = 14400
    stall_timeout: float = 900
    retries: int = 5
    backoff: float = 5
    lock_timeout: float = 0

    @property
    def cache(self) -> HubCache:
        """Where the server's repositories lie on the host."""
        return hub_cache(self.hf_home, {**self.environment, **self.secrets}, self.volumes)

    @property
    def is_offline(self) -> bool:
        """Whether the hub may not be asked, by the option or by a variable of the server."""
        return self.offline or is_offline(self.environment)


def lock_timeout(given: int, download: float) -> int:
    """Return how many seconds to wait for another run, as long as a download may take where -1 is given."""
    return given if given >= 0 else int(download) or FOREVER_S
