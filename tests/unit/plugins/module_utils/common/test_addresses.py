# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses of hosts and servers."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import overlap


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "10.0.0.1", True),
        ("10.0.0.1", "", True),
        ("::", "10.0.0.1", True),
        ("[::1]", "::1", True),
        ("localhost", "127.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_servers_at_one_port_get_into_each_others_way_where_their_addresses_meet(
    here: str, there: str, found: bool
) -> None:
    assert overlap(here, there) is overlap(there, here) is found
