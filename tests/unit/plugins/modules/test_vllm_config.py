# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_config as Ansible runs it, on a folder of its own."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_config

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule


def plan_of(*names: str, **config: Any) -> dict[str, Any]:
    """Return a plan with replicas of these names and one configuration."""
    return {
        "schema_version": 1,
        "model_source": {"argument": "nvidia/x"},
        "replicas": [{"name": name, "gpus": [0], "config": {"port": 8000, **config}} for name in names],
    }


def mode_of(path: Path) -> str:
    """Return a path's mode in octal."""
    return f"{path.stat().st_mode & 0o7777:04o}"


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "etc" / "gpufleet"


def test_one_run_writes_every_replica_and_no_plan_that_does_not_serve_yet(run_module: RunModule, folder: Path) -> None:
    plan = plan_of("vllm-0", "vllm-1")
    result = run_module(vllm_config.main, {"directory": str(folder), "plan": plan})

    assert result["changed"]
    assert listing(folder) == ["vllm-0.yaml", "vllm-1.yaml"]
    assert mode_of(folder) == "0750"
    assert {mode_of(path) for path in folder.iterdir()} == {"0640"}
    assert yaml.safe_load((folder / "vllm-1.yaml").read_text()) == {"port": 8000}
    assert [file["state"] for file in result["files"]] == ["created"] * 2
    (folder / "plan.json").write_text("what serves")
    assert not run_module(vllm_config.main, {"directory": str(folder), "plan": plan, "prune": True})["changed"]
    assert (folder / "plan.json").read_text() == "what serves"


def test_second_run_changes_nothing(run_module: RunModule, folder: Path) -> None:
    arguments = {"directory": str(folder), "plan": plan_of("vllm-0"), "prune": True}
    run_module(vllm_config.main, arguments)
    inodes = [path.stat().st_ino for path in sorted(folder.iterdir())]
    result = run_module(vllm_config.main, arguments, diff=True)

    assert not result["changed"]
    assert result["diff"] == []
    assert [path.stat().st_ino for path in sorted(folder.iterdir())] == inodes


def test_check_mode_shows_and_writes_nothing(run_module: RunModule, folder: Path) -> None:
    arguments = {"directory": str(folder), "plan": plan_of("vllm-0")}
    result = run_module(vllm_config.main, arguments, check=True, diff=True)

    assert result["changed"]
    assert not folder.exists()
    assert [Path(diff["after_header"]).name for diff in result["diff"]] == ["vllm-0.yaml"]
    assert "port: 8000" in result["diff"][0]["after"]


def test_replaced_text_is_kept_as_previous(run_module: RunModule, folder: Path) -> None:
    run_module(vllm_config.main, {"directory": str(folder), "plan": plan_of("vllm-0")})
    old = (folder / "vllm-0.yaml").read_text()
    arguments = {"directory": str(folder), "plan": plan_of("vllm-0", **{"max-num-seqs": 8})}

    would = run_module(vllm_config.main, arguments, check=True, diff=True)
    assert would["changed"] and (folder / "vllm-0.yaml").read_text() == old
    result = run_module(vllm_config.main, arguments, diff=True)

    assert result["diff"] == would["diff"]
    assert "max-num-seqs: 8" in (folder / "vllm-0.yaml").read_text()
    assert (folder / "vllm-0.yaml.previous").read_text() == old
    assert mode_of(folder / "vllm-0.yaml.previous") == "0640"
    assert result["files"][0]["previous"] == str(folder / "vllm-0.yaml.previous")
    assert listing(folder) == ["vllm-0.yaml", "vllm-0.yaml.previous"]


def test_prune_removes_our_files_only(run_module: RunModule, folder: Path) -> None:
    run_module(vllm_config.main, {"directory": str(folder), "plan": plan_of("vllm-0", "vllm-1")})
    run_module(vllm_config.main, {"directory": str(folder), "plan": plan_of("vllm-0", "vllm-1", **{"max-num-seqs": 8})})
    (folder / "mine.yaml").write_text("port: 1\n")
    (folder / "vllm-1.env").write_text("VLLM_API_KEY=x\n")
    arguments = {"directory": str(folder), "plan": plan_of("vllm-0", **{"max-num-seqs": 8})}

    kept = run_module(vllm_config.main, arguments)
    assert "vllm-1.yaml" in listing(folder) and not kept["changed"]

    would = run_module(vllm_config.main, {**arguments, "prune": True}, check=True, diff=True)
    assert would["changed"] and "vllm-1.yaml" in listing(folder)
    result = run_module(vllm_config.main, {**arguments, "prune": True}, diff=True)

    assert [file for file in result["files"] if file["state"] == "removed"] == [
        {"path": str(folder / "vllm-1.yaml"), "state": "removed", "previous": ""}
    ]
    assert result["diff"][0]["after"] == ""
    names = listing(folder)
    assert "mine.yaml" in names and "vllm-1.env" in names and "vllm-0.yaml" in names
    assert "vllm-1.yaml" not in names and "vllm-1.yaml.previous" not in names


def test_mode_changed_by_hand_is_put_back(run_module: RunModule, folder: Path) -> None:
    arguments = {"directory": str(folder), "plan": plan_of("vllm-0")}
    run_module(vllm_config.main, arguments)
    (folder / "vllm-0.yaml").chmod(0o666)

    would = run_module(vllm_config.main, arguments, check=True)
    assert would["changed"] and mode_of(folder / "vllm-0.yaml") == "0666"
    result = run_module(vllm_config.main, arguments)

    assert result["files"][0]["state"] == "attributes"
    assert mode_of(folder / "vllm-0.yaml") == "0640"


def test_one_bad_replica_and_nothing_is_written(run_module: RunModule, folder: Path) -> None:
    plan = plan_of("vllm-0", "vllm-1")
    plan["replicas"][1]["config"]["enable-prefix-caching"] = False
    result = run_module(vllm_config.main, {"directory": str(folder), "plan": plan})

    assert result["error"]["name"] == "config-invalid"
    assert "no-enable-prefix-caching: true" in result["msg"]
    assert not folder.exists()


def test_a_full_disk_is_told_and_the_old_file_stays(
    run_module: RunModule, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_module(vllm_config.main, {"directory": str(folder), "plan": plan_of("vllm-0")})
    before = (folder / "vllm-0.yaml").read_text()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    plan = plan_of("vllm-0")
    plan["replicas"][0]["config"]["port"] = 8001
    result = run_module(vllm_config.main, {"directory": str(folder), "plan": plan})

    assert (result["failed"], result["error"]["name"]) == (True, "write-failed")
    assert "No space left on device" in result["error"]["evidence"]
    assert "vllm_config_dir" in result["error"]["remedy"]
    assert (folder / "vllm-0.yaml").read_text() == before
    assert listing(folder) == ["vllm-0.yaml"]


def test_a_text_that_is_no_utf_8_is_kept_as_it_was(run_module: RunModule, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "vllm-0.yaml").write_bytes(b"# caf\xe9\n")
    result = run_module(vllm_config.main, {"directory": str(folder), "plan": plan_of("vllm-0")})

    assert (result["failed"], result["files"][0]["state"]) == (False, "changed")
    assert (folder / "vllm-0.yaml.previous").read_bytes() == b"# caf\xe9\n"
    assert yaml.safe_load((folder / "vllm-0.yaml").read_text()) == {"port": 8000}


def test_single_file_from_a_template_on_the_host(run_module: RunModule, tmp_path: Path) -> None:
    template = tmp_path / "t.j2"
    template.write_text(
        "# ours, for {{ model }}\n{% for k, v in config.items() %}\n{{ k }}: {{ v | yaml_scalar }}\n{% endfor %}"
    )
    path = tmp_path / "one.yml"
    config = {"compilation-config": {"level": 3}, "served-model-name": "yes"}
    result = run_module(
        vllm_config.main, {"path": str(path), "config": config, "template": str(template), "mode": "0600"}
    )

    assert result["changed"]
    assert "# ours" in path.read_text()
    assert yaml.safe_load(path.read_text()) == {"compilation-config": '{"level":3}', "served-model-name": "yes"}
    assert mode_of(path) == "0600"


def test_plan_alone(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "plans" / "host.json"
    result = run_module(vllm_config.main, {"plan": plan_of("vllm-0"), "plan_path": str(path)})
    assert result["changed"]
    assert json.loads(path.read_text())["schema_version"] == 1


def test_replicas_without_a_plan(run_module: RunModule, folder: Path) -> None:
    replicas = [{"name": "a", "config": {}}]
    run_module(vllm_config.main, {"directory": str(folder), "replicas": replicas})
    assert listing(folder) == ["a.yaml"]
    assert yaml.safe_load((folder / "a.yaml").read_text()) == {}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"path": "{tmp}/x.conf", "config": {}}, "path-invalid"),
        ({"path": "{tmp}/x.yaml", "config": {}, "template": "{tmp}/none.j2"}, "template-missing"),
        ({"path": "{tmp}/file/x.yaml", "config": {}}, "write-failed"),
        ({"path": "{tmp}/folder.yaml", "config": {}}, "write-failed"),
        ({"path": "{tmp}/x.yaml", "config": {"api-key": "hunter2"}}, "config-secret"),
        ({"directory": "{tmp}/d", "plan": {"environment": {"HF_TOKEN": "hunter2"}}}, "config-secret"),
        ({"directory": "{tmp}/d", "replicas": [{"name": "../../x", "config": {}}]}, "replica-invalid"),
    ],
)
def test_failures_have_a_name_and_leave_nothing(
    run_module: RunModule, tmp_path: Path, arguments: dict[str, Any], name: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.yaml").mkdir()
    texts = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in arguments.items()
    }
    result = run_module(vllm_config.main, texts)

    assert result["error"]["name"] == name
    assert "hunter2" not in result["msg"] + json.dumps(result["error"])
    assert listing(tmp_path) == ["file", "folder.yaml"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "path, directory, plan_path"),
        ({"path": "/x.yaml"}, "config"),
        ({"path": "/x.yaml", "config": {}, "directory": "/x"}, "mutually exclusive"),
        ({"plan_path": "/x.json"}, "plan"),
        ({"path": "/x.yaml", "config": {}, "replicas": []}, "directory"),
    ],
)
def test_options_that_do_not_fit(run_module: RunModule, arguments: dict[str, Any], text: str) -> None:
    result = run_module(vllm_config.main, arguments)
    assert result["failed"]
    assert text in result["msg"]


def test_absent_removes_what_was_written_and_nothing_else(tmp_path: Path, run_module: RunModule) -> None:
    """Teardown leaves no file of ours, keeps files of others, and removes the folder once it is empty."""
    folder = tmp_path / "etc"
    plan = {"replicas": [{"name": "vllm-0", "config": {"max-num-seqs": 8}}]}
    run_module(vllm_config.main, {"directory": str(folder), "plan": plan})
    plan["replicas"][0]["config"] = {"max-num-seqs": 4}
    run_module(vllm_config.main, {"directory": str(folder), "plan": plan})
    (folder / "plan.unfinished.json").write_text("{}")  # of vllm_server
    (folder / "plan.json.previous").write_text("{}")  # of an older version; vllm_server has removed plan.json
    other = folder / "notes.yaml"
    other.write_text("mine: true\n")
    assert {path.name for path in folder.iterdir()} > {
        "vllm-0.yaml",
        "vllm-0.yaml.previous",
        "plan.json.previous",
        other.name,
    }

    dry = run_module(vllm_config.main, {"state": "absent", "directory": str(folder)}, check=True)
    assert dry["changed"] and (folder / "vllm-0.yaml").exists()
    assert run_module(vllm_config.main, {"state": "absent", "directory": str(folder)})["changed"]
    assert [path.name for path in folder.iterdir()] == [other.name]
    other.unlink()
    assert not run_module(vllm_config.main, {"state": "absent", "directory": str(folder)})["changed"]
    assert not folder.exists()


def test_nothing_is_written_while_another_run_reads_the_folder(folder: Path, run_module: RunModule) -> None:
    run_module(vllm_config.main, {"directory": str(folder), "plan": plan_of("vllm-0")})
    before = listing(folder)
    with host_lock(str(folder / ".lock"), "vllm_server, state present"):
        result = run_module(vllm_config.main, {"directory": str(folder), "plan": plan_of("vllm-0", "vllm-1")})
    assert (result["failed"], result["error"]["name"]) == (True, "busy")
    assert "vllm_server, state present" in result["msg"]
    assert listing(folder) == [".lock", *before]
