# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every variable that holds a secret has a value to look for in the tests of what plays tell and keep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.tests.fakes.markers import MARKER, SECRETS
from ansible_collections.gpufleet.vllm.tests.unit.test_structure import read_yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
NAMED = re.compile(r"(?:^|_)(?:keys?|token|password|passphrase|secret|credentials?|https?_proxy|proxy)(?:_|$)")
DESCRIBED = re.compile(r"\bvault\b|\bpasswords?\b")
# What is called or described so, and holds none.
HARMLESS = {
    "docker_repository_key": "the address of a public key",
    "docker_repository_key_fingerprints": "of a public key",
    "nvidia_container_toolkit_key": "the address of a public key",
    "nvidia_container_toolkit_key_fingerprints": "of a public key",
    "monitoring_token_path": "where a token is",
    "router_max_requests_per_key": "a number",
    "router_proxy_protocol": "whether it is spoken",
    "vllm_no_proxy": "who is reached without one",
}


def options() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the variables of all roles, each with its specification."""
    for path in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        for entry in read_yaml(path)["argument_specs"].values():
            yield from (entry.get("options") or {}).items()


def holds_secrets(name: str, option: dict[str, Any]) -> bool:
    """Return whether a variable holds secrets, by what its specification and its name say."""
    told = " ".join(option["description"])
    return bool(option.get("no_log") or NAMED.search(name) or DESCRIBED.search(told))


def test_every_variable_with_secrets_has_a_marker() -> None:
    found = {name for name, option in options() if holds_secrets(name, option)}
    assert found - set(HARMLESS) == set(SECRETS)
    assert set(HARMLESS) <= found, "a line of HARMLESS is about nothing"


def test_no_specification_has_a_default_made_of_another_secret() -> None:
    """Where one variable is of a wrong type, Ansible prints the specifications of all, their templates filled in."""
    templates = {name for name, option in options() if name in SECRETS and "{{" in str(option.get("default"))}
    assert templates == set()


def test_each_has_a_marker_of_its_own() -> None:
    values = [re.findall(rf"{MARKER}[\w-]+", json.dumps(value)) for value in SECRETS.values()]
    markers = [marker for found in values for marker in found]
    assert all(values)
    assert len(set(markers)) == len(markers)
