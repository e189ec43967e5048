# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of this machine: free, taken, and by whom."""

from __future__ import annotations

import errno
import os

from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import bind_problem, listener
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
