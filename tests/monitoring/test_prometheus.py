# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Prometheus with our configuration, which asks recorded servers through a real HAProxy with ours."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.action.monitoring_files import ActionModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate, public_part
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import ADMIN_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import as_settings
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.dashboard_panels import DASHBOARDS, Panel
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.grafana import query_of
from ansible_collections.gpufleet.vllm.tests.monitoring import programs
from ansible_collections.gpufleet.vllm.tests.monitoring.measured_replica import MeasuredReplica
from ansible_collections.gpufleet.vllm.tests.router.real_haproxy import routing
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

TOKEN = "the-token-of-monitoring"
HOSTS = ("gpu-01", "gpu-02", "gpu-03")
PATIENCE_S = 300.0
IN_A_MINUTE = ("replica_down_minutes", "no_progress_minutes", "queue_minutes", "rollout_minutes")
# As the health program of a host with a sick GPU writes them.
SICK = """\
gpufleet_gpu_sick{gpu="0",reason="xid-79"} 1
gpufleet_gpu_xid_total{gpu="0",xid="79"} 1
gpufleet_gpu_reading_failed{gpu="0",reading="ecc"} 0
"""


class Watched:
    """A Prometheus and what it watches.

    Args:
        port: of Prometheus.
        alertmanager: port of Alertmanager.
        replicas: by their hosts.
        admin: path of HAProxy's socket.
    """

    def __init__(self, port: int, alertmanager: int, replicas: dict[str, MeasuredReplica], admin: str) -> None:
        self.port, self.alertmanager, self.replicas, self.admin = port, alertmanager, replicas, admin

    def ask(self, path: str, **parameters: str) -> Any:
        """Return what Prometheus' API says."""
        return asked(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")["data"]

    def values(self, expression: str) -> list[float]:
        """Return the values of an expression."""
        result = self.ask("query", query=expression)
        samples = result["result"] if result["resultType"] == "vector" else [{"value": result["result"]}]
        return [float(sample["value"][1]) for sample in samples]

    def command(self, words: str) -> None:
        """Give HAProxy a command."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(self.admin)
            connection.sendall(f"{words}\n".encode())
            assert connection.recv(1000).strip() == b""


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def wait_for(what: str, holds: Callable[[], Any]) -> float:
    """Wait until something holds, and return after how many seconds it did."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            if holds():
                return time.monotonic() - began
        assert time.monotonic() - began < PATIENCE_S, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.3)


@contextlib.contextmanager
def clients(port: int, authorities: Path) -> Iterator[None]:
    """Have someone ask the router five times a second, for the block."""
    over, trusted = threading.Event(), ssl.create_default_context(cafile=str(authorities))

    def ask() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"https://127.0.0.1:{port}/health", context=trusted, timeout=5).close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def running(folder: Path, program: str, *words: str) -> Iterator[None]:
    """Have a program run, for the block."""
    with (folder / f"{program}.log").open("wb") as log:
        process = subprocess.Popen(
            programs.command(program, *words), env=programs.environment(program), stdout=log, stderr=log, cwd=folder
        )
        try:
            yield
            assert process.poll() is None, (folder / f"{program}.log").read_text()[-2000:]
        finally:
            process.terminate()
            process.wait()


def written(folder: Path, replicas: dict[str, MeasuredReplica], ports: dict[str, int]) -> None:
    """Write what the role writes, but for times: alerts fire after seconds."""
    router = {
        "ansible_host": "127.0.0.1",
        "router_metrics_host": "0.0.0.0",
        "router_metrics_port": ports["metrics"],
        "router_metrics_token": TOKEN,
    }
    hostvars: dict[str, Any] = {"lb-1": router}
    for number, (host, replica) in enumerate(replicas.items()):
        plan = {
            "model": "scout",
            "hardware": "1 x NVIDIA H200",
            "precision": "fp8",
            "profile": "balanced",
            "image": {"reference": "vllm/vllm-openai:v0.33.0"},
            "replicas": [{"name": "vllm-0", "host": "0.0.0.0", "port": replica.port, "gpus": [number]}],
        }
        hostvars[host] = {
            "ansible_host": "127.0.0.1",
            "__monitoring_member": {"plan": plan, "address": "", "ansible_host": "127.0.0.1"},
        }
    (folder / "token").write_text(TOKEN)
    result, _display = run_action(
        ActionModule,
        {
            "kinds": ["targets", "rules", "prometheus", "alertmanager"],
            "members": list(replicas),
            "routers": ["lb-1"],
            "here": ["lb-1", "gpu-01"],
            "node_hosts": ["gpu-01"],
            "thresholds": dict.fromkeys(IN_A_MINUTE, 1),
            "scrape_seconds": 3,
            "targets_path": str(folder),
            "token_path": str(folder / "token"),
            "ca_path": str(folder / "ca.pem"),
            "node_port": ports["node"],
            "rules_path": str(folder / "gpufleet-rules.yml"),
            "runbooks_url": "https://example.com/runbooks.html",
            "alertmanager": {"static_configs": [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]},
            "itself": {"job_name": "prometheus", "static_configs": [{"targets": [f"127.0.0.1:{ports['prometheus']}"]}]},
        },
        {"hostvars": hostvars},
    )
    for file in result["files"]:
        (folder / file["name"]).write_text(re.sub(r"for: [12]m", "for: 2s", file["content"]), encoding="utf-8")
    alertmanager = yaml.safe_load((folder / "alertmanager.yml").read_text(encoding="utf-8"))
    alertmanager["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(alertmanager), encoding="utf-8")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Prometheus, Alertmanager, node_exporter and HAProxy, and three servers."""
    folder = tmp_path_factory.mktemp("watched")
    ports = {name: free_port() for name in ("router", "metrics", "prometheus", "alertmanager", "node")}
    replicas = {host: MeasuredReplica() for host in HOSTS}
    (folder / "textfile").mkdir()
    (folder / "textfile" / "gpus.prom").write_text(f"{SICK}gpufleet_gpu_health_time_seconds {time.time()}\n")
    make_certificate(str(folder / "site.pem"), ["lb-1", "127.0.0.1"], 30)
    (folder / "ca.pem").write_text(public_part(str(folder / "site.pem")))
    given = {
        "host": "127.0.0.1",
        "port": ports["router"],
        "api_keys": ["key"],
        "metrics_host": "0.0.0.0",
        "metrics_port": ports["metrics"],
        "metrics_token": TOKEN,
        "access_log": "",
        "run_dir": str(folder),
        "state_dir": str(folder),
        "user": "root",
    }
    settings = as_settings({**{name: about.get("default") for name, about in ARGUMENTS.items()}, **given}, "", "")
    behind = [Replica(host, "vllm-0", "127.0.0.1", replica.port, ("scout",)) for host, replica in replicas.items()]
    written(folder, replicas, ports)
    listens = {name: f"--web.listen-address=127.0.0.1:{port}" for name, port in ports.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(routing(folder, settings, behind))
        stack.enter_context(clients(ports["router"], folder / "ca.pem"))
        stack.enter_context(
            running(
                folder, "prometheus-node-exporter", listens["node"], f"--collector.textfile.directory={folder}/textfile"
            )
        )
        stack.enter_context(
            running(
                folder,
                "prometheus-alertmanager",
                "--config.file=alertmanager.yml",
                listens["alertmanager"],
                "--storage.path=am",
                "--cluster.listen-address=",
            )
        )
        stack.enter_context(
            running(
                folder, "prometheus", "--config.file=prometheus.yml", listens["prometheus"], "--storage.tsdb.path=data"
            )
        )
        found = Watched(ports["prometheus"], ports["alertmanager"], replicas, str(folder / ADMIN_SOCKET))
        wait_for("Prometheus answers", lambda: found.ask("status/runtimeinfo"))
        yield found
        for replica in replicas.values():
            replica.stop()


def test_prometheus_takes_the_configuration(watched: Watched) -> None:
    groups = watched.ask("rules")["groups"]
    assert {group["name"] for group in groups} == {"gpufleet-recorded", "gpufleet-alerts"}


def test_everything_is_up_and_has_its_labels(watched: Watched) -> None:
    wait_for("all targets are up", lambda: watched.values("count(up == 1)") == [6])
    (series,) = watched.ask("query", query='up{job="vllm",host="gpu-02"}')["result"]
    assert (
        series["metric"].items()
        >= {
            "replica": "vllm-0",
            "model": "scout",
            "gpu": "1",
            "hardware": "1 x NVIDIA H200",
            "precision": "fp8",
            "profile": "balanced",
            "image": "vllm/vllm-openai:v0.33.0",
            "router": "lb-1",
        }.items()
    )
    # HAProxy's own series of a replica have the same names.
    assert watched.values('haproxy_server_status{proxy="replicas",host="gpu-02",replica="vllm-0",state="UP"}') == [1]


def panels() -> list[Any]:
    """Return each question that Prometheus can answer here: all but those to DCGM exporter, which needs a GPU."""
    found = []
    for board in DASHBOARDS:
        for panel in board.panels:
            if panel.optional != "DCGM exporter":
                found += [
                    pytest.param(board.picks, panel, expression, id=f"{board.uid}: {panel.title} ({number})")
                    for number, (expression, _legend) in enumerate(panel.queries)
                ]
    return found


@pytest.mark.parametrize(("picks", "panel", "expression"), panels())
def test_a_panel_shows_something(watched: Watched, picks: tuple[str, ...], panel: Panel, expression: str) -> None:
    query = query_of(expression, picks, "2.5").replace("$__rate_interval", "30s")
    for label in picks:
        query = query.replace(f"${{{label}}}", ".*")
    assert "$" not in query
    wait_for(f"{panel.title}: {query}", lambda: any(not math.isnan(value) for value in watched.values(query)))


def alerts_of(watched: Watched) -> dict[str, dict[str, Any]]:
    """Return what Alertmanager was told and has not been told the end of, by the alert's name."""
    alerts = asked(f"http://127.0.0.1:{watched.alertmanager}/api/v2/alerts?active=true")
    return {alert["labels"]["alertname"]: alert for alert in alerts}


def test_what_is_provoked_is_told_and_its_end_is(watched: Watched) -> None:
    """One server dies, one hangs, one is drained at the router and has a queue that grows."""
    wait_for("all replicas are up", lambda: watched.values('sum(up{job="vllm"})') == [3])
    provoked = {"GpufleetReplicaDown", "GpufleetNoProgress", "GpufleetQueueGrowing", "GpufleetRolloutStandsStill"}
    provoked.add("GpufleetFewReplicasLeft")
    wait_for("nothing of that is told", lambda: not provoked & alerts_of(watched).keys())
    began = time.monotonic()
    after: dict[str, float] = {}
    watched.replicas["gpu-01"].hangs = True
    watched.replicas["gpu-02"].stop()
    watched.replicas["gpu-03"].queue_grows = True
    watched.command("set server replicas/gpu-03:vllm-0 state drain")
    while provoked - after.keys():
        assert time.monotonic() - began < PATIENCE_S, f"not told: {provoked - after.keys()}"
        for name in alerts_of(watched):
            after.setdefault(name, time.monotonic() - began)
        time.sleep(0.5)
    told = alerts_of(watched)
    assert told["GpufleetReplicaDown"]["labels"]["host"] == "gpu-02"
    assert told["GpufleetReplicaDown"]["annotations"] == {
        "summary": "The replica vllm-0 on gpu-02 does not answer",
        "description": "Its metrics could not be read for 1 minutes: it serves no requests, or is not reached.",
        "runbook_url": "https://example.com/runbooks.html#gpufleetreplicadown",
    }
    assert told["GpufleetNoProgress"]["labels"]["host"] == "gpu-01"
    assert told["GpufleetQueueGrowing"]["labels"]["host"] == "gpu-03"
    assert told["GpufleetRolloutStandsStill"]["labels"]["host"] == "gpu-03"
    assert watched.values('sum(up{job="vllm"})') == [2], "others are watched on"
    watched.replicas["gpu-01"].hangs = False
    watched.replicas["gpu-02"].start()
    watched.replicas["gpu-03"].queue_grows = False
    watched.command("set server replicas/gpu-03:vllm-0 state ready")
    over = wait_for("all are over", lambda: not provoked & alerts_of(watched).keys())
    print({name: round(seconds, 1) for name, seconds in after.items()}, f"over after {over:.1f} s")


def test_a_sick_gpu_is_told_with_its_reason(watched: Watched) -> None:
    wait_for("the alert is sent", lambda: "GpufleetGpuSick" in alerts_of(watched))
    assert alerts_of(watched)["GpufleetGpuSick"]["annotations"]["summary"] == "GPU 0 of gpu-01 is sick: xid-79"


def test_nothing_else_is_told(watched: Watched) -> None:
    """Servers under a steady load, all of one image, are no reason for any other alert."""
    firing = {alert["labels"]["alertname"] for alert in watched.ask("alerts")["alerts"] if alert["state"] == "firing"}
    assert firing <= {"GpufleetGpuSick"}
