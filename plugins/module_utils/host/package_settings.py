# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What apt, dnf and pip are told of a site's way out for one piece of work, in files that only root reads.

An environment variable with a password would be in the process list. The files are gone afterwards.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text

FOLDER = "/run/gpufleet-way-out"
DNF_CONFIG = "/etc/dnf/dnf.conf"
# The variable by which a program finds its file; dnf has an option for that.
VARIABLES = {"apt": "APT_CONFIG", "pip": "PIP_CONFIG_FILE"}


def write(
    texts: Mapping[str, str], no_proxy: str, folder: str = FOLDER, dnf_config: str = DNF_CONFIG
) -> dict[str, str]:
    """Write the files, and return the environment variables that name them.

    Args:
        texts: what apt, dnf and pip are told; those with an empty text, and dnf's, have no variable.
        no_proxy: who is reached without a proxy; empty for none.
        folder: where the files lie.
        dnf_config: the host's own configuration of dnf, which its file has, too.

    Raises:
        GpufleetError: C(write-failed).
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.chmod(folder, 0o700)
    except OSError as error:
        raise write_failed(folder, error) from error
    found = {name: no_proxy for name in ("no_proxy", "NO_PROXY") if no_proxy}
    for name, text in texts.items():
        if not text:
            continue
        path = path_of(name, folder)
        write_file(path, with_own(text, read_text(dnf_config)) if name == "dnf" else text, 0o600)
        if name in VARIABLES:
            found[VARIABLES[name]] = path
    return found


def path_of(name: str, folder: str = FOLDER) -> str:
    """Return the path of a program's file."""
    return os.path.join(folder, f"{name}.conf")


def with_own(text: str, own: str) -> str:
    """Return dnf's configuration: lines for its main part, and what the host has, whose proxy they replace."""
    names = {line.partition("=")[0].strip() for line in text.splitlines()}
    kept = [
        line for line in own.splitlines() if line.strip() != "[main]" and line.partition("=")[0].strip() not in names
    ]
    return "\n".join(["[main]", text.strip(), *kept, ""])


def remove(folder: str = FOLDER) -> None:
    """Remove the files."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
