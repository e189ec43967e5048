# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of the messages of vLLM's parser; the messages are those of vLLM 0.32, as it printed them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import Change
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import hub_download, look_at_gpus, parse_config
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import config_check


@pytest.mark.parametrize(
    ("text", "kind", "keys", "remedy"),
    [
        (
            "unrecognized arguments: --no-such-flag 1 --swap-space 4",
            "unknown",
            ["no-such-flag", "swap-space"],
            "Take no-such-flag, swap-space out of vllm_extra_config",
        ),
        (
            "argument --kv-cache-dtype: invalid choice: 'fp99' (choose from 'auto', 'fp8')",
            "value",
            ["kv-cache-dtype"],
            "Correct vllm_kv_cache_dtype.",
        ),
        (
            "argument --tensor-parallel-size/-tp: invalid int value: 'x'",
            "value",
            ["tensor-parallel-size"],
            "Correct vllm_tensor_parallel_size.",
        ),
        (
            "argument -q/--quantization: expected one argument",
            "value",
            ["quantization"],
            "Correct quantization in vllm_",
        ),
        (
            "argument --compilation-config/-cc: 1 validation error for CompilationConfig nope Unexpected keyword",
            "value",
            ["compilation-config"],
            "Correct compilation-config in vllm_extra_config.",
        ),
        (
            "ambiguous option: --max-num could match --max-num-batched-tokens, --max-num-seqs",
            "unknown",
            ["max-num"],
            "Take max-num out of vllm_extra_config",
        ),
        (
            "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser",
            "other",
            ["enable-auto-tool-choice", "tool-call-parser"],
            "Correct enable-auto-tool-choice, tool-call-parser in vllm_extra_config.",
        ),
        ("ParserError: while parsing a flow sequence", "other", [], "look at vllm_extra_config first"),
    ],
)
def test_a_refusal_names_keys_and_variables(text: str, kind: str, keys: list[str], remedy: str) -> None:
    assert config_check.options_of(text) == (kind, keys)
    error = config_check.refusal({"vllm-0": text}, "vllm/vllm-openai:deploy")
    assert (error.name, error.evidence, error.details["options"]) == ("config-refused", text, keys)
    assert remedy in error.remedy
    assert "vllm/vllm-openai:deploy" in error.message


def test_replicas_refused_for_the_same_reason_are_told_together() -> None:
    refused = {"vllm-0": "unrecognized arguments: --a 1", "vllm-1": "other", "vllm-2": "unrecognized arguments: --a 1"}
    error = config_check.refusal(refused, "image:1")
    assert "of vllm-0, vllm-2: it has no option a." in error.message
    assert error.details["refused"] == refused


def test_the_usage_before_an_error_is_left_out() -> None:
    said = "usage: vllm serve [model_tag] [options]\n\nvllm serve: error: argument --port: invalid\nint value: 'x'\n"
    assert config_check.error_text(said) == "argument --port: invalid int value: 'x'"
    assert config_check.error_text("ValueError: no\nmore") == "ValueError: no more"


def test_mounts_are_read_only_and_make_nothing(tmp_path: Path) -> None:
    volumes = [
        f"{tmp_path}:/models/x:ro",
        f"{tmp_path}:/opt/vllm",
        f"{tmp_path}:/z:rw,z",
        f"{tmp_path}/missing:/missing",
        f"{tmp_path}:/root/.cache/huggingface",
        f"{tmp_path}:/root/.cache/vllm",
        "named:/data",
    ]
    own = [f"{tmp_path}:/models/x:ro", f"{tmp_path}:/opt/vllm:ro", f"{tmp_path}:/z:ro,z"]
    assert image_python.mounts(volumes, dry=True) == own
    assert image_python.mounts(volumes, dry=False) == [*own, "named:/data:ro"]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("config.max-num-seqs", True),
        ("environment.VLLM_USE_V1", True),
        ("image_id", True),
        ("volume /models/x", True),
        ("spec", True),
        ("secret VLLM_API_KEY", False),
        ("log_max_size", False),
        ("publish", False),
    ],
)
def test_which_changes_are_worth_a_check(field: str, expected: bool) -> None:
    assert config_check.matters([Change(field, 1, 2)]) is expected


def test_programs_of_an_image_mark_their_answers_alike() -> None:
    programs = (parse_config, look_at_gpus, hub_download)
    assert {program.ANSWER_MARK for program in programs} == {image_python.ANSWER_MARK}


def test_the_remedy_for_a_chat_template_that_the_image_does_not_have() -> None:
    said = (
        "ValueError: The supplied chat template string (/vllm-workspace/examples/x.jinja) appears path-like, but"
        " doesn't exist! Tried: /vllm-workspace/examples/x.jinja"
    )
    error = config_check.refusal({"vllm-0": said}, "i:1")
    assert error.details["options"] == ["chat-template"]
    assert "vllm_tool_calling" in error.remedy


@pytest.mark.parametrize(
    ("text", "cubin", "compiler", "refused"),
    [
        ("attention-backend: FLASHINFER\n", "1", None, True),
        ('attention-backend: "FLASHINFER"\n', "1", None, True),
        ("attention-backend: FLASHINFER\n", "1", "bin", False),
        ("attention-backend: FLASHINFER\n", "1", "path", False),
        ("attention-backend: FLASHINFER\n", None, None, False),
        ("attention-backend: TRITON_ATTN\n", "1", None, False),
        ("max-num-seqs: 8\n", "1", None, False),
    ],
)
def test_an_image_without_the_compiler_that_flashinfer_needs_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cubin: str | None, compiler: str | None, refused: bool
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("VLLM_HAS_FLASHINFER_CUBIN", raising=False)
    if cubin:
        monkeypatch.setenv("VLLM_HAS_FLASHINFER_CUBIN", cubin)
    if compiler:
        nvcc = tmp_path / compiler / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text("#!/bin/sh\n", encoding="utf-8")
        nvcc.chmod(0o755)
    result = parse_config.missing_compiler(text)
    assert bool(result) is refused
    if refused:
        error = config_check.refusal({"vllm-0": result["refused"]}, "i:1")
        assert str(tmp_path / "bin") in error.message + (error.evidence or "")
        assert "vllm_levers_off: [attention-backend]" in error.remedy
