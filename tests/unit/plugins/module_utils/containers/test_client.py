# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Docker SDK raises, told as ours."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from docker.errors import APIError, ContainerError, DockerException, ImageNotFound

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import (
    LONGEST_EVIDENCE,
    container_failed,
    engine_errors,
    image_missing,
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
