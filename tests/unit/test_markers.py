# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who looks for markers finds them however they are written, and says nothing where they may be."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tests.fakes.markers import (
    MARKER,
    CommandLines,
    excerpt,
    holders,
    newer_files,
)

VALUE = f"\"'é {MARKER}-x \\&@/"


WRITTEN = (
    VALUE,
    json.dumps({"a": json.dumps({"b": VALUE})}),
    urllib.parse.quote(urllib.parse.quote(VALUE)),
    shlex.quote(shlex.quote(VALUE)),
    VALUE.encode().hex(),
    *(base64.b64encode(("x" * before + VALUE).encode()).decode() for before in range(6)),
    *(base64.urlsafe_b64encode(("é" * before + VALUE).encode()).decode() for before in range(3)),
)


# The marker is another one in each process, so it may not name the tests.
@pytest.mark.parametrize("text", WRITTEN, ids=range(len(WRITTEN)))
def test_it_is_found_however_it_is_written(text: str) -> None:
    assert text in excerpt(f"before {text} after")


def test_what_is_no_marker_is_not_found() -> None:
    assert excerpt("MARKER, and bWFya2Vy") == ""
    assert excerpt(base64.b64encode(b"MARKER").decode()) == ""


def write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def test_files_hold_it_only_where_they_may_and_only_for_their_owner(tmp_path: Path) -> None:
    private = {r"host-\d+/etc/.*\.env": "why"}
    packed = gzip.compress(VALUE.encode())
    write(tmp_path / "given.json", VALUE.encode(), 0o644)
    write(tmp_path / "host-01/etc/a.env", VALUE.encode(), 0o600)
    write(tmp_path / "host-01/etc/clean", b"nothing", 0o644)
    assert holders(tmp_path, ("given",), private) == []
    write(tmp_path / "host-01/etc/b.env", VALUE.encode(), 0o640)
    write(tmp_path / "host-01/etc/c.json", VALUE.encode(), 0o600)
    write(tmp_path / "host-01/log.gz", packed, 0o600)
    names = [line.split()[0] for line in holders(tmp_path, ("given",), private)]
    assert names == ["host-01/etc/b.env", "host-01/etc/c.json", "host-01/log.gz"]
    assert [line.split()[0] for line in holders(tmp_path, ("given",))] == ["host-01/etc/b.env"]


def test_files_of_another_folder_count_from_their_change_on(tmp_path: Path) -> None:
    write(tmp_path / "before", b"", 0o644)
    time.sleep(0.05)
    since = (tmp_path / "before").stat().st_ctime + 0.01
    write(tmp_path / "a/after", b"", 0o644)
    write(tmp_path / "b/after", b"", 0o644)
    assert newer_files([tmp_path], since, [tmp_path / "b"]) == [tmp_path / "a/after"]


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_command_line_is_seen() -> None:
    with CommandLines() as lines:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1)", VALUE], check=True)
    assert lines.looks > 1
    assert any(MARKER in line for line in lines.found)
