# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the router takes hosts for, by plays on this machine that change nothing but files of the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.tests.packaging.away import ansible

REPLICA = {"name": "vllm-0", "host": "10.0.0.1", "port": 8000}
H200S = [{"name": "NVIDIA H200", "count": 8}]
NEVER_TEMPLATED = "{{ text_of_the_site }}"
TOLD = "TOLD "


def role(name: str, entry: str) -> dict[str, Any]:
    """Return a task that runs an entry point of a role."""
    return {"ansible.builtin.include_role": {"name": f"gpufleet.vllm.{name}", "tasks_from": entry}}


def tell(**what: str) -> dict[str, Any]:
    """Return a task that prints what expressions are, for C(told)."""
    found = ", ".join(f"'{name}': {expression}" for name, expression in what.items())
    return {"ansible.builtin.debug": {"msg": f"{TOLD}{{{{ {{ {found} }} | to_json }}}}"}}


def told(output: str) -> Any:
    """Return what the one task made by C(tell) printed."""
    (line,) = [line for line in output.splitlines() if TOLD in line]
    return json.loads(json.loads(line.split('"msg": ', 1)[1]).removeprefix(TOLD))


class Site:
    """A site whose hosts are all this machine.

    Args:
        folder: of its files.
        installed: folder of collections with this one.
    """

    def __init__(self, folder: Path, installed: Path) -> None:
        self.folder = folder
        self.installed = installed

    def has(self, hosts: dict[str, Any], **variables: Any) -> None:
        """Write the inventory: a router C(lb), and hosts behind it with variables of their own."""
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **variables}
        behind = {host: {"vllm_config_dir": str(self.folder / host), **own} for host, own in hosts.items()}
        own = {"router_run_dir": str(self.folder / "run-of-the-router"), "router_state_dir": str(self.folder / "kept")}
        router = {"hosts": {"lb": {}}, "vars": own}
        groups = {"router": router, "vllm": {"hosts": behind}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"vars": local, "children": groups}}))

    def play(self, *plays: dict[str, Any], options: tuple[str, ...] = (), status: int = 0, **settings: str) -> str:
        """Run plays and return what was printed."""
        (self.folder / "play.yml").write_text(yaml.safe_dump([{"gather_facts": False, **play} for play in plays]))
        return self.run("play.yml", *options, status=status, **settings)

    def run(self, playbook: str, *options: str, status: int = 0, **settings: str) -> str:
        """Run a playbook and return what was printed."""
        words = (playbook, "-i", "hosts.yml", *options)
        return ansible(
            "ansible-playbook", *words, folder=self.folder, collections=self.installed, status=status, **settings
        )


@pytest.fixture
def site(tmp_path: Path, installed: Path) -> Site:
    return Site(tmp_path, installed)


def test_only_a_host_that_was_read_and_has_no_plan_is_left_out(site: Site) -> None:
    site.has({"serves": {}, "empty": {}, "unreadable": {}, "no-python": {"ansible_python_interpreter": "/no/python"}})
    (site.folder / "serves").mkdir()
    (site.folder / "serves" / "plan.json").write_text(json.dumps({"replicas": [REPLICA]}))
    (site.folder / "unreadable" / "plan.json").mkdir(parents=True)  # which root cannot read either
    before = [
        {"host": host, "name": "vllm-0", "address": "10.0.0.2", "port": 1} for host in ("unreadable", "no-python")
    ]
    (site.folder / "router").mkdir()
    (site.folder / "router" / "replicas.json").write_text(json.dumps(before))
    router = {
        "members": "{{ groups.vllm }}",
        "host": "127.0.0.1",
        "tls": False,
        "directory": str(site.folder / "router"),
        "run_dir": str(site.folder / "run"),
        "state_dir": str(site.folder / "state"),
    }
    output = site.play(
        {"hosts": "vllm", "ignore_unreachable": True, "tasks": [role("router", "collect_replicas")]},
        {
            "hosts": "lb",
            "tasks": [
                {"gpufleet.vllm.router_server": router, "check_mode": True, "register": "found"},
                tell(kept="found.kept", left_out="found.left_out", hosts="found.replicas | map(attribute='host')"),
            ],
        },
        status=2,
    )
    assert told(output) == {
        "kept": ["no-python", "unreadable"],
        "left_out": {"empty": "nothing is deployed there"},
        "hosts": ["no-python", "serves", "unreadable"],
    }
    assert f"{site.folder}/unreadable/plan.json (vllm_config_dir) cannot be read" in output
    assert "Set ansible_become to true" in output


def test_a_plan_that_was_not_applied_counts_in_check_mode_alone(site: Site) -> None:
    wished = {"vllm_accept_license": True, "vllm_gpus": H200S}
    site.has({"gpu-01": {**wished, "vllm_environment": {"SITE": "{% raw %}" + NEVER_TEMPLATED + "{% endraw %}"}}})
    play = {
        "hosts": "gpu-01",
        "tasks": [
            role("vllm", "plan"),
            role("router", "collect_replicas"),
            tell(replicas="__router_member.replicas | length", text="vllm_plan.replicas[0].environment.SITE"),
        ],
    }
    cache = site.folder / "facts"
    assert told(site.play(play, options=("--check",))) == {"replicas": 4, "text": NEVER_TEMPLATED}
    cached = site.play(play, ANSIBLE_CACHE_PLUGIN="jsonfile", ANSIBLE_CACHE_PLUGIN_CONNECTION=str(cache))
    assert told(cached) == {"replicas": 0, "text": NEVER_TEMPLATED}
    assert "vllm_plan" not in "".join(path.read_text() for path in cache.rglob("*") if path.is_file())


def test_hosts_are_planned_where_facts_are_no_variables(site: Site) -> None:
    site.has({"gpu-01": {"vllm_accept_license": True, "vllm_gpus": H200S}})
    output = site.run("gpufleet.vllm.plan", ANSIBLE_INJECT_FACT_VARS="false")
    assert "gpu-01" in output and "TP 2" in output


def test_the_routers_own_folder_is_taken(site: Site) -> None:
    site.has({"gpu-01": {}})
    asked = "results | map(attribute='invocation.module_args.run_dir') | first"
    output = site.play(
        {
            "hosts": "gpu-01",
            "tasks": [
                role("router", "drain"),
                role("router", "undrain"),
                tell(drain=f"__router_drain.{asked}", ready=f"__router_ready.{asked}"),
            ],
        }
    )
    assert told(output) == dict.fromkeys(("drain", "ready"), str(site.folder / "run-of-the-router"))
