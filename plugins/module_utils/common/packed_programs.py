# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of this collection that go on running on a host: their modules as files, with all of ours that they import.

The files keep their places below C(ansible_collections), so that they import each other there as they do here. They
are a folder, not an archive, or Python would compile them at every start.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text

PREFIX = "ansible_collections.gpufleet.vllm.plugins.module_utils."
MAIN = "main.py"


def packed_program(module: str, call: str) -> dict[str, str]:
    """Return the files of a program by their paths in its folder.

    Args:
        module: full name of the module that it begins with.
        call: what is called of that module; it is given the folder, as C(folder).
    """
    wanted, texts = [module], {}
    while wanted:
        name = wanted.pop()
        if name not in texts:
            texts[name] = inspect.getsource(importlib.import_module(name))
            wanted += _imports(texts[name])
    start = (
        "import os\nimport sys\n\n"
        "folder = os.path.dirname(os.path.abspath(__file__))\n"
        "sys.path.insert(0, folder)\n"
        f"from {module} import {call}  # noqa: E402\n\n"
        f"{call}(folder)\n"
    )
    files = {f"{name.replace('.', '/')}.py": text for name, text in sorted(texts.items())}
    return {MAIN: start, **files}


def file_difference(path: str, text: str) -> dict[str, str]:
    """Return what changes when a file of a program gets a text, for C(--diff); modules are only named.

    Args:
        path: of the file.
        text: what it is to hold.
    """
    before = read_text(path)
    if path.endswith(".py"):
        before, text = ("(the program)\n" if before else ""), "(the program, and changed)\n"
    return {"before_header": path, "after_header": path, "before": before, "after": text}


def _imports(text: str) -> Iterator[str]:
    """Yield the names of our modules that a source imports: C(from a.b import c) may mean the module a.b.c."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(PREFIX):
            for alias in node.names:
                found = f"{node.module}.{alias.name}"
                yield found if _is_module(found) else node.module


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
