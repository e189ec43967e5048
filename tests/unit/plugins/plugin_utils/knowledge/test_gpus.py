# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How GPUs become groups, and whose processes count as others'. Selection itself is in test_planner.py."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import catalogue, gpus
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu

OURS, THEIRS = "a" * 64, "b" * 64


def cards(peers: list[list[int] | None]) -> list[Gpu]:
    """Return one H200 for each entry, which lists the GPUs it reaches over NVLink."""
    return [
        Gpu(index, "NVIDIA H200", (9, 0), 143771, peers=None if linked is None else tuple(linked))
        for index, linked in enumerate(peers)
    ]


def indexes(groups: list[list[Gpu]]) -> list[list[int]]:
    return [[gpu.index for gpu in group] for group in groups]


CROSSED = [[2], [3], [0], [1]]
TWO_ISLANDS = [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]


@pytest.mark.parametrize(
    ("peers", "size", "count", "expected"),
    [
        ([None] * 4, 2, 2, [[0, 1], [2, 3]]),
        (CROSSED, 2, 2, [[0, 2], [1, 3]]),
        (CROSSED, 4, 1, [[0, 2, 1, 3]]),
        (TWO_ISLANDS, 2, 3, [[0, 1], [3, 4], [2, 5]]),
        (TWO_ISLANDS, 2, 2, [[0, 1], [3, 4]]),
        ([[], [], []], 1, 3, [[0], [1], [2]]),
        ([[], [], []], 2, 1, [[0, 1]]),
    ],
    ids=["not probed", "neighbours crossed", "over two pairs", "rests together", "fewer", "single", "no NVLink"],
)
def test_groups(peers: list[list[int] | None], size: int, count: int, expected: list[list[int]]) -> None:
    found = gpus.groups(cards(peers), size, count)
    assert [sorted(group) for group in indexes(found)] == [sorted(group) for group in expected]


@pytest.mark.parametrize(
    ("peers", "expected"), [([[1], [0]], True), ([[], []], False), ([None, None], None), ([[1, 2], [0], [0]], False)]
)
def test_linked(peers: list[list[int] | None], expected: bool | None) -> None:
    assert gpus.linked(cards(peers)) is expected


def process(container: str) -> dict[str, Any]:
    return {"pid": 9, "name": "python3", "used_mib": 100, "container": container}


@pytest.mark.parametrize(
    ("processes", "used_mib", "used_by"),
    [
        ([], 0, ""),
        ([], 1500, ""),
        ([], 2500, "2500 MiB held by a process that the driver does not name"),
        ([process("")], 100, "python3 (pid 9, 100 MiB)"),
        ([process(THEIRS)], 100, "python3 (pid 9, 100 MiB)"),
        ([process(OURS)], 100000, ""),
        ([process(THEIRS), process(OURS)], 100000, ""),
        ([{"pid": 3, "name": None, "used_mib": None, "container": ""}], 100, "a process (pid 3, ? MiB)"),
    ],
)
def test_who_uses_a_card(processes: list[dict[str, Any]], used_mib: int, used_by: str) -> None:
    probed = {"index": 0, "memory_used_mib": used_mib, "processes": processes}
    ours = [OURS] if processes else []
    assert gpus.from_probe([probed], ours)[0].used_by == used_by


def test_memory_without_a_process_is_ours_where_we_run() -> None:
    probed = {"index": 0, "memory_used_mib": 100000, "processes": []}
    assert gpus.from_probe([probed], [OURS])[0].used_by == ""


def test_a_card_that_says_nothing_is_kept_apart() -> None:
    silent = {"index": 3, "name": None, "compute_capability": None, "memory_total_mib": None, "error": "lost"}
    found = gpus.from_probe([silent])[0]
    assert (found.index, found.error, found.generation) == (3, "lost", "unsupported")


@pytest.mark.parametrize(
    ("capability", "generation"),
    [
        ((9, 0), "hopper"),
        ((10, 0), "blackwell"),
        ((10, 3), "blackwell"),
        ((12, 0), "blackwell"),
        ((8, 0), "unsupported"),
        ((8, 9), "unsupported"),
        ((11, 0), "unsupported"),
        ((13, 0), "unsupported"),
    ],
)
def test_generations(capability: tuple[int, int], generation: str) -> None:
    assert Gpu(0, "x", capability, 1).generation == generation


@pytest.mark.parametrize(
    ("name", "capability", "memory"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 81559),
        ("NVIDIA H100 NVL", (9, 0), 95830),
        ("nvidia h200", (9, 0), 143771),
        ("NVIDIA GH200 480GB", (9, 0), 97871),
        ("NVIDIA GH200 144G HBM3e", (9, 0), 146831),
        ("NVIDIA B200", (10, 0), 183359),
        ("NVIDIA GB200", (10, 0), 189471),
        ("NVIDIA B300 SXM6 AC", (10, 3), 275040),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0), 97887),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0), 97887),
        ("NVIDIA RTX PRO 5000 Blackwell", (12, 0), 48935),
        ("NVIDIA GB10", (12, 1), 122000),
        ("NVIDIA GB300", (10, 3), 284208),
        ("NVIDIA GH200 120GB", (9, 0), 97871),
        ("NVIDIA H200 NVL", (9, 0), 143771),
        ("NVIDIA H200 141GB", (9, 0), 143771),
        ("NVIDIA B200 192GB", (10, 0), 183359),
        ("NVIDIA B300 288GB", (10, 3), 275040),
        ("NVIDIA H800", (9, 0), 81559),
        ("NVIDIA H20", (9, 0), 97871),
        ("NVIDIA H20-3e", (9, 0), 143771),
        ("NVIDIA H100 PCIe", (9, 0), 81559),
        ("NVIDIA H100 64GB HBM2", (9, 0), 65216),
        ("NVIDIA H100 96GB HBM3", (9, 0), 97824),
        ("NVIDIA H100 NVL 94GB", (9, 0), 95830),
        ("NVIDIA A100-SXM-64GB", (8, 0), 65216),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 81920),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 40960),
    ],
)
def test_cards_by_name(name: str, capability: tuple[int, int], memory: int) -> None:
    found = gpus.from_inventory([{"name": name}])
    assert [(gpu.index, gpu.compute_capability, gpu.memory_mib) for gpu in found] == [(0, capability, memory)]


def test_cards_of_several_entries_are_counted_on() -> None:
    found = gpus.from_inventory([{"name": "NVIDIA H200", "count": 2}, {"name": "NVIDIA H800 NVL"}])
    assert [(gpu.index, gpu.memory_mib) for gpu in found] == [(0, 143771), (1, 143771), (2, 95830)]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "MIG slice"),
        ("MIG 1g.10gb", "MIG slice"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb+me", "MIG slice"),
        ("NVIDIA H100XM-40C", "vGPU"),
        ("NVIDIA H100L-94C", "vGPU"),
        ("GRID A100D-80C", "vGPU"),
        ("NVIDIA L40S-48Q", "vGPU"),
        ("NVIDIA H100 80GB HBM3", ""),
        ("NVIDIA A100-SXM4-80GB", ""),
        ("NVIDIA H20-3e", ""),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", ""),
        ("NVIDIA B300 SXM6 AC", ""),
    ],
)
def test_parts_of_cards_by_name(name: str, part: str) -> None:
    assert catalogue.part_of_a_card(name) == part


def test_a_card_without_memory_of_its_own_has_its_hosts() -> None:
    silent = {"index": 0, "name": "NVIDIA GB10", "compute_capability": "12.1", "memory_total_mib": None}
    (found,) = gpus.from_probe([silent], [], 122572)
    assert (found.memory_mib, found.reserved_mib, found.unified) == (122572, 0, True)
    (found,) = gpus.from_probe([{**silent, "name": "NVIDIA H200"}], [], 122572)
    assert (found.memory_mib, found.unified) == (0, False)


def test_what_the_inventory_says_of_a_card_wins() -> None:
    found = gpus.from_inventory([{"name": "NVIDIA H200", "compute_capability": 9.0, "memory_mib": "141000"}])
    assert (found[0].compute_capability, found[0].memory_mib) == ((9, 0), 141000)


def test_several_kinds_in_the_inventory_are_numbered_on() -> None:
    found = gpus.from_inventory([{"name": "NVIDIA H200", "count": 2}, {"name": "NVIDIA B200"}])
    assert [(gpu.index, gpu.name) for gpu in found] == [(0, "NVIDIA H200"), (1, "NVIDIA H200"), (2, "NVIDIA B200")]
