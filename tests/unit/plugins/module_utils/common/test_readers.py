# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A variable's value is read as it is meant, also where Ansible hands over the text of -e name=value."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import text_of, value_of, version_of


def list_of(value: Any) -> list[Any]:
    """Read a list as a reader does that knows nothing of JSON."""
    if not isinstance(value, list):
        raise ValueError("it must be a list")
    return value


@pytest.mark.parametrize("given", [[1, 2], "[1, 2]", " [1,2]"])
def test_a_list_may_be_given_as_json(given: Any) -> None:
    problems: list[str] = []
    assert value_of({"vllm_x": given}, "x", ("vllm_x", list_of), problems) == [1, 2]
    assert problems == []


@pytest.mark.parametrize("given", ["[1, 2", "1,2", 7, '{"a": 1}'])
def test_what_is_no_list_is_refused_by_the_variables_name(given: Any) -> None:
    problems: list[str] = []
    value_of({"vllm_x": given}, "x", ("vllm_x", list_of), problems)
    assert len(problems) == 1 and problems[0].startswith("vllm_x: ") and problems[0].endswith("it must be a list")


def test_a_text_that_looks_like_json_stays_a_text() -> None:
    problems: list[str] = []
    assert value_of({"vllm_x": "[1, 2]"}, "x", ("vllm_x", text_of), problems) == "[1, 2]"


@pytest.mark.parametrize("given", [0.30, 1.1])
def test_a_number_where_a_version_belongs_is_refused(given: float) -> None:
    problems: list[str] = []
    value_of({"vllm_version": given}, "version", ("vllm_version", version_of), problems)
    assert "write it in quotes" in problems[0]
