# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""C(-e name=false) is text, which Jinja takes for true: whoever asks for a truth value makes one of it first.

Every variable that an argument specification declares as bool is followed through roles and playbooks: into the vars,
facts and parameters that have its value, up to the condition that needs C(| bool) or the option that reads it.
"""

from __future__ import annotations

import ast
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, nodes

from ansible_collections.gpufleet.vllm.plugins.action.router_server import SETTINGS
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import flag
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import variables as verify_variables
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS as ROUTER_OPTIONS
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.tuning import tune_variables
from ansible_collections.gpufleet.vllm.tests.unit.test_module_options import MODULES, PLUGINS, documented
from ansible_collections.gpufleet.vllm.tests.unit.test_structure import read_yaml, tasks_of

ROOT = Path(__file__).resolve().parents[2]
VALUES = sorted([*ROOT.glob("roles/*/vars/*.yml"), *ROOT.glob("roles/*/defaults/**/*.yml")])
TASKS = sorted([*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("roles/*/handlers/*.yml"), *ROOT.glob("playbooks/*.yml")])
CODE_WITH_READERS = {
    "bundle_contents.py",
    "fleet_plans.py",
    "monitoring_files.py",
    "router_server.py",
    "tune_variables.py",
    "wishes.py",
}
CONDITIONS = ("when", "that", "failed_when", "changed_when", "until")
INNER = ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always")
SET_FACT = "ansible.builtin.set_fact"
OURS = "gpufleet.vllm."
PARSER = Environment(autoescape=True)
READERS = {
    **dict(wishes.READERS.values()),
    **verify_variables.READERS,
    **dict(tune_variables.READERS.values()),
}


def is_truth(option: dict[str, Any]) -> bool:
    """Return whether an option is a truth value; one whose default is a template has to be declared as raw."""
    return option.get("type") == "bool" or "A truth value." in str(option.get("description"))


def declared() -> set[str]:
    """Return every variable that the roles declare as a truth value."""
    found = set()
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for entry_point in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            options = entry_point.get("options") or {}
            found |= {name for name, option in options.items() if is_truth(option)}
    return found


TRUTHS = declared()


def expressions(text: str) -> Iterator[nodes.Expr]:
    """Yield the expressions of a template."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the lexer's, of regular expressions in texts
        template = PARSER.parse(text)
    for output in template.find_all(nodes.Output):
        yield from (node for node in output.nodes if not isinstance(node, nodes.TemplateData))


def name_of(node: nodes.Node) -> str:
    """Return the variable that a node stands for, or C(variable.key); empty when it is none."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr) and name_of(node.node):
        return f"{name_of(node.node)}.{node.attr}"
    return ""


def hands_on(node: nodes.Node, truths: set[str]) -> bool:
    """Return whether what a node gives is the value of a truth value as it is, which may be text."""
    if isinstance(node, nodes.Filter) and node.name == "default":
        return any(hands_on(part, truths) for part in (node.node, *node.args) if part)
    if isinstance(node, nodes.CondExpr):
        return any(hands_on(part, truths) for part in (node.expr1, node.expr2) if part)
    return name_of(node) in truths


def asked(node: nodes.Node, truths: set[str]) -> Iterator[str]:
    """Yield the truth values that an expression asks without C(| bool)."""
    if isinstance(node, nodes.Test) and node.name in ("defined", "undefined"):
        return
    if isinstance(node, nodes.Filter) and node.name == "bool" and node.node and hands_on(node.node, truths):
        return
    if name_of(node) in truths:
        yield name_of(node)
    for child in node.iter_child_nodes():
        yield from asked(child, truths)


def given(node: nodes.Node, truths: set[str]) -> Iterator[str]:
    """Yield the truth values that a template asks without C(| bool) for the value that it gives."""
    if isinstance(node, nodes.CondExpr):
        yield from asked(node.test, truths)
        yield from (name for part in (node.expr1, node.expr2) if part for name in given(part, truths))
    elif not hands_on(node, truths):
        yield from asked(node, truths)


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text within a value, with the path of keys that leads there."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, path)


def handed_on(value: Any, truths: set[str]) -> set[str]:
    """Return the paths of keys within a value whose template is the value of a truth value as it is."""
    return {path for path, text in texts(value) if any(hands_on(node, truths) for node in expressions(text))}


def derived(values: list[Any], tasks: list[dict[str, Any]]) -> set[str]:
    """Return the truth values, and all that have their value as it is."""
    truths: set[str] = set(TRUTHS)
    kept = [*values, *(task.get(section) or {} for task in tasks for section in ("vars", SET_FACT))]
    while True:
        more = {name for value in kept for name in handed_on(value, truths)} - truths
        if not more:
            return truths
        truths |= more


def wrong_in_task(task: dict[str, Any], truths: set[str]) -> Iterator[str]:
    """Yield what a task asks without C(| bool), and what it hands to an option that reads no truth value."""
    for key, value in task.items():
        if key in INNER:
            continue
        for path, text in texts(value, key):
            if path.rpartition(".")[2] in CONDITIONS:
                yield from (name for node in expressions("{{ (" + text + ") }}") for name in asked(node, truths))
                continue
            yield from (name for node in expressions(text) for name in given(node, truths))
        if key.startswith(OURS) and isinstance(value, dict):
            read = truth_options(key.removeprefix(OURS))
            yield from (f"{key}: {option} is no bool" for option in handed_on(value, truths) - read)


def truth_options(module: str) -> set[str]:
    """Return the options of a module of ours that are truth values; none of another name."""
    if module not in MODULES:
        return set()
    options = documented(importlib.import_module(f"{PLUGINS}.modules.{module}"))
    return {name for name, about in options.items() if about.get("type") == "bool"}


def entries(path: Path) -> list[dict[str, Any]]:
    return tasks_of(read_yaml(path) or [])


EVERYWHERE = derived([read_yaml(path) or {} for path in VALUES], [task for path in TASKS for task in entries(path)])


def test_there_is_something_to_look_at() -> None:
    assert len(TRUTHS) > 15
    assert {"vllm_check_config", "router_tls"} <= EVERYWHERE
    assert "__docker_vendor.allow_downgrade" in EVERYWHERE


@pytest.mark.parametrize("path", TASKS, ids=lambda path: "-".join(path.relative_to(ROOT).parts[-3:]))
def test_tasks_ask_for_truth(path: Path) -> None:
    found = [f"{task.get('name')}: {name}" for task in entries(path) for name in wrong_in_task(task, EVERYWHERE)]
    assert found == [], "a text such as false counts as true there; add | bool"


@pytest.mark.parametrize("path", VALUES, ids=lambda path: "-".join(path.relative_to(ROOT).parts[-3:]))
def test_values_ask_for_truth(path: Path) -> None:
    found = [
        f"{where}: {name}"
        for where, text in texts(read_yaml(path) or {})
        for node in expressions(text)
        for name in given(node, EVERYWHERE)
    ]
    assert found == [], "a text such as false counts as true there; add | bool"


@pytest.mark.parametrize(
    ("task", "wrong"),
    [
        ({"when": "vllm_offline"}, True),
        ({"when": ["x", "not vllm_offline"]}, True),
        ({"when": "vllm_offline | default(false) or x"}, True),
        ({"when": "x and vllm_offline | default(false) | bool"}, False),
        ({"when": "vllm_offline is defined"}, False),
        ({"ansible.builtin.assert": {"that": ["vllm_offline"]}}, True),
        ({"ansible.builtin.debug": {"msg": "{{ 'a' if vllm_offline else 'b' }}"}}, True),
        ({"ansible.builtin.debug": {"msg": "vllm_offline is {{ vllm_offline }}"}}, False),
        ({"vars": {"x": "{{ vllm_offline and y }}"}}, True),
        ({"gpufleet.vllm.vllm_model": {"offline": "{{ vllm_offline }}"}}, False),
        ({"gpufleet.vllm.vllm_model": {"offline": "{{ vllm_offline | default(true) }}"}}, False),
        ({"gpufleet.vllm.vllm_model": {"offline": "{{ not vllm_offline }}"}}, True),
        ({"gpufleet.vllm.vllm_model": {"model": "{{ vllm_offline }}"}}, True),
        ({"vars": {"__x": "{{ vllm_offline }}"}, "when": "__x"}, True),
        ({"vars": {"__x": {"y": "{{ vllm_offline }}"}}, "when": "__x.y"}, True),
        ({"vars": {"__x": "{{ vllm_offline | bool }}"}, "when": "__x"}, False),
    ],
)
def test_what_is_reported(task: dict[str, Any], wrong: bool) -> None:
    assert bool(list(wrong_in_task(task, derived([], [task])))) == wrong


def named_in_plugins() -> dict[str, set[str]]:
    """Return the truth values that the controller's code names by themselves, each with the files that do."""
    found: dict[str, set[str]] = {}
    for path in [*ROOT.glob("plugins/action/*.py"), *ROOT.glob("plugins/plugin_utils/*/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in TRUTHS:
                found.setdefault(str(node.value), set()).add(path.name)
    return found


def test_code_that_reads_variables_reads_text() -> None:
    """By a reader, or as an option of a module; nothing else looks at them."""
    for variable, files in named_in_plugins().items():
        # monitoring_files reads a router's by Ansible's own reader.
        assert files <= CODE_WITH_READERS, variable
    for variable in TRUTHS & READERS.keys():
        assert READERS[variable] is flag, variable
    options = {variable: option for option, variable in SETTINGS.items()}
    for variable in TRUTHS & options.keys():
        assert ROUTER_OPTIONS[options[variable]]["type"] == "bool", variable


@pytest.mark.parametrize("variable", sorted(TRUTHS & READERS.keys()))
@pytest.mark.parametrize(("text", "truth"), [("false", False), ("False", False), ("no", False), ("true", True)])
def test_a_reader_takes_text(variable: str, text: str, truth: bool) -> None:
    assert READERS[variable](text) is truth
