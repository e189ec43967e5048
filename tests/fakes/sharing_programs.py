# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rsync and OpenSSH's server out of Debian's packages, unpacked but not installed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program

# The user of sshd's unprivileged half, which the package would make.
USER = "sshd:x:104:65534::/run/sshd:/usr/sbin/nologin\n"
LIBRARIES = {"libpopt0": "libpopt.so.0", "libxxhash0": "libxxhash.so.0", "libwrap0": "libwrap.so.0"}


def library_path() -> str:
    """Return where the libraries are that the programs need beside the C library."""
    folders = []
    for package, name in LIBRARIES.items():
        root = debian_program(package, "usr/share/doc").parents[2]
        folders += [str(path.parent) for path in root.rglob(name)]
    return ":".join(folders)


def programs(folder: Path) -> str:
    """Put the two programs into a folder, and return a search path with it."""
    folder.mkdir(parents=True)
    rsync, sshd = debian_program("rsync", "usr/bin/rsync"), debian_program("openssh-server", "usr/sbin/sshd")
    users = folder / "passwd"
    known = Path("/etc/passwd").read_text(encoding="utf-8")
    users.write_text(known if "\nsshd:" in known else known + USER, encoding="utf-8")
    libraries = f"LD_LIBRARY_PATH={shlex.quote(library_path())}"
    inner = f'mount --bind {shlex.quote(str(users))} /etc/passwd && {libraries} exec {shlex.quote(str(sshd))} "$@"'
    lines = {
        "rsync": f'{libraries} exec {shlex.quote(str(rsync))} "$@"',
        "sshd": f'exec unshare --mount sh -c {shlex.quote(inner)} sshd "$@"',
    }
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
