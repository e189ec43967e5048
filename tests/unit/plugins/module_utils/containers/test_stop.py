# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container is stopped, also where the engine does not see it."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from docker.errors import APIError, NotFound

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.stop import stop_container


class Stopping:
    """A container whose engine fails to stop it, and which has one state after another."""

    def __init__(self, raised: Exception | None, *states: str) -> None:
        self._raised, self._states = raised, list(states)
        self.status = "running"
        self.timeout = 0

    def stop(self, timeout: int) -> None:
        """Stop, or raise."""
        self.timeout = timeout
        if self._raised:
            raise self._raised

    def reload(self) -> None:
        """Take the next state; the last one stays."""
        self.status = self._states.pop(0) if len(self._states) > 1 else self._states[0]


def stop(container: Stopping) -> None:
    """Stop it, with the patience of a test."""
    given: Any = container
    stop_container(given, 30, notice=0.05)


def test_a_container_is_stopped_with_its_time() -> None:
    container = Stopping(None)
    stop(container)
    assert container.timeout == 30


@pytest.mark.parametrize(
    "raised", [APIError("500", explanation="did not receive an exit event"), requests.exceptions.ReadTimeout("slow")]
)
def test_a_stop_that_the_engine_missed_is_seen(raised: Exception) -> None:
    stop(Stopping(raised, "running", "exited"))
    with pytest.raises(type(raised)):
        stop(Stopping(raised, "running"))


def test_a_container_that_is_gone_is_the_callers_to_judge() -> None:
    with pytest.raises(NotFound):
        stop(Stopping(NotFound("404"), "exited"))
