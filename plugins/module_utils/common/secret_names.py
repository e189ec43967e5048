# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a secret, among environment variables and within configurations, wherever they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

# vLLM's own key.
KEY_VARIABLE = "VLLM_API_KEY"
# Words of names, which _, - or . divide; a word such as TOKEN also at the end of a longer one (GITHUBTOKEN).
SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|CONNECTION_?STRING"
    r"|(?:API|ACCESS|ACCOUNT|STORAGE|PRIVATE|ENCRYPTION|SIGNING|SHARED|MASTER)[_-]?KEYS?(?![A-Z0-9])"
    r"|TOKEN$|(?<![A-Z0-9])(?:KEY|PASS)$|(?<=[_.-])PWD$",
    re.IGNORECASE,
)
# In names of vLLM's own it mostly is what a model reads and writes: VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD.
TOKEN_WITHIN = re.compile(r"TOKEN(?![A-Z0-9])", re.IGNORECASE)
SWITCHES = ("true", "false", "yes", "no", "on", "off", "none", "null")
NUMBER = re.compile(r"[+-]?[\d.]*")
# Those that tell where a secret is, or whether to use one.
HARMLESS = re.compile(
    r"HF_HUB_DISABLE_IMPLICIT_TOKEN|GOOGLE_APPLICATION_CREDENTIALS|.*_(?:FILE|PATH|DIR)", re.IGNORECASE
)
# A password in an address, tokens by the beginnings that their issuers give them, private keys.
SECRET_VALUE = re.compile(
    r"://[^/@\s:]*:[^/@\s]+@"
    r"|(?<![\w-])(?:hf_[A-Za-z0-9]{16,}|nvapi-[\w-]{16,}|sk-[\w-]{16,}|gh[opsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# It stands for a variable of the environment.
REFERENCE = re.compile(r"\$\{?\w+\}?")
HUB_TOKEN = re.compile(r"(?<![\w-])hf_[A-Za-z0-9]{16,}")
# Names within configurations. A tokenizer's tokens (eos_token) and the keys of a cache are none.
NAMED_WITHIN = re.compile(
    r"(?:^|.*[_.-])(?:PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|SECRET|CONNECTION_?STRING)S?"
    r"|(?:.*[_.-])?(?:API|ACCESS|ACCOUNT|AUTH|STORAGE|PRIVATE|ENCRYPTION|SIGNING|SHARED|MASTER|SECRET)[_-]?KEY"
    r"|(?:.*[_.-])?(?:ACCESS|API|AUTH|BEARER|HF|HUB|REFRESH|SECRET|SECURITY|SESSION)[_-]?TOKEN|TOKEN"
    r"|AUTHORIZATION",
    re.IGNORECASE,
)
# Ansible hides a secret's value wherever it occurs in a result: of 1, in every number with that digit.
SHORTEST_SECRET = 4


def is_secret(name: str, value: str) -> bool:
    """Return whether an environment variable looks like a secret, by its name or a password in an address."""
    if SECRET_VALUE.search(value):
        return True
    if HARMLESS.fullmatch(name):
        return False
    if SECRET_NAME.search(name):
        return True
    return bool(TOKEN_WITHIN.search(name)) and not (NUMBER.fullmatch(value) or value.lower() in SWITCHES)


def hideable(value: str) -> bool:
    """Return whether a value can be hidden in a result and leave the rest of it readable."""
    return len(value) >= SHORTEST_SECRET and value.lower() not in SWITCHES


def split_secrets(environment: Mapping[str, str], secrets: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment without what looks like a secret, and the secrets with it; empty ones are left out.

    Raises:
        GpufleetError: C(secret-invalid) for one of several lines, which no environment file can hold.
    """
    for name, value in secrets.items():
        if "\n" in value:
            raise GpufleetError(
                f"The secret {name} has more than one line.",
                name="secret-invalid",
                remedy="Remove the line breaks; a file read with lookup('file', ...) may end with one more.",
            )
    public = {name: value for name, value in environment.items() if not is_secret(name, value)}
    hidden = {name: value for name, value in environment.items() if is_secret(name, value)}
    return public, {name: value for name, value in {**hidden, **secrets}.items() if value}


@dataclass(frozen=True)
class FoundSecret:
    """A secret within a document: its C(path), C(why) it looks like one, and the variable that is its C(home)."""

    path: str
    why: str
    home: str


def secrets_within(value: Any, path: str = "", name: str = "") -> Iterator[FoundSecret]:
    """Yield what looks like a secret in a document, at any depth, texts that are JSON included.

    Args:
        value: the document.
        path: of it, such as C(kv-transfer-config.password).
        name: by which it is known there; an entry of a list has its list's.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from secrets_within(inner, f"{path}.{key}" if path else str(key), str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from secrets_within(inner, f"{path}[{index}]", name)
    elif isinstance(value, str) and value.strip():
        inside = _document(value)
        if inside is not None:
            yield from secrets_within(inside, path, name)
        elif SECRET_VALUE.search(value):
            yield FoundSecret(path, "by its value", home_of(name, value))
        elif named_within(name) and not _stands_for_none(value):
            yield FoundSecret(path, "by its name", home_of(name, value))


def named_within(name: str) -> bool:
    """Return whether an entry of a configuration is called as secrets are: C(api_key), C(apiKey), C(aws-secret)."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(NAMED_WITHIN.fullmatch(apart))


def _stands_for_none(value: str) -> bool:
    return value.lower() in SWITCHES or bool(NUMBER.fullmatch(value) or REFERENCE.fullmatch(value))


def home_of(name: str, value: str = "") -> str:
    """Return the variable into which a secret belongs that was found elsewhere."""
    plain = name.lower().replace("-", "_").removeprefix("vllm_")
    if HUB_TOKEN.search(value) or plain in ("hf_token", "hugging_face_hub_token"):
        return "vllm_hf_token"
    # Within a configuration it is another service's.
    return "vllm_api_key" if name.lower() in ("api-key", "vllm_api_key") else "vllm_secret_environment"


def _document(text: str) -> Any:
    """Return the JSON document that a text is; None where it is none, or a single value."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def without_secrets(text: str, secrets: Mapping[str, str]) -> str:
    """Return a text without the values of secrets and without passwords in addresses."""
    for value in sorted(filter(None, secrets.values()), key=len, reverse=True):
        text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", text)
