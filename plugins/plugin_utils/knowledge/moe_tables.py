# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tuned tilings of vLLM's Triton MoE kernel: those that this collection brings, and those of a folder of the user's.

vLLM reads a table by its name, such as C(E=16,N=4096,device_name=NVIDIA_H200,dtype=fp8_w8a8.json): experts, width of
one on each card, card, arithmetic. A table belongs to the very card and to the Triton that it was measured with. Beside
a table of a folder lies where it comes from, C(….provenance.json): C(cards) (names as the driver tells them), C(vllm)
(the release that it was measured with) and whatever else. vLLM itself takes an H200 NVL for an H200; a plan does
not.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions

OWN = Path(__file__).with_name("moe_tables_h200.json")
# The releases with the PyTorch, and so the Triton, of the measured one (2.11, by their wheels' requirements).
OWN_SPAN = versions.Span(since=(0, 20, 0), until=(0, 27, 0))
FP8 = "fp8_w8a8"
NAME = re.compile(r"E=(\d+),N=(\d+),device_name=([^,]+),dtype=(\w+)\.json")
PROVENANCE = ".provenance.json"


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        experts: how many experts a layer has.
        width: of one expert on each card.
        cards: names of the cards that it was measured on.
        dtype: of the arithmetic, as vLLM names it.
        span: the releases that it is for.
        text: its content.
        source: where it comes from, for a person.
    """

    experts: int
    width: int
    cards: tuple[str, ...]
    dtype: str
    span: versions.Span
    text: str
    source: str

    @property
    def name(self) -> str:
        """The name of its file, by which vLLM finds it."""
        device = re.sub(r"[\s/]+", "_", self.cards[0])
        return f"E={self.experts},N={self.width},device_name={device},dtype={self.dtype}.json"


@functools.cache
def own() -> tuple[Table, ...]:
    """Return the tables that this collection brings."""
    document = json.loads(OWN.read_text(encoding="utf-8"))
    source = "of this collection, measured on {} with vLLM {} and Triton {} on {}".format(
        document["cards"][0], document["vllm"], document["triton"], document["measured"]
    )
    return tuple(
        Table(
            entry["experts"],
            entry["width"],
            tuple(document["cards"]),
            entry["dtype"],
            OWN_SPAN,
            json.dumps({**entry["table"], "triton_version": document["triton"]}),
            f"{source}: {_gain(entry['microseconds'])}; {entry['again']}",
        )
        for entry in document["tables"]
    )


def _gain(microseconds: Mapping[str, tuple[float, float]]) -> str:
    """Return what a table was measured to gain in small batches and in the largest one."""
    faster = {int(tokens): default / tuned for tokens, (default, tuned) in microseconds.items()}
    largest = max(faster)
    decode = [factor for tokens, factor in faster.items() if 64 <= tokens <= 1024]
    several = f"x {min(decode):.2f} to {max(decode):.2f} of the kernel at 64 to 1024 tokens"
    return f"{several}, x {faster[largest]:.2f} at {largest}"


def of_folder(files: Mapping[str, str]) -> tuple[list[Table], list[str]]:
    """Return the tables of a folder, and why others in it are not used.

    Args:
        files: the names and texts of its files.
    """
    tables, problems = [], []
    for name in sorted(files):
        if name.endswith(PROVENANCE):
            continue
        try:
            tables.append(_of_file(name, files))
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"vllm_moe_tables_dir: {name} is not used: {error}")
    return tables, problems


def _of_file(name: str, files: Mapping[str, str]) -> Table:
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError("its name is none by which vLLM finds a table for FP8 with static scales")
    beside = files.get(name.removesuffix(".json") + PROVENANCE)
    if beside is None:
        raise ValueError(
            f"there is no {name.removesuffix('.json')}{PROVENANCE} beside it, which says its card and vLLM"
        )
    about: dict[str, Any] = json.loads(beside)
    version = versions.parse(str(about.get("vllm", "")))
    cards = tuple(str(card) for card in about.get("cards") or ())
    if version is None or not cards:
        raise ValueError("its provenance has no vllm, or no cards")
    if not isinstance(json.loads(files[name]), dict):
        raise ValueError("it is no table")
    minor = (version[0], version[1], 0)
    span = versions.Span(since=minor, until=(version[0], version[1] + 1, 0))
    source = f"of vllm_moe_tables_dir, measured on {cards[0]} with vLLM {versions.as_text(version)}"
    return Table(int(found[1]), int(found[2]), cards, found[4], span, files[name], source)


def find(
    tables: Iterable[Table], cards: Iterable[str], version: versions.Version, wanted: tuple[int, int]
) -> Table | None:
    """Return the table of FP8 for these cards, this vLLM and this number and width of experts; the first one counts."""
    names = set(cards)
    for table in tables:
        fits = (table.experts, table.width) == wanted and table.dtype == FP8 and table.span.holds(version)
        if fits and names <= set(table.cards):
            return table
    return None
