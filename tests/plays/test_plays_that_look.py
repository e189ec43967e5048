# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks that only look say of hosts that are not as they should be, and where they could not look.

Real runs of ansible-playbook. The hosts are this machine, each with folders of its own, or a port nobody listens at.
"""

from __future__ import annotations

import json
import os
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.tests.plays.local_play import run_playbook
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.conftest import VerifiedServer

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"
# A play that looks has no business with pip, and what it would install could not be had.
UNSATISFIED = "gpufleet-no-such-library==0.0.1"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the probe wants root before anything else")

Play = Callable[..., "tuple[int, str]"]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Run a playbook on hosts given with their variables; returns the exit code and what it printed."""

    def run(
        playbook: str | list[Any],
        hosts: dict[str, dict[str, Any]],
        *arguments: str,
        router: dict[str, dict[str, Any]] | None = None,
    ) -> tuple[int, str]:
        inventory, own = tmp_path / "hosts.json", tmp_path / "play.json"
        groups = {"vllm": {"hosts": hosts}} | ({"router": {"hosts": router}} if router else {})
        inventory.write_text(json.dumps({"all": {"children": groups}}), encoding="utf-8")
        own.write_text(json.dumps(playbook), encoding="utf-8")
        path = str(PLAYBOOKS / f"{playbook}.yml") if isinstance(playbook, str) else str(own)
        code, said = run_playbook(tmp_path, path, "-i", str(inventory), *arguments, HOME=str(tmp_path))
        assert "DEPRECATION WARNING" not in said, said
        return code, said

    return run


@pytest.fixture
def verified_server() -> Iterator[VerifiedServer]:
    """A server on this machine that answers as vLLM does."""
    server = VerifiedServer()
    yield server
    server.close()


def this_machine(folder: Path, **variables: Any) -> dict[str, Any]:
    """Return the variables of a host that is this machine, with folders of its own and no Docker engine."""
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "vllm_device": "cpu",
        "vllm_venv": str(folder / "venv"),
        "vllm_config_dir": str(folder / "etc"),
        "vllm_state_dir": str(folder / "state"),
        "vllm_docker_host": f"unix://{folder}/docker.sock",
        "vllm_libraries": [UNSATISFIED],
        **variables,
    }


def unreachable() -> dict[str, Any]:
    return {"ansible_host": "127.0.0.1", "ansible_port": free_port()}


def old_libraries(folder: Path) -> None:
    """Make the virtual environment of a host: it has this Python's libraries, and not those that are wished."""
    venv.create(folder / "venv", with_pip=False)
    site_packages = next((folder / "venv").glob("lib/python3*/site-packages"))
    here = [entry for entry in sys.path if entry and "site-packages" in entry]
    (site_packages / "these.pth").write_text("\n".join(here) + "\n", encoding="utf-8")


def test_status_tells_new_broken_and_lost_hosts_apart(play: Play, tmp_path: Path) -> None:
    old_libraries(tmp_path / "broken")
    (tmp_path / "robbed/etc").mkdir(parents=True)
    (tmp_path / "robbed/etc/plan.json").write_text("{}", encoding="utf-8")
    hosts = {name: this_machine(tmp_path / name) for name in ("new", "broken", "robbed")} | {"lost": unreachable()}
    code, shown = play("status", hosts, "--forks", "2")
    assert code == 2, shown
    page = shown[shown.index("0 of 0 replicas") :].splitlines()
    assert page[:3] == [
        "0 of 0 replicas serving on 1 host, 2 hosts not looked at, 1 host not reached",
        "Nothing is deployed on new.",
        "Not looked at:",
    ]
    assert page[3].startswith("  broken: No Docker engine answers at unix://")
    assert page[4].startswith("  robbed: Something was deployed (") and "vllm_venv" in page[4]
    assert page[5] == "Not reached: lost."
    assert "interpreter" not in shown, "a new host is no error"
    recap = {line.split()[0]: line for line in shown[shown.index("PLAY RECAP") :].splitlines()[1:] if ":" in line}
    assert "failed=0" in recap["new"]
    assert all("failed=1" in recap[name] for name in ("broken", "robbed", "lost"))


def test_status_has_a_page_when_no_host_is_reached(play: Play) -> None:
    code, shown = play("status", {"gpu-1": unreachable(), "gpu-2": unreachable()}, router={"lb-1": unreachable()})
    assert code == 2, shown
    assert "Not reached: gpu-[1:2]." in shown
    assert "The router lb-1 could not be asked:" in shown


def test_status_fails_when_what_should_serve_does_not_unless_told_otherwise(play: Play, tmp_path: Path) -> None:
    hosts, router = {"new": this_machine(tmp_path / "new")}, {"lb-1": unreachable()}
    code, shown = play("status", hosts, router=router)
    assert code == 2, shown
    assert "router lb-1: it could not be asked. With vllm_status_fails: false" in shown
    code, shown = play("status", hosts, "-e", "vllm_status_fails=false", router=router)
    assert code == 0, shown
    assert "The router lb-1 could not be asked:" in shown


@needs_root
def test_comparing_installs_nothing(play: Play, tmp_path: Path) -> None:
    old_libraries(tmp_path / "old")
    before = sorted((tmp_path / "old").rglob("*"))
    wished = {"vllm_plan_dir": str(tmp_path / "plans")}
    hosts = {name: this_machine(tmp_path / name, **wished) for name in ("old", "none")}
    look = {"ansible.builtin.import_role": {"name": "gpufleet.vllm.vllm", "tasks_from": "drift"}}
    tell = {"ansible.builtin.debug": {"msg": "{{ inventory_hostname }} differs: {{ __vllm_drift | join }}"}}
    steps = [{"hosts": "all", "gather_facts": False, "tasks": [look, tell]}]
    code, shown = play(steps, hosts)
    assert code == 0, shown
    assert "Install the libraries" not in shown and UNSATISFIED not in shown
    assert sorted((tmp_path / "old").rglob("*")) == before and not (tmp_path / "plans").exists()
    assert "old differs: what the inventory wishes cannot be planned: No Docker engine answers" in shown, (
        "the modules ran by the libraries that are there"
    )
    assert f"none differs: what the inventory wishes cannot be planned: {tmp_path}/none/venv" in shown


@needs_root
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tags", "baisc"], "asked for: baisc."),
        (["--tags", "accuracy", "--check"], "Check mode does not run accuracy."),
    ],
    ids=["a mistyped tag", "check mode"],
)
def test_verifying_nothing_fails_and_spares_the_last_report(
    play: Play, tmp_path: Path, arguments: list[str], named: str
) -> None:
    old_libraries(tmp_path / "host")
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "report.html").write_text("the last one", encoding="utf-8")
    address = f"http://127.0.0.1:{free_port()}"
    host = this_machine(tmp_path / "host", vllm_libraries=[], vllm_url=address, vllm_report_dir=str(reports))
    code, shown = play("verify", {"gpu-1": host}, *arguments)
    assert code == 2, shown
    assert "Verification: NOTHING was verified on 1 host" in shown and named in shown
    assert "no attribute" not in shown and "rescued=0" in shown
    assert [path.name for path in reports.iterdir()] == ["report.html"]
    assert (reports / "report.html").read_text(encoding="utf-8") == "the last one"


@needs_root
def test_a_stage_that_ends_before_its_own_task_fails_the_host(
    play: Play, tmp_path: Path, verified_server: VerifiedServer
) -> None:
    old_libraries(tmp_path / "host")
    wished = {
        "vllm_libraries": [],
        "vllm_url": verified_server.url,
        "vllm_verify_dir": str(tmp_path / "verify"),
        "vllm_report_dir": str(tmp_path / "reports"),
        "vllm_accuracy_tasks_dir": str(tmp_path / "no-such-folder"),
    }
    code, shown = play("verify", {"gpu-1": this_machine(tmp_path / "host", **wished)}, "--skip-tags", "gpu")
    assert code == 2, shown
    page = shown[shown.index("Verification FAILED on 1 of 1 host") :]
    assert "gpu-1 accuracy: Copy the tasks: " in page and "no-such-folder" in page
    document = json.loads((tmp_path / "reports/report.json").read_text(encoding="utf-8"))
    assert [failure["stage"] for failure in document["failures"]] == ["accuracy", "performance"]
    assert [item["passed"] for item in document["hosts"][0]["stages"]["basic"]] == [True]


def test_security_alone_is_about_the_router_and_needs_one(play: Play, tmp_path: Path) -> None:
    servers = {"gpu-1": {**unreachable(), "vllm_report_dir": str(tmp_path / "reports")}}
    code, shown = play("verify", servers, "--tags", "security")
    assert code == 2, shown
    assert "group router (the inventory has none)" in shown
    router = {"lb-1": this_machine(tmp_path / "lb", router_dir=str(tmp_path / "haproxy"))}
    code, shown = play("verify", servers, "--tags", "security", "--limit", "gpu-1", router=router)
    assert code == 2, shown
    assert "(it has lb-1)" in shown
    code, shown = play("verify", servers, "--tags", "security", router=router)
    assert code == 2, shown
    assert "haproxy/replicas.json" in shown, "the router's own check began"
    assert "UNREACHABLE" not in shown and "Verification" not in shown and not (tmp_path / "reports").exists()


@needs_root
def test_preflight_refuses_a_router_s_variables_that_only_the_last_step_of_a_deployment_would(
    play: Play, tmp_path: Path
) -> None:
    for variables, text in (
        (
            {"router_balance": "roundrobin"},
            "value of router_balance must be one of: leastconn, prefix, session, got: r",
        ),
        (
            {"router_certificate": "/nowhere.pem"},
            "router_certificate: there is no file /nowhere.pem on the controller.",
        ),
    ):
        door = {"door-01": this_machine(tmp_path) | variables}
        code, said = play("preflight", {"gpu-01": this_machine(tmp_path)}, "--limit", "door-01", router=door)
        assert code == 2 and text in said, said
        assert "Preflight of 1 host" not in said
