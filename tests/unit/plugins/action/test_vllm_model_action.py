# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When vllm_model's action leaves the host alone."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.vllm_model import ActionModule, complete
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import FOREVER_S, lock_timeout
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

FOLDER = "/data/hf/hub/models--o--m"
ARGUMENTS: dict[str, Any] = {"model": "o/m", "hf_home": "/data/hf", "config": {}, "environment": {}, "volumes": []}


def probed(folder: str = FOLDER, whole: bool = True) -> list[dict[str, Any]]:
    """Return what host_info found in a folder, beside one of another model."""
    return [{"folder": "/data/hf/hub/models--o--other", "complete": True}, {"folder": folder, "complete": whole}]


@pytest.mark.parametrize(
    ("found", "changes", "expected"),
    [
        (probed(), {}, True),
        (probed(whole=False), {}, False),
        ([], {}, False),
        (probed(), {"hf_home": "/data/hf/"}, True),
        (probed(), {"hf_home": "/data/another"}, False),
        (probed(), {"model": "o/another"}, False),
        # A revision has a folder of its own, main has not.
        (probed(), {"config": {"revision": "main"}}, True),
        (probed(), {"config": {"revision": "v1.1"}}, False),
        (probed(f"{FOLDER}/refs/v1.1"), {"config": {"revision": "v1.1"}}, True),
        (probed(), {"config": {"max-model-len": 4096}}, True),
        # More than the model's safetensors is wanted, or others.
        (probed(), {"config": {"tokenizer": "o/t"}}, False),
        (probed(), {"config": {"tokenizer-revision": "v2"}}, False),
        (probed(), {"config": {"speculative-config": {"model": "o/draft"}}}, False),
        (probed(), {"config": {"hf-config-path": "o/c"}}, False),
        (probed(), {"config": {"load-format": "gguf"}}, False),
        # The module finds a cache that is elsewhere.
        (probed(), {"volumes": ["/mnt/models:/root/.cache/huggingface"]}, False),
        (probed(), {"volumes": ["/mnt/models:/models"]}, True),
        (probed(), {"environment": {"HF_HUB_CACHE": "/models"}}, False),
        (probed(), {"environment": {"HF_HOME": "/models"}}, False),
        (probed(), {"environment": {"HF_ENDPOINT": "https://hub.example.com"}}, True),
    ],
)
def test_what_the_probe_found_complete_is_not_fetched(
    found: list[dict[str, Any]], changes: dict[str, Any], expected: bool
) -> None:
    assert complete({**ARGUMENTS, **changes}, found) is expected


def test_a_complete_model_costs_no_module_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def module(action: Any, *_arguments: Any) -> dict[str, Any]:
        given.append(action._task.args)
        return {"changed": True}

    monkeypatch.setattr(LongTaskAction, "run", module)
    result, _display = run_action(ActionModule, {**ARGUMENTS, "probed": probed()})
    assert (result["skipped"], result["changed"], given) == (True, False, [])
    assert run_action(ActionModule, {**ARGUMENTS, "probed": []})[0] == {"changed": True}
    assert run_action(ActionModule, ARGUMENTS)[0] == {"changed": True}
    assert given == [ARGUMENTS, ARGUMENTS]


@pytest.mark.parametrize(
    ("given", "download", "expected"),
    [(0, 14400, 0), (60, 14400, 60), (-1, 14400, 14400), (-1, 0, FOREVER_S), (0, 0, 0)],
)
def test_another_run_is_waited_for_as_long_as_a_download_may_take(given: int, download: float, expected: int) -> None:
    assert lock_timeout(given, download) == expected
