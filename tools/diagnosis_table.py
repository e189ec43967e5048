# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes docs/docsite/rst/diagnoses.rst, the table of failures at start, from health/causes.py and container_causes.py.

PYTHONPATH=.cache/collections .venv/bin/python tools/diagnosis_table.py

A unit test holds the committed page to what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils.health import causes as health_causes
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.container_causes import Cause

PAGE = Path(__file__).resolve().parent.parent / "docs" / "docsite" / "rst" / "diagnoses.rst"

VARIABLE = re.compile(r"(?<![\w/.-])((?:vllm|docker|nvidia_container_toolkit)_[a-z_]*[a-z*]|VLLM_[A-Z_]*[A-Z*])(?!\w)")
ESCAPED = re.compile(r"[\\*`|]|_\b")

HEAD = """\
.. Made by tools/diagnosis_table.py from plugins/module_utils/health/causes.py and container_causes.py.

.. _ansible_collections.gpufleet.vllm.docsite.diagnoses:

Every failure that has a name
=============================

What a task's error says when a server did not start, or died: its name (``error.name`` in the task's result and the
report), what it means, and what fixes it. ``…`` stands for what the log itself tells, such as a number or a name.
:ref:`The guide <ansible_collections.gpufleet.vllm.docsite.troubleshooting>` tells how a cause is found.

"""
EXIT_HEAD = """\
By the exit code alone
----------------------

These are said where the log holds no error at all, by how the container's process ended.

"""


def every_cause() -> dict[str, list[Cause]]:
    """Return the causes that a line of a log proves, by name, in the order in which they are tried."""
    found: dict[str, list[Cause]] = {}
    for cause in (
        *health_causes.CAUSES,
        *(cause for _place, cause in health_causes.PLACES),
        health_causes.PROCESS_DIED,
    ):
        found.setdefault(cause.name, []).append(cause)
    return found


def sentence(text: str) -> str:
    """Return a cause's sentence as reStructuredText: places for the log's own words as '…', variables as code."""
    parts = VARIABLE.split(re.sub(r"\{\d\}", "…", text))
    # Every second part is a variable.
    return "".join(f"``{part}``" if number % 2 else ESCAPED.sub(r"\\\g<0>", part) for number, part in enumerate(parts))


def table(rows: Iterable[tuple[str, list[str], list[str]]]) -> str:
    """Return a table with a row for each name: what it means, and what to do; several variants one below another."""
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 24 38 38",
        "",
        "   * - Name",
        "     - What it means",
        "     - What to do",
    ]
    for name, meanings, remedies in rows:
        lines.append(f"   * - ``{name}``")
        for texts in (meanings, remedies):
            first, *more = dict.fromkeys(sentence(text) for text in texts)
            lines.append(f"     - {first}")
            for text in more:
                lines += ["", f"       {text}"]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page."""
    causes = [
        (name, [cause.meaning for cause in variants], [cause.remedy for cause in variants])
        for name, variants in every_cause().items()
    ]
    exits: dict[str, tuple[list[str], list[str]]] = {}
    for code, cause in health_causes.EXIT_CAUSES.items():
        meanings, remedies = exits.setdefault(cause.name, ([], []))
        meanings.append(f"Exit code {code}. {cause.meaning}")
        remedies.append(cause.remedy)
    kill = health_causes.OUT_OF_MEMORY_KILL
    exits[kill.name] = ([kill.meaning], [kill.remedy])
    return HEAD + table(causes) + "\n" + EXIT_HEAD + table((name, *texts) for name, texts in exits.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
