# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of the YAML files that C(vllm serve --config) reads, and of the applied plan beside them.

vLLM turns each entry of the file into an argument, and is silent or abrupt about some: C(false) is dropped without a
word, null ends the start, a nested mapping is understood only by 0.16 and later, an empty file raises, and a file
that is not named C(.yaml) or C(.yml) is refused. What would meet one of these never reaches a file here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import ReplicaConfig
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import secrets_within

# The first line of every file we write: by it, prune knows which files are ours.
MARK = "# Managed by the Ansible collection gpufleet.vllm: what is changed here by hand is lost at its next run."
HEADER = (
    MARK
    + """
# Configuration of {subject}, made from the vllm_* variables of this host in the inventory.
# To write it again: ansible-playbook gpufleet.vllm.deploy --limit <this host>
# To use it by hand: vllm serve {model} --config <this file>
"""
)

DEFAULT_TEMPLATE = """\
{% for key, value in config.items() %}
{{ key | yaml_scalar }}: {{ value | yaml_scalar }}
{% else %}
{}
{% endfor %}
"""

KEY = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?:\.[A-Za-z0-9_+-]+)*")
REPLICA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
SUFFIXES = (".yaml", ".yml")

# Keys with a variable of their own, since a file is the wrong place for them.
SECRETS = {"api-key": "vllm_api_key", "hf-token": "vllm_hf_token"}
ARGUMENTS = {"model": "vllm_model", "config": "vllm_extra_config"}


@dataclass(frozen=True)
class WantedFile:
    """A file that must be on the host."""

    path: str
    text: str


def config_error(key: str, value: Any, problem: str, remedy: str) -> GpufleetError:
    """Return the error for an entry that vLLM would drop or refuse."""
    return GpufleetError(
        f"vllm_extra_config: {key}: {json.dumps(value, default=str)} {problem}",
        name="config-invalid",
        remedy=remedy,
        details={"key": key},
    )


def check_entry(key: Any, value: Any) -> Any:
    """Return the value to write for an entry of a configuration.

    A mapping becomes the JSON text that every version understands; everything else stays as it is.

    Raises:
        GpufleetError: C(config-invalid) or C(config-secret) with the right form in its remedy.
    """
    if not isinstance(key, str) or not KEY.fullmatch(key):
        name = str(key).lstrip("-")
        right = re.sub(r"^[^.]*", lambda first: first[0].replace("_", "-").lower(), name)
        raise config_error(str(key), value, "is not named as vLLM's options are.", f"Write the key as {right}.")
    if key in SECRETS:
        raise GpufleetError(
            f"vllm_extra_config: {key} is a secret, and the configuration file is readable and kept.",
            name="config-secret",
            remedy=f"Set {SECRETS[key]}, which reaches the server through its environment only.",
            details={"key": key},
        )
    for found in secrets_within(value, key, key):
        raise GpufleetError(
            f"vllm_extra_config: {found.path} looks like a secret {found.why}, and the configuration file is readable"
            " and kept.",
            name="config-secret",
            remedy=f"Set {found.home}, which reaches the server through its environment only.",
            details={"key": found.path},
        )
    if key in ARGUMENTS:
        raise config_error(key, value, "has no place in the file.", f"Set {ARGUMENTS[key]} instead.")
    if value is None:
        raise config_error(key, value, "has no value, and vLLM would not start.", "Leave the key out, or give a value.")
    if value is False:
        right = f"{key[3:]}: true" if key.startswith("no-") else f"no-{key}: true"
        raise config_error(
            key, value, "is dropped by vLLM without a word.", f"Write {right}, or leave the key out for vLLM's default."
        )
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        raise config_error(
            key,
            value,
            "is a text, which vLLM refuses for a switch.",
            f"Write {key}: true without quotes, or no-{key}: true.",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise config_error(key, str(value), "is no number that YAML and vLLM agree on.", "Give a finite number.")
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    if isinstance(value, list):
        return _check_list(key, value)
    return value


def _check_list(key: str, value: list[Any]) -> list[Any]:
    if not value:
        raise config_error(key, value, "is dropped by vLLM without a word.", "Leave the key out.")
    if not all(isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in value):
        raise config_error(key, value, "holds more than texts and numbers.", "Write the value as JSON text.")
    return value


def check_config(config: dict[Any, Any]) -> dict[str, Any]:
    """Return the configuration as it will be read back from its file.

    Raises:
        GpufleetError: as check_entry, and C(config-invalid) for a switch that is both on and off.
    """
    checked = {key: check_entry(key, value) for key, value in config.items()}
    for key in checked:
        if f"no-{key}" in checked:
            raise config_error(key, checked[key], f"and no-{key} contradict each other.", "Leave one of them out.")
    return checked


def yaml_scalar(value: Any) -> str:
    """Return a value as one line of YAML; text that would be read as something else is quoted."""
    if isinstance(value, list):
        return "[" + ", ".join(_dump(item, '"') if isinstance(item, str) else _dump(item) for item in value) + "]"
    text = _dump(value)
    # Text of several lines is folded unless it is in double quotes.
    return text if len(text.splitlines()) < 2 else _dump(value, '"')


def _dump(value: Any, style: str | None = None) -> str:
    import yaml

    text: str = yaml.safe_dump(value, default_style=style, width=math.inf, allow_unicode=True)
    # The dumper ends a document that is one plain scalar with a line of three dots.
    return re.sub(r"\n(?:\.\.\.\n)?\Z", "", text)


def render_config(
    config: dict[str, Any],
    *,
    replica: str = "",
    model: str = "",
    template: str = "",
    template_name: str = "vllm_config",
) -> str:
    """Return the text of a configuration file.

    Args:
        config: the entries, as given; they are checked here.
        replica: the replica's name, for the header and the template.
        model: what C(vllm serve) gets as its first argument, for the header and the template.
        template: Jinja2 template of the body, with the variables C(config), C(replica) and C(model) and the filter
            C(yaml_scalar); empty for the default one.
        template_name: how messages call the template.

    Raises:
        GpufleetError: C(config-invalid) and C(config-secret) for the entries, C(template-invalid) when the template
            does not render or its text does not read back as the entries.
    """
    checked = check_config(config)
    body = _render(template or DEFAULT_TEMPLATE, template_name, config=checked, replica=replica, model=model)
    subject = f"the replica {replica}" if replica else "a vLLM server"
    text = HEADER.format(subject=subject, model=model or "<model>") + body.rstrip("\n") + "\n"
    _compare(text, checked, template_name)
    return text


def _render(template: str, name: str, **variables: Any) -> str:
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    environment.filters["yaml_scalar"] = yaml_scalar
    try:
        return environment.from_string(template).render(**variables)
    except jinja2.TemplateSyntaxError as error:
        raise template_error(name, f"line {error.lineno}: {error.message}") from error
    except Exception as error:  # a template can raise anything, such as ZeroDivisionError
        raise template_error(name, f"{type(error).__name__}: {error}") from error


def _compare(text: str, wanted: dict[str, Any], template_name: str) -> None:
    """Raise C(template-invalid) unless C(text) reads back as C(wanted)."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise template_error(template_name, str(error)) from error
    if not isinstance(found, dict):
        raise template_error(template_name, f"it gives {type(found).__name__}, not a mapping of options to values")
    differences = [f"{key} is missing" for key in wanted if key not in found]
    differences += [f"{key} is not part of the plan" for key in found if key not in wanted]
    differences += [
        f"{key} reads as {found[key]!r} instead of {value!r}"
        for key, value in wanted.items()
        if key in found and (found[key] != value or type(found[key]) is not type(value))
    ]
    if differences:
        raise template_error(template_name, "; ".join(differences))


def template_error(name: str, evidence: str) -> GpufleetError:
    """Return the error for a template that does not give the planned configuration."""
    return GpufleetError(
        f"The template {name} does not give the planned configuration.",
        name="template-invalid",
        remedy="Write each entry as {{ key }}: {{ value | yaml_scalar }} in a loop over config.items(); options are"
        " added with vllm_extra_config, not in the template.",
        evidence=evidence,
        details={"template": name},
    )


def is_inline_template(template: str) -> bool:
    """Say whether a text is a template itself rather than the path of one."""
    return "\n" in template or "{{" in template or "{%" in template


def config_path(directory: str, replica: str) -> str:
    """Return where the configuration of a replica is kept."""
    return f"{directory.rstrip('/')}/{replica}.yaml"


def check_path(path: str) -> None:
    """Raise C(path-invalid) unless vLLM would read a configuration at C(path)."""
    if not path.endswith(SUFFIXES):
        raise GpufleetError(
            f"path: vLLM reads a configuration only from a file named .yaml or .yml, not from {path}.",
            name="path-invalid",
            remedy=f"Call it {path}.yaml.",
        )


def check_replicas(replicas: Iterable[ReplicaConfig]) -> None:
    """Raise C(replica-invalid) unless every replica has a name of its own that can be a file's name."""
    names: set[str] = set()
    for replica in replicas:
        name = replica.get("name")
        if not isinstance(name, str) or not REPLICA_NAME.fullmatch(name) or name in names:
            raise GpufleetError(
                f"replicas: {name!r} cannot be the name of a replica here, or is there twice.",
                name="replica-invalid",
                remedy="Use letters, digits, dots, dashes and underscores (vllm_container_prefix), each name once.",
            )
        names.add(name)


def render_plan(plan: Mapping[str, Any]) -> str:
    """Return the text of the plan's file.

    Raises:
        GpufleetError: C(config-secret) when the plan holds a key, a token or a password.
    """
    for found in secrets_within(plan):
        raise GpufleetError(
            f"plan: {found.path} looks like a secret {found.why}, and the plan is kept in a file and shown.",
            name="config-secret",
            remedy=f"Set {found.home} instead, and keep it out of vllm_environment and vllm_extra_config.",
            details={"key": found.path},
        )
    return json.dumps(plan, indent=2, ensure_ascii=False) + "\n"
