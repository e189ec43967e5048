# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a model's files on the host are whole, as far as that is known without reading the weights themselves.

A safetensors file begins with the length of its header and a header that says where each tensor lies, so one that was
cut short is told by its size. A model in several files has an index that names them all. Formats without either are
only looked for.
"""

from __future__ import annotations

import fnmatch
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB, listed
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import is_pointer
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import HubCache, hub_cache, hub_folder

INDEX = "model.safetensors.index.json"
CONSOLIDATED = "consolidated*.safetensors"
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# Formats whose files are not those of the model's own repository, or that read none.
OTHER_FORMATS = ("dummy", "tensorizer", "runai_streamer", "runai_streamer_sharded", "sharded_state", "bitsandbytes")
LONGEST_HEADER = 100 * MIB


def check(spec: Spec, source: Mapping[str, str], hf_home: str) -> None:
    """Check the files of the model that a server will read, if they must be on the host already.

    Args:
        spec: of the server.
        source: the plan's C(model_source).
        hf_home: host folder of the Hugging Face cache.

    Raises:
        GpufleetError: C(weights-missing) or C(weights-corrupt).
    """
    if spec["config"].get("load-format") in OTHER_FORMATS:
        return
    if source.get("mount"):
        _check_folder(str(source["mount"]), "vllm_model")
    elif source.get("kind", "hub") == "hub" and is_offline(spec["environment"]):
        cache = hub_cache(hf_home, spec["environment"], spec["volumes"])
        if cache.folder and not spec["config"].get("download-dir"):
            revision = str(spec["config"].get("revision") or "main")
            _check_folder(cached(cache, str(source["argument"]).partition(":")[0], revision), "")


def is_offline(environment: Mapping[str, str]) -> bool:
    """Return whether a server with this environment will not ask the hub."""
    return any(str(environment.get(name, "")).lower() in ("1", "true", "yes", "on") for name in OFFLINE)


def cached(cache: HubCache, model: str, revision: str) -> str:
    """Return the folder of the Hugging Face cache that holds a model.

    Args:
        cache: the server's.
        model: the model's name at the hub.
        revision: branch, tag or commit.

    Raises:
        GpufleetError: C(weights-missing) when it is not there.
    """
    folder = hub_folder(cache.folder, model)
    commit = read_text(folder, "refs", revision).strip() or revision
    snapshot = os.path.join(folder, "snapshots", commit)
    if os.path.isdir(snapshot):
        return snapshot
    raise GpufleetError(
        f"The server must not ask the hub ({' or '.join(OFFLINE)} in vllm_environment), but {model} (revision"
        f" {revision}) is not in {cache}.",
        name="weights-missing",
        remedy=f"Fetch it there once (HF_HUB_CACHE={cache.folder} hf download, or deploy once without that variable),"
        " or set vllm_model to a folder that holds it.",
        evidence=f"{snapshot}: no such folder",
    )


def _check_folder(folder: str, variable: str) -> None:
    """Raise unless the folder holds weights, and all and the whole of them."""
    names = list_folder(folder)
    pointers = [name for name in names if is_pointer(os.path.join(folder, name))]
    if pointers:
        raise GpufleetError(
            f"The model in {folder} is not complete: git-lfs has not fetched {listed(pointers)}.",
            name="weights-missing",
            remedy=f"Run `git lfs pull` in {folder}, or fetch the model with `hf download`.",
            evidence=os.path.join(folder, pointers[0]),
        )
    index = _index(folder) if INDEX in names else []
    missing = [name for name in index if not os.path.exists(os.path.join(folder, name))]
    if missing and fnmatch.filter(names, CONSOLIDATED):
        # vLLM takes Mistral's own files, and those of the index are not fetched.
        index, missing = [], []
    if missing:
        raise _incomplete(folder, variable, f"{listed(missing)} of the {len(index)} files in {INDEX} are not there")
    weights = [name for name in names if name.endswith(WEIGHTS) and os.path.exists(os.path.join(folder, name))]
    if names and not weights and "params.json" not in names:
        raise _incomplete(folder, variable, f"no file ending in {', '.join(WEIGHTS)}")
    for name in index or weights:
        problem = cut_short(os.path.join(folder, name)) if name.endswith(".safetensors") else ""
        if problem:
            raise GpufleetError(
                f"The weights in {folder} are damaged: {name} {problem}.",
                name="weights-corrupt",
                remedy="Fetch that file again (a download or copy that was interrupted is the usual cause), and compare"
                " its checksum.",
                evidence=os.path.join(folder, name),
            )


def _index(folder: str) -> list[str]:
    """Return the names of the files that the index of a model's weights lists."""
    try:
        entries = json.loads(read_text(folder, INDEX))["weight_map"].values()
        return sorted({str(name) for name in entries})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise GpufleetError(
            f"The weights in {folder} are damaged: {INDEX} cannot be read.",
            name="weights-corrupt",
            remedy="Fetch that file again.",
            evidence=str(error),
        ) from error


def cut_short(path: str) -> str:
    """Return what is wrong with the size of a safetensors file, to follow its name; empty when nothing is."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(LONGEST_HEADER, size):
                return f"is no whole safetensors file ({size} bytes)"
            header: dict[str, Any] = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except PermissionError:
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return "has no readable safetensors header"
    wanted = 8 + length + max(ends, default=0)
    return "" if size >= wanted else f"has {size} bytes where its header says {wanted}"


def _incomplete(folder: str, variable: str, problem: str) -> GpufleetError:
    return GpufleetError(
        f"The model in {folder} is not complete: {problem}.",
        name="weights-missing",
        remedy="Fetch what is missing"
        + (f", or set {variable} to a folder that holds the whole model." if variable else " into vllm_hf_home."),
        evidence=folder,
    )
