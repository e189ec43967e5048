# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the image's own vLLM would refuse of a configuration, told before any server is touched.

A container of the image, without network, ports and GPU, builds the parser of C(vllm serve) as the command line does
and lets it read the configurations; then it is removed. What the parser and its validation refuse is an error. A check
that cannot be run (an image whose vLLM cannot be imported, or one that takes too long) is a warning only.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.option_names import OPTIONS_WITH_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import Change
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import parse_config
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONFIG_PATH

if TYPE_CHECKING:
    from docker import DockerClient

TIMEOUT_S = 180.0
LABEL_CHECK = "io.gpufleet.config-check"
LONGEST_TEXT = 600

# Nothing is reported home or looked up, and the NVIDIA runtime, where it is Docker's default, stays out of it.
ENVIRONMENT = {
    "NVIDIA_VISIBLE_DEVICES": "void",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration to check.

    Attributes:
        spec: of the server that would get it.
        text: of the file.
    """

    spec: Spec
    text: str


class CannotCheckError(Exception):
    """The check could not be run, with the reason."""


def matters(changes: Iterable[Change]) -> bool:
    """Return whether changes of a server may change what its vLLM says of its configuration."""
    told = ("config.", "environment.", "volume ", "command", "image_id", "spec")
    return any(change.field.startswith(told) for change in changes)


def check_configs(client: DockerClient, candidates: Sequence[Candidate], prefix: str, *, dry: bool) -> list[str]:
    """Let the image's vLLM parse configurations, in as few containers as their images and environments allow.

    Args:
        client: the Docker SDK's client.
        candidates: what to check.
        prefix: of the containers' names.
        dry: create nothing on the host, not even a named volume.

    Returns:
        Warnings: why a check could not be run.

    Raises:
        GpufleetError: C(config-refused), for the first configuration that is refused; C(details.refused) has all.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        spec = candidate.spec
        key = json.dumps([spec["image_id"], spec["volumes"], spec["environment"]], sort_keys=True)
        groups.setdefault(key, []).append(candidate)
    warnings: list[str] = []
    refused: dict[str, str] = {}
    for group in groups.values():
        names = ", ".join(candidate.spec["name"] for candidate in group)
        try:
            results = _run(client, group, prefix, dry=dry)
        except (GpufleetError, CannotCheckError) as error:
            reason = (error.evidence or error.message) if isinstance(error, GpufleetError) else str(error)
            warnings.append(not_checked(names, reason))
            continue
        for name, result in results.items():
            if "refused" in result:
                refused[name] = error_text(str(result["refused"]))
            elif not result.get("ok"):
                warnings.append(not_checked(name, str(result.get("broken"))))
    if refused:
        first = next(candidate.spec for candidate in candidates if candidate.spec["name"] in refused)
        raise refusal(refused, first["image"])
    return warnings


def not_checked(names: str, reason: str) -> str:
    """Return the warning about a check that could not be run."""
    return (
        f"The configuration of {names} was not checked against the image's vLLM: {' '.join(reason.split())[-300:]}"
        " (vllm_check_config false leaves this check out.)"
    )


def _run(client: DockerClient, group: Sequence[Candidate], prefix: str, *, dry: bool) -> dict[str, dict[str, Any]]:
    """Return what vLLM says of each configuration of candidates with the same image, mounts and environment."""
    spec = group[0].spec
    checks = {
        candidate.spec["name"]: {
            "text": candidate.text,
            "command": [None if word == CONFIG_PATH else word for word in candidate.spec["command"]],
        }
        for candidate in group
    }
    try:
        said = image_python.ask(
            client,
            spec["image_id"] or spec["image"],
            inspect.getsource(parse_config),
            [json.dumps(checks)],
            name=f"{prefix}-config-check-{os.getpid()}",
            label=(LABEL_CHECK, prefix),
            doing="checks the configuration",
            timeout=TIMEOUT_S,
            options={
                "environment": {**spec["environment"], **ENVIRONMENT},
                "volumes": image_python.mounts(spec["volumes"], dry=dry),
            },
        )
    except image_python.NoAnswerError as error:
        raise CannotCheckError(f"vLLM's parser: {error}") from error
    answer = json.loads(said)
    if "broken" in answer:
        raise CannotCheckError(str(answer["broken"]))
    results: dict[str, dict[str, Any]] = answer["results"]
    return {name: results.get(name, {"broken": "no answer"}) for name in checks}


def remove_left(client: DockerClient, prefix: str) -> None:
    """Remove containers of checks that were interrupted and have ended since."""
    image_python.remove_left(client, LABEL_CHECK, prefix)


# What the parser says


def error_text(said: str) -> str:
    """Return the error in what vLLM's parser printed, without the usage before it."""
    _usage, colon, error = said.rpartition("error: ")
    return " ".join((error if colon else said).split())[:LONGEST_TEXT]


def options_of(text: str) -> tuple[str, list[str]]:
    """Return what is wrong (C(unknown), C(value) or C(other)) and the keys of the configuration that it is about."""
    unknown = re.search(r"unrecognized arguments: (.+)", text)
    if unknown:
        return "unknown", re.findall(r"(?:^|\s)--([A-Za-z][\w.-]*)", unknown.group(1))
    value = re.search(r"argument (\S+): ", text)
    if value:
        names = [name for name in value.group(1).split("/") if name.startswith("--")]
        return "value", [name.lstrip("-") for name in names[:1]]
    if re.search(r"chat template string .* doesn't exist", text):
        return "value", ["chat-template"]
    ambiguous = re.search(r"ambiguous option: --([\w.-]+)", text)
    if ambiguous:
        return "unknown", [ambiguous.group(1)]
    return "other", list(dict.fromkeys(re.findall(r"--([A-Za-z][\w.-]*)", text)))


def remedy_for(kind: str, keys: Sequence[str]) -> str:
    """Return what to do about keys that vLLM refuses."""
    own = sorted({OPTIONS_WITH_VARIABLE[key] for key in keys if key in OPTIONS_WITH_VARIABLE})
    others = [key for key in keys if key not in OPTIONS_WITH_VARIABLE]
    parts = []
    if keys == ["chat-template"]:
        return (
            "The image does not have this file: name another one in vllm_extra_config (chat-template), or set"
            " vllm_tool_calling to false where you did not ask for it."
        )
    if keys == ["attention-backend"] and kind == "other":
        return (
            "Serve with an image that has CUDA's compiler, as vLLM's own have, or leave the attention backend to vLLM:"
            " vllm_attention_backend auto, and vllm_levers_off: [attention-backend] where you did not ask for it."
        )
    if own:
        parts.append(f"Correct {', '.join(own)}.")
    if others and kind == "unknown":
        parts.append(
            f"Take {', '.join(others)} out of vllm_extra_config, or serve with an image whose vLLM has it"
            " (vllm_image_tag). If you did not set it, the plan was made for another release than the image holds: set"
            " vllm_version to the image's."
        )
    elif others:
        parts.append(f"Correct {', '.join(others)} in vllm_extra_config.")
    if not parts:
        parts.append("Correct the variables that the configuration is made of; look at vllm_extra_config first.")
    return " ".join(parts)


def refusal(refused: dict[str, str], image: str) -> GpufleetError:
    """Return the error about configurations that the image's vLLM refuses.

    Args:
        refused: what it said, by replica.
        image: its reference.
    """
    name, text = next(iter(refused.items()))
    kind, keys = options_of(text)
    same = ", ".join(other for other, said in refused.items() if said == text)
    what = {
        "unknown": f"it has no option {', '.join(keys)}",
        "value": f"the value of {', '.join(keys)} is not one it takes",
    }.get(kind if keys else "other", "it does not accept it")
    return GpufleetError(
        f"The vLLM in the image {image} refuses the configuration of {same}: {what}. No server was touched.",
        name="config-refused",
        remedy=remedy_for(kind, keys),
        evidence=text,
        details={"server": name, "options": keys, "refused": refused},
    )
