# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a model's files are whole, on files of our own in the formats that are read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import server_files

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def safetensors(size: int = 16) -> bytes:
    """Return a safetensors file with one tensor of so many bytes."""
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    return struct.pack("<Q", len(header)) + header.encode() + b"\0" * size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model in two files."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weight_map = {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}
    (model / server_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for shard in SHARDS:
        (model / shard).write_bytes(safetensors())
    return model


def check(folder: Path, **config: Any) -> None:
    spec: Any = {"config": config, "environment": {}}
    server_files.check(spec, {"kind": "path", "mount": str(folder), "argument": "/models/m"}, "/nowhere")


def refusal(folder: Path, **config: Any) -> GpufleetError:
    with pytest.raises(GpufleetError) as caught:
        check(folder, **config)
    return caught.value


def test_a_whole_model_passes(folder: Path) -> None:
    check(folder)
    (folder / server_files.INDEX).unlink()
    check(folder)


def test_a_truncated_file_is_told_with_its_sizes(folder: Path) -> None:
    whole = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).write_bytes(whole[:-5])
    error = refusal(folder)
    assert error.name == "weights-corrupt"
    assert f"{SHARDS[1]} has {len(whole) - 5} bytes where its header says {len(whole)}" in error.message
    # What is not read need not be whole.
    check(folder, **{"load-format": "dummy"})


@pytest.mark.parametrize("data", [b"", b"\x08\0\0\0\0\0\0\0", b"\x02\0\0\0\0\0\0\0[]", b"<!DOCTYPE html><html>Sign in"])
def test_a_file_that_is_no_safetensors_is_told(folder: Path, data: bytes) -> None:
    (folder / SHARDS[0]).write_bytes(data)
    assert refusal(folder).name == "weights-corrupt"


def test_missing_files_are_named(folder: Path) -> None:
    (folder / SHARDS[0]).unlink()
    error = refusal(folder)
    assert (error.name, SHARDS[0] in error.message) == ("weights-missing", True)
    for name in (SHARDS[1], server_files.INDEX):
        (folder / name).unlink()
    assert refusal(folder).name == "weights-missing"


def test_a_broken_index_is_told(folder: Path) -> None:
    (folder / server_files.INDEX).write_text("[1")
    assert refusal(folder).name == "weights-corrupt"


class TestHub:
    """A model of the hub must be in the cache only where the server must not ask the hub."""

    @staticmethod
    def check(hf_home: Path, environment: dict[str, str], **config: Any) -> None:
        spec: Any = {"config": config, "environment": environment, "volumes": []}
        server_files.check(spec, {"kind": "hub", "mount": "", "argument": "org/model"}, str(hf_home))

    @staticmethod
    def cache(hf_home: Path, folder: Path, commit: str = "abc") -> Path:
        """Put the model into the cache as the hub's client does, with links."""
        base = hf_home / "hub" / "models--org--model"
        snapshot = base / "snapshots" / commit
        (base / "refs").mkdir(parents=True)
        (base / "refs" / "main").write_text(commit)
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            (snapshot / file.name).symlink_to(file)
        return snapshot

    def test_mistrals_own_files_need_no_others(self, tmp_path: Path, folder: Path) -> None:
        """vLLM fetches only these, and the index of the others, of a repository that has both."""
        for name in SHARDS:
            (folder / name).rename(folder / f"consolidated-{name}")
        self.cache(tmp_path, folder)
        self.check(tmp_path, {"HF_HUB_OFFLINE": "1"})

    def test_a_cache_elsewhere_is_found_by_its_mount(self, tmp_path: Path, folder: Path) -> None:
        self.cache(tmp_path / "mine", folder)
        source = {"kind": "hub", "mount": "", "argument": "org/model"}
        spec: Any = {"config": {}, "environment": {"HF_HUB_OFFLINE": "1"}, "volumes": []}
        with pytest.raises(GpufleetError, match="is not in vllm_hf_home"):
            server_files.check(spec, source, str(tmp_path / "hf"))
        mounted: Any = {**spec, "volumes": [f"{tmp_path}/mine:/root/.cache/huggingface"]}
        server_files.check(mounted, source, str(tmp_path / "hf"))
        elsewhere: Any = {**spec, "config": {"download-dir": "/data"}}
        server_files.check(elsewhere, source, str(tmp_path / "hf"))

    def test_online_nothing_need_be_there(self, tmp_path: Path) -> None:
        self.check(tmp_path, {})
        self.check(tmp_path, {"HF_HUB_OFFLINE": "0"})

    def test_offline_it_must_be_there_and_whole(self, tmp_path: Path, folder: Path) -> None:
        with pytest.raises(GpufleetError) as missing:
            self.check(tmp_path, {"HF_HUB_OFFLINE": "1"})
        assert missing.value.name == "weights-missing"
        assert "org/model (revision main) is not in vllm_hf_home (" in missing.value.message
        self.cache(tmp_path, folder)
        self.check(tmp_path, {"HF_HUB_OFFLINE": "1"})
        self.check(tmp_path, {"HF_HUB_OFFLINE": "1"}, revision="abc")
        with pytest.raises(GpufleetError):
            self.check(tmp_path, {"TRANSFORMERS_OFFLINE": "true"}, revision="v2")
        # A link whose blob is gone, as a cleaned cache leaves it.
        (folder / SHARDS[0]).unlink()
        with pytest.raises(GpufleetError) as incomplete:
            self.check(tmp_path, {"HF_HUB_OFFLINE": "1"})
        assert SHARDS[0] in incomplete.value.message


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 17209920\n"


def test_what_git_lfs_has_not_fetched_is_told_with_the_command_that_does(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)
    error = refusal(folder)
    assert error.name == "weights-missing"
    assert "tokenizer.json" in error.message
    assert "git lfs pull" in error.remedy


def test_a_pointer_in_the_place_of_the_weights_too(folder: Path) -> None:
    (folder / SHARDS[0]).write_text(POINTER)
    assert "git lfs pull" in refusal(folder).remedy
    (folder / SHARDS[0]).write_bytes(safetensors())
    (folder / "notes.txt").write_text("about " + POINTER)
    check(folder)
