# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the servers of a host are doing: from their containers, their answers, and if they give none, their logs."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import served_names
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import duration
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import (
    key_to_ask_with,
    parse_time,
    started_at,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import (
    NEXT,
    PREVIOUS,
    belongs_to,
    filters_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import base_url, read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import Server, health_status
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.kernel_log import memory_kill
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.start_phases import (
    SERVING,
    WARM_UP,
    StartWatch,
    watch_lines,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

QUERY_TIMEOUT_S = 5.0
# No start prints more; a log that has lost its beginning is not read to its end for nothing.
START_LINES = 20000
ENGINE_DEAD = "engine dead"
NOT_ANSWERING = "not answering"
RESTARTING = "restarting"
STOPPED = "stopped"
DEAD = "dead"
DRAINING = "draining"
# What a diagnosis says of a server that ended because it was told to.
NO_CAUSE = ("unknown-failure", "stopped-from-outside")
# For so long may a server outlive its engine, which the kernel killed.
DEATH_S = 120.0
# Docker keeps the count of a container's restarts for ever; what the log no longer holds is not looked for.
EARLIER_LINES = 3000
# What killed a server is in its last words. Among a busy server's last days Docker would hand over millions of lines to
# look for them in.
LAST_WORDS_S = 1800.0
# Docker notes the time of a start a moment after it; it waits longer than that between two starts in a loop.
START_S = 0.05
BIRTH = re.compile(r"vLLM API server version|non-default args: ")


def server_states(
    client: DockerClient, prefix: str, config_dir: str, log_lines: int, *, starts: bool = False
) -> list[dict[str, Any]]:
    """Return the state of each server whose name begins with C(prefix), see the module's RETURN."""
    with engine_errors("listing containers"):
        found = client.containers.list(all=True, filters=filters_of(prefix), ignore_removed=True)
    containers = {str(container.name): container for container in found if belongs_to(prefix, str(container.name))}
    names = {
        name[: -len(PREVIOUS)] if name.endswith(PREVIOUS) else name for name in containers if not name.endswith(NEXT)
    }
    states = []
    for name in sorted(names, key=_in_order):
        # Between two steps of a replacement only the old container may be there.
        container = containers.get(name) or containers[name + PREVIOUS]
        state = _state(name, container, config_dir, log_lines)
        old = containers.get(name + PREVIOUS)
        state["previous"] = old.status if old else ""
        state["summary"] = summary(state)
        if starts:
            state["start"] = start_phases(container) if state["phase"] == SERVING else []
        states.append(state)
    return states


def _in_order(name: str) -> tuple[str, int]:
    """Return the key that sorts vllm-10 after vllm-9."""
    head, _dash, number = name.rpartition("-")
    return (head, int(number)) if number.isdigit() else (name, 0)


def _state(name: str, container: Container, config_dir: str, log_lines: int) -> dict[str, Any]:
    spec = read_spec(container.labels)
    docker_state: dict[str, Any] = container.attrs["State"]
    running = _runs(docker_state)
    state: dict[str, Any] = {
        "name": name,
        "state": container.status,
        "phase": "",
        "detail": "",
        "health": (docker_state.get("Health") or {}).get("Status", "none"),
        "http_status": health_status(base_url(spec)) if spec and running else 0,
        "uptime_s": max(0, round(time.time() - started_at(container))) if running else 0,
        "restarts": container.attrs.get("RestartCount", 0),
        "exit_code": None if running else docker_state.get("ExitCode"),
        "url": base_url(spec) if spec else "",
        "model": served_name(spec),
        "image": container.attrs["Config"]["Image"],
        "vllm_version": "",
        "gpus": spec["gpus"] if spec else [],
        "load": {},
        "docker_run": _run_line(config_dir, name),
        "diagnosis": {},
        "last_death": {},
    }
    if running and state["restarts"]:
        state["last_death"] = last_death(container, name)
    if running and Control(os.path.join(config_dir, "control", name)).closed():
        state["phase"] = DRAINING
    elif state["http_status"] == 200:
        state["phase"] = SERVING
        _ask(state, key_to_ask_with(container, config_dir))
    else:
        _tell_why_not(state, container, docker_state, log_lines)
    return state


def _runs(docker_state: dict[str, Any]) -> bool:
    """Return whether a container runs; between two starts of a restart loop Docker says so of one that does not."""
    return bool(docker_state.get("Running")) and not docker_state.get("Restarting")


def last_death(container: Container, name: str) -> dict[str, Any]:
    """Return why Docker last had to start a container again: C(at) (UTC) and a diagnosis; empty if its log lost it.

    The log of a container goes on over its restarts: what stands before the last start is the end of the life before.
    """
    began = started_at(container)
    died = parse_time(container.attrs["State"].get("FinishedAt") or "")
    died = died if 0 < died < began else 0.0
    earlier = _lines_before(container, began, (died or began) - LAST_WORDS_S)
    # Of several lives only the last counts: it begins with one of the first lines that a server prints.
    births = [number for number, (_at, text) in enumerate(earlier) if BIRTH.search(text)]
    life = earlier[births[-1] :] if births else earlier
    died = died or (life[-1][0] if life else 0.0)
    killed = memory_kill(str(container.id), died - DEATH_S) if died else ""
    if not life and not killed:
        return {}
    error = diagnose([text for _at, text in life], memory_kill=killed, what=f"The server {name} died")
    at = datetime.fromtimestamp(died, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"at": at, **error.as_result()}


def _lines_before(container: Container, end: float, since: float) -> list[tuple[float, str]]:
    """Return the last lines of a container's log between two times, each with its own.

    All of that time is read: asked for the tail as well, Docker takes the tail of the whole log and looks only there,
    and a server with requests has printed more than that since.
    """
    kept: deque[tuple[float, str]] = deque(maxlen=EARLIER_LINES)
    with engine_errors(f"reading the log of {container.name}"):
        stream = container.logs(timestamps=True, since=max(since, 1.0), until=max(end, 1.0), stream=True, follow=False)
        for raw in stream:
            stamp, _space, text = raw.decode("utf-8", "replace").partition(" ")
            at = parse_time(stamp)
            if 0 < at < end:
                kept.append((at, text.rstrip()))
    return list(kept)


def start_phases(container: Container) -> list[dict[str, Any]]:
    """Return the phases of a container's last start, each C(name) and C(seconds); none if its log has lost them."""
    began = started_at(container)
    watch = StartWatch(began)
    with engine_errors(f"reading the log of {container.name}"):
        stream = container.logs(timestamps=True, since=max(began - START_S, 1.0), stream=True, follow=False)
        for raw in itertools.islice(stream, START_LINES):
            stamp, _space, line = raw.decode("utf-8", "replace").partition(" ")
            watch.feed(parse_time(stamp), line.rstrip())
            if watch.phase == SERVING:
                return watch.durations(parse_time(stamp))[:-1]
    return []


def served_name(spec: Spec | None) -> str:
    """Return the name under which a server of this spec serves its model."""
    if spec is None:
        return ""
    return served_names(spec["config"], spec["command"][1])[0]


def _run_line(config_dir: str, name: str) -> str:
    """Return the command in the script that vllm_server wrote."""
    _comments, found, line = read_text(config_dir, f"{name}.sh").partition("\nexec ")
    return line.rstrip("\n") if found else ""


def _ask(state: dict[str, Any], api_key: str) -> None:
    """Ask a serving server for its load, model and version; what it does not answer stays as it was."""
    server = Server(state["url"], api_key=api_key, timeout=QUERY_TIMEOUT_S)
    try:
        state["load"] = server.metrics()
        state["vllm_version"] = str(server.json("GET", "/version").get("version", ""))
        state["model"] = server.served_model()
    except GpufleetError as error:
        state["detail"] = error.message


def _tell_why_not(state: dict[str, Any], container: Container, docker_state: dict[str, Any], log_lines: int) -> None:
    """Tell the phase of a server that does not serve, and the cause if it died."""
    running, began = _runs(docker_state), started_at(container)
    # Of this life alone, or of the last one: what an earlier one died of may have been fixed since.
    lines = _log(container, log_lines, since=began)
    error = diagnose(
        lines,
        exit_code=state["exit_code"],
        # Docker may leave that set when it starts a container again.
        out_of_memory=bool(docker_state.get("OOMKilled")) and not (running and state["restarts"]),
        memory_kill=memory_kill(
            str(container.id), began if running else parse_time(docker_state.get("FinishedAt") or "") - DEATH_S
        ),
        what=f"The server {state['name']} died"
        if state["http_status"] != 503
        else f"The engine of {state['name']} died",
    )
    if docker_state.get("Restarting"):
        state["phase"] = RESTARTING
    elif state["http_status"] == 503:
        state["phase"] = ENGINE_DEAD
    elif running:
        watch = watch_lines(lines)
        state["phase"], state["detail"] = watch.phase, watch.detail
        if watch.engine_ended:
            state["phase"], state["detail"] = ENGINE_DEAD, ""
            state["diagnosis"] = error.as_result()
            return
        if watch.phase == SERVING:
            # Its log says that it serves, or is about to, but it does not answer.
            state["phase"], state["detail"] = (NOT_ANSWERING if watch.detail else WARM_UP), ""
        if state["phase"] != NOT_ANSWERING:
            # In a restart loop the life that has just begun cannot tell yet why.
            state["diagnosis"] = {key: value for key, value in state["last_death"].items() if key != "at"}
        return
    elif state["state"] == "created" or (state["exit_code"] in (0, 143) and error.name in NO_CAUSE):
        state["phase"] = STOPPED
        return
    else:
        state["phase"] = DEAD
    state["diagnosis"] = error.as_result()


def _log(container: Container, tail: int, since: float) -> list[str]:
    """Return the last lines of a container's log, of those since a time."""
    with engine_errors(f"reading the log of {container.name}"):
        data = container.logs(tail=tail, since=max(since - START_S, 1.0))
    return data.decode("utf-8", "replace").splitlines()


def summary(state: dict[str, Any]) -> str:
    """Return the state of a server as one line for people."""
    parts = [state["phase"] + (f" {state['detail']}" if state["detail"] and not state["diagnosis"] else "")]
    if state["model"]:
        parts.append(f"model {state['model']}")
    if state["uptime_s"]:
        parts.append(f"up {duration(state['uptime_s'])}")
    load = state["load"]
    if "requests_running" in load:
        parts.append(f"{load['requests_running']:.0f} requests running")
        parts.append(f"{load.get('requests_waiting', 0):.0f} waiting")
    if "kv_cache_usage" in load:
        parts.append(f"KV cache {load['kv_cache_usage'] * 100:.0f} % used")
    if state["restarts"]:
        death = state.get("last_death")
        why = f", last at {death['at']}: {death['name']}" if death else ""
        parts.append(f"restarted {state['restarts']} times{why}")
    if state["previous"]:
        parts.append(f"an unfinished replacement keeps the old container ({state['previous']})")
    if state["diagnosis"]:
        parts.append(state["diagnosis"]["message"])
    return ", ".join(parts)
