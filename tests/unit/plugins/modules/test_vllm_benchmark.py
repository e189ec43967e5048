# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module vllm_benchmark with a server on this machine and an engine whose containers are functions."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import baseline, benchmark, load_watch
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.target import Target
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_benchmark, vllm_completion
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.conftest import Engine, Left

DATA = Path(__file__).resolve().parents[2] / "data" / "results"
Run = Callable[..., "dict[str, Any]"]


def value_of(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def bench(**changes: Any) -> Callable[[list[str], dict[str, str]], tuple[int, str]]:
    """Return a program that leaves a recorded result with these changes, and exits with 0 as the real one does."""

    def does(command: list[str], folders: dict[str, str]) -> tuple[int, str]:
        prompts = int(value_of(command, "--num-prompts"))
        document = json.loads((DATA / "bench-triton-c8.json").read_text(encoding="utf-8"))
        tokens = prompts * int(value_of(command, "--random-output-len"))
        document.update({"completed": prompts, "failed": 0, "total_output_tokens": tokens, **changes})
        Path(folders["/results"], value_of(command, "--result-filename")).write_text(
            json.dumps(document), encoding="utf-8"
        )
        return 0, "done"

    return does


@pytest.fixture
def run(run_module: RunModule, tmp_path: Path, verified_server: Any, program: Any) -> Run:
    """Run the module against the server with these options."""

    def call(**options: Any) -> dict[str, Any]:
        common = {"url": verified_server.url, "image": "image:1", "work_dir": str(tmp_path), "concurrency": [2]}
        return run_module(vllm_benchmark.main, {**common, **options})

    return call


def test_a_curve_of_repeated_runs(run: Run, program: Any, tmp_path: Path) -> None:
    program.does = bench()
    result = run(concurrency=[8, 2], runs=2, hardware={"gpus": ["NVIDIA H200"]}, floors={"output_throughput": 460})
    assert not result["failed"]
    assert [(point["concurrency"], point["prompts"], len(point["runs"])) for point in result["points"]] == [
        (2, 10, 2),
        (8, 40, 2),
    ]
    assert result["points"][0]["summary"]["output_throughput_per_gpu"] == {"mean": 460.566, "std": 0.0}
    assert result["points"][0]["runs"][0]["preemptions"] == 0
    assert [gate["kind"] for gate in result["gates"]] == ["requests", "tokens", "requests", "tokens", "floor"]
    assert program.removed == len(program.created) == 4
    assert [path.name for path in tmp_path.iterdir()] == [".lock"], "nothing of a run stays"


def test_the_recipes_arguments(run: Run, program: Any) -> None:
    program.does = bench()
    run(concurrency=[512], goodput={"ttft": 2000, "tpot": 50}, model_source={"mount": "/m", "argument": "/models/m"})
    options = program.created[0]
    command = [*options["entrypoint"], *options["command"]]
    assert command[:3] == ["vllm", "bench", "serve"]
    expected = {
        "--dataset-name": "random",
        "--random-input-len": "1024",
        "--random-output-len": "1024",
        "--max-concurrency": "512",
        "--num-prompts": "2560",
        "--temperature": "0",
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--tokenizer": "/models/m",
        "--model": "the-model",
    }
    assert {name: value_of(command, name) for name in expected} == expected
    assert "--ignore-eos" in command
    assert command[command.index("--goodput") + 1 :][:2] == ["tpot:50", "ttft:2000"]
    assert "/m:/models/m:ro" in options["volumes"] and options["network_mode"] == "host"


def test_the_key_is_in_the_environment_only(run: Run, program: Any, verified_server: Any) -> None:
    program.does = bench()
    result = run(api_key="very-secret", hf_token="hub-secret")
    options = program.created[0]
    assert options["environment"]["OPENAI_API_KEY"] == "very-secret"
    assert options["environment"]["HF_TOKEN"] == "hub-secret"
    assert "secret" not in json.dumps(options["command"])
    result.pop("invocation", None)  # which ansible-core 2.21 leaves out
    assert "secret" not in json.dumps(result)
    assert "--env OPENAI_API_KEY" in result["command"]
    assert '--volume "$PWD":/results' in result["command"]
    assert set(verified_server.keys) == {"Bearer very-secret"}


@pytest.mark.parametrize(
    ("options", "changes", "says"),
    [
        ({"floors": {"output_throughput": 461}}, {}, "output_throughput = 460.566 at concurrency 2, floor 461"),
        ({"ceilings": {"p99_ttft_ms": 2000}}, {}, "p99_ttft_ms = 2423.1 at concurrency 2, ceiling 2000"),
    ],
)
def test_a_failed_gate_fails_the_task_and_returns_the_figures(
    run: Run, program: Any, options: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    program.does = bench(**changes)
    result = run(**options)
    assert result["failed"] and result["error"]["name"] == "gates-failed"
    assert says in result["msg"]
    assert result["points"][0]["summary"]["output_throughput"]["mean"] == 460.566


@pytest.mark.parametrize(
    ("options", "variable"),
    [
        ({"runs": 0}, "vllm_benchmark_runs: "),
        ({"floors": {"output_throughput": "2000 tok/s"}}, "vllm_benchmark_floors: "),
        ({"floors": {"output_throughput": [2000]}}, "vllm_benchmark_floors: "),
        ({"ceilings": {"p99_ttft_ms": "nan"}}, "vllm_benchmark_ceilings: "),
        ({"goodput": {"tftt": 2000}}, "vllm_benchmark_goodput: "),
        ({"goodput": {"ttft": 0}}, "vllm_benchmark_goodput: "),
        ({"concurrency": []}, "vllm_benchmark_concurrency: "),
        ({"concurrency": [8, 0]}, "vllm_benchmark_concurrency: "),
        ({"num_prompts": -1}, "vllm_benchmark_num_prompts: "),
        ({"tolerance": 5}, "vllm_benchmark_tolerance: "),
        ({"tolerance": "nan"}, "vllm_benchmark_tolerance: "),
        ({"standard_errors": "inf"}, "vllm_benchmark_standard_errors: "),
    ],
)
def test_what_cannot_be_judged_by_is_refused_before_anything_runs(
    run: Run, program: Any, options: dict[str, Any], variable: str
) -> None:
    program.does = bench()
    result = run(**options)
    assert (result["failed"], result["error"]["name"]) == (True, "invalid-wishes")
    assert variable in result["msg"]
    assert program.created == []


def test_limits_written_as_text_are_numbers(run: Run, program: Any) -> None:
    program.does = bench()
    result = run(floors={"output_throughput": "461"}, goodput={"ttft": "2000"})
    assert result["error"]["name"] == "gates-failed"
    assert value_of(program.created[0]["command"], "--goodput") == "ttft:2000"
    assert result["comparable"]["load"]["goodput"] == {"ttft": "2000"}, "keys of stored benchmarks stay as they are"


BEFORE = {"image_id": "sha256:before", "plan": {"config": {"max-num-seqs": 4}}}


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"follow_baseline": True, "baseline_for": BEFORE}, [3, 4]),
        ({"follow_baseline": False, "baseline_for": BEFORE}, [2]),
        ({"follow_baseline": True, "baseline_for": BEFORE, "save_baseline": True}, [2]),
        ({"follow_baseline": True, "baseline_for": {**BEFORE, "plan": {}}}, [2]),
        ({"follow_baseline": True}, [2]),
    ],
    ids=["as the baseline", "as given", "stored, compared with none", "another plan", "none of its kind"],
)
def test_it_measures_at_the_concurrencies_of_what_it_is_compared_with(
    run: Run, program: Any, options: dict[str, Any], measured: list[int]
) -> None:
    program.does = bench()
    key = baseline.key_of({**run()["comparable"], **BEFORE})
    result = run(stored_concurrency={key: [3, 4]}, **options)
    assert [point["concurrency"] for point in result["points"]] == measured
    told = [note for note in result["notes"] if "as the baseline was" in note]
    assert told == (
        ["Measured at concurrency 3, 4, as the baseline was, for vllm_benchmark_concurrency is empty."]
        if measured == [3, 4]
        else []
    )


def test_some_failed_requests_fail_the_task(run: Run, program: Any) -> None:
    def does(command: list[str], folders: dict[str, str]) -> tuple[int, str]:
        code, log = bench()(command, folders)
        (path,) = Path(folders["/results"]).glob("*.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "completed": 7, "failed": 3}))
        return code, log

    program.does = does
    result = run()
    assert result["failed"]
    assert "7 requests answered, 3 failed at concurrency 2" in result["msg"]


def test_answers_that_break_off_fail_the_task(run: Run, program: Any) -> None:
    """vLLM ends a stream that fails with data: {"error": …}, and vllm bench serve counts it as completed."""
    program.does = bench(total_output_tokens=10 * 1024 - 1)
    result = run()
    assert (result["failed"], result["error"]["name"]) == (True, "gates-failed")
    assert "10239 of 10240 output tokens arrived at concurrency 2: answers were cut short" in result["msg"]
    assert not run(extra_args=["--random-range-ratio", "0.5"])["failed"]


@pytest.mark.parametrize(
    ("extra", "tokens"),
    [
        ((), 1024),
        (("--request-rate", "2", "--output-json", "x"), 1024),
        (("--random-range-ratio=0.5",), None),
        (("--random_range_ratio", "0.5"), None),
        (("--dataset-n", "sharegpt"), None),
        (("--sharegpt-output-len", "7"), None),
    ],
)
def test_the_length_of_answers_is_known_unless_arguments_change_it(extra: tuple[str, ...], tokens: int | None) -> None:
    assert benchmark.tokens_of_answers(benchmark.BenchmarkLoad(2, 10, 1024, 1024, extra=extra)) == tokens


def test_a_server_that_answers_500(run: Run, program: Any, verified_server: Any) -> None:
    def does(command: list[str], folders: dict[str, str]) -> tuple[int, str]:
        code, log = bench()(command, folders)
        (path,) = Path(folders["/results"]).glob("*.json")
        path.write_text(json.dumps({"completed": 0, "failed": 10}))
        verified_server.status = 500
        return code, log

    program.does = does
    result = run()
    assert result["error"]["name"] == "requests-failed"
    assert "None of 10 requests was answered" in result["msg"] and "HTTP 500" in result["msg"]


def test_a_program_that_leaves_no_result_is_quoted(run: Run, program: Any) -> None:
    program.does = lambda _command, _folders: (1, "0%|   | 1/8\r 50%|  | 4/8\nValueError: no tokenizer")
    result = run()
    assert result["error"]["name"] == "benchmark-failed"
    assert result["error"]["evidence"] == " 50%|  | 4/8\nValueError: no tokenizer"


@pytest.mark.skipif(program_path("openssl") is None, reason="no openssl here; Molecule installs it")
def test_a_server_with_a_certificate_of_ones_own_authority(
    run: Run, program: Any, run_module: RunModule, verified_server: Any, tmp_path: Path
) -> None:
    program.does = bench()
    certificate = str(tmp_path / "site.pem")
    make_certificate(certificate, ["127.0.0.1"], 90)
    verified_server.use_tls(certificate)
    assert "is not trusted" in run()["msg"] and "vllm_url_ca" in run()["msg"]
    result = run(ca_path=certificate, work_dir=str(tmp_path / "work"))
    assert not result["failed"]
    assert result["points"][0]["runs"][0]["preemptions"] == 0, "its metrics were read, too"
    options = {"url": verified_server.url, "chat": True}
    assert not run_module(vllm_completion.main, {**options, "ca_path": certificate})["failed"]
    missing = run_module(vllm_completion.main, {**options, "ca_path": str(tmp_path / "none.pem")})
    assert missing["error"]["name"] == "server-unreachable" and "none.pem" in missing["msg"]

    def breaks(_command: list[str], _folders: dict[str, str]) -> tuple[int, str]:
        verified_server.status = 500
        return 1, ""

    program.does = breaks
    assert "HTTP 500" in run(ca_path=certificate, work_dir=str(tmp_path / "work"))["msg"], "not its certificate"


@pytest.mark.parametrize("url", ["http://10.0.0.7:8000", "https://inference.example.com", "https://a.example.com/m/v1"])
def test_no_proxy_stands_between_the_container_and_the_server(url: str) -> None:
    no_proxy = Target(name="vllm-0", url=url, model="m").job_environment()["NO_PROXY"].split(",")
    assert no_proxy[-1] == urlsplit(url).hostname


def test_a_load_that_does_not_fit_is_refused_before_anything_runs(run: Run, program: Any) -> None:
    result = run(max_model_len=2047)
    assert result["error"]["name"] == "benchmark-too-long"
    assert "1024 + 1024" in result["msg"] and not program.created


@pytest.mark.parametrize("image", ["other:1", ""])
def test_an_image_that_is_not_there(run: Run, image: str) -> None:
    result = run(image=image)
    assert result["error"]["name"] == "image-missing"
    assert "vllm_verify_image" in result["msg"]


def test_a_server_that_is_gone_ends_the_run(monkeypatch: pytest.MonkeyPatch, verified_server: Any) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown: list[int] = []
    watch = load_watch.LoadWatch(Target(name="vllm-0", url=verified_server.url, model="m"), shown.append)
    verified_server.metrics += 'vllm:request_success_total{finished_reason="length"} 5\n'
    now[0] += 3
    watch.look()
    assert shown == [5]
    verified_server.close()
    now[0] += 3
    watch.look()
    now[0] += load_watch.GONE_S + 1
    with pytest.raises(GpufleetError) as raised:
        watch.look()
    assert raised.value.name == "server-gone" and raised.value.evidence


def test_preemptions_and_cache_use_are_read_from_the_metrics(
    verified_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = load_watch.LoadWatch(Target(name="vllm-0", url=verified_server.url, model="m"), lambda _done: None)
    for usage, preemptions in ((0.9, 100), (0.4, 352)):
        verified_server.metrics = f"vllm:kv_cache_usage_perc {usage}\nvllm:num_preemptions_total {preemptions}\n"
        now[0] += 3
        watch.look()
    assert watch.figures() == {"kv_cache_usage_max": 0.9, "preemptions": 349.0}


# What killed runs leave, and what is not theirs


def test_containers_that_killed_runs_left_go_before_anything_is_measured(
    run: Run, program: Any, tmp_path: Path
) -> None:
    here = {jobs.LABEL: "vllm-3-accuracy", jobs.LABEL_WORK_DIR: str(tmp_path)}
    Left(program, "vllm-3-accuracy", here)
    Left(program, "other-0-benchmark", {**here, jobs.LABEL_WORK_DIR: "/srv/other"})
    Left(program, "vllm-benchmark", {jobs.LABEL: "vllm-benchmark"})  # of an earlier release
    Left(program, "vllm-0", {})

    def does(command: list[str], folders: dict[str, str]) -> tuple[int, str]:
        assert sorted(program.there) == ["other-0-benchmark", "vllm-0"]
        return bench()(command, folders)

    program.does = does
    assert not run()["failed"]
    assert program.created[0]["labels"] == {jobs.LABEL: "vllm-benchmark", jobs.LABEL_WORK_DIR: str(tmp_path)}


def test_a_container_of_somebody_else_is_left_alone(run: Run, program: Any) -> None:
    Left(program, "vllm-benchmark", {})
    result = run()
    assert (result["failed"], result["error"]["name"]) == (True, "name-taken")
    assert list(program.there) == ["vllm-benchmark"] and program.created == []


def test_jobs_of_a_deployment_go_with_it(program: Any) -> None:
    ours = ("vllm-0-benchmark", "vllm-12-accuracy", "vllm-weights")
    for name in (*ours, "vllm-small-0-benchmark", "vllm-0"):
        Left(program, name, {jobs.LABEL: name} if name != "vllm-0" else {})
    Left(program, "gpufleet-lm-eval-install", {jobs.LABEL: "x", jobs.LABEL_WORK_DIR: "/srv/verify"})
    engine: Any = Engine(program)
    assert jobs.remove_left(engine, prefix="vllm", work_dir="/srv/verify/") == [*ours, "gpufleet-lm-eval-install"]
    assert sorted(program.there) == ["vllm-0", "vllm-small-0-benchmark"]


def test_a_run_that_is_ended_from_outside_removes_its_container(run: Run, program: Any, tmp_path: Path) -> None:
    unheard: list[int] = []

    def hear(number: int, _frame: Any) -> None:
        unheard.append(number)

    before = signal.signal(signal.SIGTERM, hear)

    def does(_command: list[str], _folders: dict[str, str]) -> tuple[int, str]:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0, ""

    program.does = does
    result = run()
    after = signal.signal(signal.SIGTERM, before)
    assert (result["failed"], result["error"]["name"]) == (True, "interrupted")
    assert program.removed == 1 and after is hear and unheard == []
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_notes_on_preemptions_and_short_runs() -> None:
    point = {"concurrency": 512, "prompts": 512, "summary": {"preemptions": {"mean": 349.0, "std": 0.0}}}
    short, preempted = benchmark.notes(point)
    assert "at least 2560" in short
    assert "349 preemptions" in preempted and "vllm_max_num_seqs" in preempted
