# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the sums of a router's log."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import usage

DAY = 1798761600  # 2027-01-01


def line(**changes: Any) -> str:
    """Return a line of the log."""
    entry = {"time": DAY + 5.25, "client": "a", "model": "m", "replica": "gpu-01:vllm-0", "status": 200, "end": "--"}
    entry.update(bytes_in=10, bytes_out=20, tokens_in="3", tokens_out="4")
    return json.dumps({**entry, **changes}) + "\n"


def sums(path: Path, since: float = 0, until: float = math.inf) -> dict[tuple[str, str, str], list[int]]:
    """Return requests, failures, bytes, tokens, and requests with tokens, by day, client and model."""
    rows, _unreadable = usage.sum_up(str(path), since, until)
    return {(row["day"], row["client"], row["model"]): list(row.values())[3:] for row in rows}


def test_days_clients_and_models_are_summed_apart(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [line(), line(), line(client="b"), line(model="n", tokens_in="-", tokens_out="-"), line(time=DAY - 0.5)]
    log.write_text("".join(lines), encoding="utf-8")
    assert sums(log) == {
        ("2027-01-01", "a", "m"): [2, 0, 20, 40, 6, 8, 2],
        ("2027-01-01", "b", "m"): [1, 0, 10, 20, 3, 4, 1],
        ("2027-01-01", "a", "n"): [1, 0, 10, 20, 0, 0, 0],
        ("2026-12-31", "a", "m"): [1, 0, 10, 20, 3, 4, 1],
    }


@pytest.mark.parametrize(
    ("changes", "failures"),
    [
        ({"status": 204}, 0),
        ({"status": 429, "end": "LR"}, 1),
        ({"status": 500}, 1),
        ({"status": -1, "end": "CR"}, 1),
        ({"status": 200, "end": "SD"}, 1),
        ({"status": 200, "end": "CD"}, 1),
    ],
)
def test_what_was_refused_not_answered_or_cut_short_failed(
    tmp_path: Path, changes: dict[str, Any], failures: int
) -> None:
    (tmp_path / "log").write_text(line(**changes), encoding="utf-8")
    ((requests, failed, *_others),) = sums(tmp_path / "log").values()
    assert (requests, failed) == (1, failures)


def test_names_that_no_replica_took_are_one_row(tmp_path: Path) -> None:
    made_up = [line(model=f"x{number}", status=404) for number in range(5)]
    refused = [line(model=f"y{number}", status=403, replica="<NOSRV>") for number in range(5)]
    broken = line(model="real", status=502)
    text = "".join(
        [*made_up, *refused, broken, line(model="-", status=401, replica="<NOSRV>"), line(model="m", status=403)]
    )
    (tmp_path / "log").write_text(text, encoding="utf-8")
    assert {key[2]: numbers[0] for key, numbers in sums(tmp_path / "log").items()} == {
        "(unknown)": 10,
        "real": 1,
        "-": 1,
        "m": 1,
    }


def test_only_the_days_asked_for_count_and_what_is_no_line_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    days = [line(time=DAY + number * usage.DAY_S) for number in range(4)]
    log.write_text("".join([*days, "half a line", "\n", "[]\n", '{"time": "x"}\n']), encoding="utf-8")
    first, last = usage.first_second("2027-01-02", "x"), usage.first_second("2027-01-03", "x") + usage.DAY_S
    assert [key[0] for key in sums(log, first, last)] == ["2027-01-02", "2027-01-03"]
    assert usage.sum_up(str(log), 0, math.inf)[1] == 3
    assert usage.sum_up(str(tmp_path / "none"), 0, math.inf) == ([], 0)
    with pytest.raises(GpufleetError, match="router_usage_since: '2027-02-30' is no day"):
        usage.first_second("2027-02-30", "router_usage_since")


def test_a_log_that_is_rotated_while_it_is_read_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    (tmp_path / "log.20270101T000000Z-000").write_text(line(), encoding="utf-8")
    log.write_text(line() * 3, encoding="utf-8")
    plain = usage.rotated

    def rotate_then_list(path: str) -> list[str]:
        log.rename(tmp_path / "log.20270102T000000Z-000")
        log.write_text(line(), encoding="utf-8")
        return plain(path)

    monkeypatch.setattr(usage, "rotated", rotate_then_list)
    assert [numbers[0] for numbers in sums(log).values()] == [4], "what came after the beginning does not count"


def test_a_row_is_read_back_as_it_was() -> None:
    use = usage.Use(1, 2, 3, 4, 5, 6, 7)
    row = usage.as_row(("2027-01-01", "a", "m"), use)
    assert usage.of_row(row) == (("2027-01-01", "a", "m"), use)
