# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle is finished, split and read again; what is wrong with one has a name."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_files import read_bundle
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_bundle
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_bundle import HostBundle, host_bundle

RunModule = Callable[..., dict[str, Any]]
MODEL = "huggingface/hub/models--a--b"
HOSTS = {
    "gpu-01": {
        "image": "images/i.tar",
        "packages": "packages/debian-12-amd64",
        "wheels": "packages/debian-12-amd64/wheels",
        "accuracy_wheels": "",
        "hub": [MODEL, "huggingface/gpufleet/models--a--b.json"],
    },
    "lb-01": {"packages": "packages/debian-12-amd64", "wheels": "packages/debian-12-amd64/wheels"},
}
FILES = {
    "images/i.tar": "image" * 1000,
    "packages/debian-12-amd64/docker.deb": "docker",
    "packages/debian-12-amd64/toolkit/ctk.deb": "toolkit",
    "packages/debian-12-amd64/wheels/x.whl": "wheel",
    f"{MODEL}/blobs/abc": "weights" * 200_000,
    "huggingface/gpufleet/models--a--b.json": "{}",
    "controller/c/ansible.whl": "ansible",
}


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """Make what was gathered, and an installed collection; return the module's options."""
    folder, root = tmp_path / "bundle", tmp_path / "collection"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    link = folder / MODEL / "snapshots/1/model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../blobs/abc")
    root.mkdir()
    about = {"collection_info": {"namespace": "gpufleet", "name": "vllm", "version": "9.9.9"}}
    (root / "MANIFEST.json").write_text(json.dumps(about))
    (root / "FILES.json").write_text(json.dumps({"files": [{"name": "."}, {"name": "README.md"}]}))
    (root / "README.md").write_text("x")
    return {"path": str(folder), "hosts": HOSTS, "collection": str(root), "keep": ["controller/c"]}


@pytest.fixture
def made(run_module: RunModule, arguments: dict[str, Any]) -> Path:
    """Return a bundle that is finished."""
    assert run_module(vllm_bundle.main, arguments)["changed"] is True
    return Path(arguments["path"])


def error_of(folder: Path) -> GpufleetError:
    with pytest.raises(GpufleetError) as caught:
        read_bundle(str(folder))
    return caught.value


def test_sha256sum_agrees_and_a_second_run_changes_nothing(
    run_module: RunModule, arguments: dict[str, Any], made: Path
) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=made, check=True)
    again = run_module(vllm_bundle.main, arguments, diff=True)
    assert (again["changed"], again["removed"], again.get("diff")) == (False, [], None)
    assert again["files"] == len(FILES) + 2  # the link, and the collection
    with tarfile.open(made / "collection/gpufleet-vllm-9.9.9.tar.gz") as tar:
        assert tar.getnames() == ["MANIFEST.json", "FILES.json", "README.md"]


def test_a_bundle_that_is_gathered_again_is_unfinished_until_that_is_over(
    run_module: RunModule, arguments: dict[str, Any], made: Path
) -> None:
    before = (made / "SHA256SUMS").read_text()
    begin = {"path": str(made), "state": "begun"}
    assert run_module(vllm_bundle.main, begin, check=True)["changed"] is False
    assert read_bundle(str(made))
    for _interrupted in range(2):
        assert run_module(vllm_bundle.main, begin)["changed"] is False
        assert error_of(made).name == "bundle-unfinished"
    again = run_module(vllm_bundle.main, arguments, diff=True)
    assert (again["changed"], again.get("diff")) == (False, None)
    assert (made / "SHA256SUMS").read_text() == before
    assert sorted(path.name for path in made.iterdir() if path.name.startswith(".")) == [".seen.json"]


def test_a_size_of_parts_that_is_none_is_refused_before_anything_is_gathered(
    run_module: RunModule, arguments: dict[str, Any]
) -> None:
    begin = {"path": arguments["path"], "state": "begun", "part_size": "big"}
    assert run_module(vllm_bundle.main, begin)["error"]["name"] == "part-size-invalid"


def test_check_mode_writes_nothing_and_shows_what_would_change(
    run_module: RunModule, arguments: dict[str, Any]
) -> None:
    result = run_module(vllm_bundle.main, arguments, check=True, diff=True)
    assert result["changed"] is True
    assert "SHA256SUMS" in result["diff"]["after"]
    assert not (Path(arguments["path"]) / "SHA256SUMS").exists()


def test_what_no_host_needs_goes_away(run_module: RunModule, arguments: dict[str, Any], made: Path) -> None:
    (made / "images/old.tar").write_text("old")
    (made / "packages/debian-12-amd64.unfinished").mkdir()
    (made / "packages/debian-12-amd64.unfinished/x.deb").write_text("x")
    result = run_module(vllm_bundle.main, arguments)
    assert sorted(result["removed"]) == ["images/old.tar", "packages/debian-12-amd64.unfinished/x.deb"]
    assert not (made / "packages/debian-12-amd64.unfinished").exists()
    assert run_module(vllm_bundle.main, arguments)["changed"] is False


def test_parts_are_joined_by_cat_and_tar(
    run_module: RunModule, arguments: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    arguments["part_size"] = "1M"
    assert run_module(vllm_bundle.main, arguments)["changed"] is True
    assert run_module(vllm_bundle.main, arguments)["changed"] is False
    parts = made.with_name("bundle.parts")
    names = sorted(path.name for path in parts.glob("bundle.tar.*"))
    assert names == ["bundle.tar.000001", "bundle.tar.000002"]
    assert max(path.stat().st_size for path in parts.iterdir()) == 1024**2
    error = error_of(parts)
    assert error.name == "bundle-in-parts"
    line = error.remedy.split("`")[1]
    subprocess.run(["bash", "-c", line], cwd=parts, check=True)
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=parts, check=True)
    contents, _sums = read_bundle(str(parts))
    assert contents["hosts"] == HOSTS
    assert (parts / MODEL / "snapshots/1/model.safetensors").is_symlink()


def test_a_missing_part_is_named(run_module: RunModule, arguments: dict[str, Any], made: Path) -> None:
    run_module(vllm_bundle.main, {**arguments, "part_size": "1M"})
    parts = made.with_name("bundle.parts")
    (parts / "bundle.tar.000002").unlink()
    error = error_of(parts)
    assert (error.name, error.details["missing"]) == ("bundle-part-missing", ["bundle.tar.000002"])
    # A lost part is made again.
    assert run_module(vllm_bundle.main, {**arguments, "part_size": "1M"})["changed"] is True
    assert error_of(parts).name == "bundle-in-parts"


@pytest.mark.parametrize("size", ["4X", "10", "-1G", "lots"])
def test_a_size_that_is_none_is_refused(run_module: RunModule, arguments: dict[str, Any], size: str) -> None:
    result = run_module(vllm_bundle.main, {**arguments, "part_size": size})
    assert result["error"]["name"] == "part-size-invalid"
    assert size in result["msg"]


def test_what_is_wrong_with_a_folder_has_a_name(made: Path, tmp_path: Path) -> None:
    assert error_of(tmp_path / "none").name == "bundle-missing"
    (made / "bundle.json").write_text("{}")
    error = error_of(made)
    assert error.name == "bundle-damaged"
    assert str(made / "bundle.json") in error.message
    (made / "SHA256SUMS").unlink()
    assert error_of(made).name == "bundle-unfinished"


def test_each_host_gets_its_own_files_at_their_places(made: Path) -> None:
    bundle = host_bundle(str(made), "gpu-01", "/state")
    files = {one["path"]: one for one in bundle.files("/hf")}
    assert sorted(files) == [
        "/hf/gpufleet/models--a--b.json",
        "/hf/hub/models--a--b/blobs/abc",
        "/hf/hub/models--a--b/snapshots/1/model.safetensors",
        "/state/bundle/image/i.tar",
        "/state/bundle/packages/docker.deb",
        "/state/bundle/wheels/x.whl",
    ]
    assert files["/hf/hub/models--a--b/snapshots/1/model.safetensors"]["link"] == "../../blobs/abc"
    assert bundle.derived() == {
        "vllm_image_archive": "/state/bundle/image/i.tar",
        "vllm_accuracy_wheels": "",
        "nvidia_container_toolkit_packages_dir": f"{made}/packages/debian-12-amd64/toolkit",
    }
    assert "find-links = /state/bundle/wheels\n" in bundle.packages()["pip"]
    router = host_bundle(str(made), "lb-01", "/state")
    assert [one["path"] for one in router.files("/hf") if "/wheels/" not in one["path"]] == [
        "/state/bundle/packages/docker.deb"
    ]
    with pytest.raises(GpufleetError) as caught:
        host_bundle(str(made), "gpu-09", "/state")
    assert caught.value.name == "bundle-without-host"
    assert "gpu-01, lb-01" in caught.value.message


def test_a_folder_of_a_model_may_be_called_as_that_of_the_toolkit() -> None:
    parts = {"packages": "packages/d", "hub": [MODEL]}
    sums = {f"{MODEL}/toolkit/a": "1" * 64, "packages/d/toolkit/b.deb": "2" * 64}
    bundle = HostBundle("/media/bundle", parts, "/state/bundle", sums)
    assert [one["path"] for one in bundle.files("/hf")] == ["/hf/hub/models--a--b/toolkit/a"]
