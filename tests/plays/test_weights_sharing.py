# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that have weights give them to others: real sshd, real rsync, on addresses of the loopback network.

Each host has folders and an address of its own. The last test runs the role on three hosts of which one has the
weights; tests/engine/test_weights_play.py begins with none, and a hub.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import receiving
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cached import lacks
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.from_fleet import Fleet, fetch_from_fleet
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.receiving import Source
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.sending import (
    CLIENT_KEY,
    Sending,
    begin,
    end,
    make_key,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.shared_files import shared_model
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import wants_of
from ansible_collections.gpufleet.vllm.tests.fakes.hub import MAIN, etag, folder, sharded
from ansible_collections.gpufleet.vllm.tests.fakes.sharing_programs import programs
from ansible_collections.gpufleet.vllm.tests.plays.wired import COLLECTIONS

REPOSITORY = "acme/scout"
MINIATURE = Path(__file__).parents[1] / "data" / "scout-miniature"
SHARD_BYTES, SHARDS = 1_000_000, 6
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {**folder(MINIATURE), **sharded(SHARDS, SHARD_BYTES)}
WANTS = wants_of(REPOSITORY, {})
PORT = 18022 + os.getpid() % 1000


@dataclass
class Host:
    """A host: its name, its folder for weights, its folder for a run, its address."""

    name: str
    home: Path
    run: Path
    address: str

    @property
    def around(self) -> Surroundings:
        """What a download has around it."""
        return Surroundings("", str(self.home), stall_timeout=120, timeout=300)

    @property
    def base(self) -> Path:
        """The folder of the repository in the cache."""
        return self.home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"

    def fill(self) -> None:
        """Have the model as huggingface_hub would have fetched it."""
        snapshot = self.base / "snapshots" / COMMIT
        for part in (self.base / "blobs", self.base / "refs", snapshot):
            part.mkdir(parents=True)
        (self.base / "refs" / MAIN).write_text(COMMIT)
        for name, data in FILES.items():
            self.blob(name).write_bytes(data)
            (snapshot / name).symlink_to(f"../../blobs/{self.blob(name).name}")

    def blob(self, name: str) -> Path:
        """Return the file with the content of one of the model's files."""
        return self.base / "blobs" / etag(name, FILES[name])

    def share(self, *keys: str, rate: int = 0, connections: int = 4) -> Source:
        """Give the weights away; return how others find it."""
        sending = Sending(
            str(self.run), f"{self.home}/hub", [REPOSITORY], self.address, PORT, keys, connections, rate, 300
        )
        return Source(self.name, self.address, PORT, begin(sending), whole=False)

    def key(self) -> str:
        """Make a key to fetch with."""
        return make_key(str(self.run), CLIENT_KEY)

    def fetch(self, *sources: Source, whole: tuple[Host, ...], connections: int = 3) -> dict[str, Any]:
        """Fetch what is missing from hosts, of which some have everything."""
        told = {host.name: [model.as_result()] for host in whole if (model := shared_model(WANTS[0], host.around))}
        fleet = Fleet(sources, told, str(self.run), connections)
        return fetch_from_fleet(WANTS, self.around, fleet, Progress(None), check=False)

    def files(self) -> dict[str, bytes]:
        """Return the files that a server would find."""
        return folder(self.base / "snapshots" / (self.base / "refs" / MAIN).read_text())


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Host]]:
    """Three hosts of which none has anything."""
    monkeypatch.setenv("PATH", programs(tmp_path / "bin"))
    # sshd wants to be alone in writing to the folder of its keys, which those of tests are not.
    run = Path("/run") / f"gpufleet-sharing-{os.getpid()}"
    names = ["one", "two", "three"]
    made = [
        Host(name, tmp_path / name / "hf", run / name, f"127.9.{os.getpid() % 250}.{number + 1}")
        for number, name in enumerate(names)
    ]
    yield made
    for host in made:
        end(str(host.run))
    shutil.rmtree(run, ignore_errors=True)


def listening(host: Host) -> bool:
    """Return whether the port of a host is open."""
    with socket.socket() as tried:
        return tried.connect_ex((host.address, PORT)) == 0


def test_a_host_has_all_of_it_from_another_one_and_the_door_is_closed_afterwards(hosts: list[Host]) -> None:
    one, two, _three = hosts
    one.fill()
    key = two.key()
    source = one.share(key)
    assert listening(one)
    result = two.fetch(source, whole=(one,))
    size = sum(map(len, FILES.values()))
    assert result["failures"] == []
    assert result["models"] == [{"repository": REPOSITORY, "bytes": size, "hosts": {"one": size}, "left": ""}]
    assert two.files() == FILES
    assert lacks(WANTS[0], two.around) == ""
    assert two.fetch(source, whole=(one,)) == {"changed": False, "models": [], "failures": []}
    assert end(str(one.run))
    assert not listening(one)
    assert not one.run.exists()
    assert not end(str(one.run))


def test_who_has_a_key_reads_the_model_and_nothing_else(hosts: list[Host]) -> None:
    one, two, three = hosts
    one.fill()
    other = one.home / "hub" / "models--acme--secret" / "blobs"
    other.mkdir(parents=True)
    (other / "a").write_text("secret")
    (one.home / "hub" / "token").write_text("secret")
    (one.base / "blobs" / "b.incomplete").write_text("begun")
    two.key()
    three.key()
    source = one.share(two.key())

    def ssh(host: Host, *words: str) -> subprocess.CompletedProcess[str]:
        options = ["-F", "none", "-i", str(host.run / CLIENT_KEY), "-p", str(PORT), "-o", "StrictHostKeyChecking=no"]
        options += ["-o", f"UserKnownHostsFile={host.run}/seen", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"]
        return subprocess.run(
            ["ssh", *options, one.address, *words], capture_output=True, text=True, check=False, input=""
        )

    def rsync(path: str) -> subprocess.CompletedProcess[str]:
        receiver = receiving.Receiver(shared_model(WANTS[0], one.around), [source], "/", str(two.run), 1)  # type: ignore[arg-type]
        receiver._write_known_hosts()
        return receiver._rsync(source, "--recursive", "--list-only", f"{one.address}::{path}")

    # Whatever is asked for, rsync's daemon answers.
    assert ssh(two, "cat", "/etc/hostname").stdout.startswith("@RSYNCD:")
    assert "Permission denied" in ssh(three, "true").stderr
    listed = rsync("hub/")
    assert listed.returncode == 0, listed.stderr
    assert etag("config.json", FILES["config.json"]) in listed.stdout
    assert not any(word in listed.stdout for word in ("secret", "token", "snapshots", "incomplete"))
    assert rsync("hub/models--acme--secret/blobs/").returncode
    assert rsync("hub/token").returncode
    assert rsync("root/").returncode
    assert rsync("").stdout == ""


def test_another_host_at_the_address_is_not_believed(hosts: list[Host]) -> None:
    one, two, _three = hosts
    one.fill()
    source = one.share(two.key())
    source.host_key = make_key(str(one.run), "another")
    result = two.fetch(source, whole=(one,))
    assert "came from no host" in result["models"][0]["left"]
    assert "Host key verification failed" in result["failures"][0]
    assert not (two.base / "snapshots").exists()


def test_a_source_that_dies_in_the_middle_is_replaced_and_files_go_on(hosts: list[Host]) -> None:
    one, two, three = hosts
    one.fill()
    two.fill()
    key = three.key()
    first, second = one.share(key, rate=1, connections=2), two.share(key, rate=1, connections=2)
    threading.Timer(3, end, [str(one.run)]).start()
    result = three.fetch(first, second, whole=(one, two))
    (model,) = result["models"]
    assert model["left"] == ""
    assert set(model["hosts"]) == {"one", "two"}
    # No byte came twice: what the lost host had begun went on from the other one.
    assert sum(model["hosts"].values()) == model["bytes"] == sum(map(len, FILES.values()))
    assert three.files() == FILES


def test_a_wrong_file_is_thrown_away_and_comes_from_another_host(hosts: list[Host]) -> None:
    one, two, three = hosts
    one.fill()
    two.fill()
    broken = one.blob("model-00003-of-00006.safetensors")
    data = bytearray(broken.read_bytes())
    data[500_000] ^= 1
    broken.write_bytes(bytes(data))
    key = three.key()
    first = one.share(key)
    alone = three.fetch(first, whole=(one,))
    assert "1 of " in alone["models"][0]["left"]
    assert alone["failures"] == [f"one: {broken.name[:12]} is not what the hub has"]
    assert lacks(WANTS[0], three.around) == "it is not in the cache"
    both = three.fetch(first, two.share(key), whole=(one, two))
    assert both["models"][0]["left"] == ""
    assert both["models"][0]["hosts"]["two"] >= SHARD_BYTES
    assert three.files() == FILES


def test_hosts_that_fetch_have_files_for_each_other(hosts: list[Host]) -> None:
    one, two, three = hosts
    one.fill()
    keys = [two.key(), three.key()]
    sources = {host.name: host.share(*keys, rate=1 if host is one else 0, connections=2) for host in (one, two, three)}
    results: dict[str, dict[str, Any]] = {}

    def fetch(host: Host) -> None:
        others = [source for name, source in sources.items() if name != host.name]
        results[host.name] = host.fetch(*others, whole=(one,))

    threads = [threading.Thread(target=fetch, args=[host]) for host in (two, three)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result["models"][0]["left"] for result in results.values()] == ["", ""], results
    assert two.files() == three.files() == FILES
    given = {name: result["models"][0]["hosts"] for name, result in results.items()}
    assert given["two"].get("three", 0) + given["three"].get("two", 0) >= SHARD_BYTES, given


def test_a_full_disk_is_told_before_and_in_the_middle(hosts: list[Host], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, _three = hosts
    one.fill()
    source = one.share(two.key())
    two.home.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(two.home)], check=True)
    try:
        with pytest.raises(GpufleetError) as told:
            two.fetch(source, whole=(one,))
        assert told.value.name == "disk-full"
        assert not (two.base / "blobs").exists()
        # As if the room were taken meanwhile.
        monkeypatch.setattr(
            "ansible_collections.gpufleet.vllm.plugins.module_utils.models.from_fleet._check_room", lambda *_: None
        )
        with pytest.raises(GpufleetError) as full:
            two.fetch(source, whole=(one,))
        assert full.value.name == "disk-full"
        assert "vllm_hf_home" in str(full.value)
    finally:
        subprocess.run(["umount", str(two.home)], check=True)


def test_an_sshd_that_starts_too_late_is_ended(
    hosts: list[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "sshd").write_text("#!/bin/sh\nsleep 300\n", encoding="utf-8")
    monkeypatch.setattr("ansible_collections.gpufleet.vllm.plugins.module_utils.models.sending.START_S", 0.5)
    one = hosts[0]
    with pytest.raises(GpufleetError, match="sshd does not start"):
        one.share(one.key())
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(one.run) in read_text(str(path))]


PLAY = """
- hosts: all
  gather_facts: false
  strategy: {strategy}
  tasks:
    - ansible.builtin.include_role: {{name: gpufleet.vllm.vllm, tasks_from: model}}
"""


class Play:
    """Runs the role's entry point model on the hosts."""

    def __init__(self, folder: Path, hosts: list[Host], endpoint: str, variables: dict[str, Any]) -> None:
        self.folder = folder
        config = {"config": {}, "environment": {"HF_ENDPOINT": endpoint}}
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_weights_from": "fleet",
            "vllm_weights_port": PORT,
            "vllm_ca_bundle": "",
            "vllm_progress_interval": 5,
            "vllm_plan": {
                "image": {"tag": variables.pop("image"), "reference": ""},
                "model_source": {"kind": "hub", "location": REPOSITORY},
                "replicas": [config],
                "network_mode": "host",
            },
            **variables,
        }
        own = {
            host.name: {
                "vllm_hf_home": str(host.home),
                "vllm_weights_address": host.address,
                "vllm_container_prefix": f"{variables['mark']}-{host.name}",
            }
            for host in hosts
        }
        inventory = {"all": {"hosts": own, "vars": common}}
        (folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")

    def run(self, *words: str, forks: int = 5, strategy: str = "linear") -> str:
        """Run it, and return what it says."""
        (self.folder / "play.yml").write_text(PLAY.format(strategy=strategy), encoding="utf-8")
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_FORKS": str(forks),
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            # YAML, which the checkout's ansible.cfg asks for, breaks long lines.
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        }
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "play.yml", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def test_hosts_fetch_from_a_host_that_has_the_weights_once(hosts: list[Host], tmp_path: Path) -> None:
    one, two, three = hosts
    one.fill()
    variables = {"image": "none", "vllm_docker_host": "unix:///nowhere.sock", "vllm_offline": True, "mark": "play"}
    play = Play(tmp_path, hosts, "http://127.0.0.1:1", variables)
    first = play.run()
    assert two.files() == three.files() == FILES
    assert first.count("MiB from one (") + first.count("MiB from two (") + first.count("MiB from three (") >= 2, first
    assert (first.count("changed=0"), first.count("changed=1")) == (1, 2), first
    assert not any(map(listening, hosts)) and not list(Path("/run").glob("gpufleet-weights-play-*"))
    second = play.run()
    assert second.count("changed=0") == 3
    assert "Bring the weights" in second and "Weights of" not in second
