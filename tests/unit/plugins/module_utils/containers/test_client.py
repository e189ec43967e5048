# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Docker SDK raises, told as ours."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from docker.errors import APIError, ContainerError, DockerException, ImageNotFound, NotFound

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import (
    LONGEST_EVIDENCE,
    container_failed,
    engine_errors,
    image_missing,
    stop_container,
)


@pytest.mark.parametrize(
    ("raised", "evidence"),
    [
        (APIError("500 Server Error", explanation="no space left on device"), "no space left on device"),
        (APIError("409 Conflict"), "409 Conflict"),
        (DockerException("no such driver"), "no such driver"),
        (requests.exceptions.ReadTimeout("read timed out"), "read timed out"),
    ],
)
def test_what_the_engine_refuses_is_evidence(raised: Exception, evidence: str) -> None:
    with pytest.raises(GpufleetError, match=r"The Docker engine failed to look\.") as caught, engine_errors("to look"):
        raise raised
    assert (caught.value.name, caught.value.evidence) == ("engine-error", evidence)
    assert "run the play again" in caught.value.remedy


def test_an_image_that_is_missing_is_named_with_what_to_do() -> None:
    error = image_missing("a/b:1", ImageNotFound("404", explanation="No such image: a/b:1"), "Fetch it.")
    assert (error.name, error.message) == ("image-missing", "There is no image a/b:1 on this host.")
    assert (error.evidence, error.remedy) == ("No such image: a/b:1", "Fetch it.")


def ended(said: Any) -> ContainerError:
    """Return what the SDK raises for a container that failed; it gives what was said as bytes."""
    container: Any = None
    return ContainerError(container, 3, "", "a:1", said)


@pytest.mark.parametrize("said", [b"a line\nKeyError: '\xff'\n", "a line\nKeyError: '\ufffd'\n"])
def test_a_container_that_failed_has_the_last_word(said: bytes | str) -> None:
    error = container_failed("Converting m failed", ended(said), "conversion-failed")
    assert (error.name, error.message) == ("conversion-failed", "Converting m failed (exit status 3).")
    assert error.evidence == "a line\nKeyError: '\ufffd'"


def test_only_the_end_of_what_it_said_is_kept() -> None:
    said = b"x" * 10_000 + b"the cause"
    error = container_failed("It failed", ended(said), "broken")
    assert len(error.evidence) == LONGEST_EVIDENCE and error.evidence.endswith("xthe cause")


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
