# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom the role lets reach the servers' ports: routers and monitoring hosts that it asks, and who is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.plays.wired import RESULTS, log_of, play

FACTS = {"ansible_all_ipv4_addresses": ["10.0.0.5", "192.0.2.5"], "ansible_all_ipv6_addresses": ["fd00::5"]}
PLAY = {
    "hosts": "vllm",
    "gather_facts": False,
    "tasks": [
        {
            "ansible.builtin.include_role": {"name": "gpufleet.vllm.vllm", "tasks_from": "ports"},
            "vars": {"__vllm_ports_of": [{"host": "0.0.0.0", "port": 8000}]},
        }
    ],
}


def asked(folder: Path, routers: dict[str, Any], *, down: tuple[str, ...] = (), **variables: Any) -> Any:
    """Play, and return the options of vllm_ports on each host, and where addresses were asked for."""
    common = {"ansible_connection": "wire", "ansible_python_interpreter": sys.executable, "vllm_venv": sys.prefix}
    groups = {"vllm": {"hosts": {"gpu-01": {}, "gpu-02": {}}}, "router": {"hosts": routers}}
    groups["monitoring"] = {"hosts": {"prom-1": {}}}
    hosts = {"all": {"vars": {**common, **variables}, "children": groups}}
    wire = {"results": {**RESULTS, "setup": {"ansible_facts": FACTS}}, "breaks": {}, "down": list(down)}
    for name, text in (("hosts.json", hosts), ("wire.json", wire), ("plays.yml", [PLAY])):
        (folder / name).write_text(json.dumps(text), encoding="utf-8")
    ran = play(folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    log = log_of(folder)
    options = [json.loads(line[2]) for line in log if line[1] == "vllm_ports"]
    assert len(options) == 2
    return options[0], [line[0] for line in log if line[1] == "setup"]


def test_routers_and_monitoring_hosts_are_asked_once_and_let_in(tmp_path: Path) -> None:
    options, hosts = asked(tmp_path, {"lb-1": {}, "lb-2": {}}, vllm_allowed_sources="10.9.0.0/16, 10.8.0.1")
    assert sorted(hosts) == ["lb-1", "lb-2", "prom-1"], "once for both hosts"
    assert set(options["sources"]) == {"10.0.0.5", "192.0.2.5", "fd00::5", "10.9.0.0/16", "10.8.0.1"}
    assert (options["state"], options["keep_sources"], options["keep_replicas"]) == ("present", False, False)
    assert options["replicas"] == [{"host": "0.0.0.0", "port": 8000}]


def test_one_that_cannot_be_asked_keeps_what_it_had_and_has_its_known_address(tmp_path: Path) -> None:
    routers = {"lb-1": {}, "lb-2": {"ansible_host": "192.0.2.7"}}
    options, _hosts = asked(tmp_path, routers, down=("lb-2", "192.0.2.7"))
    assert options["keep_sources"] is True
    assert set(options["sources"]) == {"10.0.0.5", "192.0.2.5", "fd00::5", "192.0.2.7"}


@pytest.mark.parametrize("said", [False, "false"])
def test_turned_off_nobody_is_asked_and_the_rules_go(tmp_path: Path, said: Any) -> None:
    options, hosts = asked(tmp_path, {"lb-1": {}}, vllm_restrict_ports=said)
    assert (options["state"], hosts) == ("absent", [])


def test_without_a_router_ports_stay_as_they_are(tmp_path: Path) -> None:
    options, hosts = asked(tmp_path, {})
    assert (options["state"], hosts) == ("absent", [])
