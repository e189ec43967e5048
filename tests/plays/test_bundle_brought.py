# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's part of a bundle is brought by real plays on this machine, and what is wrong with a bundle is told.

Molecule's scenario bundle goes from nothing to a verified server by one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_seal import have_parts, seal
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.tests.plays.local_play import run_play

PACKAGES = "packages/debian-12-amd64"
PARTS = {
    "image": "images/i.tar",
    "packages": PACKAGES,
    "wheels": f"{PACKAGES}/wheels",
    "accuracy_wheels": "",
    "hub": ["huggingface/hub/models--a--b"],
}
FILES = {
    "images/i.tar": "image",
    f"{PACKAGES}/docker.deb": "docker",
    f"{PACKAGES}/toolkit/ctk.deb": "toolkit",
    f"{PACKAGES}/wheels/x.whl": "wheel",
    "huggingface/hub/models--a--b/blobs/abc": "weights",
}
SHOWN = ("vllm_offline", "vllm_image_archive", "vllm_accuracy_wheels")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a small bundle for one host."""
    folder = tmp_path / "bundle"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    link = folder / "huggingface/hub/models--a--b/snapshots/1/config.json"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../blobs/abc")
    seal(str(folder), {"air-01": PARTS}, check=False, progress=Progress(None))
    return folder


def play(folder: Path, host: str, bundle: Path, *options: str) -> str:
    """Bring a host's part on this machine, and show the variables that follow; return what was printed."""
    variables = {
        "ansible_python_interpreter": sys.executable,
        "vllm_bundle_dir": str(bundle),
        "vllm_state_dir": str(folder / "state"),
    }
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.import_role": {"name": "gpufleet.vllm.bundle", "tasks_from": "bring"}},
        {"ansible.builtin.debug": {"msg": [f"{name}={{{{ {name} }}}}" for name in SHOWN]}},
    ]
    return run_play(folder, {"hosts": host, "tasks": tasks}, *options, "-e", json.dumps(variables))[1]


def test_it_comes_once_and_the_variables_follow(tmp_path: Path, bundle: Path) -> None:
    told = play(tmp_path, "air-01", bundle, "--check", "--diff")
    assert f"+{tmp_path}/state/bundle/image/i.tar" in told and "failed=0" in told
    assert not (tmp_path / "state").exists()
    told = play(tmp_path, "air-01", bundle)
    assert "changed=3" in told and "failed=0" in told
    assert "vllm_offline=True" in told
    assert f"vllm_image_archive={tmp_path}/state/bundle/image/i.tar" in told
    assert '"vllm_accuracy_wheels="' in told
    state = tmp_path / "state"
    assert (state / "bundle/packages/docker.deb").read_text() == "docker"
    assert (state / "huggingface/hub/models--a--b/snapshots/1/config.json").read_text() == "weights"
    assert not (state / "bundle/packages/toolkit").exists()
    assert f"file:{state}/bundle/packages ./" in (state / "bundle/packages/bundle.list").read_text()
    assert "changed=0" in play(tmp_path, "air-01", bundle)


def test_a_damaged_file_is_named_and_replaces_nothing(tmp_path: Path, bundle: Path) -> None:
    (bundle / PACKAGES / "docker.deb").write_text("dockeX")
    told = play(tmp_path, "air-01", bundle)
    assert '"name": "bundle-damaged"' in told and f"{PACKAGES}/docker.deb" in told and "sha256sum" in told
    assert not (tmp_path / "state/bundle/packages/docker.deb").exists()
    (bundle / PACKAGES / "docker.deb").write_text("docker")
    assert "failed=0" in play(tmp_path, "air-01", bundle)


def test_a_missing_file_is_named(tmp_path: Path, bundle: Path) -> None:
    (bundle / "images/i.tar").unlink()
    told = play(tmp_path, "air-01", bundle)
    assert '"name": "bundle-damaged"' in told and "images/i.tar is missing" in told


@pytest.mark.parametrize(
    ("host", "lost", "said"),
    [
        ("air-02", "", "has nothing for air-02; it was made for air-01"),
        ("air-01", "SHA256SUMS", "the bundle was not finished, or not copied as a whole"),
        ("air-01", "bundle.json", "bundle.json is not the one that SHA256SUMS has the checksum of"),
    ],
)
def test_what_is_wrong_with_a_bundle_is_told(tmp_path: Path, bundle: Path, host: str, lost: str, said: str) -> None:
    if lost:
        (bundle / lost).unlink()
    assert said in play(tmp_path, host, bundle)


def test_a_part_that_lacks_is_named(tmp_path: Path, bundle: Path) -> None:
    have_parts(str(bundle), 4096, check=False, progress=Progress(None))
    parts = bundle.with_name("bundle.parts")
    assert "which are not joined yet" in play(tmp_path, "air-01", parts)
    (parts / "bundle.tar.000002").unlink()
    told = play(tmp_path, "air-01", parts)
    assert "lacks 1 of the bundle's" in told and "parts, bundle.tar.000002." in told


def test_a_folder_in_which_programs_do_not_run_is_refused_first(tmp_path: Path) -> None:
    play = {"hosts": "air-01", "tasks": [{"ansible.builtin.import_role": {"name": "gpufleet.vllm.bundle"}}]}
    variables = {
        "ansible_python_interpreter": sys.executable,
        "vllm_bundle_dir": f"{tmp_path}/My disk/bundle",
        "__bundle_gathers": True,
    }
    code, told = run_play(tmp_path, play, "-e", json.dumps(variables))
    assert code == 2 and "My disk/bundle has a space or a colon" in told, told
    assert not (tmp_path / "My disk").exists()
