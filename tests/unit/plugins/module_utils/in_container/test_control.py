# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a server's control folder."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import door
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CLOSED


def test_a_plan_without_tables_has_none() -> None:
    assert Control("/c/vllm-0").tables({}) == {}


def test_tables_lie_in_a_folder_of_their_own() -> None:
    found = {"folder": "moe-1a2b", "files": {"E=16,N=1.json": "{}"}}
    assert Control("/c/vllm-0").tables(found) == {"/c/vllm-0/moe-1a2b/E=16,N=1.json": "{}"}


def test_a_plan_writes_nowhere_else() -> None:
    found = {"folder": "../../etc", "files": {"../passwd": "x"}}
    assert Control("/c/vllm-0").tables(found) == {"/c/vllm-0/etc/passwd": "x"}


def test_host_and_door_mean_the_same_file() -> None:
    assert CLOSED == door.CLOSED
