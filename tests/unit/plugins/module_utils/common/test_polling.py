# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting until something is so."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until


def test_it_asks_until_the_answer_is_true() -> None:
    answers = iter([0, "", 7, 8])
    assert until(lambda: next(answers), 60, 0) == 7
    assert next(answers) == 8


def test_when_the_time_is_up_it_returns_the_last_answer() -> None:
    asked = []
    assert until(lambda: asked.append(1), 0, 60) is None
    assert asked == [1]
