# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's history of deployments and going back to one, on a real engine; only the program stands in for vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet, import_stand_in
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port

if TYPE_CHECKING:
    from docker import DockerClient

KEY = "sk-secret-4711"


@pytest.fixture(scope="session")
def two_builds(engine: DockerClient, run_name: str) -> tuple[str, str]:
    """Two images of the stand-in of which none is the other."""
    names = (f"{run_name}/history:old", f"{run_name}/history:new")
    for name in names:
        import_stand_in(engine, name, debian_program("busybox-static", "bin/busybox"))
    return names


@pytest.fixture
def fleet(
    engine: DockerClient,
    docker_host: str,
    run_module: RunModule,
    run_name: str,
    two_builds: tuple[str, str],
    tmp_path: Path,
) -> Iterator[Fleet]:
    """A deployment of its own, of an image whose tag the test may move."""
    ports = [free_port() for _number in range(2)]
    prefix = f"{run_name}-{ports[0]}"
    deploy = f"{run_name}/history:deploy-{ports[0]}"
    engine.images.get(two_builds[0]).tag(*deploy.split(":"))
    fleet = Fleet(engine, docker_host, run_module, prefix, deploy, tmp_path, ports)
    yield fleet
    fleet.clean()
    fleet.run(state="absent")
    engine.images.remove(deploy)


def kept(fleet: Fleet) -> list[str]:
    """Return our names of images that this deployment keeps."""
    names = [tag for image in fleet.engine.images.list(name="gpufleet/kept") for tag in image.tags]
    return sorted(name for name in names if name.startswith(f"gpufleet/kept:{fleet.prefix}-"))


def entries(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the deployments in the history, the newest first."""
    deployments: list[dict[str, Any]] = fleet.info()["deployments"]
    return deployments


def roll_back(fleet: Fleet, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """Run vllm_server as the playbook rollback does: without saying what to serve."""
    return fleet.run(check=check, state="rolled_back", image=None, model_source=None, **options)


def serving(fleet: Fleet) -> dict[str, Any]:
    """Return the configuration and image of the server that runs."""
    spec = json.loads(fleet.engine.containers.get(f"{fleet.prefix}-0").labels["io.gpufleet.spec"])
    return {"seqs": spec["config"].get("max-num-seqs"), "image_id": spec["image_id"]}


def test_goes_back_to_the_configuration_and_the_image_that_served_before(
    fleet: Fleet, two_builds: tuple[str, str]
) -> None:
    old = fleet.run(fleet.replica(max_num_seqs=4), secrets={"VLLM_API_KEY": KEY})
    assert not old["failed"], old
    assert old["recorded"] == entries(fleet)[0]["id"]
    before, text = serving(fleet), (fleet.config_dir / f"{fleet.prefix}-0.yaml").read_text()
    again = fleet.run(fleet.replica(max_num_seqs=4), secrets={"VLLM_API_KEY": KEY})
    assert (again["changed"], again["recorded"], len(entries(fleet))) == (False, "", 1)

    fleet.engine.images.get(two_builds[1]).tag(*fleet.image.split(":"))
    new = fleet.run(fleet.replica(max_num_seqs=8), secrets={"VLLM_API_KEY": KEY})
    assert serving(fleet)["image_id"] != before["image_id"]
    assert [entry["current"] for entry in entries(fleet)] == [True, False]
    assert len(kept(fleet)) == 2

    told = roll_back(fleet, check=True, secrets={"VLLM_API_KEY": KEY})
    assert (told["changed"], told["rolled_back_to"], serving(fleet)["seqs"]) == (True, old["recorded"], 8)
    assert "config.max-num-seqs: 8 -> 4" in told["replicas"][0]["why"]
    assert any('"max-num-seqs": 4' in diff["after"] for diff in told["diff"])
    assert any(diff["after"] == text for diff in told["diff"])

    back = roll_back(fleet, secrets={"VLLM_API_KEY": KEY})
    assert not back["failed"], back
    assert (back["rolled_back_to"], serving(fleet)) == (old["recorded"], before)
    assert (fleet.config_dir / f"{fleet.prefix}-0.yaml").read_text() == text
    assert fleet.engine.images.get(fleet.image).id == before["image_id"]
    assert entries(fleet)[0]["rolled_back_to"] == old["recorded"]

    twice = roll_back(fleet, secrets={"VLLM_API_KEY": KEY})
    assert (twice["changed"], serving(fleet)) == (False, before)
    forth = roll_back(fleet, rollback_to=new["recorded"], secrets={"VLLM_API_KEY": KEY})
    assert (forth["rolled_back_to"], serving(fleet)["seqs"]) == (new["recorded"], 8)
    for path in (fleet.config_dir / "history").iterdir():
        assert KEY not in path.read_text()
        assert path.stat().st_mode & 0o777 == 0o640


def test_the_image_stays_when_its_tag_moved_and_images_were_pruned(fleet: Fleet, two_builds: tuple[str, str]) -> None:
    """As after a new build of the same tag: nothing but our name points at the old one."""
    engine = fleet.engine
    one = engine.images.get(two_builds[0])
    engine.containers.create(one, name=f"{fleet.prefix}-commit").commit(*fleet.image.split(":"))
    engine.containers.get(f"{fleet.prefix}-commit").remove()
    only = str(engine.images.get(fleet.image).id)
    first = fleet.run(fleet.replica())
    engine.images.get(two_builds[1]).tag(*fleet.image.split(":"))
    fleet.run(fleet.replica())
    assert engine.images.get(only).tags == [kept_as(fleet, first["recorded"])]
    engine.images.prune(filters={"dangling": True})
    assert roll_back(fleet)["replicas"][0]["image_id"] == only
    # With the history it goes, too.
    engine.images.get(two_builds[1]).tag(*fleet.image.split(":"))
    fleet.run(state="absent")
    assert kept(fleet) == []
    assert not (fleet.config_dir / "history").exists()
    assert only not in [image.id for image in engine.images.list()]


def kept_as(fleet: Fleet, name: str) -> str:
    """Return our name of a deployment's image."""
    return next(str(entry["image"]["kept_as"]) for entry in entries(fleet) if entry["id"] == name)


def test_a_rollback_that_fails_leaves_everything_as_it_is(fleet: Fleet, two_builds: tuple[str, str]) -> None:
    first = fleet.run(fleet.replica(max_num_seqs=4))
    fleet.engine.images.get(two_builds[1]).tag(*fleet.image.split(":"))
    fleet.run(fleet.replica(max_num_seqs=8))
    text = (fleet.config_dir / f"{fleet.prefix}-0.yaml").read_text()
    # What served before would not serve any more: its entry is made to want more than the model has.
    path = fleet.config_dir / "history" / f"{first['recorded']}.json"
    entry = json.loads(path.read_text())
    entry["server"]["replicas"][0]["config"]["max-model-len"] = 10485760
    entry["configurations"][f"{fleet.prefix}-0"] += "max-model-len: 10485760\n"
    path.write_text(json.dumps(entry))
    container = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    failed = roll_back(fleet)
    assert (failed["failed"], failed["error"]["name"]) == (True, "max-model-len-too-long")
    assert failed["error"]["details"]["restored"] is True
    assert fleet.engine.containers.get(f"{fleet.prefix}-0").id == container
    assert (fleet.config_dir / f"{fleet.prefix}-0.yaml").read_text() == text
    assert fleet.engine.images.get(fleet.image).id == fleet.engine.images.get(two_builds[1]).id


def test_only_so_many_are_kept_and_failures_push_none_out(fleet: Fleet) -> None:
    for seqs in (1, 2, 3):
        fleet.run(fleet.replica(max_num_seqs=seqs), history_keep=2)
    for _attempt in range(2):
        assert fleet.run(fleet.replica(max_num_seqs=3, max_model_len=10485760), history_keep=2)["failed"]
    assert [(entry["outcome"], entry["current"]) for entry in entries(fleet)] == [
        ("failed", False),
        ("ready", True),
        ("ready", False),
    ]
    assert entries(fleet)[0]["error"]["name"] == "max-model-len-too-long"
    refused = roll_back(fleet, rollback_to=entries(fleet)[0]["id"])
    assert (refused["failed"], refused["error"]["name"]) == (True, "deployment-failed")
    assert roll_back(fleet, history_keep=2)["replicas"][0]["why"] == ["config.max-num-seqs: 3 -> 2"]
    fleet.run(fleet.replica(max_num_seqs=3), history_keep=0)
    assert entries(fleet) == []
    assert kept(fleet) == []


def test_what_is_gone_is_told_before_anything_is_stopped(fleet: Fleet, two_builds: tuple[str, str]) -> None:
    nothing = roll_back(fleet)
    assert (nothing["failed"], nothing["error"]["name"]) == (True, "no-earlier-deployment")
    fleet.run(fleet.replica(max_num_seqs=4))
    fleet.run(fleet.replica(max_num_seqs=8))
    config = fleet.model / "config.json"
    text = config.read_text()
    config.unlink()
    gone = roll_back(fleet)
    assert (gone["failed"], gone["error"]["name"]) == (True, "rollback-weights-gone")
    config.write_text(text)
    (path,) = [path for path in (fleet.config_dir / "history").iterdir() if json.loads(path.read_text())["number"] == 1]
    entry = json.loads(path.read_text())
    entry["image"].update(id="sha256:" + "1" * 64, digests=["registry.example.com/vllm@sha256:" + "2" * 64])
    path.write_text(json.dumps(entry))
    gone = roll_back(fleet)
    assert (gone["failed"], gone["error"]["name"]) == (True, "rollback-image-gone")
    assert "docker pull registry.example.com/vllm@sha256:2222" in gone["error"]["remedy"]
    assert serving(fleet)["seqs"] == 8
