# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as users get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tests.packaging.away import ROOT, ansible


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built collection."""
    folder = tmp_path_factory.mktemp("build")
    ansible("ansible-galaxy", "collection", "build", str(ROOT), "--output-path", str(folder), folder=folder)
    (built,) = folder.glob("gpufleet-vllm-*.tar.gz")
    return built


@pytest.fixture(scope="session")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collections folder that holds nothing but the installed tarball."""
    folder = tmp_path_factory.mktemp("collections")
    ansible(
        "ansible-galaxy", "collection", "install", "--offline", str(tarball), "-p", str(folder), folder=tarball.parent
    )
    return folder
