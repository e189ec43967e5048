# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients with names, by the playbooks router and usage: two routers, by this machine's HAProxy, before one server."""

from __future__ import annotations

import csv
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.tests.fakes.counting_replica import counting
from ansible_collections.gpufleet.vllm.tests.plays.wired import COLLECTIONS
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

pytestmark = pytest.mark.skipif(
    program_path("haproxy") is None or os.geteuid() != 0 or os.path.isdir("/run/systemd/system"),
    reason="no HAProxy here, or not ours to start",
)
MARKER = "sk-marker-of-a-secret"
ROUTERS = ("lb-1", "lb-2")


class Site:
    """Two routers before one server; C(folder) has all their files."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.ports = {router: free_port() for router in ROUTERS}
        (folder / "gpu-01").mkdir()
        plan = {"replicas": [{"name": "vllm-0", "host": "127.0.0.1", "port": port}]}
        (folder / "gpu-01" / "plan.json").write_text(json.dumps(plan), encoding="utf-8")

    def inventory(self) -> str:
        """Write the inventory and return its path."""
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_router_address": "127.0.0.1",
            "vllm_report_dir": str(self.folder / "reports"),
            "router_host": "127.0.0.1",
            "router_tls": False,
            "router_manage_package": False,
            "router_api_keys": [],
        }
        routers = {}
        for router in ROUTERS:
            place = self.folder / router
            own = {f"router_{name}_dir": str(place / name) for name in ("run", "state")}
            own.update(router_dir=str(place / "etc"), router_access_log=str(place / "requests" / "access.log"))
            routers[router] = {
                **own,
                "router_port": self.ports[router],
                "router_log_file": str(self.folder / router) + "-log",
            }
        hosts = {"gpu-01": {"vllm_config_dir": str(self.folder / "gpu-01")}}
        groups = {"vllm": {"hosts": hosts}, "router": {"hosts": routers}}
        path = self.folder / "hosts.json"
        path.write_text(json.dumps({"all": {"vars": variables, "children": groups}}), encoding="utf-8")
        return str(path)

    def play(self, name: str, succeeds: bool = True, **variables: Any) -> str:
        """Run a playbook with everything that Ansible can show; return that."""
        secret = self.folder / "secret.json"
        secret.write_text(json.dumps(variables), encoding="utf-8")
        command = [sys.executable, "-m", "ansible", "playbook", f"gpufleet.vllm.{name}", "-i", self.inventory()]
        run = subprocess.run(
            [*command, "-e", f"@{secret}", "--diff", "-vvv"],
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "true"},
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )
        said = run.stdout + run.stderr
        secret.unlink()
        assert (run.returncode == 0) is succeeds, said
        assert MARKER not in said
        return said

    def ask(self, router: str, key: str) -> int:
        """Return with what a router answers a completion."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[router], timeout=20)
        try:
            body = json.dumps({"model": "m", "max_tokens": 3})
            connection.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}"})
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Two routers that do not run yet."""
    with counting() as replica:
        found = Site(tmp_path, replica.port)
        try:
            yield found
        finally:
            for router in ROUTERS:
                place = tmp_path / router
                RouterService(str(place / "etc"), str(place / "run"), str(place / "state"), f"{place}-log").remove()


def test_clients_come_and_go_and_their_use_is_summed_up(site: Site) -> None:
    team = {"name": "team-a", "key": MARKER, "models": ["m"], "expires": "2126-12-31"}
    wrong = site.play("router", succeeds=False, router_clients=[{**team, "modles": [MARKER]}, {"name": "b"}])
    assert "there is no field modles" in wrong and "router_clients, b: key is not given" in wrong
    said = site.play("router", router_clients=[team])
    assert re.search(r"lb-1 +: ok=\d+ +changed=[1-9]", said)
    again = site.play("router", router_clients=[team])
    assert re.search(r"lb-1 +: ok=\d+ +changed=0", again) and re.search(r"lb-2 +: ok=\d+ +changed=0", again)
    assert [site.ask(router, MARKER) for router in ("lb-1", "lb-1", "lb-2")] == [200, 200, 200]
    site.play("router", router_clients=[{**team, "key": [MARKER + "-2"]}])
    assert [site.ask("lb-1", key) for key in (MARKER, MARKER + "-2")] == [401, 200]
    time.sleep(1)
    shown = site.play("usage")
    assert "5 requests at 2 routers" in shown
    with open(site.folder / "reports" / "usage.csv", encoding="utf-8", newline="") as stream:
        rows = {(row["client"], row["model"]): row for row in csv.DictReader(stream)}
    assert [rows["team-a", "m"][name] for name in ("requests", "failures", "tokens_out")] == ["4", "0", "12"]
    assert [rows["-", "-"][name] for name in ("requests", "failures")] == ["1", "1"]
    assert "is no day" in site.play("usage", succeeds=False, router_usage_since="yesterday")
    kept = [path for path in site.folder.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
    assert kept == []
