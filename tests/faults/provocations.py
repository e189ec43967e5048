# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How each fault of table.py is provoked.

A function takes the world, the deployment and the fault, and returns the play whose outcome the user sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import CLOSED
from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import import_stand_in
from ansible_collections.gpufleet.vllm.tests.faults.table import Fault
from ansible_collections.gpufleet.vllm.tests.faults.world import MODEL, Play, Site, World, as_root, wait_for
from ansible_collections.gpufleet.vllm.tools import test_engine

Provocation = Callable[[World, Site, Fault], Play]

DATA = Path(__file__).resolve().parents[1] / "unit" / "data"
RECORDING = "start-refused-moe-backend.log"
GOOD_START = "start-cpu-0.32.log"
KEEPS = "Using cache directory: "
RECORDED_CAUSE = re.compile(r"ValueError: vLLM CUTLASS FP8 MoE backend is disabled.*")
ENGINE_PROCESS = "EngineCore"
LOADING = "Starting to load model"
DEEP = 100  # layers
CHECK = "-config-check-"
SOON_S = 600  # for a server to come as far as a fault wants it, on a busy machine


def deploy(_world: World, site: Site, fault: Fault) -> Play:
    """Deploy with the fault's wishes."""
    return site.play(wishes=fault.wishes)


# What is wrong before the server is touched


def take_port(_world: World, site: Site, _fault: Fault) -> Play:
    """Hold the port to which the server is to move."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        return site.play(wishes={"vllm_port": holder.getsockname()[1]})


def use_foreign_image(world: World, site: Site, _fault: Fault) -> Play:
    """Load an image that was made for another architecture, and deploy with it."""
    machine = os.uname().machine
    name, tag = f"{world.run_name}/foreign", "1"
    archive = image_archive(f"{name}:{tag}", "amd64" if machine == "aarch64" else "arm64")
    world.engine.images.load(archive)
    wishes = {"vllm_image": name, "vllm_image_tag": tag, "vllm_version": "0.32.0", "vllm_image_source": "present"}
    return site.play(wishes=wishes)


def image_archive(name: str, architecture: str) -> bytes:
    """Return the archive, as C(docker save) writes it, of an image with one file."""
    layer = tar_of({"usr/local/bin/vllm": b"#!/bin/sh\n"})
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["vllm", "serve"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"config.json": config, "manifest.json": manifest}
    return tar_of({"layer.tar": layer, **{path: json.dumps(document).encode() for path, document in files.items()}})


def tar_of(files: dict[str, bytes]) -> bytes:
    """Return a tar archive of files by their paths."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.mode, member.size = 0o755, len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def truncate_log(_world: World, site: Site, _fault: Fault) -> Play:
    """Cut the log of the serving server to nothing, deploy again, and ask for the status."""
    assert site.play().status == 0  # what an earlier fault wished for may still be written down
    log = site.server().attrs["LogPath"]
    as_root("truncate", "--size=0", log)
    again = site.play()
    assert (again.status, again.changed) == (0, 0), again.text
    return site.play("status")


# What a new server cannot start with


def fill_disk(_world: World, site: Site, fault: Fault) -> Play:
    """Have the configurations' folder on a disk without room."""
    with full_disk(site.config_dir, 64, []):
        return site.play(wishes=fault.wishes)


@contextlib.contextmanager
def full_disk(folder: Path, size_kib: int, folders: Sequence[str]) -> Iterator[None]:
    """Have a folder on a disk of its own that is full inside the block, but for the folders in it."""
    folder.mkdir()
    as_root("mount", "-t", "tmpfs", "-o", f"size={size_kib}k,uid={os.getuid()}", "tmpfs", str(folder))
    try:
        for name in folders:
            (folder / name).mkdir()
        with contextlib.suppress(OSError), (folder / "fills").open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        yield
    finally:
        as_root("umount", "-l", str(folder))


def truncate_weights(world: World, site: Site, fault: Fault) -> Play:
    """Give the model a file of weights of which the second half is missing."""
    model = model_with_weights(world, site, "truncated")
    cut(model)
    return site.play(wishes={**fault.wishes, "vllm_model": str(model)})


def model_with_weights(world: World, site: Site, name: str) -> Path:
    """Return a copy of the model with a file of weights, of which nothing but the size is right."""
    model = copy_of_model(world, site, name)
    size = 4096 * 256 * 4
    tensors = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [4096, 256], "data_offsets": [0, size]}}
    header = json.dumps(tensors).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return model


def copy_of_model(world: World, site: Site, name: str, **config: Any) -> Path:
    """Return a copy of the model with other entries in its config.json."""
    model = site.folder / name
    shutil.copytree(world.model, model)
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **config}), encoding="utf-8")
    return model


def cut(model: Path) -> None:
    """Cut off the second half of a model's weights."""
    path = model / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def use_image_of_another_user(world: World, site: Site, fault: Fault) -> Play:
    """Serve a model that brings its own code with an image that does not run as root."""
    model = copy_of_model(world, site, "with-code", auto_map={"AutoConfig": "configuration_scout.ScoutConfig"})
    code = "from transformers import Llama4TextConfig\n\n\nclass ScoutConfig(Llama4TextConfig):\n    pass\n"
    (model / "configuration_scout.py").write_text(code, encoding="utf-8")
    with changed_image(world, "other-user", {}, ["USER 1000:1000"]) as wishes:
        return site.play(wishes={**fault.wishes, **wishes, "vllm_model": str(model)})


@contextlib.contextmanager
def changed_image(world: World, name: str, files: dict[str, bytes], changes: list[str]) -> Iterator[dict[str, Any]]:
    """Make an image from the CPU image with other files or settings; yield the wishes that choose it."""
    repository = f"{world.run_name}/{name}"
    box = world.engine.containers.create(world.image)
    try:
        if files:
            box.put_archive("/", tar_of(files))
        box.commit(repository=repository, tag="1", changes="\n".join(changes) or None, pause=False)
    finally:
        box.remove(force=True)
    yield {
        "vllm_image": repository,
        "vllm_image_tag": "1",
        "vllm_version": "0.32.0",
        "vllm_image_source": "present",
    }


def kill_loading_engine(world: World, site: Site, fault: Fault, signal: str = "KILL") -> Play:
    """Kill the engine's process when the log says that the model is being loaded."""
    # A model of so many layers takes seconds to load, also without weights.
    model = copy_of_model(world, site, "deep", num_hidden_layers=DEEP)

    def kill() -> None:
        engine = await_process(site, ENGINE_PROCESS)
        wait_for(lambda: LOADING in log_of(site), SOON_S, "no model is loaded")
        send_signal(signal, engine)

    return site.play(wishes={**fault.wishes, "vllm_model": str(model)}, meanwhile=kill)


def crash_loading_engine(world: World, site: Site, fault: Fault) -> Play:
    """Have the engine's process crash when the log says that the model is being loaded."""
    return kill_loading_engine(world, site, fault, "SEGV")


def log_of(site: Site) -> str:
    """Return what the deployment's containers have printed."""
    text = ""
    for box in site.containers():
        with contextlib.suppress(Exception):  # it may end at any time
            text += box.logs().decode("utf-8", "replace")
    return text


def freeze_start(_world: World, site: Site, fault: Fault) -> Play:
    """Stop every process of the server as soon as it has some."""

    def freeze() -> None:
        send_signal("STOP", *wait_for(site.processes, SOON_S, "no container is started"))

    return site.play(wishes=fault.wishes, meanwhile=freeze)


def limit_memory(_world: World, site: Site, fault: Fault) -> Play:
    """Give the new container a memory limit under which no vLLM starts."""

    def limit() -> None:
        await_new_container(site, old).update(mem_limit="256m", memswap_limit="256m")

    old = ids(site)
    return site.play(wishes=fault.wishes, meanwhile=limit)


def limit_processes(_world: World, site: Site, fault: Fault) -> Play:
    """Let the new container have fewer processes and threads than any vLLM needs."""

    def limit() -> None:
        box = await_new_container(site, old)
        # docker-py has no argument for it.
        api: Any = site.engine.api
        api._raise_for_status(api._post_json(api._url("/containers/{0}/update", box.id), data={"PidsLimit": 12}))

    old = ids(site)
    return site.play(wishes=fault.wishes, meanwhile=limit)


def ids(site: Site) -> set[str]:
    """Return the ids of the deployment's containers."""
    return {str(box.id) for box in site.containers()}


def await_new_container(site: Site, old: set[str]) -> Any:
    """Return the container of the new server as soon as it is made, which is before the old one is stopped."""

    def find() -> Any:
        return next((box for box in site.containers() if box.id not in old and CHECK not in str(box.name)), None)

    return wait_for(find, SOON_S, "no container is made")


def await_process(site: Site, name: str) -> int:
    """Return the id of the process of that name in the deployment's containers, once it is there."""

    def find() -> int:
        return next((pid for pid, line in site.processes().items() if name in line), 0)

    return int(wait_for(find, SOON_S, f"no process {name} comes up"))


# What needs a GPU: the stand-in prints what vLLM prints and exits as vLLM does


def replay(
    world: World,
    site: Site,
    log: str,
    environment: Mapping[str, str] | None = None,
    wishes: Mapping[str, Any] | None = None,
) -> Play:
    """Deploy with the stand-in that prints a log and exits, or does what its environment says besides."""
    path = site.folder / "start.log"
    path.write_text(log, encoding="utf-8")
    name = stand_in(world)
    repository, _colon, tag = name.rpartition(":")
    own = {
        "vllm_image": repository,
        "vllm_image_tag": tag,
        "vllm_version": "0.26.0",
        "vllm_image_source": "present",
        "vllm_environment": {"STAND_IN_LOG": "/start.log", "STAND_IN_EXIT": "1", **(environment or {})},
        "vllm_volumes": [f"{path}:/start.log:ro"],
        "vllm_check_config": False,  # its parser knows a few options only
    }
    return site.play(wishes={**own, **(wishes or {})})


def stand_in(world: World) -> str:
    """Return the name of the stand-in's image, made by the first that asks."""
    name = f"{world.run_name}/stand-in:1"
    with world.lock:
        if not world.engine.images.list(name):
            import_stand_in(world.engine, name, debian_program("busybox-static", "bin/busybox"))
    return name


def recording(name: str) -> str:
    """Return the log of a recorded start."""
    return (DATA / "logs" / name).read_text(encoding="utf-8")


def replay_recording(world: World, site: Site, fault: Fault) -> Play:
    """Replay a start recorded on a GPU host."""
    return replay(world, site, recording(fault.wishes["recording"]))


def answer_badly(world: World, site: Site, fault: Fault) -> Play:
    """Replay a start that succeeded, by a server whose /health answers 500 for ever."""
    environment = {"STAND_IN_EXIT": "serve", "STAND_IN_SICK": "500"}
    return replay(world, site, recording(GOOD_START), environment, fault.wishes)


def fill_cache(world: World, site: Site, fault: Fault) -> Play:
    """Replay a start up to where vLLM keeps what it compiled, and write there as it does: the disk is full."""
    started, found, rest = recording(fault.wishes["recording"]).partition(KEEPS)
    assert found, f"{fault.wishes['recording']} does not say where vLLM keeps what it compiles"
    cache = site.folder / "full-cache"
    with full_disk(cache, 64, ["vllm", "flashinfer", "triton"]):
        where = "/root/.cache/vllm/torch_compile_cache/compiled"
        log = started + found + rest.partition("\n")[0]
        return replay(world, site, log, {"STAND_IN_WRITES": where}, {"vllm_cache_dir": str(cache)})


def replay_line(world: World, site: Site, fault: Fault) -> Play:
    """Replay a recorded start whose cause is another line."""
    told, count = RECORDED_CAUSE.subn(lambda _match: str(fault.wishes["line"]), recording(RECORDING))
    assert count, f"{RECORDING} has no line of its cause any more"
    return replay(world, site, told)


def replay_message(world: World, site: Site, fault: Fault) -> Play:
    """Replay a recorded start whose cause is a message of vLLM's newest source, its figures made up."""
    messages = json.loads((DATA / "vllm_messages.json").read_text(encoding="utf-8"))["messages"]
    (found,) = [message["found"] for message in messages if message["pattern"] == fault.wishes["message"]]
    text = found[max(found, key=lambda version: [int(part) for part in version.split(".")])][0]["text"]
    return replay_line(world, site, dataclasses.replace(fault, wishes={"line": f"ValueError: {text}"}))


# What stops the server that serves


def kill_server(_world: World, site: Site, _fault: Fault) -> Play:
    """Kill the main process of the serving server, wait until it serves again, and deploy."""
    pids = {pid: line for pid, line in site.processes().items() if "vllm serve" in line}
    # The first of them is Docker's init; killing it kills the container as well, but the server is what dies in life.
    send_signal("KILL", max(pids))
    wait_for(lambda: not site.answers(), 60, "the server answers though it was killed")
    site.wait_until_it_answers()
    return site.play()


def use_broken_image(world: World, site: Site, fault: Fault) -> Play:
    """Deploy with an image whose vLLM finds a library of another release when it loads its engine."""
    broken = (
        b"raise ImportError('/opt/vllm/lib/python3.11/site-packages/vllm/_C.abi3.so: undefined symbol:"
        b" _ZN3c104cuda9SetDeviceEab')\n"
    )
    where = world.engine.containers.run(
        world.image,
        ["-c", "import importlib.util as u; print(u.find_spec('vllm').origin)"],
        entrypoint="python3",
        remove=True,
    )
    package = Path(where.decode().strip()).parent
    files = {str(package / "v1" / "engine" / "core.py").lstrip("/"): broken}
    with changed_image(world, "next", files, []) as wishes:
        return site.play(wishes={**fault.wishes, **wishes})


def truncate_weights_later(world: World, site: Site, fault: Fault) -> Play:
    """Cut off half of the new model's weights once they were checked and the new container is made."""
    model = model_with_weights(world, site, "cut-later")

    def cut_it() -> None:
        await_new_container(site, old)
        cut(model)

    old = ids(site)
    return site.play(wishes={**fault.wishes, "vllm_model": str(model)}, meanwhile=cut_it)


def kill_play(_world: World, site: Site, fault: Fault) -> Play:
    """Kill the play and what it started on the host while the new server starts; then run it again."""
    old = site.server().id
    kill_when(site, fault, lambda: began(site, old), "the replacement does not begin")
    assert len(site.containers()) == 2
    return finish(site, fault)


def began(site: Site, old: str | None) -> bool:
    """Return whether the new server has been started, while the old one is still kept."""
    boxes = {str(box.name): box for box in site.containers()}
    new = boxes.get(f"{site.prefix}-0")
    return len(boxes) == 2 and new is not None and new.id != old and new.status == "running"


def kill_play_that_checks(_world: World, site: Site, fault: Fault) -> Play:
    """Kill the play while a container of the image reads the new configuration; run it again once that has ended."""
    old = site.server()

    def checks() -> list[Any]:
        return [box for box in site.containers() if CHECK in str(box.name) and box.status == "running"]

    kill_when(site, fault, checks, "the configuration is not checked")
    now = site.server()
    assert (now.id, now.attrs["State"]["StartedAt"]) == (old.id, old.attrs["State"]["StartedAt"])
    assert site.answers()
    wait_for(lambda: not checks(), SOON_S, "the check of the configuration does not end")
    return finish(site, fault)


def kill_play_that_drains(_world: World, site: Site, fault: Fault) -> Play:
    """Kill the play while the old server still has requests and turns new ones away; then run it again."""
    old = site.server()
    closed = str(site.config_dir / "control" / f"{site.prefix}-0" / CLOSED)
    with long_requests(site):
        kill_when(site, fault, lambda: is_there(closed), "the old server is not drained")
    now = site.server()
    assert (now.id, now.attrs["State"]["StartedAt"]) == (old.id, old.attrs["State"]["StartedAt"])
    assert is_there(closed)
    return finish(site, fault)


def is_there(path: str) -> bool:
    """Return whether there is such a file, which root may have made in a folder of its own."""
    try:
        as_root("test", "-e", path)
    except OSError:
        return False
    return True


def kill_when(site: Site, fault: Fault, condition: Callable[[], Any], otherwise: str) -> None:
    """Begin to deploy, and kill the play and what it started on the host once C(condition) is true."""
    with site.start("deploy", fault.wishes) as process:
        try:
            wait_for(condition, SOON_S, otherwise)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
        send_signal("KILL", json.loads(as_root("cat", str(site.config_dir / ".lock")))["pid"])


def finish(site: Site, fault: Fault) -> Play:
    """Deploy again what a play that was killed was to deploy."""
    site.wishes.update(fault.wishes)
    return site.play()


@contextlib.contextmanager
def long_requests(site: Site) -> Iterator[None]:
    """Have the server at work on requests that take long until it refuses them or the block ends."""
    body = {"model": MODEL, "prompt": "San Francisco is a", "max_tokens": 2000, "ignore_eos": True}
    ended = threading.Event()

    def ask(delay: float) -> None:
        ended.wait(delay)
        with contextlib.suppress(requests.exceptions.RequestException):
            while not ended.is_set():
                if requests.post(f"{site.url}/v1/completions", json=body, timeout=SOON_S).status_code != 200:
                    return

    # Two in turns, so that one of them is far from its end at any time.
    for delay in (0.0, 3.0):
        threading.Thread(target=ask, args=(delay,), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def restart_docker(world: World, site: Site, _fault: Fault) -> Play:
    """Restart the daemon, wait until the server serves again, and deploy."""
    if world.docker_host != f"unix://{test_engine.SOCKET}":
        pytest.skip(f"the engine at {world.docker_host} is not the tests' own: it is not restarted")
    subprocess.run([sys.executable, test_engine.__file__, "restart"], check=True)
    site.wait_until_it_answers()
    return site.play()


def send_signal(name: str, *pids: int) -> None:
    """Send a signal to processes, which are root's."""
    as_root("kill", f"-{name}", *map(str, pids))


PROVOCATIONS: dict[str, Provocation] = {
    function.__name__: function
    for function in (
        deploy,
        take_port,
        use_foreign_image,
        truncate_log,
        fill_disk,
        truncate_weights,
        use_image_of_another_user,
        kill_loading_engine,
        crash_loading_engine,
        freeze_start,
        limit_memory,
        limit_processes,
        replay_recording,
        replay_line,
        replay_message,
        answer_badly,
        fill_cache,
        kill_server,
        use_broken_image,
        truncate_weights_later,
        kill_play,
        kill_play_that_checks,
        kill_play_that_drains,
        restart_docker,
    )
}
