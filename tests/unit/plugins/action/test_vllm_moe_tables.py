# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin vllm_moe_tables: which tables it writes on the controller; the module before it is not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.utils.display import Display

from ansible_collections.gpufleet.vllm.plugins.action import vllm_moe_tables
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning.kernels import why_not
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action import conftest

NAME = "E=16,N=8192,device_name=NVIDIA_H200,dtype=fp8_w8a8.json"


def table(kept: bool, name: str = NAME) -> dict[str, Any]:
    entry = {"before_us": 2140.5, "after_us": 1697.9, "gain": 0.26, "rejected": 1, "kept": kept}
    provenance = {"vllm": "0.26.0", "triton": "3.6.0", "tokens": {"8192": entry}}
    return {"name": name, "table": {"8192": {"BLOCK_SIZE_M": 128}, "triton_version": "3.6.0"}, "provenance": provenance}


def run(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], folder: str) -> tuple[dict[str, Any], list[str]]:
    shown: list[str] = []
    monkeypatch.setattr(LongTaskAction, "run", lambda *_arguments, **_more: dict(result))
    monkeypatch.setattr(Display, "display", lambda _self, text, *_more, **_named: shown.append(text))
    found, _display = conftest.run_action(
        vllm_moe_tables.ActionModule, {"tables_dir": folder}, {"inventory_hostname": "gpu-01"}
    )
    return found, shown


def test_a_table_is_written_with_where_it_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, shown = run(monkeypatch, {"tables": [table(kept=True)], "why": ""}, str(tmp_path / "tables"))
    assert found["changed"] is True
    assert found["written"] == [str(tmp_path / "tables" / NAME)]
    written = json.loads((tmp_path / "tables" / NAME).read_text(encoding="utf-8"))
    assert written["8192"] == {"BLOCK_SIZE_M": 128}
    beside = tmp_path / "tables" / NAME.replace(".json", ".provenance.json")
    assert json.loads(beside.read_text(encoding="utf-8"))["host"] == "gpu-01"
    assert any("+26.0%" in line for line in shown)


def test_one_in_which_nothing_is_faster_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, shown = run(monkeypatch, {"tables": [table(kept=False)], "why": ""}, str(tmp_path / "tables"))
    assert (found["changed"], found["written"]) == (False, [])
    assert not (tmp_path / "tables").exists()
    assert any("nothing is faster" in line for line in shown)


def test_a_host_cannot_write_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, _shown = run(monkeypatch, {"tables": [table(True, "../../x.json")], "why": ""}, str(tmp_path / "tables"))
    assert found["written"] == [str(tmp_path / "tables" / "x.json")]


def test_why_there_is_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _found, shown = run(monkeypatch, {"tables": [], "why": "the model has no experts"}, str(tmp_path))
    assert shown == ["[gpu-01] no table: the model has no experts"]


def test_a_failure_of_the_module_is_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, shown = run(monkeypatch, {"failed": True, "msg": "no"}, str(tmp_path))
    assert (found, shown) == ({"failed": True, "msg": "no"}, [])


def plan(version: str, precision: str = "fp8", device: str = "cuda", **replica: Any) -> Any:
    parts = {"config": {}, "environment": {}, **replica}
    return {"device": device, "precision": precision, "image": {"vllm_version": version}, "replicas": [parts]}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (plan("0.26.0", config={"moe-backend": "triton"}), ""),
        (plan("0.26.0"), "no moe-backend, so that vLLM chooses"),
        (plan("0.26.0", config={"moe-backend": "flashinfer_trtllm"}), "moe-backend: flashinfer_trtllm"),
        (plan("0.12.0"), ""),
        (plan("0.12.0", environment={"VLLM_USE_FLASHINFER_MOE_FP8": "1"}), "may use FlashInfer's kernels"),
        (plan("0.16.0"), "VLLM_USE_FLASHINFER_MOE_FP8: 0"),
        (plan("0.16.0", environment={"VLLM_USE_FLASHINFER_MOE_FP8": 0}), ""),
        (plan("0.26.0", "fp4", config={"moe-backend": "triton"}), "no tables for experts in fp4"),
        (plan("0.26.0", device="cpu"), "run on processors"),
    ],
)
def test_only_triton_has_kernels_to_tune(given: Any, why: str) -> None:
    assert why in why_not(given)
    assert bool(why) == bool(why_not(given))
