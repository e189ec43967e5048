# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as users get it: built, installed from its tarball with no network, used by its name."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.vllm.tests.packaging.away import PLAYBOOKS, ROOT, ansible
from ansible_collections.gpufleet.vllm.tools.checkout import known_to_git

MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py") if path.stem != "__init__")
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())

# All that users need: a folder or file that is none of these has no place in the tarball.
FOR_USERS = {"docs", "inventories", "meta", "playbooks", "plugins", "roles"}
FILES_FOR_USERS = {"README.md", "CHANGELOG.rst", "COPYING", "changelogs/changelog.yaml"}
MADE_BY_THE_BUILD = {"MANIFEST.json", "FILES.json"}


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


def test_the_environment_that_runs_it_can_be_built_from_its_files(installed: Path) -> None:
    """ansible-builder wants file names there, and stops at lists; Galaxy's importer stops with it."""
    meta = installed / "ansible_collections" / "gpufleet" / "vllm"
    wanted = yaml.safe_load((meta / "meta" / "execution-environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert set(wanted) == {"python", "system"}
    for name in wanted.values():
        assert (meta / name).read_text(encoding="utf-8").strip(), name


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
