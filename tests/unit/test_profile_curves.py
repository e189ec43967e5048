# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the guide to capacity shows what was measured."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.tools import profile_curves

TEXT = profile_curves.RESULTS.read_text(encoding="utf-8")


def test_the_committed_picture_is_what_the_tool_makes() -> None:
    assert profile_curves.PICTURE.read_text(encoding="utf-8") == profile_curves.picture(TEXT)


def test_the_points_are_those_of_the_tables() -> None:
    found = [
        [(point.label, point.tpot_ms, point.tokens_s) for point in curve.points]
        for curve in profile_curves.curves(TEXT)
    ]
    assert found == [
        [("1", 7.4, 119.0), ("8", 15.6, 441.0), ("32", 30.3, 935.0), ("125", 37.8, 2839.0)],
        [("104", 45.2, 2215.0)],
        [("806", 130.7, 2789.0)],
        [("1", 6.0, 80.0), ("8", 10.4, 349.0), ("32", 19.4, 725.0), ("786", 59.4, 5871.0)],
    ]


def test_a_figure_that_changes_moves_its_point() -> None:
    assert profile_curves.picture(TEXT.replace("**5871**", "**4871**")) != profile_curves.picture(TEXT)
