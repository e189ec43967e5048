# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bundle has for a host is verified before it replaces anything, and a second run reads nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.vllm_bundle_copy import BATCH_BYTES, ActionModule, batches
from ansible_collections.gpufleet.vllm.plugins.module_utils.common import bundle_files
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_bundle_copy

RunModule = Callable[..., dict[str, Any]]
TEXT = "package"
SUM = hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.fixture
def step(run_module: RunModule, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Take one step of the module."""
    own = {"base": str(tmp_path / "state/bundle"), "hf_home": str(tmp_path / "hf")}

    def take(state: str, *, check: bool = False, diff: bool = False, **more: Any) -> dict[str, Any]:
        return run_module(vllm_bundle_copy.main, {**own, "state": state, **more}, check=check, diff=diff)

    return take


@pytest.fixture
def files(tmp_path: Path) -> list[dict[str, str]]:
    """Return a file and a link that belong on the host."""
    path = str(tmp_path / "state/bundle/packages/a.deb")
    return [
        {"path": path, "source": "packages/x/a.deb", "sha256": SUM},
        {"path": str(tmp_path / "hf/hub/link"), "link": "../blobs/a"},
    ]


def sent(opened: dict[str, Any], files: list[dict[str, str]], text: str) -> list[dict[str, str]]:
    """Send the file, as the action does; return the files with where it came to."""
    incoming = os.path.join(opened["incoming"], "0")
    Path(incoming).write_text(text)
    return [{**files[0], "incoming": incoming}, files[1]]


def test_what_is_missing_comes_and_a_second_run_reads_nothing(
    step: Callable[..., dict[str, Any]], files: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = step("look", files=files, diff=True)
    assert (looked["changed"], looked["missing"]) == (True, [one["path"] for one in files])
    assert files[0]["path"] in looked["diff"]["after"]
    opened = step("open", needed={files[0]["path"]: len(TEXT)})
    assert "error" not in step("place", files=sent(opened, files, TEXT))
    step("close")
    assert not os.path.exists(opened["incoming"])
    assert Path(files[0]["path"]).read_text() == TEXT
    assert os.readlink(files[1]["path"]) == "../blobs/a"
    monkeypatch.setattr(bundle_files, "file_sum", lambda *_args: pytest.fail("was read again"))
    assert step("look", files=files)["changed"] is False


def test_a_damaged_file_replaces_nothing(step: Callable[..., dict[str, Any]], files: list[dict[str, str]]) -> None:
    opened = step("open")
    result = step("place", files=sent(opened, files, "damaged"))
    assert result["error"]["name"] == "bundle-damaged"
    assert "packages/x/a.deb" in result["msg"]
    assert not os.path.exists(files[0]["path"])


def test_what_comes_from_another_disk_appears_as_a_whole_and_replaces_a_link(
    step: Callable[..., dict[str, Any]], files: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, path = tmp_path / "elsewhere", Path(files[0]["path"])
    elsewhere.write_text("of somebody else")
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    replace = os.replace

    def between_disks(source: str, target: str) -> None:
        if ".incoming-" in source:
            raise OSError(errno.EXDEV, "another disk")
        assert Path(source).read_text() == TEXT
        replace(source, target)

    monkeypatch.setattr(os, "replace", between_disks)
    opened = step("open")
    assert "error" not in step("place", files=sent(opened, files, TEXT))
    assert (path.read_text(), path.is_symlink(), elsewhere.read_text()) == (TEXT, False, "of somebody else")
    assert os.listdir(path.parent) == ["a.deb"] and os.listdir(opened["incoming"]) == []


def test_who_logs_in_gets_to_the_folder_and_servers_to_the_files_whatever_the_umask_is(
    step: Callable[..., dict[str, Any]], files: list[dict[str, str]], tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        opened = step("open", owner=os.getuid())
        step("place", files=sent(opened, files, TEXT))
    finally:
        os.umask(before)
    assert Path(opened["incoming"]).stat().st_mode & 0o777 == 0o700
    for folder in ("state", "state/bundle", "state/bundle/packages", "hf", "hf/hub"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_what_is_sent_may_be_written_by_who_logs_in(step: Callable[..., dict[str, Any]]) -> None:
    assert os.stat(step("open", owner=65534)["incoming"]).st_uid == 65534


def test_one_that_has_changed_on_the_host_is_missing(
    step: Callable[..., dict[str, Any]], files: list[dict[str, str]]
) -> None:
    step("place", files=sent(step("open"), files, TEXT))
    Path(files[0]["path"]).write_text("other")
    assert step("look", files=files)["missing"] == [files[0]["path"]]


def test_what_the_bundle_has_no_more_goes_away_and_not_in_check_mode(
    step: Callable[..., dict[str, Any]], files: list[dict[str, str]], tmp_path: Path
) -> None:
    step("place", files=sent(step("open"), files, TEXT))
    old = tmp_path / "state/bundle/packages/old.deb"
    old.write_text("old")
    (tmp_path / "state/bundle/packages/bundle.list").write_text("deb")
    assert step("look", files=files, check=True)["removed"] == [str(old)]
    assert old.exists()
    step("close")
    assert step("look", files=files)["removed"] == [str(old)]
    assert not old.exists()
    assert step("look", files=files)["changed"] is False


def test_a_disk_that_is_too_small_is_known_before_anything_is_sent(
    step: Callable[..., dict[str, Any]], files: list[dict[str, str]]
) -> None:
    result = step("open", needed={files[0]["path"]: 1 << 60})
    assert result["error"]["name"] == "disk-full"
    assert "vllm_hf_home" in result["msg"]


def test_the_host_says_who_logs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inventory need not name that user, and ssh may have another one than tasks become."""
    asked = []

    def execute(_action: ActionModule, command: str, *, sudoable: bool) -> dict[str, str]:
        asked.append((command, sudoable))
        return {"stdout": "Welcome\r\n1001\r\n"}

    monkeypatch.setattr(ActionModule, "_low_level_execute_command", execute)
    assert object.__new__(ActionModule)._login_id() == 1001
    assert asked == [("id -u", False)]


def test_files_are_sent_in_groups_of_limited_size() -> None:
    files = [{"path": str(number)} for number in range(5)]
    sizes = {"0": BATCH_BYTES * 2, "1": 1, "2": BATCH_BYTES - 1, "3": 1, "4": 1}
    assert [[one["path"] for one in group] for group in batches(files, sizes)] == [["0"], ["1", "2"], ["3", "4"]]
