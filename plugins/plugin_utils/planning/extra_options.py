# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users give vLLM themselves: vllm_extra_config, vllm_environment and vllm_secret_environment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.option_names import OPTIONS_WITH_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import mapping_of, text_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import (
    SHORTEST_SECRET,
    hideable,
    is_secret,
    secrets_within,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.serve_options import (
    ALIASES,
    ALLOW,
    BY_OPTION,
    BY_VARIABLE,
    JSON_LISTS,
    REFUSE,
    WARN,
    WITHOUT_NEGATIVE,
)

VARIABLES_WITH_SECRETS = {
    "VLLM_API_KEY": "vllm_api_key",
    "HF_TOKEN": "vllm_hf_token",
    "HUGGING_FACE_HUB_TOKEN": "vllm_hf_token",
}
DECIDED = frozenset(name for name in (*BY_OPTION, *OPTIONS_WITH_VARIABLE) if "." not in name)
# How vLLM writes a switch that is off, and how the same switch is written that is on.
NEGATIVES = (("no-", ""), ("disable-", "enable-"), ("enable-", "disable-"))


def read_environment(value: Any) -> dict[str, str]:
    """Read the servers' environment variables."""
    result = {}
    for key, content in mapping_of(value, "names and values").items():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(key)):
            raise ValueError(f"{key} is not a name of an environment variable")
        if key in VARIABLES_WITH_SECRETS:
            raise ValueError(f"{key} is a secret: set {VARIABLES_WITH_SECRETS[key]} instead")
        if isinstance(content, (Mapping, list)) or content is None:
            raise ValueError(f"{key} must be a string or a number")
        if is_secret(str(key), str(content)):
            raise ValueError(f"{key} looks like a secret, and plans are shown: set vllm_secret_environment instead")
        result[str(key)] = str(int(content)) if isinstance(content, bool) else str(content)
    problems = [text for name, content in result.items() for text in _variable(REFUSE, name, content)]
    if problems:
        raise ValueError(". ".join(problems))
    return result


def read_secret_environment(value: Any) -> bool:
    """Return whether there are secret environment variables."""
    if not isinstance(value, Mapping):
        raise ValueError("it must be a dictionary of names and values")
    for key, content in value.items():
        # The roles lay these two over it, empty ones too.
        if key in VARIABLES_WITH_SECRETS:
            raise ValueError(f"{key} has its own variable: set {VARIABLES_WITH_SECRETS[key]} instead")
        text = "" if content is None else str(content)
        if text and not hideable(text):
            raise ValueError(
                f"the value of {key} would be hidden wherever it occurs in what the plays show, as in numbers, because"
                f" it is shorter than {SHORTEST_SECRET} characters or a word such as true; a secret must be longer, and"
                " what is none belongs into vllm_environment"
            )
        if text and any(_variable(REFUSE, str(key), text)):
            raise ValueError(f"{key} is no secret; vllm_environment says what it would do")
    return bool(value)


def read_extra_config(value: Any) -> dict[str, Any]:
    """Read options of `vllm serve` in the form that its --config file passes on unharmed."""
    options = _folded({_whole(str(key)): content for key, content in mapping_of(value, "options and values").items()})
    problems = list(filter(None, (_problem(option, content, options) for option, content in options.items())))
    # What else is wrong with an option is told with its value.
    problems = list(_secrets(options)) or problems
    if problems:
        raise ValueError(". ".join(problems))
    result: dict[str, Any] = {}
    for option, content in options.items():
        result.update(_written(option, content))
    return result


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is said of each secret among the options; one with a variable of its own is refused with that."""
    held = {option: content for option, content in options.items() if option not in OPTIONS_WITH_VARIABLE}
    for found in secrets_within(held):
        home = f"set {found.home} instead"
        if found.home == "vllm_secret_environment":
            home += (
                ", as the environment variable that this part of vLLM reads, or mount a file that has it (vllm_volumes)"
            )
        why = f"looks like a secret {found.why}, and plans and configuration files are shown and kept"
        yield f"{found.path} {why}: {home}"


def warnings(config: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield what is worth a warning of options and environment variables that were not refused."""
    for option, value in config.items():
        name, on = _meant(option)
        yield from (f"vllm_extra_config: {text}." for text in _option(WARN, name, value if on else False, config))
    for name, value in environment.items():
        yield from (f"vllm_environment: {text}." for text in _variable(WARN, name, value))


def _whole(key: str) -> str:
    """Return the name of an option as vLLM's file has it: a short name's whole one, the fields as they are."""
    option, dot, field = key.lstrip("-").partition(".")
    option = option.replace("_", "-").lower()
    return ALIASES.get(option, option) + dot + field


def _folded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with their fields, written C(option.field), within them, as vLLM itself takes these."""
    folded: dict[str, Any] = {}
    for name, content in options.items():
        option, *path = name.split(".")
        if not path or path[-1].endswith("+"):
            folded[name] = content
            continue
        here = {} if option in options else folded.setdefault(option, {})
        for part in path[:-1]:
            here = here.setdefault(part, {}) if isinstance(here, dict) else None
        if option in options or not isinstance(here, dict):
            raise ValueError(
                f"{name} sets a part of what is set as a whole beside it; write all its fields in one place"
            )
        here[path[-1]] = _parsed(content)
    return folded


def _parsed(content: Any) -> Any:
    """Return a field's value as vLLM reads it: text that is JSON is what it stands for."""
    try:
        return json.loads(content) if isinstance(content, str) else content
    except ValueError:
        return content


def _problem(option: str, value: Any, others: Mapping[str, Any]) -> str:
    """Return why an option must not be set, with what would be right; an empty text when it may be."""
    name, on = _meant(option)
    if name in OPTIONS_WITH_VARIABLE:
        return f"{option} has its own variable, {OPTIONS_WITH_VARIABLE[name]}"
    if name in BY_OPTION:
        return next(_option(REFUSE, name, value if on else False, others), "")
    # vLLM's parser takes the beginning of a name for the whole.
    meant = sorted(known for known in DECIDED if known.startswith(name.removeprefix("no-")))
    if all(known in BY_OPTION and BY_OPTION[known].kind == ALLOW for known in meant):
        return ""
    return f"{option} is the beginning of {', '.join(meant)}; write the whole name of the one that you mean"


def _meant(option: str) -> tuple[str, bool]:
    """Return the name of the option that is meant, and whether this form of it turns a switch on."""
    if option not in DECIDED:
        for negative, positive in NEGATIVES:
            name = _whole(positive + option.removeprefix(negative))
            if option.startswith(negative) and name in DECIDED:
                return name, False
    return option, True


def _option(kind: str, name: str, value: Any, others: Mapping[str, Any]) -> Iterator[str]:
    """Yield what decisions of a kind say of an option and of its fields."""
    parsed = _parsed(value)
    fields = parsed.items() if isinstance(parsed, Mapping) else ()
    for part, content in ((name, value), *((f"{name}.{key}", content) for key, content in fields)):
        decision = BY_OPTION.get(part)
        if decision and decision.kind == kind and decision.holds(content, others):
            yield decision.text(part, content)


def _variable(kind: str, name: str, value: str) -> Iterator[str]:
    """Yield what a decision of a kind says of an environment variable."""
    decision = BY_VARIABLE.get(name)
    if decision and decision.kind == kind and decision.holds(value, {}):
        yield decision.text(name, value)


def _written(option: str, content: Any) -> dict[str, Any]:
    """Return an option as vLLM's file takes it; nothing for a switch that is off and has no form that says so."""
    if content is None:
        raise ValueError(f"{option} has no value; leave it out or give one")
    if isinstance(content, Mapping):
        return {option: json.dumps(content, separators=(",", ":"))}
    if isinstance(content, (list, tuple)):
        return _written_list(option, content)
    if not isinstance(content, bool):
        if isinstance(content, (int, float)):
            return {option: float(content) if isinstance(content, float) else int(content)}
        content = text_of(content)
        if content.lower() not in ("true", "false"):
            return {option: content}
        content = content.lower() == "true"
    # vLLM drops `key: false` without a word; its parser has --no-<key> for that.
    if content:
        return {option: True}
    if option in WITHOUT_NEGATIVE:
        return {}
    return {option[3:] if option.startswith("no-") else f"no-{option}": True}


def _written_list(option: str, content: Sequence[Any]) -> dict[str, Any]:
    """Return an option with several values as vLLM's file takes it."""
    if not content:
        raise ValueError(f"{option} is an empty list, which vLLM drops without a word; leave it out")
    if option in JSON_LISTS:
        return {option: json.dumps(content, separators=(",", ":"))}
    return {option: [_entry(option, entry) for entry in content]}


def _entry(option: str, entry: Any) -> str | int | float:
    """Return an entry of a list as vLLM's command line takes it: a mapping, such as an adapter, as JSON."""
    if isinstance(entry, Mapping):
        return json.dumps(entry, separators=(",", ":"))
    if entry is None or isinstance(entry, (bool, list, tuple)):
        raise ValueError(f"an entry of {option} is {json.dumps(entry)}; write texts, numbers or dictionaries")
    if isinstance(entry, (int, float)):
        return float(entry) if isinstance(entry, float) else int(entry)
    return text_of(entry)
