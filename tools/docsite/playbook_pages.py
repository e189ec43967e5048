# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a page of the site for each playbook, from the playbook itself and the argument specifications of its roles.

The comment at a playbook's head says what it does, its groups, tags and check mode; its plays say which hosts they work
on and which roles they run; the specifications of these roles name the variables.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = ROOT / "playbooks"
COLLECTION = "ansible_collections.gpufleet.vllm"
# A play's hosts, in words; the first pattern that is found counts.
HOSTS = (
    ("gpufleet_probed", "the hosts that the inventory does not describe"),
    ("gpufleet_refused", "the hosts without a plan"),
    ("__rollout_schedule", "the hosts to be changed, batch by batch"),
    ("bring_back", "the hosts to be brought back"),
    ("+ groups['monitoring']", "all hosts, where there is a group monitoring"),
    ("groups['monitoring']", "the group monitoring"),
    ("if groups['router'] is defined else []", "hosts with servers, where there is a router"),
    ("groups['router'] | default([])", "the router's hosts"),
    ("'vllm' if 'vllm' in groups else", "hosts with servers"),
    ("all", "all hosts"),
)
# Where a sentence of the head begins that has a line of its own on the page.
PARTS = re.compile(r"(?:^|(?<=[.:] ))(?=Groups: |Tags: |No tags\.|With --limit |--check )")
# What is code in a comment: options, variables, assignments, file names of playbooks.
CODE = re.compile(
    r"(?<![\w`.-])(?:-e \w+=\S+?(?=[;,.]?(?:\s|$))|--check --diff|--[a-z]+(?: history)?|-v"
    r"|(?:vllm|router|monitoring)_\w+|\w+\.yml)(?![\w`])"
)
ROLE_STEPS = ("ansible.builtin.import_role", "ansible.builtin.include_role")
IMPORT = "ansible.builtin.import_playbook"


@dataclass
class Step:
    """A task of a playbook: its name, the role and entry points that it runs, if any, and its tags."""

    name: str
    role: str = ""
    entries: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def load(name: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the comment at the head of a playbook as one line, and its plays."""
    text = (PLAYBOOKS / f"{name}.yml").read_text(encoding="utf-8")
    head = re.match(r"---\n((?:# .*\n)+)", text)
    if head is None:
        raise ValueError(f"playbooks/{name}.yml does not begin with a comment that says what it does")
    plays: list[dict[str, Any]] = yaml.safe_load(text)
    return " ".join(line[2:] for line in head[1].splitlines()), plays


def names() -> list[str]:
    """Return the names of all playbooks."""
    return sorted(path.stem for path in PLAYBOOKS.glob("*.yml"))


@functools.cache
def specs(role: str) -> dict[str, Any]:
    """Return the entry points of a role, as its argument specification has them."""
    path = ROOT / "roles" / role / "meta" / "argument_specs.yml"
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]
    return found


def hosts_in_words(pattern: str) -> str:
    """Return which hosts a play works on."""
    for part, words in HOSTS:
        if part in pattern:
            return words
    raise ValueError(f"HOSTS in {Path(__file__).name} has no words for the hosts {pattern!r}")


def steps(tasks: list[dict[str, Any]], tags: list[str]) -> list[Step]:
    """Return the tasks of a play in their order, with those within blocks."""
    found = []
    for task in tasks:
        own = task.get("tags", tags)
        inner = [part for key in ("block", "rescue", "always") for part in task.get(key, [])]
        if inner:
            found += steps(inner, own)
        elif "ansible.builtin.meta" not in task:
            found.append(step(task, own))
    return found


def step(task: dict[str, Any], tags: list[str]) -> Step:
    """Return one task; where a loop names the entry points of a role, all of them."""
    for key in ROLE_STEPS:
        if key in task:
            entry = task[key].get("tasks_from", "main")
            return Step(
                task["name"], task[key]["name"].rpartition(".")[2], task["loop"] if "{{" in entry else [entry], tags
            )
    return Step(task["name"], tags=tags)


def as_rst(text: str) -> str:
    """Return a comment's text with options, variables and file names as code."""
    return CODE.sub(lambda match: f"``{match[0]}``", text)


def entry_link(role: str, entry: str) -> str:
    """Return a link to an entry point on its role's page."""
    words = f"role {role}" if entry == "main" else f"role {role}, {entry}"
    return f":ref:`{words} <{COLLECTION}.{role}_role__entrypoint-{entry}>`"


def play_lines(play: dict[str, Any]) -> list[str]:
    """Return what a play does, one line for each task."""
    if IMPORT in play:
        other = play[IMPORT].removesuffix(".yml")
        return [f"#. **{play['name']}**: the playbook :ref:`{other} <{COLLECTION}.playbook.{other}>`.", ""]
    lines = [f"#. **{play['name']}**, on {hosts_in_words(str(play['hosts']))}:", ""]
    for item in steps(play["tasks"], play.get("tags", [])):
        shown = [tag for tag in item.tags if tag not in ("always", "never")]
        tags = f" (tags {', '.join(f'``{tag}``' for tag in shown)})" if shown else ""
        if not item.role:
            lines.append(f"   * {item.name}{tags}")
        for entry in item.entries:
            does = specs(item.role)[entry]["short_description"]
            lines.append(f"   * {item.name}: {does}{tags}. {entry_link(item.role, entry).join('()')}")
    return [*lines, ""]


def all_steps(name: str, seen: set[str]) -> list[Step]:
    """Return the steps of a playbook and of those that it imports."""
    seen.add(name)
    found: list[Step] = []
    for play in load(name)[1]:
        other = play.get(IMPORT, "").removesuffix(".yml")
        if other and other not in seen:
            found += all_steps(other, seen)
        found += steps(play.get("tasks", []), [])
    return found


def variable_lines(name: str) -> list[str]:
    """Return the variables of the entry points that a playbook runs, by role, but for those of the role vllm."""
    by_role: dict[str, dict[str, str]] = {}
    for item in all_steps(name, set()):
        for entry in item.entries:
            for option in specs(item.role)[entry].get("options", {}):
                label = f"{COLLECTION}.{item.role}_role__parameter-{entry}__{option}"
                by_role.setdefault(item.role, {}).setdefault(option, f":ref:`{option} <{label}>`")
    lines = [f"The variables of the {entry_link('vllm', 'main')} say what is served, to all playbooks alike.", ""]
    for role, options in sorted(by_role.items()):
        if role != "vllm":
            lines += [f"* Role {role}: {', '.join(options.values())}"]
    return [*lines, ""]


def is_part(head: str) -> bool:
    """Return whether a playbook, by its head, is a part of others and not to be run by itself."""
    return head.startswith(("A part of ", "The part that "))


def command_lines(name: str) -> list[str]:
    """Return the command that runs a playbook."""
    return [".. code-block:: console", "", f"   $ ansible-playbook gpufleet.vllm.{name} -i fleet", ""]


def heading(text: str, line: str) -> list[str]:
    """Return a heading."""
    return [text, line * len(text), ""]


def page(name: str) -> str:
    """Return the page of a playbook."""
    head, plays = load(name)
    does, *parts = PARTS.split(head)
    return "\n".join(
        [
            f".. _{COLLECTION}.playbook.{name}:",
            "",
            *heading(f"{name} playbook", "="),
            as_rst(does.strip()),
            "",
            *(f"* {as_rst(part.strip())}" for part in parts if part.strip() != "No tags."),
            "",
            *([] if is_part(head) else command_lines(name)),
            f"How it ends, and what it has to do with the others: :ref:`{COLLECTION}.docsite.playbooks`.",
            "",
            *heading("What it does, in this order", "-"),
            *(line for play in plays for line in play_lines(play)),
            *heading("Variables", "-"),
            *variable_lines(name),
        ]
    )


def write(sources: Path) -> None:
    """Write all pages into the sources of the site, name them in its index, and link the guide's table to them."""
    (sources / "playbooks").mkdir(mode=0o755)
    for name in names():
        (sources / "playbooks" / f"{name}.rst").write_text(page(name), encoding="utf-8")
    index = sources / "index.rst"
    entries = "".join(f"    {name} <playbooks/{name}>\n" for name in names())
    part = f"Playbooks\n---------\n\n.. toctree::\n    :maxdepth: 1\n\n{entries}\n"
    mark = ".. _plugin_index_for_gpufleet.vllm:\n"
    text = index.read_text(encoding="utf-8")
    if mark not in text:
        raise ValueError("The index has no list of plugins before which the playbooks belong")
    index.write_text(text.replace(mark, part + mark), encoding="utf-8")
    guide = sources / "docsite" / "playbooks.rst"
    table = re.sub(
        r"^(   \* - )``(\w+)``$",
        lambda match: f"{match[1]}:ref:`{match[2]} <{COLLECTION}.playbook.{match[2]}>`",
        guide.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    guide.write_text(table, encoding="utf-8")
