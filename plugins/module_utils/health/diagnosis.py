# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names the single cause of a failed start from the log of the server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.causes import (
    CAUSES,
    EXIT_CAUSES,
    HOST_MEMORY_KILL,
    KILLED_PROCESS,
    OUT_OF_MEMORY_KILL,
    WRAPPER,
    Cause,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.kernel_log import OWN_LIMIT

MOST_CONTEXT_LINES = 15
LONGEST_LINE = 400
_PROCESS = re.compile(r"^\([A-Za-z][^()]* pid=\d+[^()]*\)\s?")
_HEADER = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] ?)?")
# What torch's C++ code warns of: [W1122 13:36:35.945111661 utils.cpp:41] Warning: ...
_TORCH_WARNING = re.compile(r"^\[?W\d{4} \d\d:\d\d:\d\d\.\d+ [^\]]*\] ?")
EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Failure|NotFound|Exit)\b(?::|$)")
ERROR_LINE = re.compile(r"\b(?:ERROR|CRITICAL|FATAL|[Ee]rror:|fatal:|failed)\b|^usage: ")
ENGINE_DIED = "EngineCore encountered a fatal error"


def split_line(line: str) -> tuple[str, str]:
    """Return the level of a line of a server's log (empty if it has none) and the line without what vLLM puts in front.

    That is the process, as in C((EngineCore pid=773)), the level, the time and the place in the source.
    """
    text = line.rstrip("\r\n")
    while True:
        shorter = _PROCESS.sub("", text, count=1)
        if shorter == text:
            break
        text = shorter
    warning = _TORCH_WARNING.match(text)
    if warning:
        return "WARNING", text[warning.end() :]
    header = _HEADER.match(text)
    return (header.group(1), text[header.end() :]) if header else ("", text)


def diagnose(
    lines: Iterable[str],
    *,
    exit_code: int | None = None,
    out_of_memory: bool = False,
    memory_kill: str = "",
    what: str = "The server did not start",
) -> GpufleetError:
    """Return the one cause of a failed start, or of a server's later death.

    Args:
        lines: the log of the failed start, or the text of the engine's refusal.
        exit_code: of the container's process; None when it still runs or never did.
        out_of_memory: whether the engine says that the kernel killed it for lack of memory.
        memory_kill: the line of the kernel's log which says that it killed one of the server's processes for lack of
            memory (kernel_log).
        what: the beginning of the message, such as C(The server vllm-0 did not start).

    Returns:
        An error whose name is that of the cause, C(engine-died) when a running engine failed for a reason that is not
        among the known ones, or C(unknown-failure). Its details hold C(exit_code) and, for reasons that are not known,
        C(log): at most 15 lines around the first error.
    """
    log = [split_line(line) for line in lines]
    stripped = [text for _level, text in log]
    details: dict[str, Any] = {"exit_code": exit_code}
    if out_of_memory or memory_kill:
        cause = OUT_OF_MEMORY_KILL if out_of_memory or OWN_LIMIT in memory_kill else HOST_MEMORY_KILL
        return _error_for(what, cause, (), memory_kill or "OOMKilled: true", details)
    for weak in (False, True):
        found = _earliest(log, weak)
        if found:
            cause, match, line = found
            return _error_for(what, cause, tuple(group or "" for group in match.groups()), line, details)
    position = _first_error(log)
    if position is None or not EXCEPTION.search(stripped[position]):
        for line in stripped:
            if re.search(KILLED_PROCESS.pattern, line):
                return _error_for(what, _ended_by(line), (), line, details)
    if exit_code in EXIT_CAUSES and position is None:
        last = next((line for line in reversed(stripped) if line.strip()), "")
        return _error_for(
            what, EXIT_CAUSES[exit_code], (), f"exit code {exit_code}; last line: {_short(last)}", details
        )
    return _unknown(what, stripped, position, details)


def _error_for(what: str, cause: Cause, groups: Sequence[str], line: str, details: dict[str, Any]) -> GpufleetError:
    ended = "" if details["exit_code"] is None else f" (exit code {details['exit_code']})"
    return GpufleetError(
        f"{what}{ended}. {cause.meaning.format(*groups)}",
        name=cause.name,
        remedy=cause.remedy.format(*groups),
        evidence=_short(line),
        details=details,
    )


def _ended_by(line: str) -> Cause:
    """Return the cause that the line on a killed process names by a signal, as C(-4), or the general one."""
    signal = re.search(r": -(4|7|9|11)\b", line)
    return EXIT_CAUSES[128 + int(signal.group(1))] if signal else KILLED_PROCESS


def _unknown(what: str, stripped: list[str], position: int | None, details: dict[str, Any]) -> GpufleetError:
    """Return the error for a log that no cause matches, with the lines around its first error."""
    ended = f"exit code {details['exit_code']}" if details["exit_code"] is not None else "no exit code"
    if position is None:
        context = [line for line in stripped if line.strip()][-MOST_CONTEXT_LINES:]
        evidence = context[-1] if context else "the log is empty"
    else:
        before = [line for line in stripped[:position] if line.strip()][-(MOST_CONTEXT_LINES - 4) :]
        after = [line for line in stripped[position + 1 :] if line.strip()][:3]
        evidence = stripped[position]
        context = [*before, evidence, *after]
    details["log"] = [_short(line) for line in context]
    died = any(ENGINE_DIED in line for line in stripped)
    return GpufleetError(
        f"{what} ({ended}); the reason is not among the known ones." + (" Its engine died." if died else ""),
        name="engine-died" if died else "unknown-failure",
        remedy="Look at the lines around its first error:\n  " + "\n  ".join(details["log"]),
        evidence=_short(evidence),
        details=details,
    )


def _earliest(log: list[tuple[str, str]], weak: bool) -> tuple[Cause, re.Match[str], str] | None:
    """Return the earliest line that a cause matches; what vLLM only warned of is weak, what it informed of no cause."""
    for level, text in log:
        if level in ("INFO", "DEBUG"):
            continue
        for cause in CAUSES:
            if (cause.weak or level == "WARNING") == weak:
                match = re.search(cause.pattern, text)
                if match:
                    return cause, match, text
    return None


def _first_error(log: list[tuple[str, str]]) -> int | None:
    """Return the position of the first exception that is no wrapper, or of the first line that speaks of an error."""
    for pattern in (EXCEPTION, ERROR_LINE):
        for position, (level, text) in enumerate(log):
            if level not in ("INFO", "DEBUG", "WARNING") and pattern.search(text) and not WRAPPER.search(text):
                return position
    return None


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."
