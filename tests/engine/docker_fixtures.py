# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test on a real Docker engine needs: the engine, at DOCKER_HOST or the usual socket, and programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect

if TYPE_CHECKING:
    from docker import DockerClient

CACHE = Path(os.environ.get("GPUFLEET_TEST_CACHE_DIR", "/var/cache/gpufleet-tests")) / "packages"


@pytest.fixture(scope="session")
def docker_host() -> str:
    """The address of the engine under test."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


@pytest.fixture(scope="session")
def engine(docker_host: str) -> Iterator[DockerClient]:
    """A client of the engine under test."""
    client = connect(docker_host)
    yield client
    client.close()


def debian_program(package: str, path: str) -> Path:
    """Return a program out of a Debian package, fetched and unpacked but not installed; kept for the next run."""
    program = CACHE / package / path
    if program.exists():
        return program
    if not shutil.which("apt-get"):
        pytest.fail(f"The tests need {Path(path).name}, of Debian's package {package}.")
    fetched = CACHE / f"{package}.fetched"
    fetched.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
    if subprocess.run(command, cwd=fetched, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "-qq", "update"], capture_output=True, check=False)
        subprocess.run(command, cwd=fetched, capture_output=True, check=True)
    for archive in fetched.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(archive), str(CACHE / package)], check=True)
    return program
