# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ansible-builder is given: the ansible-core that the collection supports, and a collection that is there."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ansible_collections.gpufleet.vllm.tests.unit.test_structure import read_yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_execution_environment_fits_the_collection() -> None:
    described, galaxy = read_yaml(ROOT / "execution-environment.yml"), read_yaml(ROOT / "galaxy.yml")
    core = Requirement(described["dependencies"]["ansible_core"]["package_pip"])
    oldest = read_yaml(ROOT / "meta" / "runtime.yml")["requires_ansible"]
    assert core.name == "ansible-core"
    assert {str(part) for part in SpecifierSet(oldest)} < {str(part) for part in core.specifier}
    (files,) = described["additional_build_files"]
    assert fnmatch.fnmatch(f"{galaxy['namespace']}-{galaxy['name']}-{galaxy['version']}.tar.gz", files["src"])
    assert any(files["dest"] in step for step in described["additional_build_steps"]["append_final"])
