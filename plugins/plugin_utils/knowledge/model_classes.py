# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which vLLM implements which architecture of models itself, and whose configurations it reads.

architectures.json has the registries of the releases' wheels, by tools/extract_architectures.py.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.versions import Version


@functools.lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    text = Path(__file__).with_name("architectures.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


@functools.lru_cache(maxsize=1)
def _releases() -> list[Version]:
    return [_version(release) for release in _tables()["releases"]]


def _version(text: str) -> Version:
    found = versions.parse(text)
    if found is None:
        raise ValueError(f"{text!r} is no release")
    return found


def implements(architecture: str, version: Version) -> bool | None:
    """Return whether a vLLM has an implementation of its own; None where the releases that were read do not tell."""
    return _has("architectures", architecture, version)


def reads(family: str, version: Version) -> bool | None:
    """Return whether a vLLM has a configuration class of its own for a C(model_type); None where that is not known."""
    return _has("families", family, version)


def _has(table: str, name: str, version: Version) -> bool | None:
    """Return what the releases before and after a version agree on.

    One newer than all that were read may know more than these.
    """
    newest = _releases()[-1]
    if version > newest and version[:2] != newest[:2]:
        return None
    before = [release for release in _releases() if release <= version][-1:]
    after = [release for release in _releases() if release >= version][:1]
    found = {_in_spans(table, name, release) for release in before + after}
    return found.pop() if len(found) == 1 else None


def _spans(table: str, name: str) -> list[tuple[Version, Version | None]]:
    spans = _tables()[table].get(name) or []
    return [(_version(since), None if last is None else _version(last)) for since, last in spans]


def _in_spans(table: str, name: str, release: Version) -> bool:
    return any(since <= release and (last is None or release <= last) for since, last in _spans(table, name))


def where_to_find(architecture: str, version: Version) -> str:
    """Return which other releases implement an architecture, as the end of a sentence; empty where none does."""
    spans = _spans("architectures", architecture)
    later = next((since for since, _last in spans if since > version), None)
    if later:
        return f"{versions.as_text(later)} or newer"
    earlier = [last for _since, last in spans if last and last < version]
    return f"{versions.as_text(earlier[-1])} or older" if earlier else ""
