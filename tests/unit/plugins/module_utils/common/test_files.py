# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file is written as a whole or not at all, with the owner and permissions that it must have."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file, write_file

root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="Only root gives files to others.")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_file_and_its_folder_are_made_with_their_permissions(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "vllm-0.yaml"
    os.umask(0o022)
    assert write_file(str(path), "größer\n", 0o640, folder_mode=0o750)
    assert path.read_bytes() == "größer\n".encode()
    assert (mode_of(path), mode_of(path.parent)) == (0o640, 0o750)
    os.umask(0o077)
    assert write_file(str(path.with_name("key")), b"\x99\x00\xff", 0o644)
    assert path.with_name("key").read_bytes() == b"\x99\x00\xff"
    assert mode_of(path.with_name("key")) == 0o644
    assert sorted(os.listdir(path.parent)) == ["key", "vllm-0.yaml"]


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_file(str(path), "a", 0o600)
    inode = path.stat().st_ino
    assert not write_file(str(path), b"a", 0o600)
    assert path.stat().st_ino == inode
    assert write_file(str(path), "a", 0o640)
    assert (path.stat().st_ino != inode, mode_of(path)) == (True, 0o640)
    path.write_bytes(b"\xff\xfe")  # no UTF-8
    assert write_file(str(path), "b", 0o640)
    assert path.read_text() == "b"


def test_what_was_no_text_is_written_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"caf\xe9\n")
    copy = tmp_path / "copy"
    assert write_file(str(copy), path.read_text(encoding="utf-8", errors="surrogateescape"), 0o600)
    assert copy.read_bytes() == b"caf\xe9\n"


def test_a_reader_has_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(str(path), "old", 0o644)
    with path.open() as reader:
        write_file(str(path), "new", 0o644)
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_one_that_is_kept_has_its_mode_and_stays_behind_its_link(tmp_path: Path) -> None:
    target = tmp_path / "managed" / "daemon.json"
    target.parent.mkdir()
    target.write_text("{}")
    target.chmod(0o640)
    link = tmp_path / "docker" / "daemon.json"
    link.parent.mkdir()
    link.symlink_to(target)
    assert write_file(str(link), '{"debug": true}', 0o644, keep=True)
    assert not write_file(str(link), '{"debug": true}', 0o644, keep=True)
    assert link.is_symlink()
    assert (target.read_text(), mode_of(target)) == ('{"debug": true}', 0o640)
    assert (os.listdir(target.parent), os.listdir(link.parent)) == (["daemon.json"], ["daemon.json"])
    new = tmp_path / "new" / "daemon.json"
    assert write_file(str(new), "{}", 0o644, keep=True)
    assert mode_of(new) == 0o644


def test_a_link_in_the_way_of_a_file_of_ours_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    link = tmp_path / "file"
    link.symlink_to(victim)
    assert write_file(str(link), "ours", 0o600)
    assert (link.is_symlink(), link.read_text(), victim.read_text()) == (False, "ours", "untouched")


@root_alone
def test_one_that_is_kept_has_its_owner_and_any_other_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 4711, 4712)
    assert write_file(str(path), "new", 0o644, keep=True)
    assert (path.stat().st_uid, path.stat().st_gid) == (4711, 4712)
    assert write_file(str(path), "newer", 0o644)
    assert path.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    write_file(str(path), "old", 0o640)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(GpufleetError) as caught:
        write_file(str(path), "new", 0o640, variable="vllm_config_dir")
    error = caught.value
    assert (error.name, error.details) == ("write-failed", {"path": str(path)})
    assert error.message == f"{path} cannot be written: No space left on device."
    assert "No space left on device" in error.evidence
    assert error.remedy.endswith("(the play needs become: true), or set vllm_config_dir.")
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["file"])


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "below" / "x"
    with pytest.raises(GpufleetError, match=f"{path} cannot be written: Not a directory") as caught:
        write_file(str(path), "x", 0o644)
    assert caught.value.remedy == "Check the free space and the rights there (the play needs become: true)."
    with pytest.raises(GpufleetError, match=f"The plan cannot be written to {path}.") as caught:
        replace_file(str(path), "x", what="plan", name="plan-not-written", variable="vllm_plan_dir")
    assert (caught.value.name, "vllm_plan_dir" in caught.value.remedy) == ("plan-not-written", True)


@pytest.mark.usefixtures("umask")
def test_all_may_read_what_is_written_on_the_controller(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "host.json"
    replace_file(str(path), "{}", what="plan", name="plan-not-written", variable="vllm_plan_dir")
    assert (path.read_text(), mode_of(path)) == ("{}", 0o644)
