# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a host's part of a bundle where it belongs: tells what is missing, verifies what was sent and moves it there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_files import SEEN, SeenFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import file_sum, write_failed
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB, format_bytes

INCOMING, UNFINISHED = ".incoming-", ".unfinished"
SPARE = 64 * MIB  # bytes that stay free

File = Mapping[str, str]


def look(base: str, files: Sequence[File], progress: Progress, *, check: bool) -> list[str]:
    """Return the paths that are missing or not as the bundle has them."""
    progress.phase("comparing with the bundle")
    seen = SeenFiles(base)
    missing = [str(one["path"]) for one in files if not _is_there(one, seen)]
    if not check and os.path.isdir(base):
        seen.keep()
    return missing


def _is_there(one: File, seen: SeenFiles) -> bool:
    path = str(one["path"])
    if "link" in one:
        return os.path.islink(path) and os.readlink(path) == one["link"]
    return not os.path.islink(path) and seen.sum_of(path) == one["sha256"]


def open_incoming(base: str, owner: int, needed: Mapping[str, int]) -> str:
    """Return a new folder into which the user of the connection may write what is sent.

    Args:
        base: folder of the host for its part of the bundle.
        owner: the user's id; -1 for the one that this runs as.
        needed: bytes that will come, by the path where they belong.

    Raises:
        GpufleetError: C(disk-full) or C(write-failed).
    """
    try:
        _make_folder(base)
        _check_room(base, needed)
        close_incoming(base)
        folder = tempfile.mkdtemp(prefix=INCOMING, dir=base)
        os.chown(folder, owner, -1)
    except OSError as error:
        raise write_failed(base, error, "vllm_state_dir") from error
    return folder


def close_incoming(base: str) -> None:
    """Remove what was sent and not placed."""
    for name in os.listdir(base) if os.path.isdir(base) else ():
        if name.startswith(INCOMING):
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)


def _check_room(base: str, needed: Mapping[str, int]) -> None:
    """Raise where what will come does not fit, by the file systems on which it ends."""
    wanted: dict[int, tuple[str, int]] = {}
    for path, size in needed.items():
        there = path
        while not os.path.exists(there):
            there = os.path.dirname(there)
        device = os.stat(there).st_dev
        folder, before = wanted.get(device, (there, 0))
        wanted[device] = folder, before + size
    for folder, size in wanted.values():
        free = shutil.disk_usage(folder).free
        if size + SPARE > free:
            raise GpufleetError(
                f"The bundle brings {format_bytes(size)} to {folder}, where {format_bytes(free)} are free.",
                name="disk-full",
                remedy="Make room there, or set vllm_state_dir and vllm_hf_home to folders of a larger disk.",
                details={"folder": folder, "needed": size, "free": free},
            )


def place(base: str, files: Sequence[File], progress: Progress) -> None:
    """Verify what was sent, and move it to where it belongs; make links.

    Raises:
        GpufleetError: C(bundle-damaged) or C(write-failed); nothing that was sent has replaced anything then.
    """
    for one in files:
        if "incoming" not in one:
            continue
        progress.phase("verifying", str(one["path"]))
        found = file_sum(one["incoming"])
        if found != one["sha256"]:
            raise GpufleetError(
                f"vllm_bundle_dir: {one['source']} arrived as {found}, and SHA256SUMS has {one['sha256']}.",
                name="bundle-damaged",
                remedy="In that folder of the controller `sha256sum --check --quiet SHA256SUMS` tells whether it is"
                " damaged there; if so, bring it again from where the bundle was made. If not, run the play again.",
                details={"file": one["source"]},
            )
    seen = SeenFiles(base)
    for one in files:
        path = str(one["path"])
        try:
            _make_folder(os.path.dirname(path))
            if "link" in one:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                os.symlink(one["link"], path)
                continue
            # Read by all: the servers of a container may run as another user.
            os.chmod(one["incoming"], 0o644)
            os.chown(one["incoming"], os.geteuid(), os.getegid())
            _move(one["incoming"], path)
            seen.note(path, str(one["sha256"]))
        except OSError as error:
            raise write_failed(path, error) from error
    seen.keep(others=True)


def _make_folder(path: str) -> None:
    """Make a folder, and those above it, for all to go through, whatever the umask is."""
    if not os.path.isdir(path):
        _make_folder(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def _move(source: str, path: str) -> None:
    """Move a file to where it belongs: a reader sees the old one or the whole new one, also on another disk."""
    try:
        os.replace(source, path)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    beside = f"{path}{UNFINISHED}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)
    with open(source, "rb") as stream, open(beside, "xb") as copy:
        shutil.copyfileobj(stream, copy, 4 * MIB)
    shutil.copymode(source, beside)
    os.replace(beside, path)
    os.unlink(source)


def left_over(base: str, files: Sequence[File], spared: Sequence[str]) -> list[str]:
    """Return files in the host's folder of bundled files that the bundle does not have any more."""
    kept = {str(one["path"]) for one in files} | {os.path.join(base, name) for name in (SEEN, *spared)}
    found = []
    for parent, _folders, names in os.walk(base):
        paths = (os.path.join(parent, name) for name in names)
        found += [path for path in paths if path not in kept and INCOMING not in path]
    return sorted(found)


def remove(paths: Sequence[str]) -> None:
    """Remove files that are left over."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def as_result(missing: Sequence[str], left: Sequence[str]) -> dict[str, Any]:
    """Return what is to change as the text of a diff."""
    text = [*(f"{path}\n" for path in missing), *(f"{path} (removed)\n" for path in left)]
    return {"before": "", "after": "".join(text)}
