# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files are taken, and what errors mean; tests/engine has the downloads themselves."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import hub_download
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.hub_download import (
    Remote,
    WantedFiles,
    hub_error,
)

NEW = {"reads_index": True, "prefers_consolidated": True}
OLD = {"reads_index": False, "prefers_consolidated": False}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
# As the repositories of Llama 4, gpt-oss, Mistral 7B and an older model are.
LLAMA = ["config.json", *SHARDS, "model.safetensors.index.json", "original/consolidated.00.pth", "original/params.json"]
GPT_OSS = ["config.json", *SHARDS, "metal/model.bin", "original/model.safetensors"]
MISTRAL = ["params.json", "consolidated.safetensors", *SHARDS, "tekken.json"]
OLDER = ["config.json", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "model.pt"]


@pytest.mark.parametrize(
    ("paths", "load_format", "indexed", "traits", "expected"),
    [
        (LLAMA, "auto", SHARDS, NEW, SHARDS),
        (LLAMA, "auto", SHARDS, OLD, SHARDS),
        (GPT_OSS, "auto", [], NEW, SHARDS),
        (MISTRAL, "auto", SHARDS, NEW, ["consolidated.safetensors"]),
        (MISTRAL, "auto", SHARDS, OLD, ["consolidated.safetensors", *SHARDS]),
        (MISTRAL, "safetensors", SHARDS, NEW, SHARDS),
        (MISTRAL, "mistral", SHARDS, NEW, ["consolidated.safetensors"]),
        (OLDER, "auto", [], NEW, ["pytorch_model.bin"]),
        (OLDER, "pt", [], NEW, ["model.pt"]),
        (OLDER, "safetensors", [], NEW, []),
        (["a.safetensors", "sub/b.safetensors"], "auto", [], NEW, ["a.safetensors", "sub/b.safetensors"]),
    ],
)
def test_the_weights_are_those_that_vllm_takes(
    paths: list[str], load_format: str, indexed: list[str], traits: dict[str, bool], expected: list[str]
) -> None:
    assert hub_download.weight_files(paths, load_format, indexed, traits) == expected


def test_the_users_own_patterns_are_left_out() -> None:
    assert hub_download.weight_files(MISTRAL, "auto", [], OLD, ["consolidated*"]) == SHARDS


def test_small_files_are_those_of_the_model_itself() -> None:
    paths = ["config.json", "tokenizer.model", "modeling_x.py", "1_Pooling/config.json", "README.md", ".gitattributes"]
    others = ["original/params.json", "onnx/config.json", "model.gguf", "picture.png", ".github/x.yaml"]
    assert hub_download.small_files(paths + others) == paths[:4]


def test_how_the_image_chooses_is_read_in_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are those of vLLM 0.12 and 0.32, as far as they matter."""
    loaders = tmp_path / "vllm" / "model_executor" / "model_loader"
    loaders.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('not to be imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    old = "def download_weights_from_hf(\n    model): pass\n\ndef other():\n    weight_map = 1\n"
    (loaders / "weight_utils.py").write_text(old)
    assert hub_download.vllm_traits() == OLD
    (loaders / "weight_utils.py").write_text("def download_weights_from_hf(\n    model):\n    x['weight_map']\n")
    (loaders / "default_loader.py").write_text('f(allow_patterns=["consolidated*.safetensors"])\n')
    assert hub_download.vllm_traits() == NEW


class GatedRepoError(Exception):
    """As huggingface_hub names it."""


class RemoteProtocolError(Exception):
    """As httpx names it."""


class NewConnectionError(Exception):
    """As urllib3 names it."""


def answered(status: int, **headers: str) -> Exception:
    error = Exception(f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status, headers=headers)  # type: ignore[attr-defined]
    return error


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "name", "transient"),
    [
        (GatedRepoError("no"), "model-gated", False),
        (answered(401), "hub-refused", False),
        (answered(403), "hub-refused", False),
        (answered(404), "model-not-found", False),
        (answered(429), "hub-rate-limit", True),
        (answered(503), "hub-unreachable", True),
        (caused(FileNotFoundError("LocalEntryNotFound"), answered(500)), "hub-unreachable", True),
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full", False),
        (PermissionError(errno.EACCES, "denied"), "permission-denied", False),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk-full", False),
        (RuntimeError("Data processing error: I/O error: Disk quota exceeded (os error 122)"), "disk-full", False),
        (RuntimeError("Data processing error: IO Error: No space left on device (os error 28)"), "disk-full", False),
        (RuntimeError("Data processing error: I/O error: Permission denied (os error 13)"), "permission-denied", False),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), "permission-denied", False),
        (OSError(errno.EROFS, "Read-only file system"), "permission-denied", False),
        (OSError(errno.ESTALE, "Stale file handle"), "storage-failed", False),
        (OSError(errno.EIO, "Input/output error"), "storage-failed", False),
        (
            RuntimeError("File reconstruction error: I/O error: Input/output error (os error 5)"),
            "storage-failed",
            False,
        ),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "storage-failed", False),
        (OSError(errno.ENOLCK, "No locks available"), "folder-not-writable", False),
        (OSError(errno.EFBIG, "File too large"), "folder-not-writable", False),
        (OSError(errno.EOPNOTSUPP, "Operation not supported"), "folder-not-writable", False),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "folder-not-writable", False),
        (FileExistsError(errno.EEXIST, "File exists"), "folder-not-writable", False),
        (
            NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead"),
            "folder-not-writable",
            False,
        ),
        (OSError(errno.EMFILE, "Too many open files"), "too-many-open-files", False),
        (RuntimeError("I/O error: Too many open files (os error 24)"), "too-many-open-files", False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host-out-of-memory", False),
        (MemoryError(), "host-out-of-memory", False),
        (caused(RuntimeError("the download failed"), OSError(errno.EDQUOT, "x")), "disk-full", False),
        (
            OSError("Could not find a suitable TLS CA certificate bundle, invalid path: /x"),
            "certificate-not-trusted",
            0,
        ),
        # A firewall of this host refuses the connection, and no folder does.
        (
            caused(NewConnectionError("Failed to establish"), PermissionError(errno.EPERM, "Operation not permitted")),
            "hub-unreachable",
            True,
        ),
        (OSError(errno.ECONNRESET, "Connection reset by peer"), "hub-unreachable", True),
        (RuntimeError("CAS error: connection refused (os error 111)"), "hub-unreachable", True),
        (OSError("Consistency check failed: file should be of size 5 but has size 3"), "hub-unreachable", True),
        (RemoteProtocolError("peer closed connection"), "hub-unreachable", True),
        (RuntimeError("Data processing error: CAS service error"), "hub-unreachable", True),
        (OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), "certificate-not-trusted", False),
        (OSError("[Errno -3] Temporary failure in name resolution"), "name-not-resolved", True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "hub-unreachable", True),
        (TypeError("unexpected argument"), "download-failed", False),
    ],
)
def test_errors_by_their_cause(error: Exception, name: str, transient: bool) -> None:
    found = hub_error(error)
    assert (found.name, found.transient) == (name, transient)


def test_the_hub_says_how_long_to_wait() -> None:
    assert hub_error(answered(429, **{"Retry-After": "7"})).pause == 7
    for odd in ("soon", "1.2.3", "..", "-1", "Wed, 21 Oct 2026 07:28:00 GMT"):
        assert hub_error(answered(429, **{"Retry-After": odd})).pause == 0
    assert hub_error(answered(429, RateLimit='"resolvers";r=0;t=42')).pause == 42


def test_what_the_cache_holds(tmp_path: Path) -> None:
    """A file of another size is missing, one that was begun counts by its bytes."""
    base = tmp_path / "models--o--m"
    (base / "blobs").mkdir(parents=True)
    (base / "snapshots" / "c1").mkdir(parents=True)
    (base / "snapshots" / "c1" / "config.json").write_bytes(b"{}")
    (base / "snapshots" / "c1" / "short.bin").write_bytes(b"123")
    (base / "blobs" / "e3.incomplete").write_bytes(b"1234")
    files = [Remote("config.json", 2, "e1"), Remote("short.bin", 9, "e2"), Remote("begun.bin", 10, "e3")]
    model = WantedFiles("o/m", "main", "c1", files)
    hub_download.look(model, str(tmp_path))
    assert [entry.path for entry in model.missing] == ["short.bin", "begun.bin"]
    assert (model.total, model.as_result()["missing_bytes"]) == (21, 21 - 2 - 4)


def test_holes_of_a_file_are_not_bytes_that_came(tmp_path: Path) -> None:
    path = tmp_path / "abc.incomplete"
    with path.open("wb") as stream:
        stream.write(b"x" * 4096)
        stream.truncate(64 * 2**20)
    assert hub_download.used(str(tmp_path)) < 2**20
    path.write_bytes(b"x" * 5000)  # not yet on the disk
    assert hub_download.used(str(tmp_path)) == 5000


def test_what_a_killed_download_left_is_removed_once_nobody_writes_it(tmp_path: Path) -> None:
    blobs = tmp_path / "models--o--m" / "blobs"
    blobs.mkdir(parents=True)
    there, lacking, now = "a" * 64, "b" * 64, time.time()
    ages = {
        there: 1000,
        f"{there}.00000001.incomplete": 61,
        f"{there}.00000002.incomplete": 59,
        f"{lacking}.00000003.incomplete": 601,
        f"{lacking}.00000004.incomplete": 599,
        f"{lacking}.incomplete": 1000,  # older releases go on with it
    }
    for name, age in ages.items():
        (blobs / name).write_bytes(b"x")
        os.utime(blobs / name, (now - age, now - age))
    hub_download.remove_stale(str(tmp_path), "o/m")
    removed = {f"{there}.00000001.incomplete", f"{lacking}.00000003.incomplete"}
    assert {path.name for path in blobs.iterdir()} == set(ages) - removed


def test_an_image_without_the_library_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(os, "_exit", lambda _status: None)
    hub_download.main(["{}"])
    assert '"python-package-missing"' in capsys.readouterr().out
