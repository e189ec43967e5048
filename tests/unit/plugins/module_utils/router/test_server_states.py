# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the states that HAProxy's workers start with, with the answer of a real HAProxy 2.6."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.server_states import (
    ServerStates,
    at_their_places,
    rows_of,
    set_by_command,
)

ANSWERS = Path(__file__).resolve().parents[3] / "data" / "haproxy"
# cpu-1 is in use, cpu-2 drained, cpu-3 in maintenance.
STATES = (ANSWERS / "show-servers-state.txt").read_text(encoding="utf-8")


def replicas(address: str = "127.0.0.1", ports: tuple[int, ...] = (18100, 18110, 18120)) -> list[Replica]:
    """Return the replicas of the recorded answer, or such that have moved."""
    return [Replica(f"cpu-{number}", f"cpu-{number}-0", address, port) for number, port in enumerate(ports, 1)]


def shown(text: str) -> dict[str, tuple[str, ...]]:
    """Return of each row address, port, health and what an administrator made of it."""
    columns = ("srv_addr", "srv_port", "srv_op_state", "srv_admin_state")
    return {row["srv_name"]: tuple(row[column] for column in columns) for row in rows_of(text)}


def test_what_stays_at_its_place_keeps_its_health() -> None:
    assert rows_of(at_their_places(STATES, replicas())) == rows_of(STATES)


@pytest.mark.parametrize(
    "moved", [replicas(ports=(1, 2, 3)), replicas("10.0.0.9", (1, 2, 3)), replicas("gpu", (1, 2, 3))]
)
def test_what_has_moved_is_a_new_server_and_what_was_taken_out_stays_so(moved: list[Replica]) -> None:
    assert shown(at_their_places(STATES, moved)) == {
        "cpu-2:cpu-2-0": ("-", "2", "0", "8"),
        "cpu-3:cpu-3-0": ("-", "3", "0", "1"),
    }


def test_another_address_at_the_same_port_is_another_place() -> None:
    assert list(shown(at_their_places(STATES, replicas("10.0.0.9")))) == ["cpu-2:cpu-2-0", "cpu-3:cpu-3-0"]


def test_a_name_is_a_place_whatever_its_address() -> None:
    states = STATES.replace("127.0.0.1 0 0 1 1 465 8 2 0 6 0 0 0 - ", "10.7.7.7 2 0 1 1 465 8 2 0 6 0 0 0 gpu.example ")
    assert shown(at_their_places(states, replicas("GPU.example")))["cpu-1:cpu-1-0"] == ("10.7.7.7", "18100", "2", "0")


def test_an_address_of_ipv6_is_the_same_however_it_is_written() -> None:
    states = STATES.replace("127.0.0.1", "2001:db8::5")
    assert len(shown(at_their_places(states, replicas("2001:DB8:0::0005")))) == 3


def test_what_the_router_has_no_more_is_forgotten() -> None:
    assert list(shown(at_their_places(STATES, replicas()[2:]))) == ["cpu-3:cpu-3-0"]
    assert at_their_places("", replicas()) == at_their_places(STATES, []) == "1\n"


def test_between_changes_only_what_was_taken_out_is_kept() -> None:
    kept = set_by_command(STATES)
    assert kept.splitlines()[0] == "1" and kept.splitlines()[1].startswith("# be_id be_name ")
    assert list(shown(kept)) == ["cpu-2:cpu-2-0", "cpu-3:cpu-3-0"]
    assert set_by_command(kept) == kept


def test_the_file_is_made_once_and_then_left(tmp_path: Path) -> None:
    states = ServerStates(str(tmp_path / "run"))
    states.ensure_file()
    assert states.read() == "1\n"
    states.write(set_by_command(STATES))
    states.ensure_file()
    assert states.read() == set_by_command(STATES)
