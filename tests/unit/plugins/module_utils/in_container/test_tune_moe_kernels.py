# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that tunes kernels, run as in a container, on stand-ins for PyTorch, Triton and vLLM's experts.

It was not run on a GPU: what is shown here is the search, what is kept and what is written, not that a release of vLLM
has these names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import tune_moe_kernels as program
from ansible_collections.gpufleet.vllm.tests.fakes import moe_kernels

REQUEST = {
    "model": "some/model",
    "precision": "fp8",
    "sizes": [1, 2],
    "tokens": [1, 16, 64],
    "workers": 2,
    "tolerance": 0.02,
    "margin": 0.02,
    "rounds": 3,
}
SITE = """
import importlib.util
spec = importlib.util.spec_from_file_location("moe_kernels", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.install({config!r}, gpu={gpu!r})
"""
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Answer]:
    """Run the program with a request."""

    def run(config: dict[str, Any] | None = None, *, gpu: bool = True, **more: Any) -> Answer:
        folder = tmp_path_factory.mktemp("tune")
        site = SITE.format(path=str(Path(moe_kernels.__file__)), config=config, gpu=gpu)
        (folder / "sitecustomize.py").write_text(site, encoding="utf-8")
        (folder / "request.json").write_text(json.dumps({**REQUEST, **more}), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(folder), "STAND_IN_RUNS": str(folder / "runs")}
        ended = subprocess.run(
            [sys.executable, program.__file__, str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        answer: Answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        runs = folder / "runs"
        return {**answer, "said": ended.stdout, "runs": runs.read_text(encoding="utf-8") if runs.exists() else ""}

    return run


@pytest.fixture(scope="module")
def answer(ask: Callable[..., Answer]) -> Answer:
    return ask()


def test_there_is_a_table_for_each_size_under_the_name_that_vllm_looks_for(answer: Answer) -> None:
    assert [table["name"] for table in answer["tables"]] == [
        "E=4,N=64,device_name=Stand_In,dtype=fp8_w8a8.json",
        "E=4,N=32,device_name=Stand_In,dtype=fp8_w8a8.json",
    ]
    assert set(answer["tables"][0]["table"]) == {"1", "16", "64", "triton_version"}


def test_the_fastest_whose_numbers_agree_is_kept(answer: Answer) -> None:
    table, tokens = answer["tables"][0]["table"], answer["tables"][0]["provenance"]["tokens"]
    best = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
    assert table["1"] == {**best, "num_warps": 4, "num_stages": 3}
    assert tokens["1"]["gain"] == pytest.approx(0.25)
    assert tokens["1"]["before_us"] == pytest.approx(51.0)
    assert tokens["1"]["kept"]


def test_one_that_is_faster_and_computes_something_else_is_rejected(answer: Answer) -> None:
    for tokens in answer["tables"][0]["provenance"]["tokens"].values():
        assert tokens["rejected"] == 1
        assert tokens["difference"] <= REQUEST["tolerance"]


def test_where_nothing_is_worth_it_the_table_has_what_vllm_takes_by_itself(ask: Callable[..., Answer]) -> None:
    found = ask(margin=0.5, sizes=[1], tokens=[16])["tables"][0]
    own = {name: value for name, value in moe_kernels.OWN.items() if name != "SPLIT_K"}
    assert found["table"]["16"] == own
    entry = found["provenance"]["tokens"]["16"]
    assert (entry["kept"], entry["gain"]) == (False, 0.0)
    assert entry["before_us"] == entry["after_us"]


def test_the_tilings_are_compiled_by_several_processes_before(answer: Answer) -> None:
    processes = [line.split()[0] for line in answer["runs"].splitlines()]
    assert len(set(processes)) == 3
    measuring = processes[-1]
    assert measuring not in processes[: processes.index(measuring)]
    assert set(processes[: processes.index(measuring)]) == set(processes) - {measuring}


def test_all_that_is_measured_was_compiled_before_with_the_same_sizes(answer: Answer) -> None:
    runs = [line.split(" ", 1) for line in answer["runs"].splitlines()]
    measuring = runs[-1][0]
    own = str(moe_kernels.key_of(moe_kernels.OWN))
    measured = {what for process, what in runs if process == measuring and not what.endswith(own)}
    assert len(measured) > 100
    assert measured <= {what for process, what in runs if process != measuring}


def test_no_more_processes_compile_than_the_memory_of_the_gpu_holds() -> None:
    request = {"workers": 16, "precision": "fp8"}
    scout = {"experts": 16, "intermediate": 8192, "hidden": 5120}  # 1.9 GiB of experts
    deepseek = {"experts": 256, "intermediate": 2048, "hidden": 7168}  # 10.5 GiB
    assert program.workers_within(130 << 30, request, scout) == 16
    assert program.workers_within(130 << 30, request, deepseek) == 8
    assert program.workers_within(130 << 30, {**request, "precision": "bf16"}, deepseek) == 5
    assert program.workers_within(8 << 30, request, deepseek) == 1


def test_it_says_where_a_table_comes_from(answer: Answer) -> None:
    provenance = answer["tables"][1]["provenance"]
    assert provenance["cards"] == ["Stand-In"]
    assert (provenance["vllm"], provenance["triton"]) == ("0.26.0", "3.6.0")
    assert provenance["tensor_parallel_size"] == 2
    assert provenance["shape"]["intermediate"] == 32
    assert provenance["tokens"]["1"]["tried"] < provenance["tilings"]


def test_it_tells_how_far_it_is(answer: Answer) -> None:
    assert "tilings in 2 processes" in answer["said"]
    assert "dtype=fp8_w8a8.json: 3 of 3, 64 tokens:" in answer["said"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"config": {"hidden_size": 32, "intermediate_size": 64}}, "the model has no experts"),
        ({"config": {"num_experts": 8, "hidden_size": 32}}, "does not tell chosen, intermediate"),
        ({"gpu": False}, "the container sees no GPU"),
        ({"sizes": [3]}, "64 is no multiple of the tensor parallelism 3"),
    ],
)
def test_where_there_is_nothing_to_tune_it_says_so(ask: Callable[..., Answer], given: dict[str, Any], why: str) -> None:
    found = ask(**given)
    assert found["tables"] == []
    assert why in found["why"]


def test_shapes_are_read_from_the_words_of_many_models() -> None:
    scout = SimpleNamespace(
        num_local_experts=16,
        num_experts_per_tok=1,
        intermediate_size=8192,
        intermediate_size_mlp=16384,
        hidden_size=5120,
    )
    whole = SimpleNamespace(get_text_config=lambda: scout, quantization_config={"quant_method": "modelopt"})
    wanted = {"experts": 16, "chosen": 1, "intermediate": 8192, "hidden": 5120, "block_shape": None}
    assert program.shape_of(whole) == wanted
    deepseek = SimpleNamespace(
        n_routed_experts=256,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        intermediate_size=18432,
        hidden_size=7168,
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    assert program.shape_of(deepseek) == {
        "experts": 256,
        "chosen": 8,
        "intermediate": 2048,
        "hidden": 7168,
        "block_shape": [128, 128],
    }


def test_tiles_of_block_scales_are_whole_blocks() -> None:
    found = list(program.tilings(1, [128, 128]))
    assert found
    assert all(tiling["BLOCK_SIZE_N"] % 128 == 0 and tiling["BLOCK_SIZE_K"] % 128 == 0 for tiling in found)


def test_there_are_as_many_tilings_as_were_tuned_on_an_h200_in_minutes() -> None:
    assert len(list(program.tilings(1))) == 352


def test_every_number_of_tokens_has_tilings() -> None:
    candidates = list(program.tilings(1))
    for tokens in (1, 8, 64, 512, 8192):
        assert any(program.fits(tiling, tokens) for tiling in candidates)


def test_a_layer_of_block_scales_runs(ask: Callable[..., Answer]) -> None:
    config = {**moe_kernels.CONFIG, "quantization_config": {"weight_block_size": [128, 128]}}
    found = ask(config, sizes=[1], tokens=[16])["tables"][0]
    assert found["name"] == "E=4,N=64,device_name=Stand_In,dtype=fp8_w8a8,block_shape=[128,128].json"


def test_bf16_has_a_table_of_its_own(ask: Callable[..., Answer]) -> None:
    found = ask(precision="bf16", sizes=[1], tokens=[16])["tables"][0]
    assert found["name"] == "E=4,N=64,device_name=Stand_In.json"
