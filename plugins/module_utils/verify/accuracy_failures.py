# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why lm_eval failed: told from its log and, where that hides it, from the server's own answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import RECIPE_PROMPT, Server
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.target import Target

# What lm_eval's log says of requests that failed, the most telling first. It sends them by aiohttp. A timeout of
# asyncio has no words; one of a socket has, and is the hub's.
REQUEST_ERRORS = (
    re.compile(r"API request failed with error message: .*"),
    re.compile(
        r".*(?:aiohttp\.\S*Error|ClientConnectorError|ClientResponseError|ServerDisconnectedError|ClientOSError|"
        r"ServerTimeoutError|asyncio\.\S*TimeoutError|raised TimeoutError).*|^TimeoutError:?$"
    ),
    # 0.4.9.1 hides a connection error behind this one.
    re.compile(r"UnboundLocalError: .*'outputs'.*"),
)
TASK_ERRORS = re.compile(
    r".*(?:Tasks? .*(?:not found|were not found)|No tasks (?:specified|found)|not a registered task).*", re.IGNORECASE
)
DATASET_ERRORS = re.compile(
    r".*(?:Couldn't reach|DatasetNotFoundError|FileNotFoundError|LocalEntryNotFoundError|OfflineModeIsEnabled|"
    r"Couldn't find (?:any data|a dataset)|couldn't connect to).*"
)
# How urllib3 and aiohttp name whom they could not reach.
ASKED = re.compile(r"(?:HTTPS?ConnectionPool\(host='|Cannot connect to host )\[?([0-9a-f:]+(?=\])|[A-Za-z0-9_.-]+)")
# The exception that ended lm_eval; its message may have several lines.
FINAL_LINES = 5


@dataclasses.dataclass(frozen=True)
class Kind:
    """A failure that a line of lm_eval's log proves.

    Attributes:
        name: stable identifier, where one is known by the names of diagnosis.
        pattern: is searched in the line; a line that names the server itself is none of these.
        message: for a person; {0}, {1} ... stand for the groups of the pattern.
        remedy: what to do, naming the variable.
    """

    name: str
    pattern: re.Pattern[str]
    message: str
    remedy: str


# The texts of lm_eval 0.4, and of the libraries datasets, evaluate and huggingface_hub below it.
KINDS = (
    Kind(
        "hub-rate-limit",
        re.compile(r"\b429 Client Error|Too Many Requests for url|We had to rate limit your"),
        "The hub limits the rate of requests from here, and gave no data set.",
        "Set vllm_hf_token, or verify fewer hosts at a time (--forks); what has come is kept in vllm_hf_home.",
    ),
    Kind(
        "dataset-gated",
        re.compile(r"is a gated dataset|GatedRepoError|Access to dataset \S+ is restricted|Cannot access gated repo"),
        "The hub gives a task's data set only to accounts that accepted its terms.",
        "Accept the terms at the data set's page and set vllm_hf_token to a token of that account, or judge by other"
        " tasks (vllm_accuracy_tasks).",
    ),
    Kind(
        "hub-refused",
        re.compile(r"\b(40[13]) Client Error"),
        "The hub refused to give a task's data set ({0}).",
        "Set vllm_hf_token to a valid token of an account that may read it.",
    ),
    Kind(
        "dataset-script",
        re.compile(
            r"Dataset scripts are no longer supported(?:, but found (\S+))?|trust_remote_code. is not supported"
        ),
        "A task's data set is made by a script of its own ({0}), which the installed datasets 4 runs no more.",
        "Add 'datasets<4' to vllm_accuracy_requirements, or judge by other tasks (vllm_accuracy_tasks).",
    ),
    Kind(
        "dataset-script",
        re.compile(
            r"contains custom code which must be executed|to allow custom code to be run|trust_remote_code=True"
        ),
        "A task's data set brings code of its own, which runs only when it is told to.",
        "If you trust it, add --trust_remote_code to vllm_accuracy_extra_args.",
    ),
    Kind(
        "tokenizer-missing",
        re.compile(r"Tokenizer is required for|Tokenizer shoukd be initialized|tokenizer must be a string"),
        "A task measures likelihoods, for which lm_eval needs the model's tokenizer.",
        "Set vllm_accuracy_model_args: {{tokenizer: <folder or name of the model>, tokenizer_backend: huggingface}}.",
    ),
    Kind(
        "task-runs-code",
        re.compile(r"marked as unsafe|HF_ALLOW_CODE_EVAL|executes untrusted model-generated code"),
        "A task runs the code that the model writes, which lm_eval does only when it is told to.",
        "If you accept that, add --confirm_run_unsafe_code to vllm_accuracy_extra_args and HF_ALLOW_CODE_EVAL: '1' to"
        " vllm_environment.",
    ),
    Kind(
        "task-needs-likelihoods",
        re.compile(r"[Ll]oglikelihood.* not supported|Prompt loglikelihoods are only supported"),
        "A task measures likelihoods, which this interface of the server does not give.",
        "Judge by tasks that generate text (vllm_accuracy_tasks), such as gsm8k.",
    ),
    Kind(
        "python-package-missing",
        re.compile(r"No module named '?([\w.]+)|required packages? (\S+) (?:is|are) not installed"),
        "A task needs the Python package {0}{1}, which is not installed.",
        "Add it to vllm_accuracy_requirements (lm_eval names it in brackets, such as lm-eval[ifeval]).",
    ),
)
# What is no matter of lm_eval's, by the names of diagnosis.
BY_THE_HOST = (
    *("disk-full", "permission-denied", "storage-failed", "folder-not-writable", "too-many-open-files"),
    *("threads-refused", "certificate-not-trusted", "name-not-resolved"),
)


def failure(target: Target, ended: jobs.Ended) -> GpufleetError:
    """Return what made lm_eval fail, told from its log and, where that hides it, from the server's own answer."""
    details = {"log": ended.lines[-25:]}
    final = _known(target, ended.lines, details, final=True)
    if final:
        return final
    unreachable = _dataset_error(target, ended.lines[-FINAL_LINES:])
    if unreachable:
        return _known(target, ended.lines, details) or _unreachable(unreachable, details)
    for pattern in REQUEST_ERRORS:
        found = next((match.group(0) for match in map(pattern.search, ended.lines) if match), "")
        if found:
            return _request_error(target, found, details)
    last = ended.lines[-1] if ended.lines else ""
    unknown = next((line for line in ended.lines if TASK_ERRORS.search(line)), "")
    if unknown:
        return GpufleetError(
            "lm_eval does not know a task in vllm_accuracy_tasks.",
            name="task-unknown",
            remedy="Name tasks as `lm_eval --tasks list` does, or put your own into vllm_accuracy_tasks_dir.",
            evidence=unknown.strip(),
            details=details,
        )
    known = _known(target, ended.lines, details)
    if known:
        return known
    unreachable = _dataset_error(target, ended.lines)
    if unreachable:
        return _unreachable(unreachable, details)
    return GpufleetError(
        f"lm_eval failed with exit status {ended.exit_code}.",
        name="lm-eval-failed",
        remedy="See the end of its log (with -v).",
        evidence=last,
        details=details,
    )


def _known(
    target: Target, lines: Sequence[str], details: dict[str, Any], *, final: bool = False
) -> GpufleetError | None:
    """Return the failure that a line proves; of the last lines alone, or of all, the disk's and the host's included."""
    own = urlsplit(target.url).netloc
    asked = lines[-FINAL_LINES:] if final else lines
    for kind in KINDS:
        found = next((match for match in map(kind.pattern.search, asked) if match and own not in match.string), None)
        if found:
            groups = [group or "" for group in found.groups()]
            return GpufleetError(
                kind.message.format(*groups),
                name=kind.name,
                remedy=kind.remedy.format(*groups),
                evidence=found.string.strip(),
                details=details,
            )
    if final:
        return None
    told = diagnose(lines, what="lm_eval failed")
    if told.name in BY_THE_HOST:
        told.details.update(details)
        return told
    return None


def _dataset_error(target: Target, lines: Sequence[str]) -> str:
    """Return the last line that tells of a data set that could not be had; an empty text where there is none."""
    for line in reversed(lines):
        asked = ASKED.search(line)
        if DATASET_ERRORS.search(line) or (asked and asked.group(1) != urlsplit(target.url).hostname):
            return line
    return ""


def _unreachable(evidence: str, details: dict[str, Any]) -> GpufleetError:
    return GpufleetError(
        "lm_eval cannot get the data set of a task.",
        name="dataset-unreachable",
        remedy="Data sets come from the Hugging Face hub: check this host's way to it (proxy, vllm_ca_bundle,"
        " vllm_hf_token), copy the hub's cache into vllm_hf_home, or judge by tasks of your own"
        " (vllm_accuracy_tasks_dir).",
        evidence=evidence.strip(),
        details=details,
    )


def _request_error(target: Target, evidence: str, details: dict[str, Any]) -> GpufleetError:
    try:
        server = Server(target.url, api_key=target.api_key, timeout=30, verify=target.verify)
        server.complete(target.model, RECIPE_PROMPT, 4, 0)
    except GpufleetError as cause:
        return GpufleetError(
            f"Requests of lm_eval failed: {cause.message}",
            name="requests-failed",
            remedy=cause.remedy,
            evidence=evidence,
            details=details,
        )
    return GpufleetError(
        "Requests of lm_eval failed, though the server answers now.",
        name="requests-failed",
        remedy="Lower vllm_accuracy_num_concurrent or raise vllm_accuracy_timeout if the server was slow; otherwise see"
        " its log.",
        evidence=evidence,
        details=details,
    )
