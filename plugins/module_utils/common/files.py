# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files as a whole: a reader sees the old content or the new one, also where the disk was full; and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from typing import Callable, Union

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

Content = Union[str, bytes]
READ_AT_ONCE = 4 * 1024 * 1024


def write_file(
    path: str, content: Content, mode: int, *, keep: bool = False, folder_mode: int = 0o755, variable: str = ""
) -> bool:
    """Write a file as a whole, unless it has this content already.

    Args:
        path: the file.
        content: its content; a text is written as UTF-8.
        mode: its permissions.
        keep: whether others have a say in the file: one that is there keeps its owner and permissions, and a link, such
            as one into a configuration management's folder, stays and what it leads to is replaced.
        folder_mode: permissions of its folder, which is made if it is missing.
        variable: the variable that moves the file elsewhere, for the remedy; empty if there is none.

    Returns:
        Whether the file changed.

    Raises:
        GpufleetError: C(write-failed); the file is as it was then.
    """
    try:
        return _write(path, content, mode, keep=keep, folder_mode=folder_mode)
    except OSError as error:
        raise write_failed(path, error, variable) from error


def write_failed(path: str, error: OSError, variable: str = "") -> GpufleetError:
    """Return the error for a file that cannot be read, written or removed; C(variable) moves it elsewhere."""
    elsewhere = f", or set {variable}" if variable else ""
    return GpufleetError(
        f"{path} cannot be written: {error.strerror or error}.",
        name="write-failed",
        remedy=f"Check the free space and the rights there (the play needs become: true){elsewhere}.",
        evidence=str(error),
        details={"path": path},
    )


def file_sum(path: str, on_bytes: Callable[[int], None] = lambda _count: None) -> str:
    """Return the SHA-256 of a file's content.

    Args:
        path: of the file.
        on_bytes: told how many bytes were read, each time that some were.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(READ_AT_ONCE), b""):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def remove_file(path: str) -> None:
    """Remove a file if it is there.

    Raises:
        GpufleetError: C(write-failed).
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise write_failed(path, error) from error


def replace_file(path: str, text: str, *, what: str, name: str, variable: str) -> None:
    """Write a file on the controller that all may read, as `write_file` does.

    Args:
        path: the file.
        text: its new text.
        what: what is written, for the message, such as C(report).
        name: name of the error.
        variable: the variable that moves the file elsewhere.

    Raises:
        GpufleetError: C(name) when it cannot be written.
    """
    try:
        _write(path, text, 0o644)
    except OSError as error:
        raise GpufleetError(
            f"The {what} cannot be written to {path}.",
            name=name,
            remedy=f"Set {variable} to a folder on the controller that you may write to.",
            evidence=str(error),
        ) from error


def _write(path: str, content: Content, mode: int, *, keep: bool = False, folder_mode: int = 0o755) -> bool:
    """Do what C(write_file) says; raises OSError."""
    # What was no UTF-8 when it was read is written as it was.
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    target = os.path.realpath(path) if keep else path
    there = _stat(target) if keep else None
    wanted = stat.S_IMODE(there.st_mode) if there else mode
    if _is(target, data, wanted):
        return False
    folder = os.path.dirname(os.path.abspath(target))
    os.makedirs(folder, mode=folder_mode, exist_ok=True)
    # Beside the file, so that the move is a mere renaming: a full disk is met before it.
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            if there:
                os.fchown(descriptor, there.st_uid, there.st_gid)
            os.fchmod(descriptor, wanted)
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return True


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is(path: str, data: bytes, mode: int) -> bool:
    """Return whether a file has this content and these permissions; one that cannot be read has not."""
    try:
        with open(path, "rb") as stream:
            return stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == mode and stream.read() == data
    except OSError:
        return False
