# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the house: which file lives in which room, and which room may import which.

Each rule is a function that returns what breaks it, and a test that breaks it in a copy and sees that it is reported.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.gpufleet.vllm.tools.shipped import imported, reached, shipped

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
PACKAGE = "ansible_collections.gpufleet.vllm.plugins."
TREES = ("module_utils", "plugin_utils")

# From the ground up. A room imports from lower floors and from itself, never from a room of its own floor.
FLOORS = {
    "module_utils": (
        ("common",),
        ("in_container", "router"),
        ("containers",),
        ("health", "images"),
        ("gpus", "models", "verify"),
        ("host",),
        ("servers",),
    ),
    "plugin_utils": (
        ("knowledge",),
        ("planning",),
        ("actions", "monitoring", "preflight", "tuning", "verification"),
        ("fleet",),
        ("report",),
    ),
}
HOST_SIDE = {"control.py", "control_files.py"}  # the host's end of the folder that a container mounts
LONGEST_FILE = 500  # lines
# One table of causes, of which the order decides; a program that has to be one file, as a container runs it.
MAY_BE_LONGER = {"health/causes.py", "in_container/hub_download.py"}
LONGEST_DEPLOYMENT = 300
# What a module may ship to a host: files, and their lines.
HEAVIEST = {"vllm_model": (32, 4000), "vllm_gpu_access": (25, 3500), "vllm_server_info": (28, 5000)}
LONGEST_FUNCTION = 45  # lines of code
MOST_BRANCHES = 20
BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.comprehension,
    ast.BoolOp,
    ast.Assert,
)


def sources(plugins: Path, *folders: str) -> list[Path]:
    """Return the Python files below these folders of plugins."""
    return sorted(path for folder in folders for path in (plugins / folder).rglob("*.py"))


def room(plugins: Path, path: Path) -> tuple[str, str]:
    """Return the tree and the room of a file of one of the trees."""
    tree, name, *_rest = path.relative_to(plugins).parts
    return tree, name


def by_who_runs_it(plugins: Path) -> list[str]:
    """module_utils is what some module reaches, and that reaches nothing of plugin_utils."""
    needed = reached(plugins, sources(plugins, "modules"))
    kept = sources(plugins, "module_utils")
    return [
        *(f"{path.relative_to(plugins)} is reached by no module" for path in kept if path not in needed),
        *(
            f"{path.relative_to(plugins)} imports {other.relative_to(plugins)}"
            for path in [*kept, *sources(plugins, "modules")]
            for other in sorted(imported(plugins, path))
            if other.is_relative_to(plugins / "plugin_utils")
        ),
    ]


def upward(plugins: Path) -> list[str]:
    """Rooms import downward only, and every room has a floor."""
    floors = {
        (tree, name): number for tree, rooms in FLOORS.items() for number, names in enumerate(rooms) for name in names
    }
    wrong = []
    for path in sources(plugins, *TREES):
        here = room(plugins, path)
        if here not in floors:
            wrong.append(f"{path.relative_to(plugins)} is in no room of the house")
            continue
        for other in sorted(imported(plugins, path)):
            there = room(plugins, other)
            if there[0] == here[0] and there != here and floors.get(there, 99) >= floors[here]:
                wrong.append(f"{path.relative_to(plugins)} imports {other.relative_to(plugins)}")
    return wrong


def circles(plugins: Path) -> list[str]:
    """No file imports, through others, itself."""
    return [
        str(path.relative_to(plugins))
        for path in sources(plugins, *TREES)
        if path in reached(plugins, sorted(imported(plugins, path)))
    ]


def not_alone(plugins: Path) -> list[str]:
    """Programs that run inside a container import nothing of ours."""
    return [
        str(path.relative_to(plugins))
        for path in sources(plugins, "module_utils/in_container")
        if path.name not in HOST_SIDE and imported(plugins, path)
    ]


def same_names(plugins: Path) -> list[str]:
    """One name, one file, over both trees."""
    seen: dict[str, Path] = {}
    return [
        f"{path.relative_to(plugins)} and {first.relative_to(plugins)}"
        for path in sources(plugins, *TREES)
        if (first := seen.setdefault(path.name, path)) != path
    ]


def in_no_room(plugins: Path) -> list[str]:
    """No Python file lies directly in a tree."""
    return [str(path.relative_to(plugins)) for tree in TREES for path in sorted((plugins / tree).glob("*.py"))]


def too_long(plugins: Path) -> list[str]:
    """No file of logic is longer than it may be; modules are mostly documentation."""
    limits = {"deployment.py": LONGEST_DEPLOYMENT}
    lengths = [
        (path, len(path.read_text(encoding="utf-8").splitlines())) for path in sources(plugins, *TREES, "action")
    ]
    return [
        f"{path.relative_to(plugins)}: {lines} lines"
        for path, lines in lengths
        if lines > limits.get(path.name, LONGEST_FILE) and "/".join(path.parts[-2:]) not in MAY_BE_LONGER
    ]


def too_heavy(plugins: Path) -> list[str]:
    """Modules that run often ship no more than they may."""
    figures = shipped(plugins)
    return [
        f"modules/{name}.py ships {figures[name][0]} files of {figures[name][1]} lines"
        for name, limits in HEAVIEST.items()
        if any(figure > limit for figure, limit in zip(figures[name], limits))
    ]


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield each function of a file: its name, its lines of code and its branches."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        inside = lines[body[0].lineno - 1 : node.end_lineno] if body else []
        code = [line for line in inside if line.strip() and not line.strip().startswith("#")]
        yield node.name, len(code), sum(isinstance(child, BRANCHES) for child in ast.walk(node))


def too_much_in_one(plugins: Path) -> list[str]:
    """No function is too long to be read at once."""
    return [
        f"{path.relative_to(plugins)} {name}: {lines} lines, {branches} branches"
        for path in sources(plugins, *TREES, "modules", "action")
        for name, lines, branches in functions(path)
        if lines > LONGEST_FUNCTION or branches > MOST_BRANCHES
    ]


RULES = (by_who_runs_it, upward, circles, not_alone, same_names, in_no_room, too_long, too_heavy, too_much_in_one)
Rule = Callable[[Path], "list[str]"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule: Rule) -> None:
    assert rule(PLUGINS) == []


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a copy of the plugins, to be broken."""
    shutil.copytree(PLUGINS, tmp_path / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "plugins"


def added(path: Path, line: str) -> None:
    """Add a line at the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")


HIGH = f"from {PACKAGE}module_utils.servers import deployment"
PLANS = f"from {PACKAGE}plugin_utils.planning import planner"
BIG = "def big(x):\n" + "    x += 1\n" * (LONGEST_FUNCTION + 1)
BRANCHY = "def branchy(x):\n    return " + " or ".join(["(1 if x else 2)"] * (MOST_BRANCHES + 1))


@pytest.mark.parametrize(
    ("rule", "file", "line"),
    [
        (by_who_runs_it, "module_utils/common/unused.py", "X = 1"),
        (by_who_runs_it, "module_utils/host/ports.py", PLANS),
        (by_who_runs_it, "modules/vllm_server.py", PLANS),
        (upward, "module_utils/common/files.py", HIGH),
        (upward, "module_utils/models/hub_cache.py", f"from {PACKAGE}module_utils.gpus.nvml import read_gpus"),
        (upward, "module_utils/attic/old.py", "X = 1"),
        (upward, "plugin_utils/knowledge/profiles.py", PLANS),
        (circles, "module_utils/common/errors.py", f"from {PACKAGE}module_utils.common import lock"),
        (not_alone, "module_utils/in_container/door.py", f"from {PACKAGE}module_utils.common import errors"),
        (same_names, "plugin_utils/report/deployment.py", "X = 1"),
        (in_no_room, "module_utils/helpers.py", "X = 1"),
        (too_long, "module_utils/common/files.py", "X = 1\n" * LONGEST_FILE),
        (too_long, "module_utils/servers/deployment.py", "X = 1\n" * LONGEST_DEPLOYMENT),
        (too_heavy, "modules/vllm_gpu_access.py", f"from {PACKAGE}module_utils.health import diagnosis"),
        (too_heavy, "modules/vllm_server_info.py", HIGH),
        (too_much_in_one, "module_utils/common/files.py", BIG),
        (too_much_in_one, "modules/vllm_server.py", BRANCHY),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_rule_is_reported(rule: Rule, file: str, line: str, copied: Path) -> None:
    added(copied / file, line)
    found = rule(copied)
    assert found != []
    assert any(file in entry for entry in found)
