# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names the single cause of a failed start from the log of the server."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.causes import (
    CAUSES,
    EXIT_CAUSES,
    HOST_MEMORY_KILL,
    OUT_OF_MEMORY_KILL,
    PLACES,
    PROCESS_DIED,
    WRAPPER,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.container_causes import ECHO, HINT, Cause, prove
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.kernel_log import OWN_LIMIT
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.log_lines import Line, read_lines

MOST_CONTEXT_LINES = 15
MOST_ALSO_SEEN = 3
LONGEST_LINE = 400
ERROR_LINE = re.compile(r"\b(?:ERROR|CRITICAL|FATAL|[Ee]rror:|fatal:|failed)\b|^usage: ")
# What a compiler, the C library or a library in another language says of its own end.
NATIVE = re.compile(
    r"^terminate called|^\s*what\(\):|Fatal Python error|panicked at|Assertion [`'\"].*failed|^Failed: |^\*\*\* "
    r"|(?:^|\s)fatal error: |^\S+:\d+(?::\d+)?: error: |^(?:nvcc|ptxas|cicc|ld|\S*/ld)\b.*\b(?:fatal|error|cannot)"
)
# The server's first process saw that another one had ended, before it could be asked what ended it.
UNASKED = "Failed core proc(s): {}"
ENGINE_DIED = "EngineCore encountered a fatal error"
# These say that somebody ended a process, or that it ended itself without an error of Python's.
SIGNALS = (132, 134, 135, 137, 139)


# In one line the cause nearest to the root counts, and of those the first of the table.
BY_RANK = sorted(CAUSES, key=lambda cause: cause.rank)


@dataclasses.dataclass(frozen=True)
class _Proof:
    """A cause, and the line that proves it."""

    cause: Cause
    groups: tuple[str, ...]
    line: str
    rank: int


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
        among the known ones, or C(unknown-failure). Its details hold C(exit_code), for reasons that are not known
        C(log), the at most 15 lines that tell most, and C(also_seen), other causes (C(name), C(line)) that the log
        proves, which came later or may have followed from this one.
    """
    log = read_lines(lines)
    details: dict[str, Any] = {"exit_code": exit_code}
    proofs = _proofs(log)
    if out_of_memory or memory_kill:
        cause = OUT_OF_MEMORY_KILL if out_of_memory or OWN_LIMIT in memory_kill else HOST_MEMORY_KILL
        kill = _Proof(cause, (), memory_kill or "OOMKilled: true", 0)
        return _error_for(what, kill, proofs, details)
    sure = [proof for proof in proofs if proof.rank < HINT]
    if sure:
        return _error_for(what, sure[0], proofs, details)
    position = _first_error(log)
    ended = _ended(log, exit_code, position)
    if ended:
        return _error_for(what, ended, (), details)
    return _error_for(what, proofs[0], proofs, details) if proofs else _unknown(what, log, position, details)


def _proofs(log: list[Line]) -> list[_Proof]:
    """Return what the lines prove, the cause nearest to the root first: by rank, and then the earlier line.

    What vLLM only warned of is a hint, and what it informed of proves nothing; no more do wrappers, and the source code
    that a traceback shows.
    """
    found = []
    for line in log:
        if line.quiet or line.shown:
            continue
        proof = _proof(line)
        if proof:
            found.append(proof)
    return sorted(found, key=lambda proof: proof.rank)


def _proof(line: Line) -> _Proof | None:
    found = prove(line.text, BY_RANK)
    if not found and line.exception and line.place and not WRAPPER.search(line.text):
        found = prove(line.text, [cause for place, cause in PLACES if re.search(place, line.place)])
    return _Proof(*found, line.text, _rank(found[0], line)) if found else None


def _rank(cause: Cause, line: Line) -> int:
    """Return how near to the root a line stands: what an exception says is more than a hint, and a warning is one."""
    if line.level == "WARNING":
        return HINT
    return ECHO if cause.rank == HINT and line.exception else cause.rank


def _error_for(what: str, proof: _Proof, others: Sequence[_Proof], details: dict[str, Any]) -> GpufleetError:
    ended = "" if details["exit_code"] is None else f" (exit code {details['exit_code']})"
    also: dict[str, str] = {}
    for other in others:
        if other.cause.name != proof.cause.name and other.rank < HINT:
            also.setdefault(other.cause.name, _short(other.line))
    also = dict(list(also.items())[:MOST_ALSO_SEEN])
    if also:
        details["also_seen"] = [{"name": name, "line": line} for name, line in also.items()]
    return GpufleetError(
        f"{what}{ended}. {proof.cause.meaning.format(*proof.groups)}"
        + (f" Also seen: {', '.join(also)}." if also else ""),
        name=proof.cause.name,
        remedy=proof.cause.remedy.format(*proof.groups),
        evidence=_short(proof.line),
        details=details,
    )


def _ended(log: list[Line], exit_code: int | None, position: int | None) -> _Proof | None:
    """Return how a process ended that left no error of Python's: by the signal that a line or the exit code tells."""
    if position is not None and log[position].exception:
        return None
    for line in log:
        if re.search(PROCESS_DIED.pattern, line.text) or (position is None and UNASKED in line.text):
            signal = re.search(r"(?:: |exit code: )-(4|6|7|9|11)\b", line.text)
            cause = EXIT_CAUSES[128 + int(signal.group(1))] if signal else PROCESS_DIED
            return _Proof(cause, (), line.text, ECHO)
    if exit_code in EXIT_CAUSES and (position is None or exit_code in SIGNALS):
        told = [line.text for line in log if line.text.strip()]
        last = log[position].text if position is not None else (told[-1] if told else "")
        word = "last line" if position is None else "first error"
        return _Proof(EXIT_CAUSES[exit_code], (), f"exit code {exit_code}; {word}: {_short(last)}", ECHO)
    return None


def _unknown(what: str, log: list[Line], position: int | None, details: dict[str, Any]) -> GpufleetError:
    """Return the error for a log that no cause matches, with the lines that tell most."""
    ended = f"exit code {details['exit_code']}" if details["exit_code"] is not None else "no exit code"
    if position is None:
        context = [line.text for line in log if line.text.strip()][-MOST_CONTEXT_LINES:]
        evidence = context[-1] if context else "the log is empty"
    else:
        context, evidence = _telling(log, position), log[position].text
    details["log"] = [_short(line) for line in context]
    died = any(ENGINE_DIED in line.text for line in log)
    return GpufleetError(
        f"{what} ({ended}); the reason is not among the known ones." + (" Its engine died." if died else ""),
        name="engine-died" if died else "unknown-failure",
        remedy="Look at the lines that tell most:\n  " + "\n  ".join(details["log"]),
        evidence=_short(evidence),
        details=details,
    )


def _telling(log: list[Line], position: int) -> list[str]:
    """Return the first error with what its process printed around it, and after it the other errors of the log."""
    depth = log[position].depth
    same = [(number, line) for number, line in enumerate(log) if line.depth == depth and line.text.strip()]
    before = [line.text for number, line in same if number < position and not line.quiet]
    after = [line.text for number, line in same if number > position][:3]
    lines = [*before[-6:], log[position].text, *after]
    others = (line.text for line in log if _speaks_of_error(line, exception=True) or NATIVE.search(line.text))
    lines += [text for text in dict.fromkeys(others) if text not in lines]
    return lines[:MOST_CONTEXT_LINES]


def _speaks_of_error(line: Line, *, exception: bool) -> bool:
    if line.quiet or line.level == "WARNING" or line.shown or WRAPPER.search(line.text):
        return False
    return line.exception if exception else bool(ERROR_LINE.search(line.text))


def _first_error(log: list[Line]) -> int | None:
    """Return the position of the line that tells most of a failure whose cause is not known.

    That is a compiler's own line, or what the C library or another language said before any exception; then the first
    exception of the deepest process, as the others only waited for it; then the first line that speaks of an error.
    """
    exceptions = [number for number, line in enumerate(log) if _speaks_of_error(line, exception=True)]
    native = [number for number, line in enumerate(log) if not (line.quiet or line.shown) and NATIVE.search(line.text)]
    compiler = [number for number in native if re.search(r"\b(?:fatal )?error\b|\bfatal\b|cannot", log[number].text)]
    if exceptions:
        deepest = max(log[number].depth for number in exceptions)
        first = next(number for number in exceptions if log[number].depth == deepest)
        if compiler:
            return compiler[0]
        return native[0] if native and native[0] < first else first
    if native:
        return native[0]
    return next((number for number, line in enumerate(log) if _speaks_of_error(line, exception=False)), None)


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."
