# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_model on a real engine, with the real huggingface_hub in the image; only the hub is a fake one on the loopback.

Two releases of huggingface_hub, because they keep and name what is not complete differently: the one that vLLM 0.12
brings, and the one of vLLM 0.32.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

from ansible_collections.gpufleet.vllm.plugins.modules import vllm_model
from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import CACHE, debian_program
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import PACKAGES, python_tarball
from ansible_collections.gpufleet.vllm.tests.fakes.hub import MAIN, Hub, Repository, Trouble, folder, sharded
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

if TYPE_CHECKING:
    from docker import DockerClient

MINIATURE = Path(__file__).parents[1] / "data" / "scout-miniature"
TOKEN = "hf_opens_the_gate_0815"
RELEASES = ("0.36.0", "2.4.0")
SMALL = {"chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"}
SHARD_BYTES = 600_000

NEWEST = pytest.mark.parametrize("image", RELEASES[-1:], indirect=True, scope="module")

Run = Callable[..., dict[str, Any]]


def packages(release: str) -> Path:
    """Return a folder with this release of huggingface_hub and what it needs; kept for the next run."""
    target = CACHE / f"huggingface_hub-{release}"
    if not (target / "huggingface_hub").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--target", str(target)]
        subprocess.run([*command, f"huggingface_hub=={release}"], check=True)
    return target


def import_hub_image(engine: DockerClient, name: str, release: str) -> None:
    """Make an image with Python, this release of huggingface_hub and the stand-in as vllm."""
    repository, _colon, tag = name.rpartition(":")
    buffer = io.BytesIO(python_tarball(debian_program("busybox-static", "bin/busybox")))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        tar.add(packages(release), arcname=PACKAGES)
    engine.api.import_image_from_data(
        buffer.getvalue(),
        repository=repository,
        tag=tag,
        changes=[
            f"ENV PATH=/usr/local/bin:/usr/bin:/bin PYTHONPATH=/{PACKAGES} HOME=/root",
            "ENV HF_HUB_DISABLE_TELEMETRY=1",
            'ENTRYPOINT ["vllm", "serve"]',
        ],
    )


@pytest.fixture(scope="module", params=RELEASES)
def image(request: pytest.FixtureRequest, engine: DockerClient, run_name: str) -> str:
    """The name of an image with a release of huggingface_hub."""
    name = f"{run_name}/hub-{request.param}:1"
    import_hub_image(engine, name, request.param)
    return name


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with one model for all and one that is gated; besides what vLLM takes they hold what it does not."""
    files = {
        **folder(MINIATURE),
        **sharded(3, SHARD_BYTES),
        "original/consolidated.00.pth": b"x" * 1000,
        "pytorch_model.bin": b"x" * 1000,
        "onnx/model.onnx": b"x" * 1000,
        "README.md": b"# A model\n",
    }
    later = {**files, "generation_config.json": b"{}"}
    repositories = {
        "acme/scout": Repository({MAIN: files, "v2": later}),
        "acme/gated": Repository({MAIN: files}, token=TOKEN),
    }
    with Hub(repositories).running() as running:
        yield running


@pytest.fixture
def run(run_module: RunModule, docker_host: str, run_name: str, image: str, hub: Hub, tmp_path: Path) -> Run:
    """Run the module against the fake hub."""

    def run_it(model: str = "acme/scout", *, check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "model": model,
            "image": image,
            "hf_home": str(tmp_path / "huggingface"),
            "environment": {"HF_ENDPOINT": hub.url},
            "network_mode": "host",
            "container_prefix": run_name,
            "docker_host": docker_host,
            "backoff": 0.2,
            "progress_file": str(tmp_path / "progress"),
            **options,
        }
        return run_module(vllm_model.main, arguments, check=check, diff=True)

    return run_it


def snapshot(tmp_path: Path, hub: Hub, model: str = "acme/scout", revision: str = MAIN) -> dict[str, bytes]:
    """Return the files of a revision in the cache, by the path that the cache itself leads to."""
    base = tmp_path / "huggingface" / "hub" / ("models--" + model.replace("/", "--"))
    commit = (base / "refs" / revision).read_text()
    assert commit == hub.repositories[model].commit(revision)
    return folder(base / "snapshots" / commit)


def test_what_vllm_takes_is_fetched_and_nothing_else(run: Run, hub: Hub, tmp_path: Path) -> None:
    before = run(check=True)
    assert not before["failed"], before
    (told,) = before["models"]
    assert (before["changed"], len(told["missing_files"])) == (True, 8)
    assert told["missing_bytes"] == told["bytes"] > 3 * SHARD_BYTES
    assert not (tmp_path / "huggingface").exists()
    first = run()
    assert not first["failed"], first
    assert (first["changed"], first["models"]) == (True, before["models"])
    assert "8 of 8 files, 1.8 MiB" in first["diff"][0]["after"]
    files = snapshot(tmp_path, hub)
    assert set(files) == SMALL | set(sharded(3, 1))
    origin = hub.repositories["acme/scout"].files(MAIN)
    assert files == {name: origin[name] for name in files}
    asked = len(hub.log)
    second = run(docker_host="unix:///nowhere.sock")  # neither the engine nor the hub is needed any more
    assert (second["failed"], second["changed"], len(hub.log)) == (False, False, asked)


def test_broken_connections_and_refusals_that_pass_are_borne(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.troubles = [
        Trouble("GET /api/models/acme/scout", status=503),
        Trouble("GET .*00002-of", cut=SHARD_BYTES // 2),
        Trouble("(GET|HEAD) .*00003-of", status=429, retry_after=1),
        Trouble("(GET|HEAD) .*tokenizer.json", status=502, times=2),
    ]
    result = run()
    assert not result["failed"], result
    assert [entry.times for entry in hub.troubles] == [0, 0, 0, 0]
    assert set(snapshot(tmp_path, hub)) == SMALL | set(sharded(3, 1))


def test_a_run_that_was_given_up_goes_on_with_the_files_that_are_complete(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.troubles = [Trouble("GET .*00002-of", times=1000, status=507)]
    first = run(retries=1)
    assert (first["failed"], first["error"]["name"]) == (True, "hub-unreachable")
    assert run(offline=True)["error"]["name"] == "weights-missing"
    hub.troubles, asked = [], len(hub.log)
    second = run()
    assert not second["failed"], second
    assert second["models"][0]["missing_files"] == ["model-00002-of-00003.safetensors"]
    assert not [entry for entry in hub.log[asked:] if "00001-of" in entry and entry.startswith("GET")]
    assert set(snapshot(tmp_path, hub)) == SMALL | set(sharded(3, 1))
    assert not run(offline=True)["changed"]


def test_a_gated_model_needs_the_token_which_nobody_sees(
    run: Run, hub: Hub, engine: DockerClient, run_name: str, tmp_path: Path
) -> None:
    refused = run("acme/gated")
    assert (refused["failed"], refused["error"]["name"]) == (True, "model-gated")
    assert "vllm_hf_token is not set" in refused["msg"]
    assert "Accept the licence" in refused["error"]["remedy"]
    wrong = run("acme/gated", secrets={"HF_TOKEN": "hf_wrong_one"})
    assert (wrong["error"]["name"], "hf_wrong_one" in json.dumps(wrong)) == ("model-gated", False)
    hub.rate = SHARD_BYTES
    results: list[dict[str, Any]] = []
    worker = threading.Thread(target=lambda: results.append(run("acme/gated", secrets={"HF_TOKEN": TOKEN})))
    worker.start()
    seen = watched(engine, f"{run_name}-weights", worker)
    worker.join()
    assert not results[0]["failed"], results
    assert TOKEN in hub.tokens
    assert seen
    for text in (*seen, json.dumps(results), (tmp_path / "progress").read_text()):
        assert TOKEN not in text
    assert set(snapshot(tmp_path, hub, "acme/gated")) == SMALL | set(sharded(3, 1))


def watched(engine: DockerClient, name: str, worker: threading.Thread) -> list[str]:
    """Return what others see of the container while it works: its command, its processes and its log."""
    from docker.errors import APIError

    seen = []
    while worker.is_alive():
        try:
            container = engine.containers.get(name)
            seen.append(json.dumps([container.attrs["Path"], container.attrs["Args"], container.labels]))
            seen.append(json.dumps(container.top()))
            seen.append(container.logs().decode())
        except APIError:
            pass
        time.sleep(0.2)
    return seen


@NEWEST
def test_a_name_that_the_hub_does_not_know_is_told_at_once(run: Run, hub: Hub) -> None:
    result = run("acme/scuot")
    assert (result["error"]["name"], "acme/scuot" in result["msg"]) == ("model-not-found", True)
    assert len(hub.asked("acme/scuot")) == 1
    wrong = run(config={"revision": "v3"})
    assert (wrong["error"]["name"], "no revision v3" in wrong["msg"]) == ("revision-not-found", True)


@NEWEST
def test_a_disk_that_is_too_small_is_told_before_anything_comes(run: Run, hub: Hub) -> None:
    hub.repositories["acme/scout"].claimed = {"model-00001-of-00003.safetensors": 10**15}
    result = run()
    assert result["error"]["name"] == "disk-full"
    assert "931322.6 GiB are missing" in result["msg"]
    assert " GiB are free" in result["msg"]
    assert not hub.asked("GET .*(00001-of|config.json)")


@NEWEST
def test_another_revision_is_fetched_beside_the_first(run: Run, hub: Hub, tmp_path: Path) -> None:
    assert not run()["failed"]
    second = run(config={"revision": "v2"})
    assert (second["failed"], second["changed"]) == (False, True)
    assert "generation_config.json" in snapshot(tmp_path, hub, revision="v2")
    assert len(hub.asked("GET .*00001-of")) == 1  # the same content is not fetched twice
    assert not run(config={"revision": "v2"})["changed"]


def test_a_branch_that_moves_on_meanwhile_is_followed(run: Run, hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["acme/scout"]
    hub.rate = SHARD_BYTES // 4
    worker = threading.Thread(target=move_on, args=(hub, repository))
    worker.start()
    result = run()
    worker.join()
    assert not result["failed"], result
    assert result["models"][0]["commit"] == repository.commit("v2") == repository.commit(MAIN)
    assert set(snapshot(tmp_path, hub)) == SMALL | {"generation_config.json"} | set(sharded(3, 1))
    assert not run(docker_host="unix:///nowhere.sock")["changed"]


def move_on(hub: Hub, repository: Repository) -> None:
    """Have main be what v2 is, once the first of the weights is asked for."""
    deadline = time.monotonic() + 60
    while not hub.asked("GET .*-of-") and time.monotonic() < deadline:
        time.sleep(0.05)
    repository.revisions = {"v1": repository.revisions[MAIN], "v2": repository.revisions["v2"]}
    repository.revisions[MAIN] = repository.revisions["v2"]


@NEWEST
def test_dummy_weights_need_configuration_and_tokenizer_only(run: Run, hub: Hub, tmp_path: Path) -> None:
    result = run(config={"load-format": "dummy"})
    assert not result["failed"], result
    assert set(snapshot(tmp_path, hub)) == SMALL | {"model.safetensors.index.json"}
    assert not run(config={"load-format": "dummy"})["changed"]
    assert run(offline=True)["error"]["name"] == "weights-missing"


@NEWEST
def test_a_cache_elsewhere_is_known_by_its_mount(run: Run, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "mine").mkdir()
    volumes = [f"{tmp_path}/mine:/data"]
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": "/data/hf"}
    first = run(volumes=volumes, environment=environment)
    assert (first["failed"], first["changed"]) == (False, True), first
    assert (tmp_path / "mine" / "hf" / "hub" / "models--acme--scout" / "refs" / MAIN).exists()
    asked = len(hub.log)
    again = run(volumes=volumes, environment=environment, docker_host="unix:///nowhere.sock")
    assert (again["failed"], again["changed"], len(hub.log)) == (False, False, asked)
    # What there is counts for a dry run, too.
    next((tmp_path / "mine").glob("**/snapshots/*/tokenizer.json")).unlink()
    dry = run(volumes=volumes, environment=environment, check=True)
    assert (dry["failed"], dry["models"][0]["missing_files"]) == (False, ["tokenizer.json"]), dry


@NEWEST
def test_a_copy_of_another_hosts_cache_is_enough_without_a_way_out(run: Run, tmp_path: Path) -> None:
    assert not run(config={"load-format": "dummy"})["failed"]
    shutil.rmtree(tmp_path / "huggingface" / "gpufleet")
    copied = run(config={"load-format": "dummy"}, offline=True, docker_host="unix:///nowhere.sock")
    assert (copied["failed"], copied["changed"]) == (False, False), copied


@NEWEST
def test_a_second_run_waits_for_the_first_and_fetches_nothing(run: Run, hub: Hub, tmp_path: Path) -> None:
    """As after Ctrl-C: the interrupted play's module goes on in the background, here as a process of its own."""
    hub.rate = SHARD_BYTES // 2
    context = multiprocessing.get_context("fork")
    first = context.Process(target=run)
    first.start()
    lock = tmp_path / "huggingface" / "gpufleet" / ".lock"
    deadline = time.monotonic() + 60
    while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    busy = run()
    assert (busy["failed"], busy["error"]["name"]) == (True, "busy"), busy
    assert f"download of acme/scout (process {first.pid})" in busy["msg"]
    second = run(lock_timeout=120)
    first.join()
    assert (second["failed"], second["changed"]) == (False, False), second
    assert len(hub.asked("GET .*00001-of")) == 1
    assert set(snapshot(tmp_path, hub)) == SMALL | set(sharded(3, 1))


@NEWEST
def test_a_download_that_stands_still_is_ended(run: Run, hub: Hub, engine: DockerClient, run_name: str) -> None:
    hub.rate = 10
    result = run(stall_timeout=3)
    assert (result["error"]["name"], "vllm_stall_timeout" in result["msg"]) == ("download-stalled", True)
    slow = run(timeout=3)
    assert (slow["error"]["name"], "vllm_phase_timeouts: download" in slow["msg"]) == ("download-too-slow", True)
    names = [box.name or "" for box in engine.containers.list(all=True, ignore_removed=True)]
    assert not [name for name in names if name.startswith(f"{run_name}-weights")]
