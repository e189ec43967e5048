# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of a server's log: who printed each, how bad it calls itself, and which are only shown source code."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

_PROCESS = re.compile(r"^\((?P<name>[A-Za-z][^()]*?) ?(?:rank=\d+ )?pid=\d+[^()]*\)\s?")
_HEADER = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] ?)?")
# What torch says outside vLLM's logging: [W1122 13:36:35.945111661 utils.cpp:41] Warning: ... The month has no zero.
_TORCH = re.compile(r"^\[?([EFIW])(?:\d{3,4} \d\d:\d\d:\d\d\.\d+)? [^\]]*\.\w+:\d+\] ?")
_TORCH_LEVELS = {"E": "ERROR", "F": "CRITICAL", "I": "INFO", "W": "WARNING"}
# What Python's warnings look like: /x/__init__.py:61: FutureWarning: ...
_PYTHON_WARNING = re.compile(r"^\S+\.py:\d+: \w*Warning: ")
_RANK = re.compile(r"^\[(?:rank)?\d+\]: ?")
# vLLM writes the whole configuration, and the requests, above the traceback of an engine that died.
_DUMP = re.compile(r"^Dumping (?:input data|scheduler )")

EXCEPTION = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?(?:[A-Z]\w*)?(?:Error|Exception|Interrupt|Failure|NotFound|Exit|Timeout|Failed)\b(?::|$)"
)
# The innermost frames that only carry an error on: pydantic calls vLLM's own checks.
_CARRIERS = re.compile(r"/pydantic/|/contextlib\.py$|<frozen|<string>")
_FRAME = re.compile(r'^\s*File "([^"]+)", line \d+, in ')
_AFTER_FRAMES = re.compile(r"^[A-Za-z_][\w.]*(?:: |$)")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a log.

    Attributes:
        level: what vLLM's logging calls it, empty if it is not from there.
        text: the line without what vLLM puts in front.
        depth: how far the process that printed it is from the server's first: an API server is 1, an engine 2, a
            worker 3, and 0 stands for what bears no name.
        shown: whether a traceback shows it as source code, so that no process says it.
        exception: whether it is the last line of a traceback, or reads like one.
        place: the file in which that exception was raised; empty if no traceback tells.
    """

    level: str
    text: str
    depth: int = 0
    shown: bool = False
    exception: bool = False
    place: str = ""

    @property
    def quiet(self) -> bool:
        """Whether it only informs."""
        return self.level in ("INFO", "DEBUG")


def split_line(line: str) -> tuple[str, str]:
    """Return the level of a line of a server's log (empty if it has none) and the line without what vLLM puts in front.

    That is the process, as in C((EngineCore pid=773)), the level, the time and the place in the source.
    """
    level, text, _processes = _split(line)
    return level, text


def _split(line: str) -> tuple[str, str, list[str]]:
    text, processes = line.rstrip("\r\n"), []
    while True:
        found = _PROCESS.match(text)
        if not found:
            break
        processes.append(found.group("name"))
        text = text[found.end() :]
    text = _RANK.sub("", text, count=1)
    torch = _TORCH.match(text)
    if torch:
        return _TORCH_LEVELS[torch.group(1)], text[torch.end() :], processes
    if _PYTHON_WARNING.match(text):
        return "WARNING", text, processes
    header = _HEADER.match(text)
    return (header.group(1), text[header.end() :], processes) if header else ("", text, processes)


def _depth(processes: list[str]) -> int:
    if any("worker" in name.lower() for name in processes):
        return 3
    if any(name.startswith("EngineCore") for name in processes):
        return 2
    return 1 if processes else 0


def read_lines(lines: Iterable[str]) -> list[Line]:
    """Return the lines of a log; tracebacks of several processes may run through one another."""
    found: list[Line] = []
    # By process: the file of the innermost frame so far, and whether the next line is that frame's source code.
    places: dict[tuple[str, ...], str] = {}
    code_follows: dict[tuple[str, ...], bool] = {}
    for raw in lines:
        level, text, processes = _split(raw)
        who = tuple(processes)
        frame = _FRAME.match(text)
        exception, place, shown = False, "", bool(frame) or bool(_DUMP.match(text))
        if frame:
            code_follows[who] = True
            if not _CARRIERS.search(frame.group(1)) or not places.get(who):
                places[who] = frame.group(1)
        elif code_follows.get(who) and re.match(r"\s{3,}\S", text):
            shown = True
            # Below it there may be one more line, of carets.
        else:
            exception = bool(EXCEPTION.search(text) or (places.get(who) and _AFTER_FRAMES.match(text)))
            if exception:
                place = places.pop(who, "")
            code_follows[who] = False
        found.append(Line(level, text, _depth(processes), shown, exception, place))
    return found
