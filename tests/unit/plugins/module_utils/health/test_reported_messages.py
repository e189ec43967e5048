# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What failing servers print, by public reports and by the sources of vLLM and its libraries, gets the right name.

Each entry of tests/unit/data/reported_messages.json says where its text comes from, the right name, and C(before), the
name of the first table of causes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.causes import WRAPPER
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose
from ansible_collections.gpufleet.vllm.tools.diagnosis_table import VARIABLE

DATA = Path(__file__).parents[3] / "data" / "reported_messages.json"
MESSAGES: list[dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))


BY_THE_HOST = ("driver-mismatch", "shared-memory-too-small")


@pytest.mark.parametrize("message", MESSAGES, ids=[f"{at}-{message['name']}" for at, message in enumerate(MESSAGES)])
def test_a_reported_message_gets_its_name(message: dict[str, Any]) -> None:
    error = diagnose(message["log"], exit_code=1)
    assert error.name == message["name"], message["source"]
    assert not WRAPPER.search(error.evidence)
    assert "{" not in error.remedy
    # The remedy names what to change in this collection, but for what only the host's own tools can do.
    assert VARIABLE.search(error.remedy) or error.name in BY_THE_HOST, error.remedy


def test_most_of_them_were_not_named_before() -> None:
    assert len(MESSAGES) >= 60
    assert all(message["source"] for message in MESSAGES)
    assert sum(message["before"] != message["name"] for message in MESSAGES) >= 60


def test_no_message_is_told_by_the_names_of_two_causes_at_once() -> None:
    """Of each, the name is the same whatever stands below it: what follows is an echo or comes later."""
    later = "(APIServer pid=1) OSError: [Errno 98] Address already in use"
    for message in MESSAGES:
        error = diagnose([*message["log"], later])
        if error.name != message["name"]:
            # Echoes give way to a cause of its own, and say so.
            assert (error.name, message["name"] in error.message) == ("port-in-use", True), message["source"]
