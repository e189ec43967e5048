# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a bundle for hosts without internet: which there are, by their checksums and links.

C(SHA256SUMS) lists every file in the format of sha256sum. It is written last: without it a bundle is not whole.
C(bundle.json) says what of it is for which host, and has the links, which sha256sum does not know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import file_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text

SUMS, CONTENTS, PARTS = "SHA256SUMS", "bundle.json", "PARTS.sha256"
# The checksums of the last finished bundle, while it is gathered again.
SUMS_BEFORE = ".SHA256SUMS.before"
PART = "bundle.tar."
# What a run remembers of files that it has read, so that the next one need not read hundreds of GiB again.
SEEN = ".seen.json"
FORMAT = 1


class SeenFiles:
    """The checksums of files by their size and time, kept in a file.

    Args:
        folder: of the files, in which the record lies.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = os.path.join(folder, SEEN)
        self._before = _mapping(read_text(self._path))
        self._now: dict[str, Any] = {}

    def sum_of(self, name: str, on_bytes: Callable[[int], None] = lambda _count: None) -> str:
        """Return the checksum of a file, empty where there is none; only one that has changed is read.

        Args:
            name: its path in the folder.
            on_bytes: told how many bytes were read.
        """
        path = os.path.join(self._folder, name)
        try:
            status = os.stat(path)
            mark = [status.st_size, status.st_mtime_ns]
            before = self._before.get(name) or []
            found = str(before[2]) if before[:2] == mark else file_sum(path, on_bytes)
        except OSError:
            return ""
        self._now[name] = [*mark, found]
        return found

    def note(self, name: str, found: str) -> None:
        """Remember the checksum of a file that was read already."""
        status = os.stat(os.path.join(self._folder, name))
        self._now[name] = [status.st_size, status.st_mtime_ns, found]

    def keep(self, *, others: bool = False) -> None:
        """Write the record, with what it had of files that nothing asked for now if C(others) is set."""
        text = json.dumps({**(self._before if others else {}), **self._now}, sort_keys=True)
        if text != read_text(self._path):
            with open(self._path, "w", encoding="utf-8") as stream:
                stream.write(text)


def sums_text(sums: Mapping[str, str]) -> str:
    """Return checksums as sha256sum writes them."""
    return "".join(f"{found}  {name}\n" for name, found in sorted(sums.items()))


def read_sums(text: str) -> dict[str, str]:
    """Return the checksum of each file by what sha256sum wrote."""
    found = {}
    for line in text.splitlines():
        value, _space, name = line.partition("  ")
        if len(value) == 64 and name:
            found[name] = value
    return found


def files_below(folder: str) -> Iterator[str]:
    """Yield the path of each file and link below a folder, but of what a bundle has at its head."""
    for parent, _folders, names in os.walk(folder):
        for name in sorted([*names, *(one for one in _folders if os.path.islink(os.path.join(parent, one)))]):
            path = os.path.relpath(os.path.join(parent, name), folder)
            if path not in (SUMS, SUMS_BEFORE, CONTENTS, SEEN):
                yield path


def read_bundle(folder: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what C(bundle.json) says, and the checksums.

    Raises:
        GpufleetError: C(bundle-missing), C(bundle-unfinished), C(bundle-part-missing), C(bundle-in-parts),
            C(bundle-damaged) or C(bundle-unknown).
    """
    text = read_text(os.path.join(folder, SUMS))
    if not text:
        raise _no_bundle(folder)
    sums = read_sums(text)
    path = os.path.join(folder, CONTENTS)
    if not os.path.isfile(path) or file_sum(path) != sums.get(CONTENTS):
        raise damaged(folder, CONTENTS, "is not the one")
    contents = _mapping(read_text(path))
    if contents.get("format") != FORMAT:
        raise GpufleetError(
            f"vllm_bundle_dir: {folder} has the format {contents.get('format')}, and this release reads {FORMAT}.",
            name="bundle-unknown",
            remedy=f"Install the release that made it, {folder}/collection/, or make the bundle with this one.",
        )
    return contents, sums


def damaged(folder: str, name: str, what: str) -> GpufleetError:
    """Return the error for a file that is not as its checksum says."""
    return GpufleetError(
        f"vllm_bundle_dir: {os.path.join(folder, name)} {what} that {SUMS} has the checksum of.",
        name="bundle-damaged",
        remedy=f"Bring this file again from where the bundle was made; `sha256sum --check --quiet {SUMS}` in {folder}"
        " names every damaged one.",
        details={"file": name},
    )


def _no_bundle(folder: str) -> GpufleetError:
    """Return why a folder without checksums is no bundle."""
    there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    wanted = read_sums(read_text(os.path.join(folder, PARTS)))
    lacking = sorted(set(wanted) - set(there))
    if lacking:
        return GpufleetError(
            f"vllm_bundle_dir: {folder} lacks {len(lacking)} of the bundle's {len(wanted)} parts,"
            f" {', '.join(lacking)}.",
            name="bundle-part-missing",
            remedy="Bring them from where the bundle was made, and join the parts.",
            details={"missing": lacking},
        )
    if wanted or any(name.startswith(PART) for name in there):
        return GpufleetError(
            f"vllm_bundle_dir: {folder} has the parts of a bundle, which are not joined yet.",
            name="bundle-in-parts",
            remedy=f"In {folder}: `sha256sum --check --quiet {PARTS} && cat {PART}* | tar --extract`.",
        )
    if CONTENTS in there or any(name in there for name in ("images", "packages", "huggingface", "work")):
        return GpufleetError(
            f"vllm_bundle_dir: {folder} has no {SUMS}, so the bundle was not finished, or not copied as a whole.",
            name="bundle-unfinished",
            remedy="Run the playbook gpufleet.vllm.bundle again, which goes on where it stopped, or copy the folder"
            " again.",
        )
    return GpufleetError(
        f"vllm_bundle_dir: there is no bundle in {folder} on the controller.",
        name="bundle-missing",
        remedy="Make one with the playbook gpufleet.vllm.bundle on a machine with internet access, and name its"
        " folder.",
    )


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
