# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a hub model as hosts tell each other of them: by the hash that the hub knows each one by.

huggingface_hub keeps the content of a file under that hash (C(blobs/<hash>)) and has links with the files' names
(C(snapshots/<commit>/<name>)). Large files are known by their SHA-256, others by git's id of a blob.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cached import commit_of, lacks, recorded_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import hub_folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import Want

SHA256 = 64
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# A plain name within the snapshot: no way out of it.
NAME = re.compile(r"(?!.*(^|/)\.{0,2}(/|$))[^\0]+")
READ_AT_ONCE = 4 * 1024 * 1024


@dataclass(frozen=True)
class SharedFile:
    """A file of a model: its name in the repository, its size in bytes and the hash that the hub knows it by."""

    name: str
    size: int
    blob: str


@dataclass(frozen=True)
class SharedModel:
    """What a host has, whole, of a repository.

    Attributes:
        want: what it was fetched for, see want_key.
        repository: its name at the hub.
        commit: which one the host has.
        files: all that a server takes of it.
    """

    want: str
    repository: str
    commit: str
    files: tuple[SharedFile, ...]

    def as_result(self) -> dict[str, Any]:
        """Return it as data."""
        return {**asdict(self), "files": [asdict(entry) for entry in self.files]}


def want_key(want: Want) -> str:
    """Return a text that is the same on hosts that take the same of the same repository."""
    return json.dumps([want.repository, want.revision, want.weights, want.load_format, *want.ignore])


def read_model(told: Mapping[str, Any]) -> SharedModel | None:
    """Return what another host told of a model; None where it is nothing that a cache could hold."""
    files = tuple(SharedFile(str(one["name"]), int(one["size"]), str(one["blob"])) for one in told["files"])
    sound = all(HASH.fullmatch(one.blob) and NAME.fullmatch(one.name) for one in files)
    if not sound or not HASH.fullmatch(str(told["commit"])):
        return None
    return SharedModel(str(told["want"]), str(told["repository"]), str(told["commit"]), files)


def shared_model(want: Want, around: Surroundings) -> SharedModel | None:
    """Return what this host can give of a repository; None where it lacks something, or does not know its hashes."""
    if lacks(want, around):
        return None
    commit = commit_of(around.cache.folder, want)
    snapshot = os.path.join(hub_folder(around.cache.folder, want.repository), "snapshots", commit)
    names = recorded_files(around.hf_home, want, commit)
    files = [_shared_file(snapshot, name) for name in (sorted(names) if names is not None else _names(snapshot))]
    known = tuple(entry for entry in files if entry)
    if len(known) < len(files) or not known:
        return None
    return SharedModel(want_key(want), want.repository, commit, known)


def _names(snapshot: str) -> Iterator[str]:
    """Yield the files of a snapshot that somebody has brought."""
    for folder, _folders, names in sorted(os.walk(snapshot)):
        for name in sorted(names):
            yield os.path.relpath(os.path.join(folder, name), snapshot)


def _shared_file(snapshot: str, name: str) -> SharedFile | None:
    """Return a file of a snapshot, by the link that leads to its content; None for one without such a link."""
    path = os.path.join(snapshot, name)
    try:
        blob, size = os.path.basename(os.readlink(path)), os.path.getsize(path)
    except OSError:
        return None
    return SharedFile(name, size, blob) if HASH.fullmatch(blob) else None


def is_right(path: str, blob: str) -> bool:
    """Return whether a file has the content that the hub knows by this hash.

    Raises:
        OSError: it cannot be read.
    """
    if len(blob) == SHA256:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(b"blob %d\0" % os.path.getsize(path))
    with open(path, "rb") as stream:
        for data in iter(lambda: stream.read(READ_AT_ONCE), b""):
            digest.update(data)
    return digest.hexdigest() == blob


def link(model: SharedModel, entry: SharedFile, cache: str) -> None:
    """Give a file whose content is there its name in the snapshot.

    Raises:
        OSError: it cannot be.
    """
    base = hub_folder(cache, model.repository)
    path = os.path.join(base, "snapshots", model.commit, entry.name)
    target = os.path.relpath(os.path.join(base, "blobs", entry.blob), os.path.dirname(path))
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if os.readlink(path) == target:
            return
        os.unlink(path)
    os.symlink(target, path)


def point(model: SharedModel, revision: str, cache: str) -> None:
    """Note which commit a branch or tag is, as huggingface_hub does."""
    if revision != model.commit:
        write_file(os.path.join(hub_folder(cache, model.repository), "refs", revision), model.commit, 0o644)


def missing_of(model: SharedModel, cache: str) -> list[SharedFile]:
    """Return the files of a model whose content is not in the cache."""
    blobs = os.path.join(hub_folder(cache, model.repository), "blobs")
    return [entry for entry in model.files if not _has_size(os.path.join(blobs, entry.blob), entry.size)]


def _has_size(path: str, size: int) -> bool:
    try:
        return os.path.getsize(path) == size
    except OSError:
        return False


def most_told(want: Want, told: Sequence[Mapping[str, Any]]) -> SharedModel | None:
    """Return what to take of a repository of what other hosts told: what most of them have."""
    key = want_key(want)
    models = [model for model in map(read_model, told) if model and model.want == key]
    counts: dict[str, int] = {}
    for model in models:
        counts[model.commit] = counts.get(model.commit, 0) + 1
    return max(models, key=lambda model: counts[model.commit], default=None)
