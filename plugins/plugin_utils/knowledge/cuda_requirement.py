# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image itself says of the driver that it needs: its variable NVIDIA_REQUIRE_CUDA.

Alternatives stand apart by blanks, the conditions of one by commas: C(cuda>=12.9 brand=tesla,driver>=535,driver<536).
The container toolkit starts no container of which no alternative is met (unless NVIDIA_DISABLE_REQUIRE is set).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONDITION = re.compile(r"(?P<what>\w+)\s*(?P<operator>>=|<=|!=|=|<|>)\s*(?P<value>[\w.]+)")
# The brands that NVML may give to the cards of data centres; which of them depends on card and driver.
DATA_CENTRE_BRANDS = ("tesla", "nvidia", "unknown")


def is_met(environment: Mapping[str, str], driver: str, cuda: str) -> bool | None:
    """Return whether a host meets what an image asks for; None when that cannot be told.

    Args:
        environment: the image's variables.
        driver: the host's driver, such as C(580.159.04); empty when unknown.
        cuda: the newest CUDA that this driver runs, such as C(13.0); empty when unknown.
    """
    text = environment.get("NVIDIA_REQUIRE_CUDA", "").strip()
    disabled = environment.get("NVIDIA_DISABLE_REQUIRE", "").lower() not in ("", "0", "false")
    if not text or disabled:
        return True
    answers = [_alternative(alternative, driver, cuda) for alternative in text.split()]
    if any(answer is True for answer in answers):
        return True
    return None if any(answer is None for answer in answers) else False


def _alternative(text: str, driver: str, cuda: str) -> bool | None:
    answers: list[bool | None] = []
    for condition in text.split(","):
        found = CONDITION.fullmatch(condition.strip())
        answers.append(_condition(found, driver, cuda) if found else None)
    if any(answer is False for answer in answers):
        return False
    return None if any(answer is None for answer in answers) else True


def _condition(condition: Any, driver: str, cuda: str) -> bool | None:
    what, operator, value = condition["what"], condition["operator"], condition["value"]
    if what == "brand":
        return bool((value in DATA_CENTRE_BRANDS) == (operator == "="))
    have = {"driver": driver, "cuda": cuda}.get(what, "")
    if not have:
        return None
    left, right = _numbers(have), _numbers(value)
    # "driver<536" is about the branch: 535.183 is below it, and 536.25 is not.
    width = max(len(left), len(right))
    left, right = left + (0,) * (width - len(left)), right + (0,) * (width - len(right))
    answers: dict[str, bool] = {
        ">=": left >= right,
        "<=": left <= right,
        "!=": left != right,
        "=": left == right,
        "<": left < right,
        ">": left > right,
    }
    return answers[operator]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
