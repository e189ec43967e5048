# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages for tests, fetched and unpacked into a folder of their own: nothing is installed or started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

CACHE = Path(os.environ.get("GPUFLEET_TEST_CACHE_DIR", "/var/cache/gpufleet-tests")) / "packages"
BIN = ("usr/sbin", "usr/bin", "sbin", "bin")


def apt_get(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run apt-get in a folder."""
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def environment(package: str, program: str) -> dict[str, str]:
    """Return variables by which C(program) of a package runs, with what the package needs and the machine lacks.

    They are none where the machine has the program, or where there is no apt to fetch it with.
    """
    if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or not shutil.which("apt-get"):
        return {}
    root = CACHE / f"{package}-and-needs"
    if not any((root / folder / program).exists() for folder in BIN):
        fetched = CACHE / f"{package}-and-needs.fetched"
        fetched.mkdir(parents=True, exist_ok=True)
        wanted = ["install", "--simulate", "--no-install-recommends", package]
        found = apt_get(*wanted, folder=fetched)
        if found.returncode != 0:
            apt_get("update", folder=fetched)
            found = apt_get(*wanted, folder=fetched)
        names = re.findall(r"^Inst (\S+)", found.stdout, re.MULTILINE)
        done = apt_get("download", *names, folder=fetched)
        if done.returncode != 0 or not names:
            raise SystemExit(f"{package} could not be fetched: {found.stderr}{done.stderr}")
        for archive in fetched.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(archive), str(root)], check=True)
    libraries = [str(path) for path in sorted((root / "usr/lib").glob("*-linux-gnu*"))] + [str(root / "usr/lib")]
    return {
        "PATH": ":".join([*(str(root / folder) for folder in BIN), os.environ.get("PATH", "")]),
        "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).strip(":"),
    }
