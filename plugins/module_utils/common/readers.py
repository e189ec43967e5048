# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the values of variables, and says what is wrong with those that are not valid."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

ABSENT: Any = object()
Reader = Callable[[Any], Any]


def invalid(problems: list[str]) -> GpufleetError:
    """Return the error that names every problem of the variables."""
    count = len(problems)
    listed = "\n".join(f"  - {problem}" for problem in problems)
    return GpufleetError(
        f"{count} problem{'s' if count > 1 else ''} in the vllm_* variables:\n{listed}",
        name="invalid-wishes",
        remedy="Set the variables as said above; ansible-doc -t role gpufleet.vllm.vllm gpufleet.vllm.verify lists them"
        " all.",
        details={"problems": problems},
    )


def value_of(variables: Mapping[str, Any], name: str, reader: tuple[str, Reader], problems: list[str]) -> Any:
    """Return a variable's value as its reader reads it, or ABSENT, with a problem more when the reader refuses it.

    Args:
        variables: names to values; None counts as left out.
        name: what the value is to become; one that begins with C(has_) stands for a secret, which is never shown.
        reader: the variable, and how its value is read.
        problems: where a problem is added.
    """
    variable, read_value = reader
    if variable not in variables or variables[variable] is None:
        return ABSENT
    value = variables[variable]
    try:
        return _read(read_value, value)
    except ValueError as error:
        shown = "(hidden)" if name.startswith("has_") else _shown(name, value)
        problems.append(f"{variable}: {shown} is not valid: {error}")
        return ABSENT


def _read(read_value: Reader, value: Any) -> Any:
    """Return what a reader makes of a value, or else of the dictionary or list that it is as JSON: C(-e name=[...])."""
    try:
        return read_value(value)
    except ValueError:
        parsed = _parsed(value)
        if parsed is value:
            raise
        return read_value(parsed)


def _shown(name: str, value: Any) -> str:
    """Return a value as messages show it: of a dictionary the keys alone, because the values may be secrets."""
    value = _parsed(value)
    if name == "registries" or (name in ("environment", "extra_config") and not isinstance(value, Mapping)):
        return "(hidden)"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: …" for key in value) + "}"
    return repr(plain(value))


def plain(value: Any) -> Any:
    """Return a value without the tags that Ansible puts on it, for showing."""
    if isinstance(value, str):
        return str(value)
    return value


def text_of(value: Any) -> str:
    if isinstance(value, (dict, list, bool)):
        raise ValueError("it must be a string")
    return str(value).strip()


def version_of(value: Any) -> str:
    """Read a version or a tag, which YAML takes for a number where it has one dot and no letter."""
    if isinstance(value, float):
        raise ValueError('it is a number in YAML, where 0.30 is 0.3; write it in quotes, such as "0.30"')
    return text_of(value)


def mapping_of(value: Any, content: str) -> Mapping[Any, Any]:
    """Return a dictionary, also one that is given as JSON, as C(-e name={...}) does; C(content) names what it has."""
    value = _parsed(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"it must be a dictionary of {content}")
    return value


def _parsed(value: Any) -> Any:
    """Return the dictionary or list that a text of JSON stands for, and any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def flag(value: Any) -> bool:
    """Read true or false."""
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() in ("true", "yes", "on", "1"):
        return True
    if str(value).strip().lower() in ("false", "no", "off", "0", ""):
        return False
    raise ValueError("it must be true or false")


def given(value: Any) -> bool:
    return bool(text_of(value))


def auto(read_value: Reader) -> Reader:
    return lambda value: None if str(value).strip().lower() in ("auto", "") else read_value(value)


def one_of(*choices: str) -> Reader:
    def read_value(value: Any) -> str:
        text = text_of(value)
        if text not in choices:
            near = difflib.get_close_matches(text, choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"it must be one of {', '.join(choices)}{hint}")
        return text

    return read_value


def integer(least: int, most: int | None = None) -> Reader:
    """Return a reader of whole numbers."""
    wanted = f"it must be a whole number, at least {least}" + (f" and at most {most}" if most is not None else "")

    def read_value(value: Any) -> int:
        if isinstance(value, (bool, dict, list)) or not re.fullmatch(r"[+-]?\d+", str(value).strip()):
            raise ValueError(wanted)
        number = int(str(value))
        if number < least or (most is not None and number > most):
            raise ValueError(wanted)
        return number

    return read_value
