# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vendor_repository_check: succeeds, or fails by the one name of what is wrong."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.modules import vendor_repository_check

RunModule = Callable[..., dict[str, Any]]
ARGUMENTS: dict[str, Any] = {
    "url": "https://example.com/stable",
    "fingerprints": ["0" * 40],
    "packages": ["toolkit=1.19.1-1"],
    "available": ["toolkit=1.19.1-1", "toolkit=1.17.8-1"],
}


@pytest.mark.parametrize("check", [False, True])
def test_a_repository_with_the_packages_passes(run_module: RunModule, check: bool) -> None:
    result = run_module(vendor_repository_check.main, ARGUMENTS, check=check)
    assert (result["failed"], result["changed"]) == (False, False)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"refused": "E:The repository is not signed."}, "repository-untrusted"),
        ({"refused": "E:Could not connect", "available": []}, "repository-unreachable"),
        ({"available": ["toolkit=1.17.8-1"]}, "package-missing"),
        ({"not_installed": "E: unmet dependencies"}, "packages-failed"),
    ],
)
def test_each_failure_has_its_name(run_module: RunModule, change: dict[str, Any], name: str) -> None:
    result = run_module(vendor_repository_check.main, {**ARGUMENTS, **change})
    assert result["failed"] is True
    assert result["error"]["name"] == name
