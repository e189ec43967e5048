# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vllm_weights_share says of a cache; tests/engine/test_weights_sharing.py has it give files away."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.models import sending
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.shared_files import is_right, read_model
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_weights_share
from ansible_collections.gpufleet.vllm.tests.fakes.hub import etag, folder, sharded
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

FILES = {**folder(Path(__file__).parents[3] / "data" / "scout-miniature"), **sharded(2, 1000)}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill(home: Path, *, linked: bool = True) -> Path:
    """Have a model in a cache; without links as somebody may have copied it. Return its folder."""
    base = home / "hub" / "models--acme--scout"
    snapshot = base / "snapshots" / COMMIT
    for part in (base / "blobs", base / "refs", snapshot):
        part.mkdir(parents=True)
    (base / "refs" / "main").write_text(COMMIT)
    for name, data in FILES.items():
        if linked:
            (base / "blobs" / etag(name, data)).write_bytes(data)
            (snapshot / name).symlink_to(f"../../blobs/{etag(name, data)}")
        else:
            (snapshot / name).write_bytes(data)
    return base


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Options of the module."""
    return {"model": "acme/scout", "hf_home": str(tmp_path / "hf"), "run_dir": str(tmp_path / "run")}


def test_a_whole_model_is_told_with_the_hashes_of_the_hub(
    run_module: RunModule, options: dict[str, Any], tmp_path: Path
) -> None:
    fill(tmp_path / "hf")
    told = run_module(vllm_weights_share.main, options)
    assert (told["changed"], told["complete"], told["public_key"]) == (False, True, "")
    (model,) = told["models"]
    assert (model["repository"], model["commit"], model["want"]) == ("acme/scout", COMMIT, told["wanted"][0])
    files = {one["name"]: (one["size"], one["blob"]) for one in model["files"]}
    assert files == {name: (len(data), etag(name, data)) for name, data in FILES.items()}
    assert not (tmp_path / "run").exists()
    read = read_model(model)
    assert read is not None
    assert read.as_result() == model


def test_what_lacks_something_gets_a_key_and_nothing_in_check_mode(
    run_module: RunModule, options: dict[str, Any], tmp_path: Path
) -> None:
    base = fill(tmp_path / "hf")
    (base / "blobs" / etag("config.json", FILES["config.json"])).unlink()
    looked = run_module(vllm_weights_share.main, options, check=True)
    assert (looked["complete"], looked["models"], looked["public_key"]) == (False, [], "")
    assert not (tmp_path / "run").exists()
    assert not run_module(vllm_weights_share.main, {**options, "state": "present"}, check=True)["serves"]
    if not shutil.which("ssh-keygen"):
        pytest.skip("there is no ssh-keygen here")
    told = run_module(vllm_weights_share.main, options)
    if "ssh-keygen" not in told["lacking_programs"]:
        assert told["public_key"].startswith("ssh-ed25519 ")
        assert run_module(vllm_weights_share.main, options)["public_key"] == told["public_key"]
        assert (tmp_path / "run" / "client_key").stat().st_mode & 0o777 == 0o600
        assert run_module(vllm_weights_share.main, {"state": "absent", "run_dir": options["run_dir"]})["changed"]
        assert not (tmp_path / "run").exists()


def test_files_without_the_hubs_hashes_are_not_given_away(
    run_module: RunModule, options: dict[str, Any], tmp_path: Path
) -> None:
    fill(tmp_path / "hf", linked=False)
    told = run_module(vllm_weights_share.main, options)
    assert (told["complete"], told["models"]) == (True, [])


def test_a_cache_that_is_no_folder_of_the_host_has_no_part(run_module: RunModule, options: dict[str, Any]) -> None:
    told = run_module(vllm_weights_share.main, {**options, "environment": {"HF_HOME": "/elsewhere"}})
    assert (told["complete"], told["wanted"]) == (True, [])


def test_a_host_that_cannot_give_says_why(
    run_module: RunModule, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "hf")
    monkeypatch.setattr(sending, "make_key", lambda *_names: "ssh-ed25519 AAAA")
    monkeypatch.setattr(sending, "program_path", lambda _name: None)
    told = run_module(vllm_weights_share.main, {**options, "state": "present", "address": "127.0.0.1"})
    assert (told["failed"], told["serves"]) == (False, False)
    assert "rsync or sshd is not installed" in told["why"]


@pytest.mark.parametrize(
    "change",
    [
        {"commit": "../../etc"},
        {"files": [{"name": "../config.json", "size": 1, "blob": "a" * 40}]},
        {"files": [{"name": "/etc/passwd", "size": 1, "blob": "a" * 40}]},
        {"files": [{"name": "a/./b", "size": 1, "blob": "a" * 40}]},
        {"files": [{"name": "config.json", "size": 1, "blob": "../" + "a" * 37}]},
    ],
)
def test_names_that_lead_out_of_the_cache_are_not_taken(change: dict[str, Any]) -> None:
    file = {"name": "a/config.json", "size": 1, "blob": "a" * 40}
    told = {"want": "w", "repository": "acme/scout", "commit": COMMIT, "files": [file]}
    assert read_model(told) is not None
    assert read_model({**told, **change}) is None


def test_contents_are_compared_with_either_hash_of_the_hub(tmp_path: Path) -> None:
    path, data = tmp_path / "file", b"some text"
    path.write_bytes(data)
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    assert is_right(str(path), git)
    assert is_right(str(path), hashlib.sha256(data).hexdigest())
    path.write_bytes(b"some texts")
    assert not is_right(str(path), git)
    assert not is_right(str(path), hashlib.sha256(data).hexdigest())
