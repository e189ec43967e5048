# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as users get it: built, installed from its tarball with no network, used by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py") if path.stem != "__init__")
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())

# All that users need: a folder or file that is none of these has no place in the tarball.
FOR_USERS = {"docs", "inventories", "meta", "playbooks", "plugins", "roles"}
FILES_FOR_USERS = {"README.md", "CHANGELOG.rst", "COPYING", "changelogs/changelog.yaml"}
MADE_BY_THE_BUILD = {"MANIFEST.json", "FILES.json"}


def ansible(program: str, *arguments: str, folder: Path, collections: Path | None = None) -> str:
    """Run a program of ansible-core away from this checkout and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHONPATH"))}
    environment |= {"ANSIBLE_NOCOLOR": "1", "HOME": str(folder)}
    if collections:
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(collections)
    command = [str(BIN / program), *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def known_to_git() -> set[str]:
    """Return the files of the checkout that are committed or would be."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built collection."""
    folder = tmp_path_factory.mktemp("build")
    ansible("ansible-galaxy", "collection", "build", str(ROOT), "--output-path", str(folder), folder=folder)
    (built,) = folder.glob("gpufleet-vllm-*.tar.gz")
    return built


@pytest.fixture(scope="module")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collections folder that holds nothing but the installed tarball."""
    folder = tmp_path_factory.mktemp("collections")
    ansible(
        "ansible-galaxy", "collection", "install", "--offline", str(tarball), "-p", str(folder), folder=tarball.parent
    )
    return folder


def test_the_tarball_holds_what_users_need_and_nothing_else(tarball: Path) -> None:
    with tarfile.open(tarball) as tar:
        files = {member.name for member in tar.getmembers() if not member.isdir()}
    wanted = {
        name for name in known_to_git() if name in FILES_FOR_USERS or name.partition("/")[0] in FOR_USERS
    } | MADE_BY_THE_BUILD
    assert sorted(files - wanted) == [], "in the tarball, and not for users or not known to git"
    assert sorted(wanted - files) == [], "missing from the tarball"


def test_the_tarball_is_small(tarball: Path) -> None:
    assert tarball.stat().st_size < 2 * 1024 * 1024


def test_every_module_is_found_by_name_and_has_a_page(installed: Path) -> None:
    listing = ansible("ansible-doc", "--list", "--json", "gpufleet.vllm", folder=installed, collections=installed)
    assert sorted(json.loads(listing)) == [f"gpufleet.vllm.{name}" for name in MODULES]
    pages = ansible(
        "ansible-doc", "--json", *(f"gpufleet.vllm.{name}" for name in MODULES), folder=installed, collections=installed
    )
    described = json.loads(pages)
    assert all(described[f"gpufleet.vllm.{name}"]["doc"]["short_description"] for name in MODULES)


def test_every_role_is_found_by_name(installed: Path) -> None:
    listing = ansible(
        "ansible-doc", "-t", "role", "--list", "--json", "gpufleet.vllm", folder=installed, collections=installed
    )
    assert sorted(json.loads(listing)) == [f"gpufleet.vllm.{name}" for name in ROLES]


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_every_playbook_runs_by_name(installed: Path, playbook: str) -> None:
    collection = installed / "ansible_collections" / "gpufleet" / "vllm"
    output = ansible(
        "ansible-playbook",
        f"gpufleet.vllm.{playbook}",
        "--syntax-check",
        "-i",
        str(collection / "inventories" / "local"),
        folder=installed,
        collections=installed,
    )
    assert f"playbook: {collection}/playbooks/{playbook}.yml" in output
