# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replacing a file as a whole: a reader sees the old text or the new one."""

from __future__ import annotations

import contextlib
import os
import tempfile

from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError


def write_file(path: str, text: str, mode: int) -> bool:
    """Replace a file as a whole unless it is already as wanted; return whether it was not."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as stream:
        if stream.read() == text and os.stat(path).st_mode & 0o777 == mode:
            return False
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        os.fchmod(descriptor, mode)
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    return True


def replace_file(path: str, text: str, *, what: str, name: str, variable: str) -> None:
    """Put C(text) in the place of the file C(path) on the controller, whose folder is made if it is missing.

    Args:
        path: the file.
        text: its new text.
        what: what is written, for the message, such as C(report).
        name: name of the error.
        variable: the variable that moves the file elsewhere.

    Raises:
        GpufleetError: C(name) when it cannot be written.
    """
    folder = os.path.dirname(path)
    temporary = ""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".new-", delete=False, encoding="utf-8") as stream:
            temporary = stream.name
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise GpufleetError(
            f"The {what} cannot be written to {path}.",
            name=name,
            remedy=f"Set {variable} to a folder on the controller that you may write to.",
            evidence=str(error),
        ) from error
