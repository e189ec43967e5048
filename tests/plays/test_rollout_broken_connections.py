# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection that breaks for one task of a host's turn: the turn has failed, and the host is brought back.

The play of a rollout goes on after a lost connection. So each result of a turn must be looked at: all of them by their
YAML, and some in a real run of playbooks/rollout.yml, over connections to hosts that are not there (tests/fakes).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.tests.plays.wired import ARRANGED, PLAN, RESULTS, ROOT, log_of, play

ROLES = ROOT / "roles"
# What runs on the controller alone, and has no connection to lose.
CONTROLLER = {
    *(f"ansible.builtin.{name}" for name in ("assert", "debug", "set_fact", "include_role", "include_tasks")),
    "gpufleet.vllm.vllm_rollout",
    "gpufleet.vllm.vllm_verify_targets",
    "gpufleet.vllm.vllm_caches_turn",
    # Asks hosts, but a lost one is a reason for it to go on without caches, and what comes next finds it lost.
    "gpufleet.vllm.vllm_caches",
}
KEYWORDS = {"name", "register", "when", "vars", "loop", "loop_control", "failed_when", "changed_when", "check_mode"}
KEYWORDS |= {"delegate_to", "run_once", "block", "rescue", "always", "become", "diff", "no_log", "ignore_unreachable"}
KEYWORDS |= {"ignore_errors"}

# A host of each name loses the task that the regular expression finds.
BREAKS = {
    "lost-config": r"\tvllm_config\t",
    "lost-look": r"\tvllm_server_info\t",
    "lost-basic": r"\tvllm_completion\t",
    "lost-accuracy": r"\tvllm_accuracy\t",
}
# For these two it is the router that is lost.
ROUTERS = {
    "lost-drain": r'\trouter_backend\t.*"host": "lost-drain".*"drain"',
    "lost-ready": r'\trouter_backend\t.*"host": "lost-ready".*"ready"',
}
ANSWERS = {**RESULTS, "router_backend": {"changed": True, "sessions_left": 0, "not_up": [], "others_ready": 1}}


def tasks_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a file and of those that it includes, blocks dissolved."""
    yield from _dissolved(yaml.safe_load(path.read_text(encoding="utf-8")), path)


def _dissolved(tasks: list[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    for task in tasks:
        for part in ("block", "rescue", "always"):
            yield from _dissolved(task.get(part, []), path)
        yield task
        role = task.get("ansible.builtin.include_role")
        if role:
            folder, name = ROLES / role["name"].rpartition(".")[2] / "tasks", role["tasks_from"]
        else:
            folder, name = path.parent, str(task.get("ansible.builtin.include_tasks", "")).removesuffix(".yml")
        names = re.findall(r"'(\w+)\.yml'", name) if "{{" in name else [name] if name else []
        names = ["basic", "accuracy", "performance"] if "__rollout_stage" in name else names
        for each in names:
            yield from tasks_of(folder / f"{each}.yml")


@pytest.mark.parametrize("begin", ["change_host", "revert"])
def test_every_task_of_a_turn_that_a_host_is_asked_for_is_looked_at(begin: str) -> None:
    tasks = list(tasks_of(ROLES / "rollout" / "tasks" / f"{begin}.yml"))
    # What a task found out that is itself bound to go wrong is looked at by a later one.
    asked = [task for task in tasks if not (set(task) - KEYWORDS) <= CONTROLLER and not task.get("ignore_errors")]
    looked = re.findall(r"(__\w+)(?: \| default\({}\))? is not unreachable", json.dumps(tasks))
    assert len(asked) >= 3
    assert [task["name"] for task in asked if task.get("register") not in looked] == []


def roll_out(folder: Path) -> tuple[dict[str, Any], list[list[str]], str]:
    """Run a rollout in which every host but the canary loses one task.

    Returns:
        What C(last.json) has of the hosts, the log, and what was printed.
    """
    hosts = ["canary", *BREAKS, *ROUTERS]
    breaks = {**BREAKS, **{f"lb-{host}": line for host, line in ROUTERS.items()}}
    (folder / "wire.json").write_text(json.dumps({"results": ANSWERS, "breaks": breaks}), encoding="utf-8")
    common = {
        "ansible_connection": "wire",
        "ansible_python_interpreter": sys.executable,
        "vllm_venv": sys.prefix,
        "vllm_accept_license": True,
        "vllm_plan": PLAN,
        "vllm_rollout_batches": [1, "100%"],
        "vllm_rollout_verify": ["basic", "accuracy", "performance"],
        "vllm_rollout_max_failures": "100%",
        "vllm_rollout_state_dir": str(folder / "state"),
        "__rollout_prepared": {"plan": PLAN, "changes": ["x"]},
        "__rollout_served_before": {"deployment": "before"},
    }
    groups = {
        "vllm": {"hosts": dict.fromkeys(hosts)},
        "router": {"hosts": dict.fromkeys(["lb", *(f"lb-{host}" for host in ROUTERS)])},
    }
    (folder / "hosts.json").write_text(json.dumps({"all": {"children": groups, "vars": common}}), encoding="utf-8")
    (folder / "plays.yml").write_text(ARRANGED, encoding="utf-8")
    run = play(folder)
    said = run.stdout + run.stderr
    assert (folder / "state" / "last.json").exists(), said
    found = json.loads((folder / "state" / "last.json").read_text(encoding="utf-8"))["hosts"]
    return found, log_of(folder), said


def test_a_host_or_its_router_lost_for_one_task_fails_the_turn(tmp_path: Path) -> None:
    """In one rollout, for the sake of time."""
    found, log, said = roll_out(tmp_path)
    assert found["canary"]["state"] == "done", said
    assert [host for host in [*BREAKS, *ROUTERS] if found[host]["state"] != "failed"] == [], said
    for host in BREAKS:
        assert "could not be reached" in found[host]["why"], said
        own = [line for line in log if line[0] == host]
        lost = [number for number, line in enumerate(own) if line[-1] == "LOST"]
        assert len(lost) == 1, own
        # It is brought back; the router asks twice what it serves, then and at the end, and has it take the key.
        after = [line[1] for line in own[lost[0] + 1 :]]
        assert after == ["vllm_server", "slurp", "slurp", "vllm_ports", "vllm_keys", "vllm_keys"], own
        assert json.loads(own[lost[0] + 1][2])["state"] == "rolled_back"
    for host in ROUTERS:
        assert f"The router lb-{host} could not be reached" in found[host]["why"]
        servers = [json.loads(line[2]).get("state") for line in log if line[:2] == [host, "vllm_server"]]
        assert servers == ([] if host == "lost-drain" else [None, "rolled_back"]), (
            "one that was not drained is not touched"
        )
