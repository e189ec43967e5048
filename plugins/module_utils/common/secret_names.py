# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a secret among environment variables, wherever they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
SECRET_VALUE = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
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
