# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role's README says what its argument specification says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.tools.role_readmes import ROLES, code, markdown, option_row, readme

NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("role", NAMES)
def test_a_readme_is_what_the_tool_makes(role: str) -> None:
    committed = (ROLES / role / "README.md").read_text(encoding="utf-8")
    assert committed == readme(role), "run .venv/bin/python tools/role_readmes.py"


@pytest.mark.parametrize("role", NAMES)
def test_a_readme_names_every_variable_and_entry_point(role: str) -> None:
    text = readme(role)
    specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    for entry, spec in specs.items():
        assert f"| `{entry}` |" in text
        assert [name for name in spec["options"] if f"| `{name}` |" not in text] == []
    # Nothing of Ansible's markup is left, and every row of a table has its cells.
    assert re.findall(r"\b[A-Z]\([^)]*\)", text) == []
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {4, 5}


@pytest.mark.parametrize("role", NAMES)
def test_the_example_uses_roles_entry_points_and_variables_that_exist(role: str) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", readme(role), re.S)
    plays = yaml.safe_load(text)
    known: set[str] = set()
    for name in NAMES:
        path = ROLES / name / "meta" / "argument_specs.yml"
        specs: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
        known.update(option for spec in specs.values() for option in spec["options"])
    assert [name for play in plays for name in play.get("vars", {}) if name not in known] == []
    imported = [play["ansible.builtin.import_playbook"] for play in plays if "ansible.builtin.import_playbook" in play]
    for playbook in imported:
        path = ROLES.parent / "playbooks" / f"{playbook.rpartition('.')[2]}.yml"
        assert f"gpufleet.vllm.{role}" in path.read_text(encoding="utf-8")
    used = [task["ansible.builtin.import_role"] for play in plays for task in play.get("tasks", [])]
    assert imported or f"gpufleet.vllm.{role}" in [step["name"] for step in used]
    for step in used:
        assert (ROLES / step["name"].rpartition(".")[2] / "tasks" / f"{step.get('tasks_from', 'main')}.yml").is_file()


@pytest.mark.parametrize("role", NAMES)
def test_a_variable_has_one_row(role: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", readme(role).partition("## Variables")[2], re.M)
    assert len(rows) == len(set(rows))


def test_a_cell_of_a_table_is_plain_markdown() -> None:
    assert markdown(["See U(https://x.example).", "O(main:a=b), V(c)."]) == "See <https://x.example>. `a=b`, `c`."
    assert code("{{ a | b }}") == "`{{ a \\| b }}`"
    values: list[Any] = ["", [], False, 0.5]
    assert [code(value) for value in values] == ['`""`', "`[]`", "`false`", "`0.5`"]
    option = {"type": "list", "elements": "str", "description": ["X."], "choices": ["a"], "required": True}
    assert option_row("x", option) == ["`x`", "list of str", "required", "X. One of `a`."]
