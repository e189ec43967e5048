# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The deadlines of a deployment's phases."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.health import deadlines
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.start_phases import PHASES


def test_every_phase_has_a_deadline_and_every_deadline_a_phase() -> None:
    assert {deadlines.key_of(phase) for phase in PHASES} | {deadlines.IMAGE, deadlines.DOWNLOAD} == set(
        deadlines.DEFAULTS
    )


def test_some_may_be_overridden_and_the_others_keep_their_defaults() -> None:
    limits = deadlines.deadlines({"weights": 7200, "KV cache": "0"})
    assert limits == {**deadlines.DEFAULTS, "weights": 7200, "kv_cache": 0}
    assert (deadlines.deadline_of("KV cache", limits), deadlines.deadline_of("engine start", limits)) == (0, 900)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weigths": 60}, "there is no phase weigths; did you mean weights?"),
        ({"cuda_graph": 60}, "there is no phase cuda_graph; did you mean graphs?"),
        ({"xyzzy": 60}, "there is no phase xyzzy; the phases are image, download, container,"),
        ({"weights": -1}, "weights: '-1' is no number of seconds"),
        ({"weights": True}, "weights: 'True' is no number of seconds"),
        ({"weights": "1h"}, "weights: '1h' is no number of seconds"),
    ],
)
def test_what_is_no_phase_or_no_time_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        deadlines.deadlines(given)
    assert caught.value.name == "phase-timeouts-invalid"
    assert said in caught.value.message
    assert caught.value.message.startswith("vllm_phase_timeouts: ")
