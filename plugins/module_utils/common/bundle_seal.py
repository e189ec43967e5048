# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finishes a bundle: its collection, what is for which host, the checksums, and parts of a limited size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_files import (
    CONTENTS,
    FORMAT,
    PART,
    PARTS,
    SUMS,
    SUMS_BEFORE,
    SeenFiles,
    files_below,
    read_sums,
    sums_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import remove_file, write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB, format_bytes

COLLECTION = "collection"
UNITS = {"": 1, "K": 1024, "M": MIB, "G": 1024 * MIB, "T": MIB * MIB}
SMALLEST_PART = MIB


def part_bytes(text: str) -> int:
    """Return the bytes of a size such as C(4G); 0 for an empty one.

    Raises:
        GpufleetError: C(part-size-invalid).
    """
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)(i?B)?", text.strip().upper().replace("IB", "B"))
    if not text.strip():
        return 0
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if size < SMALLEST_PART:
        raise GpufleetError(
            f"vllm_bundle_part_size: {text!r} is no size of parts.",
            name="part-size-invalid",
            remedy="Write a number with K, M, G or T, of 1M or more, such as 4G; leave it empty for one folder.",
        )
    return size


def have_collection(root: str, folder: str, *, check: bool) -> bool:
    """Have the tarball of this collection in a bundle, and no other; return whether it was not there.

    Args:
        root: of the collection that runs, a checkout or an installed one.
        folder: of the bundle.
        check: only tell.

    Raises:
        GpufleetError: C(collection-not-built) or C(write-failed).
    """
    place = os.path.join(folder, COLLECTION)
    try:
        with tempfile.TemporaryDirectory(prefix="gpufleet-collection-") as made:
            if os.path.isfile(os.path.join(root, "MANIFEST.json")):
                new = _pack(root, made)
            else:
                build = [sys.executable, "-m", "ansible", "galaxy", "collection", "build", root, "--output-path", made]
                run_command(build, name="collection-not-built", doing=f"building the collection in {root}")
                new = os.path.join(made, os.listdir(made)[0])
            name = os.path.basename(new)
            there = os.listdir(place) if os.path.isdir(place) else []
            if there == [name] and _manifest(os.path.join(place, name)) == _manifest(new):
                return False
            if not check:
                shutil.rmtree(place, ignore_errors=True)
                os.makedirs(place)
                shutil.copy(new, place)
    except OSError as error:
        raise write_failed(place, error, "vllm_bundle_dir") from error
    return True


def _pack(root: str, folder: str) -> str:
    """Return a tarball of an installed collection, of the files that its own list has."""
    with open(os.path.join(root, "MANIFEST.json"), encoding="utf-8") as stream:
        about = json.load(stream)["collection_info"]
    with open(os.path.join(root, "FILES.json"), encoding="utf-8") as stream:
        entries = [entry["name"] for entry in json.load(stream)["files"] if entry["name"] != "."]
    path = os.path.join(folder, "{namespace}-{name}-{version}.tar.gz".format(**about))
    with tarfile.open(path, "w:gz") as tar:
        for name in ["MANIFEST.json", "FILES.json", *entries]:
            tar.add(os.path.join(root, name), name, recursive=False)
    return path


def _manifest(path: str) -> bytes:
    """Return what tells one build of a collection from another; it has the checksum of the list of files."""
    with contextlib.suppress(OSError, tarfile.TarError, KeyError), tarfile.open(path) as tar:
        member = tar.extractfile("MANIFEST.json")
        return member.read() if member else b""
    return b""


def stale(folder: str, kept: Sequence[str]) -> list[str]:
    """Return files of a bundle that belong to none of the parts that are kept."""
    return [
        name
        for name in files_below(folder)
        if not any(name == one or name.startswith(f"{one}/") for one in kept) or ".unfinished" in name
    ]


def reopen(folder: str) -> None:
    """Let a finished bundle be one that is not, because what its checksums say need not hold from now on.

    Raises:
        GpufleetError: C(write-failed).
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(os.path.join(folder, SUMS), os.path.join(folder, SUMS_BEFORE))
    except OSError as error:
        raise write_failed(folder, error, "vllm_bundle_dir") from error


def seal(folder: str, hosts: Mapping[str, Any], *, check: bool, progress: Progress) -> dict[str, str]:
    """Write what is for which host, and last the checksums; return what is not as in the last finished bundle, by file.

    Raises:
        GpufleetError: C(write-failed).
    """
    seen, sums, links, read = SeenFiles(folder), {}, {}, [0]

    def on_bytes(count: int) -> None:
        read[0] += count
        progress.phase("checksums", format_bytes(read[0]))

    for name in files_below(folder):
        path = os.path.join(folder, name)
        if os.path.islink(path):
            links[name] = os.readlink(path)
        else:
            sums[name] = seen.sum_of(name, on_bytes)
    contents = {"format": FORMAT, "hosts": hosts, "links": links}
    text = json.dumps(contents, indent=2, sort_keys=True) + "\n"
    sums[CONTENTS] = hashlib.sha256(text.encode()).hexdigest()
    wanted = {CONTENTS: text, SUMS: sums_text(sums)}
    before = {name: read_text(os.path.join(folder, name)) for name in wanted}
    before[SUMS] = before[SUMS] or read_text(os.path.join(folder, SUMS_BEFORE))
    if not check:
        seen.keep()
        for name, new in wanted.items():
            write_file(os.path.join(folder, name), new, 0o644, variable="vllm_bundle_dir")
        remove_file(os.path.join(folder, SUMS_BEFORE))
    return {name: new for name, new in wanted.items() if before[name] != new}


def have_parts(folder: str, size: int, *, check: bool, progress: Progress) -> bool:
    """Have a bundle as tar files of a limited size, beside it in C(<folder>.parts); return whether they were not.

    Raises:
        GpufleetError: C(write-failed).
    """
    place = f"{folder.rstrip('/')}.parts"
    mark = f"{hashlib.sha256(read_text(os.path.join(folder, SUMS)).encode()).hexdigest()} {size}\n"
    listed = read_sums(read_text(os.path.join(place, PARTS)))
    whole = listed and all(os.path.isfile(os.path.join(place, name)) for name in listed)
    if whole and read_text(os.path.join(place, ".made-of")) == mark:
        return False
    if check:
        return True
    try:
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        with _Parts(place, size, progress) as parts, tarfile.open(fileobj=cast(Any, parts), mode="w|") as tar:
            for name in [SUMS, CONTENTS, *files_below(folder)]:
                tar.add(os.path.join(folder, name), name, recursive=False)
        write_file(os.path.join(place, PARTS), sums_text(parts.sums), 0o644)
        write_file(os.path.join(place, ".made-of"), mark, 0o644)
    except OSError as error:
        raise write_failed(place, error, "vllm_bundle_dir") from error
    return True


class _Parts:
    """A stream that begins another file whenever one is full."""

    def __init__(self, folder: str, size: int, progress: Progress) -> None:
        self.sums: dict[str, str] = {}
        self._folder, self._size, self._progress = folder, size, progress
        self._stream: IO[bytes] | None = None
        self._name, self._room, self._digest = "", 0, hashlib.sha256()

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def write(self, data: bytes) -> int:
        """Write it all, into as many files as it takes."""
        rest = memoryview(data)
        while rest:
            if not self._room:
                self._begin()
            piece = rest[: self._room]
            if self._stream is not None:
                self._stream.write(piece)
            self._digest.update(piece)
            self._room -= len(piece)
            rest = rest[len(piece) :]
        return len(data)

    def _begin(self) -> None:
        self._end()
        self._name = f"{PART}{len(self.sums) + 1:06d}"
        self._progress.phase("parts", self._name)
        self._stream = open(os.path.join(self._folder, self._name), "wb")  # noqa: SIM115  until the part is full
        self._room, self._digest = self._size, hashlib.sha256()

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self.sums[self._name] = self._digest.hexdigest()
