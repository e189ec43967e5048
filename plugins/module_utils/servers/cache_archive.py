# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of the folders in which servers keep what they compiled, as one host makes them and another one reads them.

An archive is read as if anybody had written it: a member is a plain file below one of the folders of CACHES, by a name
that leads nowhere else, and there is no more of it than fits. It is unpacked into a folder of its own, and what is
there already stays as it is. A server's container may write to these folders, so no link in them is followed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import file_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB, MIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CACHES

MANIFEST = "manifest.json"
LARGEST = 4 * GIB
SPARE = 512 * MIB
# What a host found out about itself, and what is under way.
OF_THE_HOST = re.compile(r"gpu_p2p_access_cache.*|.*\.lock|.*\.tmp|tmp\.pid_.*")
READ_AT_ONCE = 1024 * 1024
BROKEN = (tarfile.TarError, zlib.error, EOFError, ValueError, TypeError, OverflowError, KeyError, OSError)


def pack(folder: str, path: str, key: str) -> dict[str, Any]:
    """Write an archive of a host's caches.

    Args:
        folder: with the caches.
        path: of the archive, which gets the owner of its folder.
        key: of what they were compiled for.

    Returns:
        C(files), C(bytes) of them, C(size) of the archive and its C(sha256).

    Raises:
        GpufleetError: C(caches-not-packed).
    """
    files = list(_files(folder))
    total = sum(size for _name, size in files)
    if not files or total > LARGEST:
        what = "are empty" if not files else f"hold more than {LARGEST // GIB} GiB"
        raise GpufleetError(f"The caches in {folder} {what}.", name="caches-not-packed")
    manifest = json.dumps({"key": key, "files": len(files), "bytes": total}).encode()
    try:
        owner = os.stat(os.path.dirname(path))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
                entry = tarfile.TarInfo(MANIFEST)
                entry.size = len(manifest)
                archive.addfile(entry, io.BytesIO(manifest))
                for name, _size in files:
                    _add(archive, folder, name)
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return {"files": len(files), "bytes": total, "size": os.path.getsize(path), "sha256": file_sum(path)}
    except OSError as error:
        raise GpufleetError(f"The caches in {folder} cannot be packed: {error}.", name="caches-not-packed") from error


def _files(folder: str) -> Iterator[tuple[str, int]]:
    """Yield the names and sizes of the plain files to pack."""
    for cache in sorted(CACHES):
        for parent, folders, names in os.walk(os.path.join(folder, cache)):
            folders[:] = sorted(entry for entry in folders if not OF_THE_HOST.fullmatch(entry))
            for name in sorted(names):
                try:
                    found = os.lstat(os.path.join(parent, name))
                except FileNotFoundError:
                    continue  # a server that compiles meanwhile has removed it
                if stat.S_ISREG(found.st_mode) and not OF_THE_HOST.fullmatch(name):
                    yield os.path.relpath(os.path.join(parent, name), folder), found.st_size


def _add(archive: tarfile.TarFile, folder: str, name: str) -> None:
    """Add a file as it is when it is read, without its owner."""
    descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = found.st_size, int(found.st_mtime), stat.S_IMODE(found.st_mode) & 0o755
        archive.addfile(entry, stream)


def unpack(path: str, folder: str, key: str, sha256: str) -> int:
    """Unpack an archive into a new folder; nothing is left there when that fails.

    Args:
        path: of the archive.
        folder: to make.
        key: of what the caches have to be for.
        sha256: of the archive, as its host told it.

    Returns:
        The bytes of its files.

    Raises:
        GpufleetError: C(caches-refused).
    """
    try:
        if file_sum(path) != sha256:
            raise ValueError("it is not what its host packed (SHA-256)")
        os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
        os.mkdir(folder, 0o700)
        room = shutil.disk_usage(folder).free - SPARE
        with tarfile.open(path, "r:gz") as archive:
            return _unpack_all(archive, folder, key, room)
    except BROKEN as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise GpufleetError(
            f"What another host compiled was thrown away: {error or type(error).__name__}.", name="caches-refused"
        ) from error


def _unpack_all(archive: tarfile.TarFile, folder: str, key: str, room: int) -> int:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isfile() or first.size > READ_AT_ONCE:
        raise ValueError("it does not say what it is for")
    manifest = json.loads(cast("IO[bytes]", archive.extractfile(first)).read())
    if manifest["key"] != key:
        raise ValueError("it is for another key than this host's: GPU, driver, image, model or plan differ")
    files, total = 0, 0
    for member in archive:
        if member.name == MANIFEST:
            continue
        _check(member)
        files, total = files + 1, total + member.size
        if total > min(room, LARGEST):
            raise ValueError(f"it is larger than the room that {folder} has for it")
        _write(cast("IO[bytes]", archive.extractfile(member)), member, os.path.join(folder, member.name))
    if (files, total) != (manifest["files"], manifest["bytes"]):
        raise ValueError("it was cut short")
    return total


def _check(member: tarfile.TarInfo) -> None:
    """Raise ValueError unless a member is a plain file below one of the caches."""
    parts = member.name.split("/")
    if not member.isreg() or len(parts) < 2 or parts[0] not in CACHES or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{member.name!r} in it is no plain file below {', '.join(sorted(CACHES))}")


def _write(source: IO[bytes], member: tarfile.TarInfo, path: str) -> None:
    """Write a file that is not there yet."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with open(path, "xb") as stream:
        shutil.copyfileobj(source, stream, READ_AT_ONCE)
    os.chmod(path, member.mode & 0o755)
    # FlashInfer's ninja goes by these times.
    os.utime(path, (member.mtime, member.mtime))


def additions(staging: str, folder: str) -> list[str]:
    """Return what of an unpacked archive is not in a folder of caches yet, the highest names that are not."""
    found: list[str] = []
    waiting = [name for name in sorted(CACHES) if os.path.isdir(os.path.join(staging, name))]
    while waiting:
        name = waiting.pop(0)
        there = os.path.join(folder, name)
        if not os.path.lexists(there):
            found.append(name)
        elif os.path.isdir(os.path.join(staging, name)) and os.path.isdir(there) and not os.path.islink(there):
            waiting += [os.path.join(name, entry) for entry in sorted(os.listdir(os.path.join(staging, name)))]
    return found


def remove(folder: str, name: str) -> None:
    """Remove a file or a folder of the caches, but nothing that a link leads to."""
    path = os.path.join(folder, name)
    parent = os.path.join(os.path.realpath(folder), os.path.dirname(name))
    if ".." in name.split("/") or os.path.realpath(os.path.dirname(path)) != os.path.normpath(parent):
        return
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
