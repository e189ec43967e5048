# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a run: what it says, to programs, in the page and on the terminal, and what it must not say."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action import vllm_report
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import benchmark, gates, results
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import document as report_document
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import plots
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

DATA = Path(__file__).resolve().parents[2] / "data" / "results"
TARGET = {"__verify_target": {"name": "vllm-0"}}
PLAN = {
    "schema_version": 1,
    "device": "cuda",
    "hardware": "1 x NVIDIA H200",
    "model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8",
    "precision": "fp8",
    "profile": "recipe",
    "image": {"vllm_version": "0.26.0"},
    "replicas": [
        {
            "name": "vllm-0",
            "gpus": [0],
            "gpu_uuids": ["GPU-1"],
            "tensor_parallel_size": 1,
            "environment": {"AWS_SECRET_ACCESS_KEY": "plan-secret"},
        }
    ],
    "decisions": [{"field": "kv_cache_dtype", "value": "fp8", "reason": "the recipe's <choice>"}],
    "warnings": [],
}


def measured(factor: float = 1.0) -> dict[str, Any]:
    """Return a result of vllm_benchmark, of recorded runs whose throughput is scaled."""
    points = []
    for concurrency, prompts in ((8, 16), (128, 256), (512, 512)):
        document = json.loads((DATA / f"bench-triton-c{concurrency}.json").read_text(encoding="utf-8"))
        run = results.benchmark_figures(document, prompts=prompts, gpus=1)
        run["output_throughput"] *= factor
        run["output_throughput_per_gpu"] *= factor
        run["median_e2el_ms"] = run["median_ttft_ms"] + 1023 * run["median_tpot_ms"]
        points.append(
            {"concurrency": concurrency, "prompts": prompts, "runs": [run], "summary": results.summarise([run])}
        )
    load = {"input_len": 1024, "output_len": 1024, "goodput": {}}
    return {
        **TARGET,
        "model": "m",
        "points": points,
        "gates": benchmark.judge(points, {}, {}),
        "notes": [],
        "comparable": {"hardware": {"gpus": ["NVIDIA H200"], "driver": "580"}, "load": load},
        "command": "docker run",
        "invocation": {"module_args": {"api_key": "an-api-key"}},
    }


def judged(value: float = 0.93) -> dict[str, Any]:
    """Return a result of vllm_accuracy with a floor of 0.92."""
    metric = "exact_match,flexible-extract"
    scores = [{"task": "gsm8k", "metric": metric, "value": value, "stderr": 0.007, "samples": 1319}]
    found = gates.accuracy_gates(scores, {"gsm8k": {metric: 0.92}}, 2)
    result: dict[str, Any] = {**TARGET, "scores": scores, "gates": found, "command": "docker run"}
    if gates.failed(found):
        error = gates.failure(gates.failed(found))
        result.update(failed=True, msg=error.as_text(), error=error.as_result())
    return result


def answered() -> dict[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    return {**TARGET, "text": " a <vibrant> city", "usage": usage, "model": "m", "latency_s": 0.412, "curl": "curl x"}


def host(factor: float = 1.0, accuracy: float = 0.93) -> dict[str, Any]:
    start = [{"name": "weights", "seconds": 10.2}, {"name": "compile", "seconds": 52.0}]
    return {
        "plan": PLAN,
        "servers": [{"name": "vllm-0", "start": start, "docker_run": "docker run --detach"}],
        "gpus": ["NVIDIA H200"],
        "driver": "580",
        "stages": {"basic": [answered()], "accuracy": [judged(accuracy)], "performance": [measured(factor)]},
    }


def built(**hosts: dict[str, Any]) -> dict[str, Any]:
    return report_document.build(hosts, "2026-11-22 15:00:00 UTC", 0.1)


def test_a_run_that_passed() -> None:
    document = built(gpu1=host(), gpu2=host())
    assert document["verdict"] == "passed" and document["failures"] == []
    assert [(kind["hosts"], kind["count"]) for kind in document["plans"]] == [("gpu[1:2]", 2)]
    lines = report_document.summary_lines(document, "Report: /r/report.html")
    assert lines[0] == "Verification passed on all 2 hosts"
    assert lines[-1] == "Report: /r/report.html"
    assert any("gsm8k 0.930 ± 0.007" in line and "2715 tok/s/GPU" in line and "at 512" in line for line in lines)


def test_failures_name_host_server_and_stage_with_cause_and_remedy() -> None:
    refused = {
        "failed": True,
        "msg": "x",
        "error": {"name": "timeout", "message": "m", "remedy": "r", "evidence": "a\nb"},
    }
    stages = {"basic": [{**TARGET, **refused}], "accuracy": [], "performance": []}
    document = built(gpu1=host(accuracy=0.88), gpu2={}, gpu3={"error": "no engine"}, gpu4={**host(), "stages": stages})
    found = [(entry["host"], entry["stage"], entry["name"]) for entry in document["failures"]]
    assert found == [
        ("gpu1", "accuracy", "gates-failed"),
        ("gpu2", "", "failed"),
        ("gpu3", "", "failed"),
        ("gpu4", "basic", "timeout"),
    ]
    lines = report_document.summary_lines(document, "/r")
    assert lines[0] == "Verification FAILED on 4 of 4 hosts"
    assert "  gpu4 vllm-0 basic: m" in lines and "    evidence: b" in lines and "    remedy: r" in lines
    page = report_document.html(document, {}, [])
    assert page.index("no engine") < page.index("<h2>Servers</h2>"), "failures come first"


def test_a_stage_that_ended_before_its_task_failed() -> None:
    why = "Copy the tasks: Could not find or access '/srv/tasks/'"
    lost = {**host(), "stages": {"basic": [answered()], "accuracy": []}, "failed": {"accuracy": why}}
    document = built(gpu1=lost, gpu2=host())
    assert document["verdict"] == "failed"
    assert [(entry["host"], entry["stage"], entry["message"]) for entry in document["failures"]] == [
        ("gpu1", "accuracy", why)
    ]
    lines = report_document.summary_lines(document, "/r")
    assert f"  gpu1 accuracy: {why}" in lines and any("gpu1" in line and "FAILED" in line for line in lines)
    assert "Copy the tasks" in report_document.html(document, {}, [])
    told = {**host(accuracy=0.8), "failed": {"accuracy": "Judge the scores: ['…']"}}
    assert len(built(gpu1=told)["failures"]) == 1, "the task's own result says it better"


def test_scores_without_a_floor_are_told() -> None:
    found = host(accuracy=0.01)
    found["stages"]["accuracy"] = [{**TARGET, "scores": judged(0.01)["scores"], "gates": [], "command": "docker run"}]
    document = built(gpu1=found)
    assert any("gsm8k 0.010 ± 0.007, no floor" in line for line in report_document.summary_lines(document, "/r"))
    assert "These scores were not judged: vllm_accuracy_floors has no floor" in report_document.html(document, {}, [])
    assert "not judged" not in report_document.html(built(gpu1=host()), {}, [])


def test_the_page_says_why_nothing_was_compared() -> None:
    def page(**baseline: Any) -> str:
        found, warnings = host(), baseline.pop("warnings", [])
        told = {"key": "0c37", "found": False, "saved": "", "date": "", "servers": 0, "why": "", **baseline}
        found["stages"]["performance"][0].update(baseline=told, warnings=warnings)
        return report_document.html(built(gpu1=found), {}, [])

    why = "nothing was compared with the baseline: it has concurrency 8, measured was 1"
    other = page(why=why, warnings=[why])
    assert f'<p class="note">Baseline <code>0c37</code>: {why}.' in other and "none is stored" not in other
    assert "of 2026-11-22, the median of 8 servers." in page(found=True, date="2026-11-22", servers=8)


def test_a_model_without_a_chat_template_is_told() -> None:
    found = host()
    found["stages"]["basic"][0]["no_chat"] = "no chat template"
    document = built(gpu1=found)
    assert any("ok, 0.4 s, no chat template" in line for line in report_document.summary_lines(document, ""))
    assert "not asked by a chat message: no chat template" in report_document.html(document, {}, [])


def test_a_run_without_a_stage_verified_nothing() -> None:
    """As with a mistyped tag; a host that also failed does not make it a verification that failed."""
    nothing = {**host(), "stages": {"gpu": [], "basic": [], "accuracy": [], "performance": []}}
    document = built(gpu1=nothing, gpu2=nothing, gpu3={})
    assert document["verdict"] == "nothing verified"
    assert report_document.summary_lines(document, "")[0] == "Verification: NOTHING was verified on 3 hosts"
    assert "asked for: baisc." in report_document.nothing_verified(document, ["baisc"])
    assert built(gpu1={}, gpu2={"error": "no engine"})["verdict"] == "failed", "no host came so far"
    mixed = built(cpu1=nothing, gpu1=host(), gpu2=host())
    assert mixed["verdict"] == "passed" and report_document.nothing_verified(mixed, ["gpu"]) == ""
    assert (
        report_document.summary_lines(mixed, "")[0]
        == "Verification passed on 2 of 3 hosts; nothing was verified on cpu1"
    )


def test_stages_that_were_skipped_did_not_pass() -> None:
    """In check mode lm_eval and the benchmark are not run."""
    skipped = {**TARGET, "skipped": True, "msg": "remote module does not support check mode"}
    checked = {**host(), "stages": {"basic": [answered()], "accuracy": [skipped], "performance": [skipped]}}
    lines = report_document.summary_lines(built(gpu1=checked), "")
    assert lines[0] == "Verification passed (not run: accuracy, performance)"
    assert lines[3].split()[-4:] == ["not", "run", "not", "run"]
    alone = built(gpu1={**host(), "stages": {"accuracy": [skipped]}})
    assert alone["verdict"] == "nothing verified"
    assert "Check mode does not run accuracy." in report_document.nothing_verified(alone, ["accuracy"])


def test_gpus_have_a_column_where_servers_have_gpus() -> None:
    wrong = {"name": "wrong-gpus", "message": "vllm-0 sees GPU-2", "remedy": "", "evidence": ""}
    seen = {"seen": {"nvml": ["GPU-1"]}, "given": ["GPU-1"], "gpu_access": "devices"}
    good, bad = ({**TARGET, **seen}, {**TARGET, "failed": True, "msg": "m", "error": wrong})
    alone = built(gpu1={**host(), "stages": {"gpu": [good]}}, gpu2={**host(), "stages": {"gpu": [good]}})
    assert alone["verdict"] == "passed"
    assert report_document.summary_lines(alone, "")[3].split() == ["gpu1", "vllm-0", "ok", "-", "-", "-"]
    failed = host()
    failed["stages"]["gpu"] = [bad]
    document = built(gpu1=failed)
    assert [(entry["stage"], entry["name"]) for entry in document["failures"]] == [("gpu", "wrong-gpus")]
    assert "<th>Gpu</th>" in report_document.html(document, {}, []) and "<th>Gpu</th>" not in report_document.html(
        built(a=host()), {}, []
    )


def test_a_slow_host_among_equals_is_named() -> None:
    document = built(a=host(), b=host(1.01), c=host(0.99), d=host(0.7))
    assert {(entry["host"], entry["concurrency"]) for entry in document["outliers"]} == {
        ("d", 8),
        ("d", 128),
        ("d", 512),
    }
    assert any(line.startswith("  d vllm-0: ") for line in report_document.summary_lines(document, "/r"))


def test_hosts_measured_otherwise_are_no_equals() -> None:
    other = host(0.5)
    other["stages"]["performance"][0]["comparable"]["load"] = {"input_len": 64, "output_len": 64, "goodput": {}}
    assert built(a=host(), b=host(), c=host(), d=other)["outliers"] == []


# At the size of a fleet: 16 hosts of 8 servers


def fleet(change: Callable[[int, int, dict[str, Any]], None] = lambda _host, _server, _stages: None) -> dict[str, Any]:
    """Return a run on 16 hosts of 8 servers each; C(change) takes numbers of host and server, and its stages."""
    found = {}
    for number in range(1, 17):
        profile = "recipe" if number < 16 else "min_latency"
        entry = {**host(), "plan": {**PLAN, "profile": profile}, "servers": [], "stages": {}}
        for server in range(8):
            target = {"__verify_target": {"name": f"vllm-{server}"}}
            one = {stage: {**items[0], **target} for stage, items in host()["stages"].items()}
            change(number, server, one)
            entry["servers"].append({**host()["servers"][0], "name": f"vllm-{server}"})
            for stage, item in one.items():
                entry["stages"].setdefault(stage, []).append(item)
        found[f"gpu-{number:02}"] = entry
    return built(**found)


def refused(name: str = "timeout") -> dict[str, Any]:
    error = {"name": name, "message": "The server did not answer", "remedy": "r", "evidence": "e"}
    return {"failed": True, "msg": "x", "error": error}


def test_the_terminal_shows_of_a_fleet_what_is_not_in_order() -> None:
    lines = report_document.summary_lines(fleet(), "/r")
    assert lines[2] == "  128 servers: basic 128 ok; accuracy 128 ok; performance 128 ok"
    assert len(lines) == 5

    def change(number: int, server: int, stages: dict[str, Any]) -> None:
        if number == 3 and server in (1, 2):
            stages["basic"].update(refused())
            del stages["accuracy"], stages["performance"]

    document = fleet(change)
    document["hosts"].append(built(lost={})["hosts"][0])
    lines = report_document.summary_lines(document, "/r")
    assert (
        lines[2] == "  128 servers: basic 126 ok, 2 FAILED; accuracy 126 ok, 2 not run; performance 126 ok, 2 not run"
    )
    rows = [line.split()[:3] for line in lines[4:8]]
    assert rows[:3] == [["host", "server", "basic"], ["gpu-03", "vllm-1", "FAILED"], ["gpu-03", "vllm-2", "FAILED"]]
    assert rows[3] == ["lost", "-", "-"]
    few = built(gpu1=host(), gpu2=host())
    assert not any("2 servers" in line for line in report_document.summary_lines(few, "/r"))


def test_failures_that_are_alike_are_told_once() -> None:
    def change(number: int, server: int, stages: dict[str, Any]) -> None:
        if number < 5 or (number, server) == (9, 0):
            stages["basic"].update(refused())
        if number == 6:
            stages["basic"].update(refused("unauthorized"))

    document = fleet(change)
    assert len(document["failures"]) == 4 * 8 + 1 + 8, "programs have each"
    told = [entry["where"] for entry in report_document.grouped(document["failures"])]
    assert told == [["gpu-[01:04] vllm-[0:7], gpu-09 vllm-0", "basic"], ["gpu-06", "vllm-[0:7]", "basic"]]
    lines = report_document.summary_lines(document, "/r")
    assert "  gpu-06 vllm-[0:7] basic: The server did not answer" in lines
    page = report_document.html(document, {}, [])
    assert page.count('<div class="failure">') == 2 and "gpu-06 · vllm-[0:7] · basic" in page


def test_every_kind_and_everything_that_matters_has_its_place_in_the_plots() -> None:
    def change(number: int, server: int, stages: dict[str, Any]) -> None:
        if (number, server) in ((1, 0), (2, 5)):
            stages["performance"] = {**measured(0.6), "__verify_target": {"name": f"vllm-{server}"}}
        if (number, server) == (7, 7):
            stages["accuracy"] = {**judged(0.5), "__verify_target": {"name": f"vllm-{server}"}}

    document = fleet(change)
    lines = plots.chosen(plots.curves_of(document), plots.MOST_LINES, lambda line: bool(line["unlike"]))
    assert len(lines) == plots.MOST_LINES
    assert [line["unlike"] for line in lines[:2]] == ["gpu-01 vllm-0", "gpu-02 vllm-5"]
    kinds = [line["kind"] for line in lines[2:]]
    assert kinds.count("recipe, fp8, TP 1") == 30 and kinds.count("min_latency, fp8, TP 1") == 8
    scores = plots.chosen(plots.scores_of(document), plots.MOST_SCORES, lambda score: not score["passed"])
    assert len(scores) == plots.MOST_SCORES and scores[0]["label"].startswith("gpu-07 vllm-7\n")
    assert {score["server"][:6] for score in scores} > {"gpu-01", "gpu-15", "gpu-16"}, "from all over the fleet"
    drawn = plots.draw(document)
    assert drawn["curve_note"].startswith("40 of 128 servers are drawn")
    assert drawn["accuracy_note"].startswith("24 of 128 scores are drawn, of 24 of 128 servers")
    page = report_document.html(document, drawn, [])
    assert drawn["curve_note"] in page and drawn["accuracy_note"] in page
    many = [{"kind": str(number % 50), "bad": number < 60} for number in range(100)]
    kept = plots.chosen(many, 40, lambda item: bool(item["bad"]))
    assert sum(item["bad"] for item in kept) == 40 and len(kept) <= 80


@pytest.mark.parametrize(("value", "inside"), [(0.93, True), (12.5, False), (-3.0, False)])
def test_scores_that_are_no_shares_are_in_the_picture(value: float, inside: bool) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    score = {"label": "x", "value": value, "stderr": 0.1, "floor": None, "passed": True}
    plots._draw_scores(axes, [score])
    low, high = axes.get_xlim()
    assert low < value < high
    assert bool(low >= -0.02 and high <= 1.02) is inside


def test_a_long_page_is_folded() -> None:
    page, short = report_document.html(fleet(), {}, []), report_document.html(built(a=host(), b=host()), {}, [])
    for title in ("Answers", "Start-up"):
        assert f'<details class="whole"><summary><h2>{title} <span class="muted">of 128 servers' in page
    assert "<h2>Answer <span" in short and "<h2>Start-up</h2>" in short
    for text in (page, short):
        parsed = Page()
        parsed.feed(text)
        assert parsed.open == []


class Page(html.parser.HTMLParser):
    """Collects what a page would fetch, and tags left open."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "use", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {value}")
        if tag not in self.VOID:
            self.open.append(tag)
        assert tag not in ("script", "link", "iframe", "img")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    document = built(gpu1=host(), gpu2=host(0.9))
    page = report_document.html(document, plots.draw(document), [])
    parsed = Page()
    parsed.feed(page)
    assert parsed.fetched == [] and parsed.open == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert "a &lt;vibrant&gt; city" in page and "the recipe&#39;s &lt;choice&gt;" in page
    for words in ("Output token throughput per GPU (tok/s)", "Median TTFT (ms)", "P99 TPOT (ms)", "Median E2EL (ms)"):
        assert words in page


def test_plots_have_the_colours_of_the_page_and_two_sizes() -> None:
    drawn = plots.draw(built(gpu1=host(), gpu2=host(accuracy=0.8)))
    assert set(drawn) == {"accuracy", "curve"}
    for svg in drawn.values():
        assert svg.count('class="plot wide"') == svg.count('class="plot narrow"') == 1
        assert not re.findall(r"#0[0-9a-b]0[0-9a-b]0[0-9a-b]\b", svg), "a stand-in was left"
        assert "var(--muted)" in svg
    assert "var(--bad)" in drawn["accuracy"] and "var(--good)" in drawn["accuracy"]
    assert drawn == plots.draw(built(gpu1=host(), gpu2=host(accuracy=0.8))), "the same run gives the same pictures"


def test_a_server_unlike_its_equals_is_named_at_its_own_line() -> None:
    slow = built(a=host(), b=host(1.01), c=host(0.99), d=host(0.7))
    assert [line["unlike"] for line in plots.curves_of(slow)] == ["", "", "", "d vllm-0"]
    assert ">d vllm-0</text>" in plots.draw(slow)["curve"] and "var(--bad)" in plots.draw(slow)["curve"]
    assert "var(--bad)" not in plots.draw(built(a=host(), b=host(), c=host()))["curve"]


def test_one_concurrency_is_no_curve() -> None:
    single = host()
    del single["stages"]["performance"][0]["points"][1:]
    assert "curve" not in plots.draw(built(gpu1=single))


@pytest.mark.parametrize(
    ("value", "text"), [(2715.27, "2,715"), (44.79, "44.8"), (0.44977, "0.45"), (0, "0"), (16, "16"), (None, "-")]
)
def test_figures_have_as_many_digits_as_they_deserve(value: float | None, text: str) -> None:
    assert report_document.figure(value) == text


# The action


@pytest.fixture
def action() -> Any:
    """Run the action plugin with these arguments; returns its result and what it displayed."""

    def run(check_mode: bool = False, **arguments: Any) -> tuple[dict[str, Any], str]:
        result, display = run_action(vllm_report.ActionModule, arguments, check=check_mode)
        shown = [call.args[0] for call in [*display.warning.call_args_list, *display.display.call_args_list]]
        return result, "\n".join(shown)

    return run


def test_both_files_are_written_and_no_secret_is_in_them(action: Any, tmp_path: Path) -> None:
    found = host(accuracy=0.8)
    found["stages"]["basic"][0]["text"] = "your key is an-api-key"
    result, shown = action(hosts={"gpu1": found}, report_dir=str(tmp_path / "reports"), secrets=["an-api-key", ""])
    assert result["verdict"] == "failed" and "floor 0.9200" in result["failed_hosts"]["gpu1"]
    assert not result.get("failed"), "the play fails after the report, not at it"
    for name in ("report.html", "report.json"):
        text = (tmp_path / "reports" / name).read_text(encoding="utf-8")
        assert "an-api-key" not in text and "plan-secret" not in text
        assert "your key is ********" in text
    assert json.loads((tmp_path / "reports/report.json").read_text())["hosts"][0]["name"] == "gpu1"
    assert "Report: " + str(tmp_path / "reports" / "report.html") in shown


def test_without_matplotlib_there_are_tables_and_a_word_on_it(
    action: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_document: Any) -> dict[str, str]:
        raise ImportError("No module named 'matplotlib'")

    monkeypatch.setattr(plots, "draw", missing)
    _result, shown = action(hosts={"gpu1": host()}, report_dir=str(tmp_path))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "pip install matplotlib" in shown and "pip install matplotlib" in page
    assert "Median TTFT (ms)" in page


def test_nothing_is_written_in_check_mode(action: Any, tmp_path: Path) -> None:
    action(hosts={"gpu1": host()}, report_dir=str(tmp_path / "reports"), check_mode=True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_says_less_leaves_the_last_report_alone(action: Any, tmp_path: Path) -> None:
    """Nothing verified fails every host; a run of one small stage is told on the terminal alone."""
    action(hosts={"gpu1": host()}, report_dir=str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert {path.name for path in before} == {"report.html", "report.json", "results.jsonl"}
    nothing = {"gpu1": {**host(), "stages": {}}, "gpu2": {**host(), "stages": {}}}
    result, shown = action(hosts=nothing, report_dir=str(tmp_path), tags=["baisc"])
    assert result["verdict"] == "nothing verified" and result["report"] == ""
    assert set(result["failed_hosts"]) == {"gpu1", "gpu2"}
    assert all("baisc" in text and "performance" in text for text in result["failed_hosts"].values())
    assert "No report was written" in shown and "passed" not in shown
    result, shown = action(hosts={"gpu1": host(0.5)}, report_dir=str(tmp_path), keep_earlier=True)
    assert result["verdict"] == "passed" and "No report was written" in shown
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_folder_that_cannot_be_written_is_named(action: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result, shown = action(hosts={"gpu1": host()}, report_dir=str(tmp_path / "file"))
    assert result["failed"] and result["error"]["name"] == "report-not-written"
    assert "Verification passed" in shown, "the summary is shown all the same"
