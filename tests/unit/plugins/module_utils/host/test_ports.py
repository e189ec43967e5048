# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of this machine: free, taken, and by whom."""

from __future__ import annotations

import errno
import os

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import (
    addresses_of,
    bind_problem,
    clash,
    listener,
)
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port


def test_a_taken_port_is_told_with_its_holder(taken_port: int) -> None:
    assert bind_problem("127.0.0.1", taken_port) == errno.EADDRINUSE
    assert bind_problem("0.0.0.0", taken_port) == errno.EADDRINUSE
    assert listener(taken_port).endswith(f"(pid {os.getpid()})")


def test_a_port_that_was_closed_a_moment_ago_is_free() -> None:
    port = free_port()
    assert bind_problem("127.0.0.1", port) == 0
    assert listener(port) == ""


def test_an_address_of_another_machine_is_told() -> None:
    assert bind_problem("192.0.2.1", 8000) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("held", "wanted", "found"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "10.0.0.1", True),
        ("10.0.0.1", "0.0.0.0", True),
        ("::", "10.0.0.1", True),
        ("::1", "::1", True),
        ("127.0.0.1", "localhost", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_servers_at_one_port_get_into_each_others_way_where_their_addresses_meet(
    held: str, wanted: str, found: bool
) -> None:
    assert clash(held, addresses_of(wanted)) is found
