# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping a container, also beneath an engine that does not see its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until

if TYPE_CHECKING:
    from docker.models.containers import Container

STOP_NOTICE_S = 60.0
RUNNING = ("running", "restarting", "paused", "removing")


def stop_container(container: Container, seconds: int, notice: float = STOP_NOTICE_S) -> None:
    """Stop a container, and see for oneself when the engine says that it could not.

    A busy engine may miss the end of a process that it has killed, and answers with an error although it has ended.

    Args:
        container: of the Docker SDK.
        seconds: until it is killed.
        notice: seconds to wait for its end after such an error.

    Raises:
        docker.errors.APIError, requests.exceptions.RequestException: it runs on.
    """
    import requests
    from docker.errors import APIError, NotFound

    try:
        container.stop(timeout=seconds)
    except (APIError, requests.exceptions.RequestException) as error:
        if isinstance(error, NotFound) or not _ends(container, notice):
            raise


def _ends(container: Container, patience: float) -> bool:
    """Return whether a container has ended, or does so within `patience` seconds."""

    def ended() -> bool:
        container.reload()
        return container.status not in RUNNING

    return until(ended, patience, min(1.0, patience / 10))
