# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that hold for every module and role, so that nothing is added without its test and its documentation."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import profiles
from ansible_collections.gpufleet.vllm.tests.fakes.markers import SECRETS

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in (ROOT / "plugins" / "modules").glob("*.py") if path.stem != "__init__")
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
DOCUMENTS = ("DOCUMENTATION", "EXAMPLES", "RETURN")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Return the name of a test case made from a path."""
    return path.stem


# Modules


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_module_has_a_unit_test(module: Path) -> None:
    """A module that is only the documentation of an action plugin may be tested as that plugin."""
    name = f"test_{module.stem}.py"
    tests = [ROOT / "tests" / "unit" / "plugins" / kind / name for kind in ("modules", "action")]
    assert any(test.is_file() for test in tests), f"neither of these exists: {', '.join(map(str, tests))}"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_module_is_documented(module: Path) -> None:
    texts = {}
    for statement in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            for target in statement.targets:
                if isinstance(target, ast.Name) and target.id in DOCUMENTS:
                    texts[target.id] = str(statement.value.value)
    assert [name for name in DOCUMENTS if not texts.get(name, "").strip()] == []
    assert yaml.safe_load(texts["DOCUMENTATION"])["module"] == module.stem


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_module_is_used_by_a_role_or_playbook(module: Path) -> None:
    users = [path for folder in ("roles", "playbooks") for path in (ROOT / folder).rglob("*.yml")]
    name = f"gpufleet.vllm.{module.stem}:"
    assert any(name in path.read_text(encoding="utf-8") for path in users)


def test_the_action_group_holds_every_module() -> None:
    groups = read_yaml(ROOT / "meta" / "runtime.yml")["action_groups"]
    assert groups == {"all": [module.stem for module in MODULES]}


# Roles


def all_defaults() -> dict[str, Any]:
    """Return every variable that some role gives a default, with that default."""
    found: dict[str, Any] = {}
    for role in ROLES:
        for path in sorted((role / "defaults").rglob("*.yml")):
            for name, value in (read_yaml(path) or {}).items():
                assert name not in found, f"{name} has a second default in {path}"
                found[name] = value
    return found


def specifications(role: Path) -> dict[str, Any]:
    """Return the entry points of a role: what meta/argument_specs.yml says of each; none if there is no such file."""
    path = role / "meta" / "argument_specs.yml"
    specs: dict[str, Any] = read_yaml(path)["argument_specs"] if path.is_file() else {}
    return specs


def all_options() -> list[tuple[str, str, dict[str, Any]]]:
    """Return every documented option of every entry point: where it stands, its name, its definition."""
    return [
        (f"{role.name}:{entry}", name, definition)
        for role in ROLES
        for entry, spec in specifications(role).items()
        for name, definition in (spec.get("options") or {}).items()
    ]


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_every_entry_point_is_described_and_exists(role: Path) -> None:
    specs = specifications(role)
    assert specs, "no meta/argument_specs.yml"
    for entry, spec in specs.items():
        assert spec.get("short_description"), entry
        assert (role / "tasks" / f"{entry}.yml").is_file(), entry


def test_every_variable_with_a_default_is_documented_and_the_reverse() -> None:
    """Only a required option has no default. Roles share one set of vllm_* variables, which lives in the role vllm."""
    required = {name for _place, name, definition in all_options() if definition.get("required")}
    documented = {name for _place, name, _definition in all_options()}
    defaults = set(all_defaults())
    assert sorted(defaults - documented) == [], "not documented in any meta/argument_specs.yml"
    assert sorted(documented - required - defaults) == [], "documented, not required, and without a default"
    assert sorted(required & defaults) == [], "required, yet with a default"


def test_the_documented_profiles_are_those_of_the_planner() -> None:
    options = {name: definition for _place, name, definition in all_options()}
    assert options["vllm_profile"]["choices"] == list(profiles.PROFILES)
    description = " ".join(options["vllm_profile"]["description"])
    assert [name for name in profiles.PROFILES if f"V({name})" not in description] == []


def test_documented_defaults_are_the_defaults() -> None:
    """Those of secrets that are made of others are described alone, see test_secret_variables.py."""
    defaults = {name: value for name, value in all_defaults().items() if not (name in SECRETS and "{{" in str(value))}
    wrong = {
        f"{place} {name}": (definition.get("default"), defaults[name])
        for place, name, definition in all_options()
        if name in defaults and definition.get("default") != defaults[name]
    }
    assert wrong == {}, "documented default, default in use"


def test_an_option_is_the_same_wherever_it_is_repeated() -> None:
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for place, name, definition in all_options():
        where, known = first.setdefault(name, (place, definition))
        assert definition == known, f"{name} differs between {where} and {place}"


def incomplete(options: dict[str, Any], place: str) -> list[str]:
    """Return the options, also those inside options, that lack a description or a type."""
    found = []
    for name, definition in options.items():
        found += [f"{place} {name}: {part}" for part in ("description", "type") if not definition.get(part)]
        found += incomplete(definition.get("options") or {}, f"{place} {name}")
    return found


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_every_option_has_a_description_and_a_type(role: Path) -> None:
    lacking = [
        line for entry, spec in specifications(role).items() for line in incomplete(spec.get("options") or {}, entry)
    ]
    assert lacking == []


def tasks_of(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tasks and blocks of a file, also those inside of plays and blocks."""
    found = []
    for entry in entries:
        found.append(entry)
        for section in ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always"):
            found += tasks_of(entry.get(section) or [])
    return found


def test_what_runs_on_the_controller_never_becomes_another_user() -> None:
    """The keyword C(become) does not win over an C(ansible_become) of the inventory's group all; a variable does."""
    files = sorted([*(ROOT / "playbooks").glob("*.yml"), *(ROOT / "roles").glob("*/tasks/*.yml")])
    delegated = {
        f"{path.relative_to(ROOT)}: {task['name']}": task.get("vars") or {}
        for path in files
        for task in tasks_of(read_yaml(path))
        if task.get("delegate_to") == "localhost" and "ansible.builtin.set_fact" not in task
    }
    assert delegated, "nothing is looked at any more"
    wanted = {"ansible_connection": "local", "ansible_become": False}
    assert [place for place, variables in delegated.items() if not wanted.items() <= variables.items()] == []


def test_no_variable_of_a_task_has_the_name_of_a_result_or_fact() -> None:
    """The result or fact would win over it, wherever in the play that was made."""
    files = sorted((ROOT / "roles").glob("*/tasks/*.yml"))
    tasks = [task for path in files for task in tasks_of(read_yaml(path))]
    kept = {task["register"] for task in tasks if "register" in task}
    kept |= {name for task in tasks for name in task.get("ansible.builtin.set_fact") or {}}
    given = {name for task in tasks for name in task.get("vars") or {}}
    assert min(len(kept), len(given)) > 20
    assert sorted(kept & given) == []


def test_every_play_says_its_strategy() -> None:
    """With the strategy free, which a user's ansible.cfg may set, hosts come to the steps of all hosts one by one."""
    plays = [play for path in sorted((ROOT / "playbooks").glob("*.yml")) for play in read_yaml(path) if "hosts" in play]
    assert len(plays) > 20
    said = {play.get("strategy") for play in plays}
    assert said == {"ansible.builtin.linear", "ansible.builtin.host_pinned"}
