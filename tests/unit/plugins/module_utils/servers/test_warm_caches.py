# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one host compiled becomes another one's, and what should not is thrown away."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import file_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import cache_archive
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.cache_archive import MANIFEST, pack
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.warm_caches import WarmCaches

KEY = "a" * 64
COMPILED = {
    "vllm/torch_compile_cache/1a/rank_0_0/graph.py": b"graph" * 1000,
    "triton/cache/KERNEL/kernel.cubin": b"\x7fELF",
    "flashinfer/0.4/90a/cached_ops/norm/norm.so": b"so",
}


@pytest.fixture(autouse=True)
def no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with little room is no reason to refuse."""
    monkeypatch.setattr(cache_archive, "SPARE", 0)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """The caches of a host that is ready."""
    folder = tmp_path / "ready"
    fill(folder, COMPILED)
    return folder


@pytest.fixture
def new(tmp_path: Path) -> WarmCaches:
    """The caches of a new host: none."""
    return WarmCaches(str(tmp_path / "new" / "cache"), "vllm")


def fill(folder: Path, files: dict[str, bytes]) -> None:
    """Write files as servers do."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def content(folder: str) -> dict[str, bytes]:
    """Return the files of the caches."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.parent != Path(folder)
    }


def packed(ready: Path, key: str = KEY) -> tuple[str, str]:
    """Return the archive of a host, and its hash."""
    path = ready.parent / "archive"
    path.unlink(missing_ok=True)
    return str(path), str(pack(str(ready), str(path), key)["sha256"])


def crafted(path: Path, *members: tuple[tarfile.TarInfo, bytes], manifest: Any = None) -> str:
    """Write an archive as somebody else might; return its path."""
    told = manifest or {"key": KEY, "files": len(members), "bytes": sum(len(data) for _member, data in members)}
    first = tarfile.TarInfo(MANIFEST)
    data = json.dumps(told).encode()
    first.size = len(data)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(first, io.BytesIO(data))
        for member, inside in members:
            archive.addfile(member, io.BytesIO(inside))
    return str(path)


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 1, target: str = "") -> tarfile.TarInfo:
    """Return an entry of an archive."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, size if kind == tarfile.REGTYPE else 0, target
    entry.uid, entry.mode = 4711, 0o6777
    return entry


def refused(caches: WarmCaches, archive: str, sha256: str = "") -> str:
    """Return why an archive is thrown away; nothing is left of it."""
    before = content(caches.folder) if os.path.isdir(caches.folder) else {}
    with pytest.raises(GpufleetError) as told:
        caches.receive(archive, KEY, sha256 or file_sum(archive), "one")
    assert told.value.name == "caches-refused"
    assert not caches.received_from()
    assert not os.path.exists(os.path.join(caches.folder, ".receiving"))
    assert (content(caches.folder) if os.path.isdir(caches.folder) else {}) == before
    return told.value.message


def test_a_new_host_has_what_another_one_compiled(ready: Path, new: WarmCaches) -> None:
    (ready / "vllm/gpu_p2p_access_cache_for_0,1.json").write_text("{}")
    (ready / "triton/cache/tmp.pid_7_x").mkdir()
    (ready / "triton/cache/tmp.pid_7_x/half").write_text("half")
    (ready / "triton/cache/link").symlink_to("/etc/passwd")
    os.utime(ready / "triton/cache/KERNEL/kernel.cubin", (10, 10))
    archive, sha256 = packed(ready)
    result = new.receive(archive, KEY, sha256, "one")
    assert result["bytes"] == sum(map(len, COMPILED.values()))
    assert content(new.folder) == COMPILED
    assert os.stat(f"{new.folder}/triton/cache/KERNEL/kernel.cubin").st_mtime == 10
    assert new.received_from() == "one"
    assert not new.is_warm(KEY)
    new.keep_received()
    new.note_warm(KEY)
    assert (new.received_from(), new.is_warm(KEY), new.is_warm("")) == ("", True, False)


def test_what_is_there_stays_and_what_came_can_be_taken_away_again(ready: Path, new: WarmCaches) -> None:
    own = {
        "vllm/torch_compile_cache/0b/rank_0_0/graph.py": b"mine",
        "triton/cache/KERNEL/kernel.cubin": b"mine, too",
    }
    fill(Path(new.folder), own)
    archive, sha256 = packed(ready)
    result = new.receive(archive, KEY, sha256, "one")
    assert sorted(result["names"]) == ["flashinfer/0.4", "vllm/torch_compile_cache/1a"]
    assert content(new.folder) == {**COMPILED, **own}
    # A failed start has written beside it.
    fill(Path(new.folder), {"vllm/torch_compile_cache/1a/rank_0_0/more": b"derived"})
    assert new.forget_received() == "one"
    assert content(new.folder) == own
    assert new.forget_received() == ""


def test_what_came_and_was_not_tried_is_not_replaced_by_more(ready: Path, new: WarmCaches) -> None:
    archive, sha256 = packed(ready)
    new.receive(archive, KEY, sha256, "one")
    with pytest.raises(GpufleetError, match="here already"):
        new.receive(archive, KEY, sha256, "two")
    assert new.received_from() == "one"


def test_what_another_deployment_of_the_host_received_is_taken_away_too_but_not_kept(
    ready: Path, new: WarmCaches
) -> None:
    archive, sha256 = packed(ready)
    new.receive(archive, KEY, sha256, "one")
    other = WarmCaches(new.folder, "vllm-other")
    other.keep_received()
    assert (other.received_from(), new.received_from()) == ("", "one")
    assert other.forget_received() == "one"
    assert (new.received_from(), content(new.folder)) == ("", {})


def test_damaged_foreign_and_cut_archives_are_thrown_away(ready: Path, new: WarmCaches, tmp_path: Path) -> None:
    archive, sha256 = packed(ready)
    data = Path(archive).read_bytes()
    flipped = tmp_path / "flipped"
    flipped.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    assert "not what its host packed" in refused(new, str(flipped), sha256)
    # Also where the hash is that of the damaged file.
    refused(new, str(flipped))
    for length in (0, 10, 100, len(data) // 2):
        cut = tmp_path / "cut"
        cut.write_bytes(data[:length])
        refused(new, str(cut))
    foreign, _hash = packed(ready, key="b" * 64)
    assert "for another key" in refused(new, foreign)
    assert "cut short" in refused(new, crafted(tmp_path / "x", manifest={"key": KEY, "files": 1, "bytes": 5}))
    refused(new, crafted(tmp_path / "x", manifest={"key": KEY}))
    with tarfile.open(tmp_path / "x", "w:gz") as other:
        other.add(ready / "triton", "triton")
    assert "does not say what it is for" in refused(new, str(tmp_path / "x"))
    assert "No such file" in refused(new, str(tmp_path / "missing"), sha256)


@pytest.mark.parametrize("manifest", [["key"], "key", 1, {"key": {}}])
def test_an_archive_that_says_nonsense_of_itself_is_thrown_away(new: WarmCaches, tmp_path: Path, manifest: Any) -> None:
    refused(new, crafted(tmp_path / "x", manifest=manifest))


def test_a_time_that_no_file_can_have_is_refused(new: WarmCaches, tmp_path: Path) -> None:
    late = member("vllm/a")
    late.mtime = 1 << 80
    refused(new, crafted(tmp_path / "x", (late, b"x")))


def test_a_file_that_a_server_removes_meanwhile_is_left_out(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstat = os.lstat

    def without_one(path: str, **more: Any) -> os.stat_result:
        if str(path).endswith("norm.so"):
            raise FileNotFoundError(path)
        return lstat(path, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "lstat", without_one)
        assert pack(str(ready), str(ready.parent / "archive"), KEY)["files"] == len(COMPILED) - 1


@pytest.mark.parametrize(
    "bad",
    [
        member("/etc/cron.d/x"),
        member("vllm/../../x"),
        member("../x"),
        member("vllm"),
        member("vllm//x"),
        member("vllm/./x"),
        member("other/x"),
        member("warm.json"),
        member("vllm/x", tarfile.SYMTYPE, target="/etc"),
        member("vllm/x", tarfile.LNKTYPE, target="vllm/y"),
        member("vllm/x", tarfile.CHRTYPE),
        member("vllm/x", tarfile.FIFOTYPE),
        member("vllm/x", tarfile.DIRTYPE),
    ],
    ids=lambda bad: f"{bad.name}-{bad.type.decode()}",
)
def test_no_member_leads_out_of_the_caches(bad: tarfile.TarInfo, new: WarmCaches, tmp_path: Path) -> None:
    good = (member("vllm/good"), b"x")
    archive = crafted(tmp_path / "x", good, (bad, b"x"[: bad.size]))
    assert "no plain file below" in refused(new, archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "x"]


def test_a_member_that_comes_twice_is_refused(new: WarmCaches, tmp_path: Path) -> None:
    refused(new, crafted(tmp_path / "x", (member("vllm/a"), b"1"), (member("vllm/a"), b"2")))


def test_files_belong_to_who_unpacks_and_run_as_nobody_else(new: WarmCaches, tmp_path: Path) -> None:
    archive = crafted(tmp_path / "x", (member("triton/a"), b"x"))
    new.receive(archive, KEY, file_sum(archive), "one")
    found = os.stat(f"{new.folder}/triton/a")
    assert (found.st_uid, found.st_mode & 0o7777) == (os.getuid(), 0o755)


def test_no_link_that_a_container_left_is_followed(ready: Path, new: WarmCaches, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1a").mkdir()
    (outside / "1a" / "precious").write_text("precious")
    os.makedirs(f"{new.folder}/vllm")
    os.symlink(outside, f"{new.folder}/vllm/torch_compile_cache")
    archive, sha256 = packed(ready)
    result = new.receive(archive, KEY, sha256, "one")
    assert not any(name.startswith("vllm") for name in result["names"])
    assert [path.name for path in outside.iterdir()] == ["1a"]
    # Nor where the link came later.
    Path(new.folder, "received-vllm.json").write_text(
        json.dumps({"host": "one", "names": ["vllm/torch_compile_cache/1a", "../../outside/1a"]})
    )
    new.forget_received()
    assert (outside / "1a" / "precious").read_text() == "precious"


def test_more_than_there_is_room_for_is_refused(ready: Path, new: WarmCaches, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, sha256 = packed(ready)
    monkeypatch.setattr(cache_archive, "LARGEST", 100)
    assert "larger than the room" in refused(new, archive, sha256)
    with pytest.raises(GpufleetError, match="hold more than"):
        pack(str(ready), f"{archive}2", KEY)
    with pytest.raises(GpufleetError, match="are empty"):
        pack(str(ready / "nothing"), f"{archive}2", KEY)


def test_notes_that_are_damaged_say_nothing(new: WarmCaches) -> None:
    os.makedirs(new.folder)
    for text in ("", "{", "[]"):
        Path(new.folder, "warm.json").write_text(text)
        Path(new.folder, "received-vllm.json").write_text(text)
        assert (new.is_warm(KEY), new.received_from(), new.forget_received()) == (False, "", "")
