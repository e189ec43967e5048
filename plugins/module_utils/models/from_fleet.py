# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings what a host lacks of its models from other hosts of the fleet into its Hugging Face cache.

What no host gives is left for the hub, see download.py: a whole file is not fetched twice, since huggingface_hub finds
it under its hash. A snapshot gets its links when all of it is there, so that a part is not taken for a model.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB, format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cache_lock import cache_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cached import lacks, note_fetched
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import hub_folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.receiving import (
    BEGUN,
    DiskFullError,
    Receiver,
    Source,
    size_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.refusals import download_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.shared_files import (
    SharedFile,
    SharedModel,
    link,
    missing_of,
    most_told,
    point,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import Want

NO_DEADLINE_S = 10.0 * 365 * 86400


@dataclass(frozen=True)
class Fleet:
    """The hosts that give weights away.

    Attributes:
        sources: where each one is reached; which of them has everything is told by C(models).
        models: host to what it has, whole, as data.
        folder: with this host's key for the run.
        connections: files that are fetched at once.
    """

    sources: Sequence[Source]
    models: Mapping[str, Sequence[Mapping[str, Any]]]
    folder: str
    connections: int


def fetch_from_fleet(
    wants: Sequence[Want], around: Surroundings, fleet: Fleet, progress: Progress, *, check: bool
) -> dict[str, Any]:
    """Bring what is missing from other hosts.

    Returns:
        C(changed), C(models) (each C(repository), C(bytes), C(hosts) (host to the bytes that came from it), C(left)
        (why some of it is left to the hub; empty where all is there)) and C(failures).

    Raises:
        GpufleetError: C(disk-full), C(busy) and what the cache's folder refuses.
    """
    models, failures = [], []
    for want in wants:
        if not lacks(want, around):
            continue
        model = most_told(want, [told for one in fleet.models.values() for told in one])
        if model is None or check:
            why = "" if model else "no host of the fleet has it whole"
            models.append({"repository": want.repository, "bytes": 0, "hosts": {}, "left": why})
            continue
        with cache_lock(want, around, progress):
            # Whoever was waited for may have fetched all of it.
            if lacks(want, around):
                came, left, said = _fetch(want, model, around, fleet, progress)
                models.append({"repository": want.repository, "bytes": sum(came.values()), "hosts": came, "left": left})
                failures += said
    return {"changed": bool(models), "models": models, "failures": failures}


def _fetch(
    want: Want, model: SharedModel, around: Surroundings, fleet: Fleet, progress: Progress
) -> tuple[dict[str, int], str, list[str]]:
    """Fetch a model; return what came from which host, why some is left to the hub, and what went wrong."""
    cache = around.cache.folder
    _check_room(want, missing_of(model, cache), around)
    whole = {
        host
        for host, told in fleet.models.items()
        if any(one["want"] == model.want and one["commit"] == model.commit for one in told)
    }
    sources = [replace(one, whole=one.host in whole, has=set(), wrong=set()) for one in fleet.sources]
    receiver = Receiver(model, sources, cache, fleet.folder, fleet.connections)
    began, had = time.monotonic(), receiver.bytes_there()
    total = sum(entry.size for entry in model.files)

    def tell() -> None:
        there = receiver.bytes_there()
        rate = (there - had) / MIB / max(time.monotonic() - began, 0.1)
        text = f"{receiver.files_there()}/{len(model.files)} files, {format_bytes(there)} of {format_bytes(total)}"
        progress.phase(f"weights of {want.repository} from the fleet", f"{text}, {rate:.1f} MiB/s")

    try:
        left = receiver.run(around.timeout or NO_DEADLINE_S, around.stall_timeout, tell)
    except DiskFullError as error:
        raise _no_room(want, missing_of(model, cache), around, str(error)) from error
    if left:
        receiver.remove_begun()
        return receiver.came, f"{len(left)} of {len(model.files)} files came from no host", receiver.failures()
    for entry in model.files:
        link(model, entry, cache)
    point(model, want.revision, cache)
    note_fetched(around.hf_home, want, {"commit": model.commit, "files": {one.name: one.size for one in model.files}})
    return receiver.came, "", receiver.failures()


def _check_room(want: Want, missing: Sequence[SharedFile], around: Surroundings) -> None:
    """Refuse to begin what does not fit the disk."""
    os.makedirs(around.cache.folder, mode=0o755, exist_ok=True)
    blobs = os.path.join(hub_folder(around.cache.folder, want.repository), "blobs")
    begun = sum(size_of(os.path.join(blobs, entry.blob) + BEGUN) for entry in missing)
    if sum(entry.size for entry in missing) - begun > shutil.disk_usage(around.cache.folder).free:
        raise _no_room(want, missing, around, "")


def _no_room(want: Want, missing: Sequence[SharedFile], around: Surroundings, said: str) -> Exception:
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(around.cache.folder).free
    return download_error(
        {
            "name": "disk-full",
            "text": said or f"{needed} bytes are missing, {free} are free",
            "repository": want.repository,
            "revision": want.revision,
            "needed": needed,
            "free": free,
        },
        around,
    )
