# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Internal variables start with C(__) and the name of the role or playbook that writes them.

Results, facts, loop variables and what stands in C(vars/main.yml) have their own role's name. A task's C(vars) may also
hold a parameter of a role that its file includes; it has the name of that role, like an option of it.

The tables below list once what roles and playbooks have of each other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.unit.test_structure import read_yaml, tasks_of

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"\b__(?!file__|name__|init__|class__|dict__)[a-z]\w*")
ROLE = re.compile(r"name: gpufleet\.vllm\.(\w+)")

# What one role or playbook writes and another reads.
RESULTS = {
    "__preflight_host_info": "what host_info found on the host",
    "__preflight_gpu_info": "what gpu_info found there; a host without CUDA has none",
    "__router_host": "the router that an item of a loop's result is of",
    "__router_left_by": "who has left this host drained, deploy or rollout, after an interruption",
    "__router_turn_over": "whether that host could not be put right, so that only a rollout takes it back",
    "__router_seen": "what each router said of the replicas behind it",
    "__verify_accuracy": "the stage's results",
    "__verify_basic": "the stage's results",
    "__verify_performance": "the stage's results",
    "__verify_servers": "what vllm_server_info said before the stages",
    "__verify_tasks_copied": "whether the tasks of lm_eval got onto the host",
    "__verify_tasks_folder": "whether their folder was made",
    "__vllm_config_written": "what vllm_config did",
    "__vllm_gpu_access_found": "how GPUs reach containers, by vllm_gpu_access",
    "__vllm_look_error": "why the host could not be looked at; empty where it was",
    "__vllm_image_there": "what vllm_image did",
    "__vllm_server": "what vllm_server did, or would do",
    "__vllm_servers": "what vllm_server_info said",
}
# What a caller gives a role, in the vars of the task that includes it.
PARAMETERS = {
    "__docker_vendor": "whose packages to install: source, packages, key and what to say when that fails",
    "__router_reason": "why it is taken out, where it is not vllm_drain_reason",
    "__router_limit": "what counts in the place of vllm_max_unavailable; empty for no limit",
    "__router_owner": "whose mark a drained host has: deploy, rollout, teardown or tune; empty for a person",
    "__router_turn": "entry points of the role vllm that change the host in its turn",
    "__router_turn_takes_out": "whether that takes a server out",
    "__verify_baseline_for": "parts of the stored benchmark to compare with, where it is not the server's own",
    "__vllm_beside": "prefix, config_dir and timeout of servers that run for a while beside the deployment",
    "__vllm_other_keys_for": "seconds for which servers take keys of before; -1 until told otherwise",
    "__vllm_given_plan": "the plan to serve from then on",
    "__vllm_lock_timeout": "seconds to wait for an earlier run that is still at work on the host",
    "__vllm_ports_of": "servers of the host whose ports are closed to others",
    "__vllm_ports_stay": "whether ports that were closed before stay so",
    "__vllm_config_checked": "the image's vLLM has read the configuration before the host was drained",
    "__vllm_mode": "apply, rehearse or compare, see roles/vllm/vars/main.yml",
    "__vllm_rollback_to": "the deployment to go back to, where it is not vllm_rollback_to",
}

FILES = sorted([*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("roles/*/vars/*.yml"), *ROOT.glob("playbooks/*.yml")])
OWNERS = sorted({*(path.name for path in ROOT.glob("roles/*")), *(path.stem for path in ROOT.glob("playbooks/*.yml"))})


def owner_of(path: Path) -> str:
    """Return the role or playbook that a file belongs to."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "roles" else path.stem


def owner_in(name: str) -> str:
    """Return the role or playbook whose name a variable carries, the longest that fits; empty for none."""
    return max((owner for owner in OWNERS if name.startswith(f"__{owner}_")), key=len, default="")


def written(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each internal variable that a file writes, and whether a task's C(vars) do."""
    content = read_yaml(path)
    if path.parent.name == "vars":
        yield from ((name, False) for name in content if name.startswith("__"))
        return
    for task in tasks_of(content):
        kept = [task.get("register"), (task.get("loop_control") or {}).get("loop_var")]
        kept += task.get("ansible.builtin.set_fact") or {}
        yield from ((name, False) for name in kept if name and name.startswith("__"))
        yield from ((name, True) for name in task.get("vars") or {} if name.startswith("__"))


def wrong_owner(path: Path) -> list[str]:
    """Return what a file writes under the name of a role that has no part in it."""
    own, included = owner_of(path), set(ROLE.findall(path.read_text(encoding="utf-8")))
    return [
        name for name, parameter in written(path) if owner_in(name) not in ({own} | included if parameter else {own})
    ]


def crossing() -> dict[str, set[str]]:
    """Return the internal variables that occur outside of the role or playbook whose name they carry, with where."""
    found = defaultdict(set)
    for path in FILES:
        for name in NAME.findall(path.read_text(encoding="utf-8")):
            if owner_in(name) != owner_of(path):
                found[name].add(owner_of(path))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{owner_of(path)}-{path.stem}")
def test_a_file_writes_under_the_name_of_its_role(path: Path) -> None:
    assert wrong_owner(path) == []


def test_what_roles_have_of_each_other_is_listed() -> None:
    listed = {**RESULTS, **PARAMETERS}
    assert sorted(crossing().keys() - listed.keys()) == [], "in no table above"
    assert sorted(listed.keys() - crossing().keys()) == [], "in a table above, and not shared"


def test_what_is_read_is_written_somewhere() -> None:
    known = {name for path in FILES for name, _parameter in written(path)} | PARAMETERS.keys()
    texts = [*FILES, *ROOT.glob("plugins/action/*.py"), *ROOT.glob("plugins/plugin_utils/*/*.py")]
    read: dict[str, Any] = {
        name: path.name for path in texts for name in NAME.findall(path.read_text(encoding="utf-8"))
    }
    assert {name: file for name, file in read.items() if owner_in(name) and name not in known} == {}


def test_a_parameter_has_a_reader() -> None:
    roles = {name: [path for path in FILES if owner_of(path) == owner_in(name)] for name in PARAMETERS}
    unread = [
        name
        for name, paths in roles.items()
        if not any(re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")) for path in paths)
    ]
    assert unread == []


def test_the_mode_is_one_of_three() -> None:
    texts = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    assert set(re.findall(r"__vllm_mode: (\S+)", texts)) == {"apply", "rehearse", "compare"}
    compared = re.findall(r"__vllm_mode [!=]= '(\w+)'", texts)
    assert len(compared) == len(re.findall(r"__vllm_mode [!=]=", texts)) > 5
    assert set(compared) <= {"apply", "rehearse", "compare"}


def test_a_variable_under_another_name_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "roles" / "verify" / "tasks"
    folder.mkdir(parents=True)
    path = folder / "main.yml"
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    parameter = "- ansible.builtin.include_role: {name: gpufleet.vllm.router}\n  vars: {__router_owner: x}\n"
    path.write_text(f"{parameter}- ansible.builtin.set_fact: {{__verify_found: 1}}\n")
    assert wrong_owner(path) == []
    path.write_text(parameter.replace("router}", "vllm}"))
    assert wrong_owner(path) == ["__router_owner"]
    path.write_text("- gpufleet.vllm.gpu_info:\n  register: __vllm_gpu_info\n- block: []\n  vars: {__docker_x: 1}\n")
    assert wrong_owner(path) == ["__vllm_gpu_info", "__docker_x"]
