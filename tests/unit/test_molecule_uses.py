# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module is used by a Molecule scenario: found by following what the scenarios run, without running it.

Followed are the playbooks of a scenario's steps, imports and includes of playbooks, roles and tasks, and the
C(ansible-playbook gpufleet.vllm.X) in command lines. What is in doubt counts as no use: names made at run time,
C(rescue), tags that are not asked for, check mode, and commands that are wanted to fail. A C(when) or C(hosts) is
decided by the groups of the scenario's inventory, by the play's own plan, and by where the scenario has its models
from; one that needs more than these is taken to hold.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nativetypes
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py") if path.stem != "__init__")
OURS = "gpufleet.vllm."
BUILTIN = "ansible.builtin."
# The playbook of each step of Molecule's sequence that has another name than the step.
PLAYBOOK_OF_STEP = {"idempotence": "converge"}
WITHOUT_PLAYBOOK = {"dependency", "syntax"}
SECTIONS = ("pre_tasks", "tasks", "post_tasks", "handlers")
COMMAND_LINE = re.compile(r"\bansible-playbook\s+gpufleet\.vllm\.(\w+)([^|;&\n]*)")
TAGS_ASKED = re.compile(r"--tags[ =]([\w,]+)")
WANTED_TO_FAIL = re.compile(r"\.rc == 0\b")


@functools.cache
def read(path: Path) -> Any:
    """Return the content of a YAML file, which nobody changes."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def as_list(value: Any) -> list[Any]:
    """Return a list for what Ansible takes as one item or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


@dataclass(frozen=True)
class Place:
    """Where a task stands.

    Attributes:
        folder: in which the files are that it includes.
        tags: what it inherits.
        asked: the tags that were asked for; none asks for all that is not tagged never.
        variables: those of the play, for command lines that are put together.
    """

    folder: Path
    tags: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    variables: dict[str, Any] = field(default_factory=dict)


class Expressions:
    """Ansible's expressions, as far as what is known of a scenario decides them."""

    def __init__(self, groups: dict[str, list[str]], plans: list[dict[str, Any]]) -> None:
        self.groups = groups
        self.plans = plans or [{}]
        self.environment = jinja2.nativetypes.NativeEnvironment(undefined=jinja2.StrictUndefined)
        self.environment.filters["difference"] = lambda first, second: [one for one in first if one not in second]

    def may_hold(self, conditions: Any, variables: dict[str, Any]) -> bool:
        """Say whether all conditions hold, or cannot be known, with the play's own plan or else with some plan."""
        plans = [variables["vllm_plan"]] if "vllm_plan" in variables else self.plans
        texts = ["{{ " + str(condition) + " }}" for condition in as_list(conditions)]
        return any(all(self.value(text, unknown=True, vllm_plan=plan) for text in texts) for plan in plans)

    def has_hosts(self, hosts: Any) -> bool:
        """Say whether a play has hosts: a group with some, or what cannot be known."""
        found = self.value(str(hosts), unknown=["unknown"])
        names = re.split(r"[,:]", found) if isinstance(found, str) else as_list(found)
        return any(name != "!all" and self.groups.get(name, [name]) for name in names)

    def value(self, text: str, unknown: Any, **known: Any) -> Any:
        """Return the value of a template, or C(unknown) where it needs more than is known."""
        try:
            found = self.environment.from_string(text).render(groups=self.groups, ansible_check_mode=False, **known)
        except (jinja2.TemplateError, TypeError, ValueError):
            return unknown
        return unknown if isinstance(found, jinja2.Undefined) else found


class Collection:
    """A collection's checkout, in which is followed what runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.expressions = Expressions({}, [])
        self.seen: set[tuple[object, ...]] = set()

    def uses(self, scenario: Path) -> set[str]:
        """Return the modules of the collection that a scenario uses."""
        configuration = merged(read(self.root / "molecule" / "config.yml"), read(scenario / "molecule.yml") or {})
        inventories = self.inventories_of(configuration)
        kinds = {*model_sources([scenario, *inventories])}
        self.expressions = Expressions(
            groups_of(inventories), [{"model_source": {"kind": kind}} for kind in sorted(kinds)]
        )
        self.seen.clear()
        found: set[str] = set()
        for step in configuration["scenario"]["test_sequence"]:
            playbook = scenario / f"{PLAYBOOK_OF_STEP.get(step, step)}.yml"
            if step in WITHOUT_PLAYBOOK or not playbook.exists():
                continue
            found |= set(self.in_playbook(playbook, Place(scenario)))
        return found

    def inventories_of(self, configuration: dict[str, Any]) -> list[Path]:
        """Return the folders of the inventories that a scenario is given."""
        words = configuration["ansible"]["executor"]["args"]["ansible_playbook"]
        texts = [word.partition("=")[2] for word in words if word.startswith("--inventory=")]
        return [Path(text.replace("${MOLECULE_PROJECT_DIRECTORY}", str(self.root))) for text in texts]

    def in_playbook(self, path: Path, place: Place) -> Iterator[str]:
        """Yield the modules that a playbook uses."""
        for play in read(path):
            within = replace(place, folder=path.parent)
            imported = play.get(f"{BUILTIN}import_playbook")
            if imported:
                if runs_by_tags(play, place, inherits=True):
                    yield from self.in_playbook(self.playbook(imported, path.parent), with_tags(within, play))
            elif self.expressions.has_hosts(play["hosts"]):
                variables = dict(play.get("vars") or {})
                for name in as_list(play.get("vars_files")):
                    variables.update(read(path.parent / name))
                within = with_tags(replace(within, variables=variables), play)
                for section in SECTIONS:
                    yield from self.in_tasks(play.get(section) or [], within)

    def playbook(self, name: str, folder: Path) -> Path:
        """Return the file of a playbook that is named by the collection or by its file."""
        if name.startswith(OURS):
            return self.root / "playbooks" / f"{name[len(OURS) :]}.yml"
        return folder / name

    def in_tasks(self, tasks: Iterable[dict[str, Any]], place: Place) -> Iterator[str]:
        """Yield the modules that tasks use."""
        for task in tasks:
            if not self.expressions.may_hold(task.get("when"), place.variables):
                continue
            if "block" in task:
                for part in ("block", "always"):
                    yield from self.in_tasks(task.get(part) or [], with_tags(place, task))
            else:
                yield from self.in_task(task, place)

    def in_task(self, task: dict[str, Any], place: Place) -> Iterator[str]:
        """Yield the modules that a task uses, or what it includes."""
        for key, arguments in task.items():
            action = key.removeprefix(BUILTIN) if key.startswith(BUILTIN) else key
            if action in ("import_tasks", "import_role"):
                yield from self.in_included(action, arguments, with_tags(place, task))
            elif not runs_by_tags(task, place, inherits=False):
                continue
            elif action in ("include_tasks", "include_role"):
                apply = arguments.get("apply", {}) if isinstance(arguments, dict) else {}
                if not apply.get("check_mode"):
                    yield from self.in_included(action, arguments, replace(place, tags=frozenset()))
            elif action in ("command", "shell"):
                yield from self.in_command(task, arguments, place)
            elif key.startswith(OURS):
                yield key[len(OURS) :]

    def in_included(self, action: str, arguments: Any, place: Place) -> Iterator[str]:
        """Yield the modules of included tasks or of a role; of none where the name is made at run time."""
        if action.endswith("_role"):
            name, tasks = str(arguments["name"]), str(arguments.get("tasks_from", "main"))
            path = self.root / "roles" / name[len(OURS) :] / "tasks" / f"{tasks}.yml"
            literal = name.startswith(OURS) and "{{" not in name + tasks
        else:
            name = str(arguments["file"] if isinstance(arguments, dict) else arguments)
            path, literal = place.folder / name, "{{" not in name
        visit = (path, place.tags, place.asked, str(place.variables.get("vllm_plan")))
        if not literal or visit in self.seen:
            return
        self.seen.add(visit)
        yield from self.in_tasks(read(path), replace(place, folder=path.parent))

    def in_command(self, task: dict[str, Any], arguments: Any, place: Place) -> Iterator[str]:
        """Yield the modules of the playbooks that a command line runs, unless it is wanted to fail."""
        if any(WANTED_TO_FAIL.search(str(condition)) for condition in as_list(task.get("failed_when"))):
            return
        parts = arguments if isinstance(arguments, dict) else {"cmd": arguments}
        words = " ".join(map(str, [parts.get("cmd", ""), *parts.get("argv", [])]))
        text = filled_in(words, {**place.variables, **(task.get("vars") or {})})
        for name, options in COMMAND_LINE.findall(text):
            if "--check" in options or "--syntax-check" in options:
                continue
            asked = TAGS_ASKED.search(options)
            tags = frozenset(asked.group(1).split(",")) if asked else frozenset()
            yield from self.in_playbook(self.playbook(OURS + name, self.root), Place(self.root, asked=tags))


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the first with what the second has otherwise, as Molecule merges its configurations."""
    both = {**first, **second}
    for name in first.keys() & second.keys():
        if isinstance(first[name], dict) and isinstance(second[name], dict):
            both[name] = merged(first[name], second[name])
    return both


def groups_of(inventories: list[Path]) -> dict[str, list[str]]:
    """Return the groups of inventories, with their hosts."""
    groups: dict[str, list[str]] = {"all": []}
    for folder in inventories:
        for path in sorted(folder.glob("*.yml")):
            add_groups(groups, read(path))
    return groups


def model_sources(folders: list[Path]) -> Iterator[str]:
    """Yield the kinds of a plan's model_source that the files in folders wish for."""
    for path in sorted(path for folder in folders for path in folder.rglob("*.yml")):
        for kind in re.findall(r"^\s*vllm_model_source: (\w+)", path.read_text(encoding="utf-8"), re.M):
            yield "hub" if kind == "auto" else kind


def add_groups(groups: dict[str, list[str]], inventory: dict[str, Any]) -> None:
    """Add the groups of an inventory file, each with its own hosts and its children's."""
    for name, content in inventory.items():
        hosts = list((content or {}).get("hosts") or {})
        children = (content or {}).get("children") or {}
        add_groups(groups, children)
        for child in children:
            hosts += groups[child]
        for group in (name, "all"):
            groups[group] = list(dict.fromkeys([*groups.get(group, []), *hosts]))


def with_tags(place: Place, item: dict[str, Any]) -> Place:
    """Return the place inside a play, a block or an import, which hands its tags down."""
    return replace(place, tags=place.tags | set(as_list(item.get("tags"))))


def runs_by_tags(item: dict[str, Any], place: Place, inherits: bool) -> bool:
    """Say whether the tags that were asked for take a task in; an import hands its tags on and is taken in by all."""
    tags = place.tags | set(as_list(item.get("tags")))
    if not place.asked:
        return "never" not in tags
    return inherits or "always" in tags or bool(place.asked & tags)


def filled_in(text: str, variables: dict[str, Any]) -> str:
    """Return a text in which variables that are texts themselves were put, as deep as they refer to each other."""
    for _depth in range(5):
        before = text
        text = re.sub(r"\{\{ (\w+) \}\}", lambda match: str(variables.get(match.group(1), match.group(0))), text)
        if text == before:
            break
    return text


@pytest.fixture(scope="module")
def used_by() -> dict[str, set[str]]:
    """Each scenario's modules."""
    collection = Collection(ROOT)
    return {path.parent.name: collection.uses(path.parent) for path in (ROOT / "molecule").glob("*/molecule.yml")}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_used_by_a_scenario(used_by: dict[str, set[str]], module: str) -> None:
    assert [name for name, modules in used_by.items() if module in modules], f"none of {', '.join(sorted(used_by))}"


def test_every_scenario_uses_modules_that_exist(used_by: dict[str, set[str]]) -> None:
    assert [name for name, modules in used_by.items() if not modules] == []
    assert sorted(set().union(*used_by.values()) - set(MODULES)) == []


# The following itself


CONFIG = """
ansible: {executor: {args: {ansible_playbook: ["--inventory=${MOLECULE_PROJECT_DIRECTORY}/molecule/inventory"]}}}
scenario: {test_sequence: [syntax, converge, verify]}
"""
PLAYBOOK = """
- hosts: "{{ groups['router'] | default([]) }}"
  tasks: [{ansible.builtin.import_role: {name: gpufleet.vllm.balance}}]
- hosts: "{{ 'vllm' if 'vllm' in groups else 'all' }}"
  tasks:
    - ansible.builtin.import_role: {name: gpufleet.vllm.serve}
    - ansible.builtin.include_role: {name: gpufleet.vllm.balance, tasks_from: drain}
      when: groups['router'] is defined and changed
"""
SERVE = """
- block: [{gpufleet.vllm.one: }]
  rescue: [{gpufleet.vllm.rescued: }]
  tags: [first]
- ansible.builtin.include_tasks: two.yml
  when: of_the_host
- ansible.builtin.import_tasks: fetch.yml
  when: vllm_plan.model_source.kind == 'hub'
- gpufleet.vllm.hidden:
  tags: [never, shown]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A collection in which everything that matters to the following happens once."""
    files = {
        "molecule/config.yml": CONFIG,
        "molecule/inventory/hosts.yml": "all: {hosts: {localhost: }}",
        "molecule/inventory/group_vars/all.yml": "vllm_model_source: path",
        "molecule/one/molecule.yml": "---",
        "playbooks/go.yml": PLAYBOOK,
        "roles/serve/tasks/main.yml": SERVE,
        "roles/serve/tasks/two.yml": "- gpufleet.vllm.two:",
        "roles/serve/tasks/fetch.yml": "- gpufleet.vllm.fetched:",
        "roles/balance/tasks/main.yml": "- gpufleet.vllm.balanced:",
        "roles/balance/tasks/drain.yml": "- gpufleet.vllm.drained:",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def uses_of(root: Path, **playbooks: Any) -> set[str]:
    """Return what a scenario with these playbooks uses."""
    for name, content in playbooks.items():
        (root / "molecule" / "one" / f"{name}.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return Collection(root).uses(root / "molecule" / "one")


IMPORT = [{"ansible.builtin.import_playbook": "gpufleet.vllm.go"}]


def test_imports_and_includes_are_followed_but_not_to_what_does_not_run(small: Path) -> None:
    assert uses_of(small, converge=IMPORT) == {"one", "two"}


def test_a_step_outside_the_sequence_is_no_use(small: Path) -> None:
    assert uses_of(small, cleanup=IMPORT) == set()


def test_the_groups_of_the_inventory_decide(small: Path) -> None:
    (small / "molecule" / "inventory" / "hosts.yml").write_text("all: {children: {router: {hosts: {lb: }}}}")
    assert uses_of(small, converge=IMPORT) == {"one", "two", "balanced", "drained"}


def test_where_models_come_from_decides(small: Path) -> None:
    plan = {"vllm_plan": {"model_source": {"kind": "hub"}}}
    role = {"ansible.builtin.import_role": {"name": "gpufleet.vllm.serve"}}
    assert uses_of(small, verify=[{"hosts": "all", "vars": plan, "tasks": [role]}]) == {"one", "two", "fetched"}
    assert uses_of(small, verify=[{"hosts": "all", "vars": {"vllm_model_source": "hub"}, "tasks": [role]}]) == {
        *("one", "two", "fetched")
    }


@pytest.mark.parametrize(
    ("command", "further", "used"),
    [
        ("ansible-playbook gpufleet.vllm.go -i hosts", {}, {"one", "two"}),
        ("ansible-playbook gpufleet.vllm.go --tags first", {}, {"one"}),
        ("ansible-playbook gpufleet.vllm.go --tags shown", {}, {"hidden"}),
        ("{{ go }} --tags first", {"vars": {"go": "ansible-playbook gpufleet.vllm.go"}}, {"one"}),
        ("ansible-playbook gpufleet.vllm.go --check", {}, set()),
        ("ansible-playbook gpufleet.vllm.go", {"failed_when": "done.rc == 0 or 'x' not in done.stdout"}, set()),
        ("ansible-playbook gpufleet.vllm.go", {"failed_when": "done.rc != 0"}, {"one", "two"}),
        ("ansible-playbook gpufleet.vllm.go", {"tags": ["never"]}, set()),
    ],
)
def test_command_lines_are_followed(small: Path, command: str, further: dict[str, Any], used: set[str]) -> None:
    task = {"ansible.builtin.command": {"cmd": command}, **further}
    assert uses_of(small, verify=[{"hosts": "all", "tasks": [task]}]) == used
