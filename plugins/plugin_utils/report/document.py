# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a verification run over many hosts: one document, told as JSON, as HTML and as a few lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import is_secret
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import duration
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.gates import outliers
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import fold

SCHEMA_VERSION = 1
STAGES = ("gpu", "basic", "accuracy", "performance")
# Stages that have a column even where they were not asked for; gpu has one where servers have GPUs.
COLUMNS = ("basic", "accuracy", "performance")
# More servers than these have no row each on the terminal.
MOST_ROWS = 10
PASSED, FAILED, NOTHING = "passed", "failed", "nothing verified"
TEMPLATE = Path(__file__).parent / "report.html.j2"
STYLE = Path(__file__).parent / "page.css"
# What of a stage's result is kept; a result also holds what Ansible adds, and what the module was called with.
KEPT = {
    "gpu": ("gpu_access", "given", "seen"),
    "basic": ("text", "finish_reason", "usage", "model", "latency_s", "curl", "chat", "no_chat", "endpoints"),
    "accuracy": ("model", "scores", "gates", "notes", "command", "seconds"),
    "performance": (
        *("model", "points", "gates", "notes", "comparable", "baseline", "warnings", "command", "seconds"),
    ),
}
# Rows of the table of figures in the words that vllm bench and the recipe use, with their scale.
COUNTED = (
    ("completed", "Successful requests", 1),
    ("failed", "Failed requests", 1),
    ("duration", "Benchmark duration (s)", 1),
    ("request_throughput", "Request throughput (req/s)", 1),
    ("request_goodput", "Request goodput (req/s)", 1),
    ("output_throughput", "Output token throughput (tok/s)", 1),
    ("output_throughput_per_gpu", "Output token throughput per GPU (tok/s)", 1),
    ("total_token_throughput", "Total token throughput (tok/s)", 1),
    ("preemptions", "Preemptions", 1),
    ("requests_waiting_max", "Requests waiting at most", 1),
    ("kv_cache_usage_max", "KV cache used at most (%)", 100),
)
LATENCIES = (
    ("ttft", "Time to First Token", "from sending a request to the first token of its answer"),
    ("tpot", "Time per Output Token", "for each token after the first"),
    ("itl", "Inter-token Latency", "between one token and the next"),
    ("e2el", "End-to-end Latency", "from sending a request to the last token of its answer"),
)
KINDS = (("mean", "Mean"), ("median", "Median"), ("p90", "P90"), ("p99", "P99"))


def build(hosts: Mapping[str, Mapping[str, Any]], created: str, outlier_tolerance: float) -> dict[str, Any]:
    """Return the document of a run.

    Args:
        hosts: each host of the play to what role verify found there: C(plan), C(servers), C(gpus), C(driver), C(url),
            C(stages) (stage to the results of its task, one a server), C(failed) (stage to why it ended early), or
            C(error), or nothing if it was not reached.
        created: time of the run.
        outlier_tolerance: share of the median by which equal servers may differ.

    Returns:
        C(verdict) (passed, failed or nothing verified), C(skipped) (stages that were asked for and did not run
        everywhere), C(hosts), C(failures), C(outliers), C(plans) (each kind of plan once) and more. Nothing is verified
        when no stage has a result, unless every host failed before its stages: that is a failed verification.
    """
    entries = [_host(name, found) for name, found in hosts.items()]
    failures = [failure for entry in entries for failure in entry["failures"]]
    verdicts = {entry["verdict"] for entry in entries}
    tried = any(_was_tried(entry) for entry in entries)
    verdict = NOTHING if not tried and (NOTHING in verdicts or not entries) else FAILED if failures else PASSED
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "verdict": verdict,
        "skipped": [stage for stage in STAGES if any(_skipped(entry, stage) for entry in entries)],
        "failures": failures,
        "outliers": _outliers(entries, outlier_tolerance),
        "plans": _plans(entries),
        "hosts": entries,
    }


def _was_tried(entry: Mapping[str, Any]) -> bool:
    """Return whether any stage of the host ran."""
    return any(not item["skipped"] for items in entry["stages"].values() for item in items)


def _skipped(entry: Mapping[str, Any], stage: str) -> bool:
    return any(item["skipped"] for item in entry["stages"][stage])


def columns(document: Mapping[str, Any]) -> list[str]:
    """Return the stages that the tables of servers have a column for."""
    found = {stage for entry in document["hosts"] for stage in STAGES if entry["stages"][stage]}
    return [stage for stage in STAGES if stage in COLUMNS or stage in found]


def _host(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    stages = {stage: [_result(stage, item) for item in found.get("stages", {}).get(stage, [])] for stage in STAGES}
    failures = [
        {"host": name, "server": item["server"], "stage": stage, **item["failure"]}
        for stage, items in stages.items()
        for item in items
        if item["failure"]
    ]
    for stage, why in (found.get("failed") or {}).items():
        if not any(item["failure"] for item in stages[stage]):
            stages[stage] += [_lost(server) for server in _without_result(found, stages, stage)]
            failures.append({"host": name, "server": "", "stage": stage, **_failure({"msg": why})})
    failures.sort(key=lambda failure: STAGES.index(failure["stage"]))
    missing = "" if found else "The host was not reached, or failed before its verification began."
    error = str(found.get("error") or missing)
    if error:
        failures.insert(0, {"host": name, "server": "", "stage": "", **_failure({"msg": error})})
    tried = _was_tried({"stages": stages})
    return {
        "name": name,
        "verdict": FAILED if failures else PASSED if tried else NOTHING,
        "url": found.get("url", ""),
        "gpus": list(found.get("gpus", [])),
        "driver": found.get("driver", ""),
        "plan": _public_plan(found.get("plan") or {}),
        "servers": [
            {key: server.get(key) for key in ("name", "url", "model", "vllm_version", "image", "start", "docker_run")}
            for server in found.get("servers", [])
        ],
        "stages": stages,
        "failures": failures,
    }


def _public_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan; the environment of its replicas without values that look like secrets."""
    replicas = [
        {
            **replica,
            "environment": {
                name: "(hidden)" if is_secret(name, str(value)) else value
                for name, value in (replica.get("environment") or {}).items()
            },
        }
        for replica in plan.get("replicas", [])
    ]
    return {**plan, "replicas": replicas} if plan else {}


def _result(stage: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of one result of a stage's task."""
    target = item.get("__verify_target") or {}
    kept = {key: item[key] for key in KEPT[stage] if key in item}
    failed = bool(item.get("failed")) or not item.get("passed", True)
    return {
        "server": str(target.get("name", item.get("name", ""))),
        "passed": not failed and not item.get("skipped"),
        "skipped": bool(item.get("skipped")),
        "failure": _failure(item) if failed else None,
        **kept,
    }


def _without_result(found: Mapping[str, Any], stages: Mapping[str, Sequence[Any]], stage: str) -> list[str]:
    """Return the servers of a host that have no result of a stage; one without a name where none is known."""
    planned = [replica["name"] for replica in (found.get("plan") or {}).get("replicas", [])]
    known = [*planned, *(item["server"] for items in stages.values() for item in items)]
    judged = {item["server"] for item in stages[stage]}
    return [server for server in dict.fromkeys(known or [""]) if server not in judged]


def _lost(server: str) -> dict[str, Any]:
    """Return the result of a stage that ended before it came to a server."""
    return {"server": server, "passed": False, "skipped": False, "failure": None}


def _failure(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a person is told of a failure; C(gates) are the sentences of failed gates, one each."""
    error = item.get("error")
    if not isinstance(error, Mapping):
        return {"name": "failed", "message": str(item.get("msg", "failed")), "remedy": "", "evidence": "", "gates": []}
    texts = {key: str(error.get(key) or "") for key in ("name", "message", "remedy", "evidence")}
    return {**texts, "gates": list((error.get("details") or {}).get("failed") or [])}


def _plans(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each kind of plan once, with its hosts; the GPUs' own identities do not count."""
    kinds: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for entry in entries:
        if entry["plan"]:
            plan = entry["plan"]
            replicas = [{**replica, "gpu_uuids": []} for replica in plan["replicas"]]
            key = json.dumps({**plan, "replicas": replicas, "warnings": []}, sort_keys=True)
            kinds.setdefault(key, ([], plan))[0].append(entry["name"])
    return [{"hosts": fold(hosts), "count": len(hosts), "plan": plan} for hosts, plan in kinds.values()]


def _outliers(entries: Sequence[Mapping[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """Return the servers whose throughput differs from that of the servers which were measured alike."""
    groups: dict[str, dict[tuple[str, str], float]] = {}
    for entry in entries:
        for item in entry["stages"]["performance"]:
            for point in item.get("points", []):
                figure = point["summary"].get("output_throughput")
                if figure:
                    # Drivers may differ in a fleet, and that may be the cause.
                    alike = dict(item.get("comparable", {}))
                    alike["hardware"] = sorted((alike.get("hardware") or {}).get("gpus") or [])
                    key = json.dumps([alike, point["concurrency"]], sort_keys=True)
                    groups.setdefault(key, {})[entry["name"], item["server"]] = figure["mean"]
    found = []
    for key, values in groups.items():
        concurrency = json.loads(key)[1]
        names = {"/".join(pair): pair for pair in values}
        told = outliers({name: values[pair] for name, pair in names.items()}, tolerance)
        found += [
            {"host": names[name][0], "server": names[name][1], "concurrency": concurrency, "text": text}
            for name, text in told.items()
        ]
    return found


def grouped(failures: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return failures that are told alike as one, C(where) and the rest; the evidence is that of the first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for failure in failures:
        alike = [failure[key] for key in ("stage", "name", "message", "remedy", "gates")]
        groups.setdefault(json.dumps(alike), []).append(failure)
    return [{**alike[0], "where": _where(alike)} for alike in groups.values()]


def _where(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return where failures that are alike happened, in parts: hosts with their servers, and the stage."""
    servers: dict[str, list[str]] = {}
    for failure in failures:
        servers.setdefault(failure["host"], []).append(failure["server"])
    hosts: dict[str, list[str]] = {}
    for host, names in servers.items():
        hosts.setdefault(fold(names), []).append(host)
    if len(hosts) == 1:
        names_of_all, every = next(iter(hosts.items()))
        return [part for part in (fold(every), names_of_all, failures[0]["stage"]) if part]
    listed = ", ".join(f"{fold(some)} {names_of_some}".strip() for names_of_some, some in hosts.items())
    return [part for part in (listed, failures[0]["stage"]) if part]


# As text


def summary_lines(document: Mapping[str, Any], last: str) -> list[str]:
    """Return what a person reads of the run in ten seconds; the failures stand last, next to the prompt.

    Args:
        document: what build returned.
        last: the last line, on where the report is.
    """
    hosts = document["hosts"]
    shown = columns(document)
    found = [row for entry in hosts for row in _rows(entry, shown)]
    rows = found if len(found) <= MOST_ROWS else [row for entry in hosts for row in _rows(entry, shown, failed=True)]
    lines = [_headline_of(document), ""]
    if len(rows) < len(found):
        lines += [f"  {_counts(found, shown)}", *([""] if rows else [])]
    if rows:
        rows.insert(0, ("host", "server", *shown))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  " + "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for title, entries in (("Unlike their equals", document["outliers"]), ("Failures", grouped(document["failures"]))):
        if entries:
            lines += ["", f"{title}:", *(line for entry in entries for line in _telling(entry))]
    return [*lines, "", last]


def _headline_of(document: Mapping[str, Any]) -> str:
    """Return the verdict with its hosts, and what it says nothing about."""
    hosts = document["hosts"]
    of_all = f"{len(hosts)} host{'s' * (len(hosts) != 1)}"
    names = {
        verdict: [entry["name"] for entry in hosts if entry["verdict"] == verdict]
        for verdict in (PASSED, FAILED, NOTHING)
    }
    if document["verdict"] == NOTHING:
        return f"Verification: NOTHING was verified on {of_all}{_not_run(document)}"
    if document["verdict"] == FAILED:
        text = f"Verification FAILED on {len(names[FAILED])} of {of_all}"
    elif names[NOTHING]:
        text = f"Verification passed on {len(names[PASSED])} of {of_all}"
    else:
        text = "Verification passed" + (f" on all {of_all}" if len(hosts) > 1 else "")
    return text + (f"; nothing was verified on {fold(names[NOTHING])}" if names[NOTHING] else "") + _not_run(document)


def _not_run(document: Mapping[str, Any]) -> str:
    return f" (not run: {', '.join(document['skipped'])})" if document["skipped"] else ""


def nothing_verified(document: Mapping[str, Any], tags: Sequence[str]) -> str:
    """Return why a host failed on which no stage ran; empty where something was verified.

    Args:
        document: what build returned.
        tags: those that the run was asked for.
    """
    if document["verdict"] != NOTHING:
        return ""
    asked = f" The tags that were asked for: {', '.join(tags)}." if tags and list(tags) != ["all"] else ""
    skipped = f" Check mode does not run {', '.join(document['skipped'])}." if document["skipped"] else ""
    return (
        f"Nothing was verified: no stage ran on any server.{asked}{skipped} Tags of stages are basic, accuracy,"
        " performance, gpu (for servers with GPUs) and security (for the hosts of a group router); without"
        " --tags and --skip-tags all of them run."
    )


def _telling(entry: Mapping[str, Any]) -> list[str]:
    if "text" in entry:
        where = " ".join(part for part in (entry["host"], entry["server"]) if part)
        return [f"  {where}: {entry['text']} (output tokens/s at concurrency {entry['concurrency']})"]
    where = " ".join(entry["where"])
    if entry["gates"]:
        lines = [f"  {where}:", *(f"    {sentence}" for sentence in entry["gates"])]
    else:
        lines = [f"  {where}: {entry['message']}"]
    if entry["evidence"]:
        lines.append(f"    evidence: {entry['evidence'].strip().splitlines()[-1][:200]}")
    if entry["remedy"]:
        lines.append(f"    remedy: {entry['remedy']}")
    return lines


def _counts(rows: Sequence[Sequence[str]], shown: Sequence[str]) -> str:
    """Return how many servers passed, failed or left out each stage, in the place of a row for each."""
    servers, told = [row for row in rows if row[1] != "-"], []
    for number, stage in enumerate(shown, 2):
        cells = [row[number] for row in servers]
        left_out, failed = sum(cell in ("-", "not run") for cell in cells), sum(map(_is_failed, cells))
        counts = ((len(cells) - left_out - failed, "ok"), (failed, "FAILED"), (left_out, "not run"))
        told.append(f"{stage} {', '.join(f'{count} {words}' for count, words in counts if count)}")
    return f"{len(servers)} servers: {'; '.join(told)}"


def _is_failed(text: str) -> bool:
    return text.startswith("FAILED")


def _rows(entry: Mapping[str, Any], shown: Sequence[str], *, failed: bool = False) -> Iterable[tuple[str, ...]]:
    """Return a row for each server of a host, or for those that did not pass alone."""
    names = list(dict.fromkeys(item["server"] for items in entry["stages"].values() for item in items))
    if not names and not (failed and entry["verdict"] == PASSED):
        yield (entry["name"], "-", *("-" for _stage in shown))
    for name in names:
        cells = []
        for stage in shown:
            item = next((item for item in entry["stages"][stage] if item["server"] == name), None)
            cells.append(cell(stage, item))
        if not failed or any(map(_is_failed, cells)):
            yield (entry["name"], name, *cells)


def cell(stage: str, item: Mapping[str, Any] | None) -> str:
    """Return the result of a stage in a few words."""
    if item is None:
        return "-"
    if item["skipped"]:
        return "not run"
    figures = _headline(stage, item)
    if item["passed"]:
        return figures or "ok"
    return f"FAILED {figures}".rstrip()


def _headline(stage: str, item: Mapping[str, Any]) -> str:
    if stage == "accuracy" and item.get("scores"):
        score = item["scores"][0]
        error = f" ± {score['stderr']:.3f}" if score["stderr"] is not None else ""
        # A floor of another precision or task, by a slip, leaves nothing to pass.
        judged = "" if item.get("gates") else ", no floor"
        return f"{score['task']} {score['value']:.3f}{error}{judged}"
    if stage == "performance" and item.get("points"):
        point = max(item["points"], key=lambda point: point["concurrency"])
        summary = {name: values["mean"] for name, values in point["summary"].items()}
        name, unit = ("output_throughput_per_gpu", "tok/s/GPU")
        if name not in summary:
            name, unit = ("output_throughput", "tok/s")
        parts = [f"{summary[name]:.0f} {unit}"] if name in summary else []
        parts += [
            f"{label} {summary[key]:.0f} ms"
            for label, key in (("TTFT", "median_ttft_ms"), ("TPOT", "median_tpot_ms"))
            if key in summary
        ]
        return ", ".join(parts) + f" at {point['concurrency']}"
    if stage == "basic" and item["passed"]:
        return f"ok, {item['latency_s']:.1f} s" + (f", {item['no_chat']}" if item.get("no_chat") else "")
    return ""


# As HTML


def html(document: Mapping[str, Any], plots: Mapping[str, str], notes: Sequence[str]) -> str:
    """Return the page.

    Args:
        document: what build returned.
        plots: what plots.draw returned; those missing are left out.
        notes: sentences about the page itself, such as why it has no plots.
    """
    return rendered(
        TEMPLATE,
        report=document,
        plots=plots,
        notes=notes,
        stages=columns(document),
        cell=cell,
        figure_groups=_figure_groups(),
        failures=grouped(document["failures"]),
        answers=[(host, item) for host in document["hosts"] for item in host["stages"]["basic"] if "text" in item],
        started=[(host, server) for host in document["hosts"] for server in host["servers"] if server["start"]],
        measured=sum(len(entry["stages"]["performance"]) for entry in document["hosts"]),
        passed_hosts=sum(entry["verdict"] == PASSED for entry in document["hosts"]),
        servers=[_server_rows(entry) for entry in document["hosts"]],
    )


def rendered(template: Path, **values: Any) -> str:
    """Return a page made from a template of this folder, in the style of all pages."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=duration, figure=figure)
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(style=STYLE.read_text(encoding="utf-8"), **values)


def _figure_groups() -> list[dict[str, Any]]:
    """Return the groups of rows in the table of figures."""

    def row(name: str, words: str, scale: float = 1) -> dict[str, Any]:
        return {"name": name, "words": words, "scale": scale}

    groups: list[dict[str, Any]] = [{"title": "", "words": "", "rows": [row(*entry) for entry in COUNTED]}]
    for key, title, words in LATENCIES:
        rows = [row(f"{kind}_{key}_ms", f"{name} {key.upper()} (ms)") for kind, name in KINDS]
        groups.append({"title": title, "words": words, "rows": rows})
    return groups


def _server_rows(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of a host in the table of servers."""
    names = list(dict.fromkeys(item["server"] for items in entry["stages"].values() for item in items)) or [""]
    rows = [
        {
            "server": name,
            "stages": {
                stage: next((item for item in entry["stages"][stage] if item["server"] == name), None)
                for stage in STAGES
            },
        }
        for name in names
    ]
    return {"host": entry["name"], "verdict": entry["verdict"], "rows": rows}


def figure(value: float | None) -> str:
    """Return a figure with as many digits as it deserves: C(2,461), C(44.8), C(0.895)."""
    if value is None:
        return "-"
    magnitude = abs(value)
    if magnitude >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.3g}"
