# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Public models by the numbers of their own configurations: what a token takes, what the weights take, what divides.

tests/unit/data/architectures.json has, for each: where its numbers are from, the elements that a token keeps and the
bytes of a sequence's state as a sum of products (written down by hand from the model's numbers and vLLM's own sums, not
by this collection's code), the published billions of parameters where the writer knew them, the local layers with their
window, and the tensor parallel sizes up to 16 that vLLM 0.12.0 and 0.33.0 accept by the rules in their wheels; none of
these models was started. C(longest) is the longest request by vLLM's rule, where the configuration tells more than one
number. Releases from 0.24 on have dropped some of these architectures: test_model_support.py.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import memory_model, model_shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Shape
from ansible_collections.gpufleet.vllm.tests.fakes.models import ROWS

NAMES = [row["name"] for row in ROWS]
# Bits of a parameter in each precision that the table has.
BITS = {"bf16": 16, "fp8": 8, "fp32": 32}


def products(text: str) -> int:
    """Return the sum of products that a text such as C(2*3+4*5) is."""
    return sum(math.prod(int(factor) for factor in term.split("*")) for term in text.split("+"))


def shape(row: dict[str, Any]) -> Shape:
    found = model_shape.read({"path": "/m", "config": row["config"]})
    assert isinstance(found, Shape), found
    return found


def test_there_are_thirty_architectures_and_each_has_a_source() -> None:
    assert len({json.dumps(row["config"].get("model_type")) for row in ROWS}) >= 30
    assert all(row["source"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_bytes_of_a_token(row: dict[str, Any]) -> None:
    found = memory_model.kv_bytes_per_token(shape(row), "bfloat16")
    assert found == pytest.approx(products(row["kv"]) * 2, rel=0.02)


def published_bytes(row: dict[str, Any], found: Shape) -> float:
    """Return the bytes of the published number of parameters; embedding and head have 16 bits in every precision."""
    bits, embeddings = BITS[found.precision], 2 * found.vocabulary * found.hidden
    spared = embeddings * (16 - bits) if found.precision == "fp8" else 0
    return float(row["billions"] * 1e9 * bits + spared) / 8


@pytest.mark.parametrize("row", [row for row in ROWS if row["billions"]], ids=lambda row: row["name"])
def test_weights_without_their_files(row: dict[str, Any]) -> None:
    found = shape(row)
    counted = found.weights_gib / model_shape.LOADED * GIB
    assert counted == pytest.approx(published_bytes(row, found), rel=0.02)


@pytest.mark.parametrize("row", [row for row in ROWS if "gigabytes" in row], ids=lambda row: row["name"])
def test_weights_of_which_only_a_part_is_quantised(row: dict[str, Any]) -> None:
    assert shape(row).weights_gib / model_shape.LOADED * GIB == pytest.approx(row["gigabytes"] * 1e9, rel=0.02)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
@pytest.mark.parametrize(("version", "column"), [((0, 12, 0), 0), ((0, 33, 0), 1)])
def test_sizes_that_vllm_accepts(row: dict[str, Any], version: tuple[int, int, int], column: int) -> None:
    assert memory_model.tensor_parallel_sizes(shape(row), 16, version) == row["tp"][column]


@pytest.mark.parametrize("row", [row for row in ROWS if "local" in row], ids=lambda row: row["name"])
def test_local_layers(row: dict[str, Any]) -> None:
    found = shape(row)
    assert [found.local_layers, found.local_window] == row["local"]


@pytest.mark.parametrize("row", [row for row in ROWS if "longest" in row], ids=lambda row: row["name"])
def test_the_longest_request(row: dict[str, Any]) -> None:
    assert shape(row).max_position == row["longest"]


@pytest.mark.parametrize("row", [row for row in ROWS if "state" in row], ids=lambda row: row["name"])
def test_the_state_of_a_sequence(row: dict[str, Any]) -> None:
    assert shape(row).state_bytes == pytest.approx(products(row["state"]), rel=0.02)


@pytest.mark.parametrize("row", [row for row in ROWS if "local" not in row], ids=lambda row: row["name"])
def test_all_others_attend_to_everything(row: dict[str, Any]) -> None:
    assert shape(row).local_layers == 0
