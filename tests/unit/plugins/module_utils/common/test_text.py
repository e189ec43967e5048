# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers and lists as people read them."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import duration, listed, rough_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (59.6, "1 min 0 s"), (65, "1 min 5 s"), (7500, "2 h 5 min"), (400000, "4 days 15 h")],
)
def test_a_duration_is_told_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (599, "599 s"), (720, "12 min"), (18000, "5 h"), (259200, "3 days")]
)
def test_a_rough_duration_has_one_unit(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text


@pytest.mark.parametrize(
    ("names", "text"), [(["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d", "e"], "a, b, c and 2 more")]
)
def test_a_long_list_is_cut_short(names: list[str], text: str) -> None:
    assert listed(names) == text
