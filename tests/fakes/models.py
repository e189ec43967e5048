# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configurations of public models, as tests/unit/data/architectures.json has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "unit" / "data" / "architectures.json").read_text(encoding="utf-8")
)


def config_of(name: str) -> dict[str, Any]:
    """Return the config.json of the model of that name."""
    found: dict[str, Any] = next(row["config"] for row in ROWS if row["name"] == name)
    return found


SCOUT_TEXT: dict[str, Any] = {
    **config_of("meta-llama/Llama-4-Scout-17B-16E-Instruct")["text_config"],
    "tie_word_embeddings": False,
}
