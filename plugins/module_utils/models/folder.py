# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model's folder on the host holds: its configuration, and whether its files are whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container
from typing import Any, TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB

# One that lists every layer of a quantised model has several MiB.
LARGEST_CONFIG = 8 * MIB
LARGEST_INDEX = 32 * MIB
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
MOST_PARTS = 10000
OTHER_WEIGHTS = (".bin", ".pt", ".gguf")
CONFIG, MISTRAL_CONFIG = "config.json", "params.json"
INDEXES = ("model.safetensors.index.json", "consolidated.safetensors.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json")
# What sentence-transformers adds to a model that makes embeddings; vLLM takes the first that is there.
SENTENCES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What git leaves in the place of a file that git-lfs was not there to fetch.
POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_POINTER = 1024


class WeightsFile(TypedDict):
    """A file of weights."""

    name: str
    size: int


class ModelInfo(TypedDict, total=False):
    """What the folder of a model holds. The planner also takes one of which a user knows a part only."""

    path: str
    exists: bool
    config: dict[str, Any] | None
    config_error: str
    quantization: dict[str, Any] | None
    sentence_length: int | None
    tokenizer: bool
    safetensors: list[WeightsFile]
    total_bytes: int
    index_total_bytes: float | None
    missing_files: list[str]
    cut_files: list[str]
    pointers: list[str]
    complete: bool
    at_hub: str


class WeightsInfo(TypedDict):
    """What there is of a model's weights."""

    folder: str
    path: str
    exists: bool
    complete: bool
    total_bytes: int
    other_formats: bool


def snapshot(folder: str) -> str:
    """Return the folder of a model's files: C(folder) itself, or the current snapshot when it is a repository's folder
    in the Hugging Face cache, such as C(hub/models--nvidia--Llama-4-Scout-17B-16E-Instruct-FP8).

    With C(/refs/<revision>) behind it, it is the snapshot of that branch, tag or commit.
    """
    repository, wants_revision, revision = folder.partition("/refs/")
    if wants_revision:
        return os.path.join(repository, "snapshots", _read_text(folder).strip() or revision)
    snapshots = os.path.join(folder, "snapshots")
    main = _read_text(os.path.join(folder, "refs", "main")).strip()
    if main and os.path.isfile(os.path.join(snapshots, main, "config.json")):
        return os.path.join(snapshots, main)
    try:
        found = [entry for entry in os.scandir(snapshots) if os.path.isfile(os.path.join(entry.path, "config.json"))]
    except OSError:
        return folder
    return max(found, key=lambda entry: entry.stat().st_mtime).path if found else folder


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read(1024)
    except (OSError, UnicodeDecodeError):
        return ""


def look_at_model(path: str) -> ModelInfo:
    """Return what a model folder holds, or the current snapshot of a repository's folder in the Hugging Face cache.

    Returns:
        C(path), C(exists), C(config) (config.json, or params.json of Mistral's own format) and C(quantization)
        (hf_quant_config.json), both None when missing, broken or larger than 8 MiB, C(config_error),
        C(sentence_length) (the tokens that sentence-transformers' file allows, or None), C(tokenizer) (whether there is
        one), C(safetensors) (C(name) and C(size) in bytes), C(total_bytes), C(index_total_bytes)
        (what the index promises, or None), C(missing_files) (named by the index but not there), C(cut_files) (shorter
        than they say themselves), C(pointers) (that git-lfs has not fetched) and C(complete).
    """
    path = snapshot(path)
    result: ModelInfo = {"path": path, "exists": os.path.isdir(path)}
    names = list_folder(path)
    own = MISTRAL_CONFIG if MISTRAL_CONFIG in names and CONFIG not in names else CONFIG
    config, error = _json(os.path.join(path, own), LARGEST_CONFIG)
    weights: list[WeightsFile] = [
        {"name": name, "size": os.path.getsize(os.path.join(path, name))}
        for name in names
        if name.endswith(".safetensors") and os.path.isfile(os.path.join(path, name))
    ]
    indexes = (_json(os.path.join(path, name), LARGEST_INDEX)[0] for name in INDEXES if name in names)
    index = next((found for found in indexes if found), {})
    total = sum(entry["size"] for entry in weights)
    promised = _object(index.get("metadata")).get("total_size")
    promised = promised if isinstance(promised, (int, float)) else None
    there = {entry["name"] for entry in weights}
    missing = sorted(set(map(str, _object(index.get("weight_map")).values())) - there) or _missing_parts(there)
    if missing and any(name.startswith("consolidated") for name in there):
        # vLLM takes Mistral's own files, and those of the index need not be there.
        missing, promised = [], None
    pointers = [name for name in names if is_pointer(os.path.join(path, name))]
    cut = [entry["name"] for entry in weights if not _is_whole(os.path.join(path, entry["name"]), entry["size"])]
    result.update(
        ModelInfo(
            config=config,
            config_error=error,
            quantization=_json(os.path.join(path, "hf_quant_config.json"), LARGEST_CONFIG)[0],
            sentence_length=_sentence_length(path, names),
            tokenizer=any(name in names for name in TOKENIZERS),
            safetensors=weights,
            total_bytes=total,
            index_total_bytes=promised,
            missing_files=missing,
            cut_files=cut,
            pointers=pointers,
            complete=bool(config and weights and not (missing or cut or pointers) and total >= (promised or 0)),
            at_hub="",
        )
    )
    return result


def _sentence_length(path: str, names: list[str]) -> int | None:
    file = sentence_file(names)
    return length_of_sentences(_json(os.path.join(path, file), LARGEST_CONFIG)[0]) if file else None


def sentence_file(names: Container[str]) -> str:
    """Return which of a model's files is that of sentence-transformers; empty where none is."""
    return next((name for name in SENTENCES if name in names), "")


def length_of_sentences(content: dict[str, Any] | None) -> int | None:
    """Return the tokens that sentence-transformers' file allows, None where vLLM does not heed it."""
    told = content or {}
    length = told.get("max_seq_length")
    return length if "do_lower_case" in told and isinstance(length, int) and length > 0 else None


def is_pointer(path: str) -> bool:
    """Return whether a file is what git leaves in the place of one that git-lfs was not there to fetch."""
    try:
        if os.path.getsize(path) > LONGEST_POINTER or not os.path.isfile(path):
            return False
        with open(path, "rb") as stream:
            return stream.read(len(POINTER)) == POINTER
    except OSError:
        return False


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _missing_parts(names: set[str]) -> list[str]:
    """Return the files that lack of a model in numbered parts, such as C(model-00002-of-00005.safetensors)."""
    parts = [match for match in map(PART.fullmatch, names) if match]
    wanted = {
        f"{match[1]}-{number:05d}-of-{match[2]}.safetensors"
        for match in parts
        for number in range(1, min(int(match[2]), MOST_PARTS) + 1)
    }
    return sorted(wanted - names)


def weights(folder: str) -> WeightsInfo:
    """Return what there is of a model's weights: C(folder) as asked for, and the rest in the words of C(model).

    C(other_formats) tells of files with weights whose completeness is not known here.
    """
    found = look_at_model(folder)
    names = list_folder(found["path"])
    return {
        "folder": folder,
        "path": found["path"],
        "exists": found["exists"],
        "complete": found["complete"],
        "total_bytes": found["total_bytes"],
        "other_formats": any(name == "params.json" or name.endswith(OTHER_WEIGHTS) for name in names),
    }


def _is_whole(path: str, size: int) -> bool:
    """Return whether a safetensors file is as long as its own header says; an interrupted copy is shorter.

    The format: eight bytes with the length of the header, the header in JSON with each tensor's place, the tensors.
    """
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(size, LARGEST_INDEX):
                return False
            header = json.loads(stream.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(size >= 8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return False


def _json(path: str, largest: int) -> tuple[dict[str, Any] | None, str]:
    """Return a file's JSON object and an empty text, or None and why there is none."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        return None, f"There is no {name}."
    if os.path.getsize(path) > largest:
        return None, f"{name} is larger than {largest} bytes."
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        return None, f"{name} is not JSON: {error}"
    if not isinstance(content, dict):
        return None, f"{name} is not a JSON object."
    return content, ""
