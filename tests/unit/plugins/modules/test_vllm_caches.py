# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_caches: what does not work is a word, and no failure."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import cache_archive
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_caches
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

KEY = "a" * 64


@pytest.fixture(autouse=True)
def no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with little room is no reason to refuse."""
    monkeypatch.setattr(cache_archive, "SPARE", 0)


@pytest.fixture
def packed(run_module: RunModule, tmp_path: Path) -> dict[str, Any]:
    """What a host packed, with the archive."""
    compiled = tmp_path / "one" / "triton" / "cache" / "K" / "kernel.cubin"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(b"kernel")
    archive = str(tmp_path / "archive")
    arguments = {"state": "packed", "key": KEY, "cache_dir": str(tmp_path / "one"), "archive": archive}
    result = run_module(vllm_caches.main, arguments)
    assert (result["changed"], result["why"], result["files"], result["bytes"]) == (False, "", 1, 6)
    assert result["size"] == Path(archive).stat().st_size
    return {"archive": archive, "sha256": result["sha256"]}


def add(
    run_module: RunModule, folder: Path, packed: dict[str, Any], check: bool = False, **more: str
) -> dict[str, Any]:
    """Add an archive to the caches of a host."""
    own = {"cache_dir": str(folder / "cache"), "config_dir": str(folder / "etc")}
    return run_module(
        vllm_caches.main, {"state": "present", "key": KEY, "host": "one", **own, **packed, **more}, check=check
    )


def test_a_host_has_it_once(run_module: RunModule, tmp_path: Path, packed: dict[str, Any]) -> None:
    new = tmp_path / "new"
    would = add(run_module, new, packed, check=True)
    assert (would["changed"], new.exists()) == (False, False)
    first = add(run_module, new, packed)
    assert (first["changed"], first["why"], first["names"]) == (True, "", ["triton/cache"])
    assert first["msg"] == "compile caches: 0.0 MiB from one"
    assert (new / "cache/triton/cache/K/kernel.cubin").read_bytes() == b"kernel"
    second = add(run_module, new, packed)
    assert not second["failed"]
    assert "here already" in second["why"]


def test_what_does_not_work_is_said(run_module: RunModule, tmp_path: Path, packed: dict[str, Any]) -> None:
    new = tmp_path / "new"
    other = add(run_module, new, packed, key="b" * 64)
    assert (other["failed"], other["changed"]) == (False, False)
    assert "for another key" in other["why"]
    assert other["why"].startswith("What another host compiled was thrown away")
    empty = {"state": "packed", "key": KEY, "cache_dir": str(new / "none"), "archive": str(tmp_path / "x")}
    assert "are empty" in run_module(vllm_caches.main, empty)["why"]
    with (new / "etc" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = add(run_module, new, packed)
    assert (busy["failed"], busy["names"]) == (False, [])
    assert busy["why"]
