# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which plan a host keeps while its servers change, on files alone; tests/engine has the servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.applied_plan import (
    PLAN_FILE,
    UNFINISHED_FILE,
    AppliedPlan,
    merged,
    read_plan,
)


def plan(image: str, *numbers: int, **more: Any) -> dict[str, Any]:
    """Return a plan of which each replica tells from which image it is."""
    return {"image": image, "replicas": [{"name": f"vllm-{number}", "of": image} for number in numbers], **more}


def told(of: Any) -> tuple[str, list[str]]:
    """Return the image of a plan, and its replicas with the image that they are of."""
    return of["image"], [f"{replica['name'][-1]} {replica['of']}" for replica in of["replicas"]]


OLD = plan("old", 0, 1)


@pytest.mark.parametrize(
    ("before", "wanted", "answered", "gone", "is_told"),
    [
        (OLD, plan("new", 0, 1), [0], [], ("old", ["0 new", "1 old"])),
        (OLD, plan("new", 0, 1), [0, 1], [], ("new", ["0 new", "1 new"])),
        # One more, and one less that still serves, then not any more.
        (OLD, plan("new", 0, 1, 2), [2], [], ("old", ["0 old", "1 old", "2 new"])),
        (OLD, plan("new", 0), [0], [], ("new", ["0 new", "1 old"])),
        (OLD, plan("new", 0), [0], [1], ("new", ["0 new"])),
        # Two that gave their GPUs to one.
        (OLD, plan("new", 0, 2), [0], [1], ("old", ["0 new"])),
        # The first one ever.
        ({}, plan("new", 0, 1), [1], [], ("new", ["1 new"])),
    ],
)
def test_a_plan_is_taken_over_replica_by_replica(
    before: Any, wanted: Any, answered: list[int], gone: list[int], is_told: Any
) -> None:
    names, dropped = ([f"vllm-{number}" for number in numbers] for numbers in (answered, gone))
    assert told(merged(before, wanted, names, dropped)) == is_told


def test_what_was_tried_is_not_what_serves(tmp_path: Path) -> None:
    folder = str(tmp_path)
    AppliedPlan(folder, OLD).complete()
    text = (tmp_path / PLAN_FILE).read_text()
    failed = AppliedPlan(folder, plan("new", 0, 1))
    failed.begin([])
    failed.answered([])
    assert ((tmp_path / PLAN_FILE).read_text(), failed.changed) == (text, False)
    assert read_plan(folder, UNFINISHED_FILE)["plan"]["image"] == "new"
    # The old one again: the file stays, and what was tried is over.
    again = AppliedPlan(folder, OLD)
    assert again.difference == []
    again.complete()
    assert (again.changed, [path.name for path in tmp_path.iterdir()]) == (False, [PLAN_FILE])


def test_a_plan_of_which_the_texts_changed_is_kept_and_shown(tmp_path: Path) -> None:
    AppliedPlan(str(tmp_path), OLD).complete()
    new = AppliedPlan(str(tmp_path), {**OLD, "warnings": ["a disk is nearly full"]})
    (difference,) = new.difference
    assert (difference["after_header"], "nearly full" in difference["before"]) == (str(tmp_path / PLAN_FILE), False)
    assert "nearly full" in difference["after"]
    new.complete()
    assert (tmp_path / PLAN_FILE).read_text() == difference["after"]
    assert (tmp_path / PLAN_FILE).stat().st_mode & 0o777 == 0o640


def test_servers_that_are_made_from_no_plan_leave_it_alone(tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_text("as it was")
    none = AppliedPlan(str(tmp_path), {})
    none.begin([])
    none.answered(["vllm-0"])
    none.complete()
    assert (none.difference, none.changed) == ([], False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["as it was"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"replicas": null}'])
def test_a_plan_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    """Also the half of one that an older version left on a full disk."""
    (tmp_path / PLAN_FILE).write_text(text)
    wanted = AppliedPlan(str(tmp_path), plan("new", 0, 1))
    assert wanted.forget([], "vllm", check=False) == []
    wanted.answered(["vllm-0"])
    assert [replica["name"] for replica in read_plan(str(tmp_path))["replicas"]] == ["vllm-0"]


def test_replicas_that_are_removed_leave_the_plan_and_the_last_takes_it_along(tmp_path: Path) -> None:
    AppliedPlan(str(tmp_path), OLD).complete()
    path = tmp_path / PLAN_FILE
    removal = AppliedPlan(str(tmp_path), {})
    assert removal.forget([], "vllm", check=True) == [str(path)]
    assert (removal.changed, told(json.loads(path.read_text()))) == (True, told(OLD))
    assert removal.forget([], "another", check=False) == []
    assert removal.forget(["vllm-0"], "vllm", check=False) == []
    assert told(json.loads(path.read_text())) == ("old", ["1 old"])
    assert removal.forget(["vllm-1"], "vllm", check=False) == [str(path)]
    assert not path.exists()
    gone = AppliedPlan(str(tmp_path), {})
    assert (gone.forget([], "vllm", check=False), gone.changed) == ([], False)


def test_a_plan_with_a_secret_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    with pytest.raises(GpufleetError) as caught:
        AppliedPlan(str(tmp_path), plan("new", 0, environment={"VLLM_API_KEY": "sk-4711"}))
    assert (caught.value.name, "sk-4711" in caught.value.as_text()) == ("config-secret", False)
