# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the names by which a server is asked for its model."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import served_names


@pytest.mark.parametrize(
    ("value", "names"),
    [("", [""]), ("scout", ["scout"]), ("scout, auto", ["scout", "auto"]), (["a", "b"], ["a", "b"])],
)
def test_one_name_or_several(value: Any, names: list[str]) -> None:
    assert served_names.names_of(value) == names


@pytest.mark.parametrize("value", [{"a": "b"}, [["a"]], True, 7])
def test_what_is_no_name_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="it must be a name, or a list of names"):
        served_names.names_of(value)


def test_the_first_name_that_says_one() -> None:
    assert served_names.first_name(["auto", "scout"]) == "scout"
    assert served_names.first_name("auto") == served_names.first_name("") == served_names.first_name(None) == ""


def test_a_server_has_the_names_of_its_option_or_its_models_own() -> None:
    assert served_names.served_names({}, "org/model") == ["org/model"]
    assert served_names.served_names({"served-model-name": "a b"}, "org/model") == ["a", "b"]
    assert served_names.served_names({"served-model-name": ["a", "b"]}, "org/model") == ["a", "b"]


@pytest.mark.parametrize("name", ["two words", 'qu"ote', "it's", "back\\slash", "", "#comment", "x" * 201, "line\nend"])
def test_a_name_that_no_file_of_the_router_could_have(name: str) -> None:
    assert not served_names.MODEL_NAME.fullmatch(name)
    assert served_names.MODEL_NAME.fullmatch("nvidia/Llama-4-Scout-17B-16E-Instruct-FP8:v1@é+%")
