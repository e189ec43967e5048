# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a host: one at a time, told who holds it, free again however the holder ends."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock


def test_the_second_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with host_lock(str(path), "vllm_server, state present"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(GpufleetError) as caught, host_lock(str(path), "another"):
            pass
    assert caught.value.name == "busy"
    assert f"vllm_server, state present (process {os.getpid()})" in caught.value.message
    with host_lock(str(path), "another"):
        assert json.loads(path.read_text())["operation"] == "another"
    assert path.read_text() == ""


def test_it_is_free_after_a_failure(tmp_path: Path) -> None:
    path = str(tmp_path / ".lock")
    with pytest.raises(ValueError, match="x"), host_lock(path, "first"):
        raise ValueError("x")
    with host_lock(path, "second"):
        pass
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_holder_that_wrote_nothing_is_still_told(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with host_lock(str(path), "x"):
        path.write_text("")
        with pytest.raises(GpufleetError, match=r"something else \(process unknown\)"), host_lock(str(path), "y"):
            pass


def test_it_is_waited_for_when_there_is_time(tmp_path: Path) -> None:
    path = str(tmp_path / ".lock")
    free = threading.Event()

    def hold() -> None:
        with host_lock(path, "first"):
            free.set()
            time.sleep(1.0)

    holder = threading.Thread(target=hold)
    holder.start()
    free.wait(10)
    began = time.monotonic()
    told: list[str] = []
    with host_lock(path, "second", timeout=30, on_wait=told.append):
        assert time.monotonic() - began > 0.5
    holder.join()
    assert re.fullmatch(rf"first, for \d+ s, process {os.getpid()}", told[0])


def test_a_holder_on_another_host_is_named_with_its_host(tmp_path: Path) -> None:
    """As on NFS, where the lock is the server's; here a process of this host says that it is on another."""
    path = tmp_path / ".lock"
    with host_lock(str(path), "x"):
        path.write_text(json.dumps({"pid": 7, "host": "gpu-02", "operation": "download of o/m", "since": 2**40}))
        with pytest.raises(GpufleetError) as caught, host_lock(str(path), "y"):
            pass
    assert caught.value.message == (
        f"Another run is working in {tmp_path} (for 0 s): download of o/m (process 7 on gpu-02)."
    )
    assert "end process 7 on gpu-02 only if it hangs" in caught.value.remedy


def test_where_there_can_be_no_lock_the_variable_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(GpufleetError, match="cannot be written: Is a directory") as caught,
        host_lock(str(tmp_path / ".lock"), "x", variable="vllm_hf_home"),
    ):
        pass
    assert (caught.value.name, "or set vllm_hf_home" in caught.value.remedy) == ("write-failed", True)
