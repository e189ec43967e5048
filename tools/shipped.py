# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells what each module ships to a host: the files of module_utils that it reaches, and their lines.

    tools/shipped.py              print the table
    tools/shipped.py CHECKOUT     with the figures of another checkout before those of this one

Ansible packs these files with the module and sends them to the host for each run of it.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ansible_collections.gpufleet.vllm.plugins."


def imported(plugins: Path, path: Path) -> set[Path]:
    """Return the files of the collection's plugins that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    ours = [name.removeprefix(PACKAGE) for name in names if name.startswith(PACKAGE)]
    return {file for name in ours if (file := plugins / (name.replace(".", "/") + ".py")).is_file()}


def reached(plugins: Path, starts: list[Path]) -> set[Path]:
    """Return these files and all that they import, directly or not."""
    found: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imported(plugins, path)
    return found


def shipped(plugins: Path) -> dict[str, tuple[int, int]]:
    """Return, by module, the number of the module_utils files that it ships, and of their lines."""
    figures = {}
    for module in sorted((plugins / "modules").glob("*.py")):
        files = reached(plugins, [module]) - {module}
        if files:
            figures[module.stem] = (len(files), sum(len(path.read_bytes().splitlines()) for path in files))
    return figures


def table(now: dict[str, tuple[int, int]], before: dict[str, tuple[int, int]]) -> str:
    """Return the figures as a table in Markdown; modules that need no file of ours are left out."""
    lines = ["| Module | Files before | now | Lines before | now |", "|---|---|---|---|---|"]
    if not before:
        lines = ["| Module | Files | Lines |", "|---|---|---|"]
    for name, (files, count) in now.items():
        old_files, old_count = before.get(name, ("-", "-"))
        cells = [old_files, files, old_count, count] if before else [files, count]
        lines.append(f"| `{name}` | " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the table."""
    before = shipped(Path(arguments[0]) / "plugins") if arguments else {}
    print(table(shipped(ROOT / "plugins"), before))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
