# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A part of a bundle appears complete or not at all, and is not gathered twice. The engine is a stand-in; Molecule and
tests/plays have a real one."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Callable
from unittest.mock import MagicMock

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.jobs import Ended, Job
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import bundle_part
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_bundle_part

RunModule = Callable[..., dict[str, Any]]
KEYS = Path(__file__).resolve().parents[2] / "data/keys"
IMAGE = {"Id": "sha256:" + "a" * 64, "Created": "2026-01-01T00:00:00Z", "RootFS": {"Layers": ["sha256:1"]}, "Size": 10}


def archive() -> bytes:
    """Return what docker save would write for IMAGE."""
    config = {"created": IMAGE["Created"], "rootfs": {"diff_ids": ["sha256:1"]}}
    files = {
        "manifest.json": [{"Config": "config.json", "Layers": ["layer.tar"], "RepoTags": ["i:1"]}],
        "config.json": config,
        "layer.tar": {},
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, value in files.items():
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Have an engine with the image."""
    client = MagicMock()
    client.api.inspect_image.return_value = IMAGE
    client.api.get_image.side_effect = lambda _name: iter([archive()])
    monkeypatch.setattr(vllm_bundle_part, "connect", lambda *_args: client)
    return client


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Have programs that leave one package, and keep what they were given."""
    ran: list[Job] = []

    def run(_client: Any, job: Job, **_more: Any) -> Ended:
        ran.append(job)
        mounts = dict(volume.split(":")[1::-1] for volume in job.volumes)
        seen = sorted(path.name for path in Path(mounts["/in"]).iterdir())
        Path(mounts["/out"], "a.deb").write_text(" ".join(seen))
        return Ended(3 if "fails" in job.command else 0, ["E: my-secret was said"])

    monkeypatch.setattr(bundle_part, "run_job", run)
    return ran


def test_an_image_is_saved_once(run_module: RunModule, engine: MagicMock, tmp_path: Path) -> None:
    arguments = {"path": str(tmp_path / "images/i.tar"), "image": "i:1"}
    assert run_module(vllm_bundle_part.main, arguments, check=True)["changed"] is True
    assert not (tmp_path / "images").exists()
    assert run_module(vllm_bundle_part.main, arguments)["changed"] is True
    assert run_module(vllm_bundle_part.main, arguments)["changed"] is False
    (tmp_path / "images/i.tar").write_bytes(archive()[:700])
    assert run_module(vllm_bundle_part.main, arguments)["changed"] is True
    engine.api.inspect_image.return_value = {**IMAGE, "Id": "sha256:" + "b" * 64, "Created": "2026-02-01T00:00:00Z"}
    assert run_module(vllm_bundle_part.main, arguments)["changed"] is True


def test_a_program_runs_once_by_a_recipe(
    run_module: RunModule, engine: MagicMock, jobs: list[Job], tmp_path: Path
) -> None:
    vendor = {
        "name": "own",
        "key": str(KEYS / "rsa.asc"),
        "fingerprints": ["E1E3 9BD8 D85D 6869 34AB  3C75 B89C 6E4E 4133 D588"],
    }
    arguments = {
        "path": str(tmp_path / "packages/debian"),
        "image": "debian:12",
        "command": ["/bin/sh", "-c", "true"],
        "recipe": "one",
        "inputs": {"packages": "docker.io\n"},
        "vendors": [vendor],
    }
    assert run_module(vllm_bundle_part.main, arguments, check=True)["changed"] is True
    assert jobs == []
    assert run_module(vllm_bundle_part.main, arguments)["changed"] is True
    assert (tmp_path / "packages/debian/a.deb").read_text() == "own.asc packages"
    assert run_module(vllm_bundle_part.main, arguments)["changed"] is False
    assert run_module(vllm_bundle_part.main, {**arguments, "recipe": "two"})["changed"] is True
    assert len(jobs) == 2
    wrong = {**arguments, "recipe": "three", "vendors": [{**vendor, "fingerprints": ["0" * 40]}]}
    assert run_module(vllm_bundle_part.main, wrong)["error"]["name"] == "key-mismatch"
    assert len(jobs) == 2
    assert sorted(path.name for path in (tmp_path / "packages/debian").iterdir()) == [".recipe", "a.deb"]


def test_one_that_fails_leaves_what_was_there_and_shows_no_secret(
    run_module: RunModule, engine: MagicMock, jobs: list[Job], tmp_path: Path
) -> None:
    arguments = {
        "path": str(tmp_path / "part"),
        "image": "debian:12",
        "command": ["fails"],
        "recipe": "one",
        "environment": {"OMP_NUM_THREADS": "3"},
        "secrets": {"TOKEN": "my-secret"},
    }
    result = run_module(vllm_bundle_part.main, arguments)
    assert result["error"]["name"] == "gathering-failed"
    assert "ended with status 3." in result["msg"]
    assert jobs[0].environment["OMP_NUM_THREADS"] == "3" and jobs[0].environment["TOKEN"] == "my-secret"
    result.pop("invocation", None)
    assert "my-secret" not in json.dumps(result)
    assert not (tmp_path / "part").exists()
