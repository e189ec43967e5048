# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hub tells of a model: its configuration and the sizes of its files, without the weights themselves.

The controller asks for the whole fleet; a host asks where only hosts get there. Nothing that is secret is told.
"""

from __future__ import annotations

import json
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import reach
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import (
    CONFIG,
    INDEXES,
    LARGEST_CONFIG,
    LARGEST_INDEX,
    MISTRAL_CONFIG,
    PART,
    TOKENIZERS,
    ModelInfo,
    WeightsFile,
    length_of_sentences,
    sentence_file,
)

HUB = "https://huggingface.co"
QUANTIZATION = "hf_quant_config.json"
# A repository may have some thousand files.
LARGEST_LIST = 16 * 1024 * 1024


@dataclass(frozen=True)
class HubQuestion:
    """What to ask of which hub, and by which way.

    Attributes:
        repository: the model's name there.
        revision: branch, tag or commit.
        endpoint: address of the hub or a mirror of it.
        token: of somebody who may read the model; empty for none.
        route: the way there.
    """

    repository: str
    revision: str = "main"
    endpoint: str = HUB
    token: str = field(default="", repr=False)
    route: reach.Route = field(default_factory=reach.Route, repr=False)


def read(question: HubQuestion) -> ModelInfo:
    """Return what the hub tells of a model, in the words of host_info's C(model).

    Raises:
        reach.Unreachable: it tells nothing.
    """
    name, revision = question.repository, urllib.parse.quote(question.revision, safe="")
    told = _listed(question, revision)
    sizes = {
        str(entry.get("rfilename")): _size(entry) for entry in told.get("siblings") or [] if isinstance(entry, dict)
    }
    own = MISTRAL_CONFIG if MISTRAL_CONFIG in sizes and CONFIG not in sizes else CONFIG
    config = _object(_get(question, f"{name}/resolve/{revision}/{own}", LARGEST_CONFIG))
    quantization = None
    if QUANTIZATION in sizes and not config.get("quantization_config"):
        quantization = _object(_get(question, f"{name}/resolve/{revision}/{QUANTIZATION}", LARGEST_CONFIG))
    weights = loaded(sizes)
    return {
        "path": name,
        "exists": True,
        "config": config,
        "config_error": "",
        "quantization": quantization,
        "sentence_length": _sentence_length(question, revision, sentence_file(sizes)),
        "tokenizer": any(file in sizes for file in TOKENIZERS),
        "safetensors": weights,
        "total_bytes": sum(entry["size"] for entry in weights),
        "index_total_bytes": None if weights else _by_index(question, revision),
        "at_hub": str(told.get("sha") or question.revision),
    }


def _listed(question: HubQuestion, revision: str) -> dict[str, Any]:
    """Return what the hub tells of a repository; nothing where a mirror has no such list."""
    try:
        return _object(_get(question, f"api/models/{question.repository}/revision/{revision}?blobs=true", LARGEST_LIST))
    except reach.Unreachable as error:
        if error.status is None or error.cause:
            raise
        return {}


def _sentence_length(question: HubQuestion, revision: str, file: str) -> int | None:
    """Return the tokens that sentence-transformers' file allows; None where there is none that tells them."""
    if not file:
        return None
    try:
        path = f"{question.repository}/resolve/{revision}/{file}"
        return length_of_sentences(_object(_get(question, path, LARGEST_CONFIG)))
    except reach.Unreachable:
        return None


def _by_index(question: HubQuestion, revision: str) -> float | None:
    """Return the bytes that the index of the weights promises; None where there is none."""
    try:
        index = _object(_get(question, f"{question.repository}/resolve/{revision}/{INDEXES[0]}", LARGEST_INDEX))
    except reach.Unreachable:
        return None
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if isinstance(total, (int, float)) else None


def loaded(sizes: dict[str, int]) -> list[WeightsFile]:
    """Return the files of weights that vLLM loads, of all that a repository has.

    Weights in other folders are other formats of the same; Mistral's own files come before, and numbered parts before
    single files beside them.
    """
    top = {name: size for name, size in sizes.items() if "/" not in name and size > 0}
    tensors = {name: size for name, size in top.items() if name.endswith(".safetensors")}
    kinds = (
        {name: size for name, size in tensors.items() if name.startswith("consolidated")},
        {name: size for name, size in tensors.items() if PART.fullmatch(name) and name.startswith("model-")},
        tensors,
        {name: size for name, size in top.items() if name.endswith(".bin") and "training_args" not in name},
        {name: size for name, size in top.items() if name.endswith((".pt", ".pth"))},
    )
    chosen = next((kind for kind in kinds if kind), {})
    return [{"name": name, "size": size} for name, size in sorted(chosen.items())]


def _get(question: HubQuestion, path: str, largest: int) -> bytes:
    url = f"{question.endpoint.rstrip('/')}/{path}"
    return reach.get(url, question.route, question.token, largest=largest)


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise reach.Unreachable(None, "failed", "what it gives is not a JSON object")
    return found


def _size(entry: dict[str, Any]) -> int:
    lfs = entry.get("lfs")
    told = (lfs.get("size") if isinstance(lfs, dict) else None) or entry.get("size") or 0
    return int(told) if isinstance(told, (int, float)) else 0
