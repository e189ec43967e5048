# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a model is in the host's Hugging Face cache already."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import listed
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import hub_download
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import HubCache, hub_folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.server_files import cut_short
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import TRUE, Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import (
    GGUF,
    SAFETENSORS_FIRST,
    SIGNS,
    TOKENIZER,
    Want,
)

# The index of the weights of a pattern.
INDEXES = {
    "*.safetensors": hub_download.INDEX,
    "*.bin": "pytorch_model.bin.index.json",
    hub_download.CONSOLIDATED: "consolidated.safetensors.index.json",
}


def left_to_the_server(config: Mapping[str, Any], environment: Mapping[str, str], cache: HubCache) -> str:
    """Return why this module cannot fetch what the server will take; empty when it can."""
    if config.get("download-dir"):
        return "download-dir in vllm_extra_config keeps the weights outside vllm_hf_home"
    if str(environment.get("VLLM_USE_MODELSCOPE", "")).lower() in TRUE:
        return "VLLM_USE_MODELSCOPE in vllm_environment has the server ask another hub"
    return cache.elsewhere


def lacks(want: Want, around: Surroundings) -> str:
    """Return what the host's cache lacks of a repository, for people; empty when nothing is missing.

    Only the host's own files are read, and of the weights no more than their headers. Where the hub may not be asked,
    what somebody has brought is taken for whole unless it is seen not to be; otherwise the hub tells.
    """
    commit = commit_of(around.cache.folder, want)
    if not commit:
        return "it is not in the cache"
    snapshot = os.path.join(hub_folder(around.cache.folder, want.repository), "snapshots", commit)
    recorded = recorded_files(around.hf_home, want, commit)
    if recorded is not None:
        missing = [name for name, size in recorded.items() if not _is_there(os.path.join(snapshot, name), size)]
        return f"{_named(missing)} not there" if missing else ""
    if around.is_offline:
        return _brought_lacks(want, snapshot)
    found = folder.look_at_model(snapshot)
    whole = found["complete"] and (found["tokenizer"] or TOKENIZER not in want.needs)
    if whole and GGUF not in want.needs and (not want.weights or want.load_format in SAFETENSORS_FIRST):
        return ""
    if not want.weights or want.load_format not in SAFETENSORS_FIRST:
        return "it was not fetched for this load-format"
    if found["missing_files"] or found["cut_files"]:
        return f"{_named(found['missing_files'] + found['cut_files'])} not there or cut short"
    return "its configuration, tokenizer or weights are not there"


def _brought_lacks(want: Want, snapshot: str) -> str:
    """Return what a snapshot lacks that this module has not fetched."""
    names = list_folder(snapshot)
    there = [name for name in names if os.path.isfile(os.path.join(snapshot, name))]
    for need in want.needs:
        if not any(fnmatch.filter(there, sign) for sign in SIGNS[need]):
            return f"its {need} ({' or '.join(SIGNS[need])}) is not there{_dangling(snapshot, names)}"
    lack = _weights_lack(want, snapshot, there) if want.weights else ""
    return lack + _dangling(snapshot, names) if lack else ""


def _dangling(snapshot: str, names: Sequence[str]) -> str:
    """Return a word on links that lead nowhere, as a copy without the folder blobs has them."""
    lost = [name for name in names if not os.path.exists(os.path.join(snapshot, name))]
    return f" ({_named(lost)} in the snapshot as a link to what is not in blobs)" if lost else ""


def _weights_lack(want: Want, snapshot: str, there: Sequence[str]) -> str:
    """Return which weights a snapshot lacks; the first pattern of the format that something matches is vLLM's choice.

    Args:
        want: what is wanted.
        snapshot: the folder.
        there: the files in it.
    """
    patterns = hub_download.PATTERNS.get(want.load_format, hub_download.ONLY_SAFETENSORS)
    if want.load_format == "auto":
        patterns = (hub_download.CONSOLIDATED, *patterns)
    ignored = [name for pattern in want.ignore for name in fnmatch.filter(there, pattern)]
    for pattern in patterns:
        files = [name for name in fnmatch.filter(there, pattern) if name not in ignored]
        missing = sorted(set(_indexed(snapshot, INDEXES.get(pattern, ""))) - set(files) - set(ignored))
        # Consolidated weights of a repository that has the others too need not have been brought.
        if not files and (not missing or pattern == hub_download.CONSOLIDATED):
            continue
        if pattern == "*.safetensors":
            missing = missing or folder.look_at_model(snapshot)["missing_files"]
        cut = [name for name in files if name.endswith(".safetensors") and cut_short(os.path.join(snapshot, name))]
        return f"{_named(missing + cut)} not there or cut short" if missing or cut else ""
    return f"it has no weights for load-format {want.load_format} ({', '.join(patterns)})"


def _indexed(snapshot: str, index: str) -> list[str]:
    """Return the files that an index of weights names; empty without one."""
    try:
        return sorted({str(name) for name in json.loads(read_text(snapshot, index) or "{}")["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError):
        return []


def commit_of(hub: str, want: Want) -> str:
    """Return the commit that a revision is in the cache; empty when the cache does not know it."""
    folder = hub_folder(hub, want.repository)
    commit = read_text(folder, "refs", want.revision).strip() or want.revision
    is_name = os.path.basename(commit) == commit and not commit.startswith(".")
    return commit if is_name and os.path.isdir(os.path.join(folder, "snapshots", commit)) else ""


def _is_there(path: str, size: int | None) -> bool:
    try:
        return os.path.getsize(path) == size or size is None
    except OSError:
        return False


def _record_path(hf_home: str, want: Want) -> str:
    return os.path.join(hf_home, "gpufleet", "models--" + want.repository.replace("/", "--") + ".json")


def _records(hf_home: str, want: Want) -> dict[str, Any]:
    try:
        found = json.loads(read_text(_record_path(hf_home, want)))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def recorded_files(hf_home: str, want: Want, commit: str) -> dict[str, Any] | None:
    """Return the files (name to size) with which this commit was complete; None when nothing is known of it."""
    entry = _records(hf_home, want).get(_key(want))
    files = entry.get("files") if isinstance(entry, dict) and entry.get("commit") == commit else None
    return files if isinstance(files, dict) else None


def _key(want: Want) -> str:
    return json.dumps([want.revision, want.load_format if want.weights else "", *want.ignore])


def note_fetched(hf_home: str, want: Want, model: Mapping[str, Any]) -> None:
    """Note which files of which commit a repository's revision was complete with."""
    path = _record_path(hf_home, want)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    entries = {**_records(hf_home, want), _key(want): {"commit": model["commit"], "files": model["files"]}}
    write_file(path, json.dumps(entries, indent=1, sort_keys=True) + "\n", 0o644)


def _named(names: Sequence[str]) -> str:
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"
