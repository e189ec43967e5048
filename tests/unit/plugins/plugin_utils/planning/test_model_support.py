# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Architectures that a vLLM implements, drops or does not know yet, and what the plan says of each.

The spans are those of the registries in the releases' wheels (tools/extract_architectures.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import model_classes, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import look_ahead, planner, wishes
from ansible_collections.gpufleet.vllm.tests.fakes.models import config_of

TABLE: dict[str, Any] = json.loads(Path(model_classes.__file__).with_name("architectures.json").read_text())
MINIMAX_M1 = {
    **config_of("MiniMaxAI/MiniMax-M1"),
    "architectures": ["MiniMaxM1ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_minimax_m1.MiniMaxM1Config"},
}
DOTS = {**config_of("rednote-hilab/dots.llm1.inst"), "architectures": ["Dots1ForCausalLM"]}
KIMI_K3 = {**config_of("moonshotai/Kimi-K3"), "architectures": ["KimiK3ForConditionalGeneration"]}
LLAMA = {**config_of("meta-llama/Meta-Llama-3.1-8B"), "architectures": ["LlamaForCausalLM"]}
INTERN = {
    **config_of("OpenGVLab/InternVL3_5-30B-A3B"),
    "architectures": ["InternVLChatModel"],
    "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
}
TRUST = {"extra_config": {"trust-remote-code": True}}


def plan(config: dict[str, Any], version: str, **wished: Any) -> Any:
    given = {
        "model": "some/model",
        "gpus": [{"name": "NVIDIA B300", "count": 16}],
        "image_tag": f"v{version}",
        **wished,
    }
    return planner.plan({"model_config": config}, wishes.read({f"vllm_{name}": each for name, each in given.items()}))


def warnings(document: Any) -> str:
    return " ".join(document["warnings"])


@pytest.mark.parametrize(
    ("config", "version", "parts"),
    [
        (MINIMAX_M1, "0.26.0", ["vLLM 0.26.0 has no implementation of MiniMaxM1ForCausalLM", "0.23.0 or older"]),
        (KIMI_K3, "0.26.0", ["has no implementation of KimiK3ForConditionalGeneration", "0.28.0 or newer"]),
        (
            {**LLAMA, "model_type": "of_tomorrow", "architectures": ["OfTomorrowForCausalLM"]},
            "0.33.0",
            ["has no implementation of OfTomorrowForCausalLM", "newer vLLM", "trust-remote-code"],
        ),
    ],
)
def test_what_is_surely_not_served_is_refused(config: dict[str, Any], version: str, parts: list[str]) -> None:
    with pytest.raises(GpufleetError) as caught:
        plan(config, version)
    assert caught.value.name == "architecture-not-supported"
    assert [part for part in parts if part not in caught.value.as_text()] == []


@pytest.mark.parametrize(
    ("config", "version", "wished", "said"),
    [
        (DOTS, "0.26.0", {}, "it tries that of Transformers"),
        (MINIMAX_M1, "0.26.0", TRUST, "it tries the repository's own code"),
        (INTERN, "0.26.0", {}, "trust-remote-code: true"),
    ],
)
def test_what_may_not_be_served_is_warned_of(
    config: dict[str, Any], version: str, wished: dict[str, Any], said: str
) -> None:
    assert said in warnings(plan(config, version, **wished))


@pytest.mark.parametrize(
    ("config", "version", "wished"),
    [
        (LLAMA, "0.12.0", {}),
        (DOTS, "0.23.0", {}),
        (MINIMAX_M1, "0.23.0", TRUST),
        (KIMI_K3, "0.28.0", {}),
        # Between two releases of which one has it, and newer than all that were read.
        (KIMI_K3, "0.27.0", {}),
        (MINIMAX_M1, "0.40.0", TRUST),
        (INTERN, "0.26.0", TRUST),
        (MINIMAX_M1, "0.26.0", {"extra_config": {"hf-overrides": {"architectures": ["LlamaForCausalLM"]}}}),
        # An embedding's class is made of the language model's.
        ({**LLAMA, "architectures": ["LlamaModel"]}, "0.26.0", {}),
        ({**LLAMA, "architectures": None}, "0.26.0", {}),
        ({**LLAMA, "architectures": "LlamaForCausalLM"}, "0.26.0", {}),
    ],
)
def test_all_others_are_planned_without_a_word(config: dict[str, Any], version: str, wished: dict[str, Any]) -> None:
    said = warnings(plan(config, version, **wished))
    assert "implementation" not in said
    assert "trust-remote-code: true" not in said


def test_processors_are_asked_the_same() -> None:
    with pytest.raises(GpufleetError) as caught:
        plan(MINIMAX_M1, "0.26.0", device="cpu", gpus=[], image_tag="0.26.0")
    assert caught.value.name == "architecture-not-supported"


def test_preflight_looks_on_behind_it() -> None:
    wished = {"vllm_model": "some/model", "vllm_gpus": [{"name": "NVIDIA H200", "count": 8}]}
    found = look_ahead.look_ahead({"model_config": MINIMAX_M1}, wishes.read(wished))
    assert found.names == {"architecture-not-supported"}
    assert found.plan is not None
    assert found.own_cards


def test_the_table_has_the_oldest_and_the_newest_release() -> None:
    known = [versions.parse(release) for release in TABLE["releases"]]
    assert known == sorted(version for version in known if version)
    assert (known[0], known[-1]) == (versions.OLDEST, versions.NEWEST)
    assert sorted(TABLE["wheels"]) == sorted(TABLE["releases"])


def test_what_comes_and_goes() -> None:
    assert model_classes.implements("LlamaForCausalLM", (0, 12, 0)) is True
    assert model_classes.implements("ArcticForCausalLM", (0, 28, 0)) is True
    assert model_classes.implements("ArcticForCausalLM", (0, 29, 0)) is None
    assert model_classes.implements("ArcticForCausalLM", (0, 30, 0)) is False
    assert model_classes.implements("ArcticForCausalLM", (0, 33, 1)) is False
    assert model_classes.implements("ArcticForCausalLM", (0, 34, 0)) is None
    assert model_classes.where_to_find("ArcticForCausalLM", (0, 30, 0)) == "0.28.0 or older"
    assert model_classes.where_to_find("Gemma4ForCausalLM", (0, 12, 0)) == "0.19.1 or newer"
    assert model_classes.where_to_find("MllamaForConditionalGeneration", (0, 12, 0)) == ""
    assert model_classes.reads("chatglm", (0, 12, 0)) is True
    assert model_classes.reads("internvl_chat", (0, 26, 0)) is False
