# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replacing a file as a whole on the controller: a reader sees the old text or the new one."""

from __future__ import annotations

import contextlib
import os
import tempfile

from ansible_collections.gpufleet.vllm.plugins.module_utils.errors import GpufleetError


def replace_file(path: str, text: str, *, what: str, name: str, variable: str) -> None:
    """Put C(text) in the place of the file C(path), whose folder is made if it is missing.

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
