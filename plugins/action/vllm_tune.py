# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide, on the controller, which candidates a sweep of settings measures, keep what was found, and tell what wins.

Each candidate is planned, started and stopped as every other server of ours, and measured by the image's own C(vllm
bench serve). vLLM's C(vllm bench sweep serve) does not do the sweep itself, though all supported releases have it: it
starts servers inside its own container, so none of a deployment's mounts, keys, deadlines and diagnoses would count; a
server that does not start ends it; and its search for a goal has other names and options from release to release
(C(serve_sla) up to 0.15, C(serve_workload) later). AIConfigurator predicts from tables of measured kernels, for some
models, GPUs and vLLM releases; what it recommends can be given to the sweep as candidates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import rough_duration
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_plan import plan_by
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.task_variables import planner_host, read_wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import plots, tune_page
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report.plain import plain, without
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning import candidates, kernels
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning.tune_state import TuneState, now
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning.tune_variables import Tuning, read_tuning
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.verification import verify_targets

STEPS = ["arrange", "kernels", "stopped", "look", "started", "note", "report"]
ARGUMENTS: dict[str, Any] = {
    "step": {"type": "str", "required": True, "choices": STEPS},
    "state_dir": {"type": "str", "required": True},
    "settings": {"type": "dict", "default": {}},
    "plan": {"type": "dict", "default": {}},
    "gpu_info": {"type": "dict", "default": {}},
    "host_info": {"type": "dict", "default": {}},
    "info": {"type": "dict", "default": {}},
    "ca_bundle": {"type": "str", "default": ""},
    "prefix": {"type": "str", "default": "vllm-tune"},
    "can_drain": {"type": "bool", "default": False},
    "arranged": {"type": "dict", "default": {}},
    "candidate": {"type": "dict", "default": {}},
    "server": {"type": "dict", "default": {}},
    "benchmarks": {"type": "list", "elements": "dict", "default": []},
    "failure": {"type": "dict", "default": {}},
    "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
}
# Failures that say nothing of the candidate, so that the next run tries it again.
OF_THE_HOST = frozenset(
    {
        *("busy", "interrupted", "name-taken", "engine-not-running", "engine-error", "image-missing"),
        *("port-in-use", "gpu-memory-held", "write-failed"),
    }
)
# What is expected where nothing is known yet: seconds of a start and of a token, on GPUs and on processors.
GUESSES = {"cuda": (300.0, 0.04), "cpu": (120.0, 0.15)}
NO_PLOT = "The plot is left out: matplotlib is not installed beside ansible-core (pip install matplotlib)."


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_tune."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Do one step."""
        steps: dict[str, Callable[..., dict[str, Any]]] = {
            "arrange": self._arrange,
            "kernels": self._kernels,
            "stopped": lambda state, _arguments, _variables: self._stopped(state, True),
            "look": lambda state, _arguments, _variables: {"stopped": state.stopped()},
            "started": lambda state, _arguments, _variables: self._stopped(state, False),
            "note": self._note,
            "report": self._report,
        }
        state = TuneState(arguments["state_dir"], str(variables.get("inventory_hostname", "host")))
        found = steps[arguments["step"]](state, arguments, variables)
        if found.get("lines"):
            self._display.display("\n".join(found["lines"]))
        return found

    # Steps

    def _arrange(self, state: TuneState, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return the candidates, of which some may be measured already, and whether the host serves.

        Raises:
            GpufleetError: C(host-serves), C(cannot-be-put-back), C(too-many-candidates), and why the
                host cannot be planned.
        """
        host = state.folder.name
        tuning = read_tuning(arguments["settings"])
        serves = state.stopped() or _runs(arguments["info"])
        check_free(host, arguments, serves)
        found = candidates.grid(self._planner(arguments, variables), tuning.axes, _gpus(arguments))
        if len(found.candidates) > tuning.max_candidates:
            raise too_many(len(found.candidates), tuning.max_candidates)
        if tuning.again and not self._task.check_mode:
            state.forget()
        measured = {} if tuning.again else state.measured()
        listed_ones = [self._described(candidate, tuning, arguments, measured) for candidate in found.candidates]
        open_ones = [entry for entry in listed_ones if not entry["done"]]
        lines = plan_lines(host, listed_ones, tuning, _estimate(open_ones, tuning, arguments, measured))
        return {
            "lines": lines,
            "candidates": listed_ones,
            "open": open_ones,
            "refused": found.refused,
            "serves": serves,
            "ca_bundle": verify_targets.authorities("", arguments["ca_bundle"], arguments["host_info"])[1],
            "timeout": tuning.timeout,
            "runs": tuning.runs,
            "input_len": tuning.input_len,
            "output_len": tuning.output_len,
        }

    def _kernels(self, state: TuneState, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return why there are no kernels to tune, or else for which sizes, and whether the host serves.

        Raises:
            GpufleetError: C(host-serves), C(cannot-be-put-back).
        """
        del variables
        host, plan = state.folder.name, arguments["plan"]
        sizes = read_tuning(arguments["settings"]).axes.sizes
        why = kernels.why_not(plan)
        if why:
            return {"why": why, "serves": False, "sizes": [], "lines": [f"[{host}] no kernels to tune: {why}"]}
        serves = state.stopped() or _runs(arguments["info"])
        check_free(host, arguments, serves)
        return {"why": "", "serves": serves, "sizes": sizes or [plan["replicas"][0]["tensor_parallel_size"]]}

    def _stopped(self, state: TuneState, stopped: bool) -> dict[str, Any]:
        """Keep whether the host's own servers are stopped."""
        if not self._task.check_mode:
            state.note_stopped(stopped)
        return {}

    def _note(self, state: TuneState, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Keep what was found of a candidate; one that the host kept from being measured is left for the next run."""
        del variables
        candidate, server, failure = (arguments[name] for name in ("candidate", "server", "failure"))
        benchmarks = arguments["benchmarks"]
        start_s = float((server.get("replicas") or [{}])[0].get("ready_s") or 0)
        found = {
            "name": candidate["name"],
            "points": [point for entry in benchmarks for point in plain(entry.get("points") or [])],
            "start_s": start_s,
            "seconds": round(start_s + sum(float(entry.get("seconds") or 0) for entry in benchmarks), 1),
            "command": next((entry["command"] for entry in benchmarks if entry.get("command")), ""),
        }
        failures = [entry for entry in (failure, *benchmarks) if entry.get("error") or entry.get("msg")]
        error = plain(next((entry.get("error") or {} for entry in failures), {}))
        who = f"[{state.folder.name}] {candidate['name']}"
        if found["points"]:
            state.note(candidate["digest"], {**found, "status": tune_page.MEASURED})
            return {"lines": [f"{who}: {_said(found['points'])}"]}
        if not error.get("name") or error["name"] in OF_THE_HOST:
            why = error.get("message") or next((str(entry.get("msg")) for entry in failures), "there is no result")
            return {"lines": [f"{who}: not measured, to be tried again: {why}"]}
        state.note(candidate["digest"], {**found, "status": tune_page.FAILED, "error": error})
        return {"lines": [f"{who}: failed ({error['name']}): {error.get('message', '')}"]}

    def _report(self, state: TuneState, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Write the report, and the winner's variables; return what wins."""
        del variables
        tuning, arranged = read_tuning(arguments["settings"]), plain(arguments["arranged"])
        document = tune_page.build(
            _facts(state, arguments, tuning),
            arranged["candidates"],
            arranged["refused"],
            state.measured(),
            tuning.goal,
            tuning.margin,
        )
        notes: list[str] = []
        drawn = ""
        points = [point for entry in document["candidates"] for point in entry["points"]]
        try:
            drawn = plots.draw_front(points) if points else ""
        except ImportError:
            notes.append(NO_PLOT)
        hidden = [secret for secret in arguments["secrets"] if secret]
        page = state.write("tune.html", without(tune_page.html(document, drawn, notes), hidden))
        state.write("tune.json", without(json.dumps(document, indent=2) + "\n", hidden))
        text = tune_page.group_vars(document)
        variables_file = state.write("group_vars.yml", without(text, hidden)) if text else ""
        if not text:
            state.remove("group_vars.yml")
        last = [f"Report: {page}"]
        if variables_file:
            last.append(f"For group_vars of all hosts like this one: {variables_file}")
        return {
            "lines": ["", *(without(line, hidden) for line in tune_page.lines(document)), "", *last, ""],
            "winner": document["winner"] or {},
            "report": page,
            "group_vars": variables_file,
            "unfinished": [entry["name"] for entry in document["candidates"] if entry["status"] == tune_page.OPEN],
        }

    # Parts

    def _planner(self, arguments: dict[str, Any], variables: dict[str, Any]) -> Callable[[dict[str, Any]], Plan]:
        """Return what plans the host for one candidate, with some variables set otherwise."""
        own = str(self._templar.template(variables.get("vllm_container_prefix", "vllm")))
        info = (arguments["gpu_info"], arguments["host_info"], variables)
        prefixes = (own, arguments["prefix"])
        host = planner_host(*info, own)
        host["own_containers"] = [name for prefix in prefixes for name in planner_host(*info, prefix)["own_containers"]]
        fixed = {"vllm_replicas": 1, "vllm_container_prefix": prefixes[1], "vllm_host": "127.0.0.1"}

        def planned(changes: dict[str, Any]) -> Plan:
            merged = {name: self._merged(variables, name, value) for name, value in changes.items()}
            wished = read_wishes(self._templar, variables, {**merged, **fixed}, KNOWN_VARIABLES)
            plan = plan_by(host, self._templar, variables, wished)
            return candidates.as_candidate(plan, arguments["plan"].get("gpu_access") or "auto")

        return planned

    def _merged(self, variables: Mapping[str, Any], name: str, value: Any) -> Any:
        """Return what a candidate has in the place of a variable; dictionaries keep what they have besides."""
        if isinstance(value, Mapping) and name in variables:
            return {**dict(self._templar.template(variables[name]) or {}), **value}
        return value

    def _described(
        self,
        candidate: candidates.Candidate,
        tuning: Tuning,
        arguments: dict[str, Any],
        measured: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return a candidate for the role: what to serve, what to measure, and whether that is done."""
        gpu_info = arguments["gpu_info"]
        target = verify_targets.targets(candidate.plan, url="", model="", environment={}, gpu_info=gpu_info)[0]
        digest = candidate.digest({"hardware": target["hardware"], "load": tuning.load()})
        return {
            "name": candidate.name,
            "digest": digest,
            "variables": plain(candidate.variables),
            "plan": candidate.plan,
            "target": target,
            "loads": candidates.loads(candidate.plan, tuning.concurrency),
            "waves": tuning.waves,
            "done": digest in measured,
        }


def check_free(host: str, arguments: Mapping[str, Any], serves: bool) -> None:
    """Refuse a host that serves and cannot be taken out, or not be put back.

    Raises:
        GpufleetError: C(host-serves), C(cannot-be-put-back).
    """
    if serves and not arguments["can_drain"]:
        raise GpufleetError(
            f"{host} serves, and the inventory has no group router that could send its requests elsewhere.",
            name="host-serves",
            remedy="Tune a host that serves nothing, or say vllm_allow_outage: true: its servers are then stopped for"
            " as long as this takes, and started again at the end.",
        )
    if serves and not any(entry.get("current") for entry in arguments["info"].get("deployments") or []):
        raise GpufleetError(
            f"{host} serves, but its history has no deployment by which its servers could be started again.",
            name="cannot-be-put-back",
            remedy="Deploy it once more (playbook gpufleet.vllm.deploy), with vllm_history_keep: 1 or more.",
        )


def too_many(count: int, most: int) -> GpufleetError:
    """Return the error for more candidates than are allowed."""
    return GpufleetError(
        f"{count} candidates are more than vllm_tune_max_candidates: {most}.",
        name="too-many-candidates",
        remedy="Name fewer in vllm_tune_tensor_parallel_sizes, vllm_tune_max_num_seqs,"
        " vllm_tune_max_num_batched_tokens and vllm_tune_levers, or raise vllm_tune_max_candidates.",
    )


def plan_lines(host: str, entries: list[dict[str, Any]], tuning: Tuning, seconds: float) -> list[str]:
    """Return what is about to be done, and how long that takes."""
    open_ones = [entry for entry in entries if not entry["done"]]
    done = len(entries) - len(open_ones)
    before = f", {done} of them measured before" if done else ""
    lines = [f"[{host}] {len(entries)} candidates{before}; looked for: {tuning.goal.as_text()}"]
    for entry in open_ones:
        loads = ", ".join(map(str, entry["loads"]))
        lines.append(f"[{host}]   {entry['name']}: {loads} requests at once")
    if open_ones:
        longest = sum(tuning.longest_s(len(entry["loads"])) for entry in open_ones)
        lines.append(
            f"[{host}] this takes about {rough_duration(seconds)}, and at most {rough_duration(longest)}: a start, and"
            f" each load, is ended after {rough_duration(tuning.timeout)} (vllm_tune_timeout)"
        )
    return lines


def _estimate(
    open_ones: list[dict[str, Any]],
    tuning: Tuning,
    arguments: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Any]],
) -> float:
    """Return the seconds that candidates take: as those measured before did, or by a rough guess."""
    took = [float(entry["seconds"]) for entry in measured.values() if entry.get("seconds")]
    if took:
        return len(open_ones) * sum(took) / len(took)
    start_s, token_s = GUESSES[str(arguments["plan"].get("device") or "cuda")]
    starts = [sum(phase["seconds"] for phase in server.get("start") or []) for server in _servers(arguments["info"])]
    start_s = max(starts, default=0) or start_s
    loads_s = tuning.waves * tuning.output_len * token_s * tuning.runs
    return sum(start_s + len(entry["loads"]) * loads_s for entry in open_ones)


def _facts(state: TuneState, arguments: Mapping[str, Any], tuning: Tuning) -> dict[str, Any]:
    """Return what the report tells of the sweep as a whole."""
    plan = plain(arguments["plan"])
    return {
        "host": state.folder.name,
        "created": now(),
        "model": plan["model"],
        "precision": plan["precision"],
        "hardware": plan["hardware"],
        "driver": str(arguments["gpu_info"].get("driver_version") or ""),
        "image": plan["image"]["reference"],
        "vllm_version": plan["image"]["vllm_version"],
        "gpus_each": plan["device"] == "cuda",
        "load": tuning.load(),
    }


def _servers(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(info.get("servers") or [])


def _runs(info: Mapping[str, Any]) -> bool:
    return any(server.get("state") in ("running", "restarting", "paused") for server in _servers(info))


def _gpus(arguments: Mapping[str, Any]) -> int:
    """Return how many GPUs there are for the candidates."""
    plan = arguments["plan"]
    if plan.get("device") != "cuda":
        return 0
    planned = sum(len(replica["gpus"]) for replica in plan["replicas"])
    return max(planned, len(arguments["gpu_info"].get("gpus") or []))


def _said(points: list[dict[str, Any]]) -> str:
    """Return the rates of a candidate for people."""
    rates = (
        f"{entry['summary'].get('output_throughput', {}).get('mean', 0):.0f} tok/s at {entry['concurrency']}"
        for entry in points
    )
    return ", ".join(rates)
