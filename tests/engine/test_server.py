# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_server on a real engine: every container is real, only the program in it stands in for vLLM."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest
import requests
from docker.errors import APIError
from docker.models.containers import Container

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import spec as container_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.stop import stop_container
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import config_check, stopping
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replacement import Replacement
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replica_files import ReplicaFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Step
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_completion
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.verification import verify_targets
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

if TYPE_CHECKING:
    from docker import DockerClient

LOGS = Path(__file__).parents[1] / "unit" / "data" / "logs"
KEY, TOKEN = "sk-secret-4711", "hf_secret0815"
LONG_PAUSE_AFTER = 5  # restarts: Docker waits 100 ms before the first, and twice as long before each further one


def answer(fleet: Fleet, number: int = 0) -> int:
    """Return the status of the replica's /health; 0 when nothing answers."""
    try:
        return requests.get(f"http://127.0.0.1:{fleet.ports[number]}/health", timeout=5).status_code
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        return 0


def health(fleet: Fleet) -> str:
    """Return what the health check in the container says now, by running its command."""
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    (kind, command) = container.attrs["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD-SHELL"
    return "healthy" if container.exec_run(["/bin/sh", "-c", command]).exit_code == 0 else "unhealthy"


def test_creates_a_server_and_leaves_it_alone_the_second_time(fleet: Fleet) -> None:
    first = fleet.run(fleet.replica())
    assert not first["failed"], first
    assert (first["changed"], first["replicas"][0]["action"]) == (True, "created")
    names = [phase["name"] for phase in first["replicas"][0]["phases"]]
    assert names == ["container", "engine start", "weights", "compile", "KV cache", "warm-up", "graphs", "serving"]
    assert answer(fleet) == 200
    assert health(fleet) == "healthy"
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert container.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert container.attrs["HostConfig"]["IpcMode"] == "host"
    second = fleet.run(fleet.replica())
    assert (second["changed"], second["replicas"][0]["action"], second["diff"]) == (False, "none", [])
    assert fleet.engine.containers.get(f"{fleet.prefix}-0").id == container.id


@pytest.mark.parametrize("network", ["bridge", "host"])
def test_a_server_at_an_address_of_ipv6_is_made_looked_at_and_verified(
    fleet: Fleet, run_module: RunModule, network: str
) -> None:
    replica = {**fleet.replica(host="::1" if network == "host" else "0.0.0.0", port=fleet.ports[0]), "host": "::1"}
    first = fleet.run(replica, network_mode=network)
    assert not first["failed"], first
    assert (first["replicas"][0]["url"], health(fleet)) == (f"http://[::1]:{fleet.ports[0]}", "healthy")
    assert fleet.run(replica, network_mode=network)["changed"] is False
    assert fleet.info()["servers"][0]["http_status"] == 200
    (target,) = verify_targets.targets(
        {"replicas": [replica], "model": "stand-in"}, url="", model="", environment={}, gpu_info={}
    )
    verified = run_module(vllm_completion.main, {"url": target["url"], "model": "stand-in", "endpoints": "all"})
    assert (verified["failed"], verified["models"]) == (False, ["stand-in"]), verified


def test_a_server_sees_its_tuned_tables_and_other_ones_replace_it(fleet: Fleet) -> None:
    def run(number: int) -> dict[str, Any]:
        folder = f"moe-{number}"
        tables = {"folder": folder, "files": {"E=16,N=4096,device_name=NVIDIA_H200,dtype=fp8_w8a8.json": f"{number}"}}
        replica = fleet.replica(environment={"VLLM_TUNED_CONFIG_FOLDER": f"/etc/vllm/control/{folder}"})
        return fleet.run(replica, plan={"replicas": [replica], "moe_tables": tables})

    def seen() -> str:
        container = fleet.engine.containers.get(f"{fleet.prefix}-0")
        said = container.exec_run(["sh", "-c", 'cat "$VLLM_TUNED_CONFIG_FOLDER"/E=16*'])[1]
        assert isinstance(said, bytes)
        return said.decode()

    assert run(1)["replicas"][0]["action"] == "created"
    assert seen() == "1"
    assert run(1)["changed"] is False
    changed = run(2)
    assert changed["replicas"][0]["action"] == "replaced"
    assert seen() == "2"


def test_check_mode_tells_and_touches_nothing(fleet: Fleet) -> None:
    told = fleet.run(fleet.replica(), check=True, image="example.com/not/here:1")
    assert (told["changed"], told["replicas"][0]["action"]) == (True, "created")
    assert fleet.names() == []
    assert not (fleet.config_dir / "active").exists()
    assert not (fleet.folder / "huggingface").exists()


def test_replaces_only_the_replica_that_changed_and_says_why(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0), fleet.replica(1))
    before = {name: fleet.engine.containers.get(name).id for name in fleet.names()}
    told = fleet.run(fleet.replica(0), fleet.replica(1, max_num_seqs=8), check=True)
    result = fleet.run(fleet.replica(0), fleet.replica(1, max_num_seqs=8))
    for answered in (told, result):
        assert [replica["action"] for replica in answered["replicas"]] == ["none", "replaced"]
        assert answered["replicas"][1]["why"] == ["config.max-num-seqs: (not set) -> 8"]
        assert '"max-num-seqs": 8' in answered["diff"][0]["after"]
    after = {name: fleet.engine.containers.get(name).id for name in fleet.names()}
    assert before.keys() == after.keys()
    assert before[f"{fleet.prefix}-0"] == after[f"{fleet.prefix}-0"]
    assert before[f"{fleet.prefix}-1"] != after[f"{fleet.prefix}-1"]


def test_a_comment_in_the_configuration_replaces_nothing(fleet: Fleet) -> None:
    replica = fleet.replica()
    fleet.run(replica)
    path = fleet.config_dir / f"{replica['name']}.yaml"
    path.write_text("# Another comment\n" + path.read_text())
    assert fleet.run(replica)["changed"] is False


def test_a_changed_restart_policy_is_set_without_a_replacement(fleet: Fleet) -> None:
    fleet.run(fleet.replica())
    before = fleet.engine.containers.get(f"{fleet.prefix}-0")
    result = fleet.run(fleet.replica(), restart_policy="always")
    after = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert (result["changed"], result["replicas"][0]["action"]) == (True, "updated")
    assert (after.id, after.attrs["HostConfig"]["RestartPolicy"]["Name"]) == (before.id, "always")
    assert fleet.run(fleet.replica(), restart_policy="always")["changed"] is False


def test_a_new_server_that_fails_brings_the_old_one_back(fleet: Fleet) -> None:
    fleet.run(fleet.replica(max_num_seqs=4))
    before = fleet.engine.containers.get(f"{fleet.prefix}-0")
    failed = fleet.run(fleet.replica(max_num_seqs=4, max_model_len=10485760))
    assert failed["failed"]
    assert failed["error"]["name"] == "max-model-len-too-long"
    assert failed["error"]["remedy"] == "Set vllm_max_model_len to 131072 or less."
    assert failed["error"]["details"]["restored"] is True
    after = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert (after.id, after.status, answer(fleet)) == (before.id, "running", 200)
    assert after.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert fleet.names() == [f"{fleet.prefix}-0"]
    # It mounts the configuration that it had, though the replica's file is the new one by now.
    (config,) = (bind.split(":")[0] for bind in after.attrs["HostConfig"]["Binds"] if "/etc/vllm/config.yaml" in bind)
    assert "max-model-len" not in Path(config).read_text()
    assert fleet.run(fleet.replica(max_num_seqs=4))["changed"] is False


def test_a_first_server_that_dies_leaves_nothing_but_its_diagnosis(fleet: Fleet) -> None:
    began = time.monotonic()
    failed = fleet.run(fleet.replica(no_such_flag=1), check_config=False)
    assert (failed["failed"], failed["error"]["name"]) == (True, "flag-unknown")
    assert "--no-such-flag" in failed["error"]["evidence"]
    assert failed["error"]["details"]["exit_code"] == 2
    assert time.monotonic() - began < 60  # of the hour that it has
    assert fleet.names() == []
    assert sorted(path.name for path in fleet.config_dir.iterdir() if path.suffix) == [f"{fleet.prefix}-0.yaml"]
    assert list((fleet.config_dir / "active").iterdir()) == []


def test_a_recorded_failure_is_told_by_its_root_cause(fleet: Fleet) -> None:
    log = LOGS / "start-refused-moe-backend.log"
    failed = fleet.run(
        fleet.replica(environment={"STAND_IN_LOG": "/start.log", "STAND_IN_EXIT": "1"}),
        volumes=[f"{log}:/start.log:ro"],
    )
    assert failed["error"]["name"] == "moe-backend-not-supported"
    assert failed["error"]["evidence"].startswith("ValueError: vLLM CUTLASS FP8 MoE backend is disabled")


def test_a_start_that_does_nothing_is_stalled(fleet: Fleet) -> None:
    failed = fleet.run(fleet.replica(environment={"STAND_IN_SILENT": "1"}), stall_timeout=3)
    assert failed["error"]["name"] == "start-stalled"
    assert fleet.names() == []


def test_a_start_that_takes_too_long_is_ended(fleet: Fleet) -> None:
    failed = fleet.run(fleet.replica(environment={"STAND_IN_DELAY": "5"}), ready_timeout=3)
    assert failed["error"]["name"] == "not-ready-in-time"
    assert failed["error"]["details"]["phase"] in ("container", "engine start")
    assert fleet.names() == []


def test_a_phase_has_a_deadline_of_its_own(fleet: Fleet) -> None:
    slow = fleet.replica(environment={"STAND_IN_DELAY": "3"})
    failed = fleet.run(slow, phase_timeouts={"engine start": 4})
    assert failed["error"]["name"] == "phase-too-long"
    assert "in the phase 'engine start'" in failed["msg"]
    assert "its deadline is 4 s (vllm_phase_timeouts: engine_start)" in failed["msg"]
    refused = fleet.run(slow, phase_timeouts={"engin_start": 4})
    assert refused["error"]["name"] == "phase-timeouts-invalid"
    assert "did you mean engine_start?" in refused["msg"]
    assert fleet.names() == []


def test_a_damaged_model_is_told_and_the_old_server_goes_on(fleet: Fleet) -> None:
    fleet.run(fleet.replica())
    old = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    (fleet.model / "model.safetensors").write_bytes(b"\xff\0\0\0\0\0\0\0{")
    failed = fleet.run(fleet.replica(max_num_seqs=8))
    assert (failed["failed"], failed["error"]["name"]) == (True, "weights-corrupt")
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (old, 200)


# Requests while a server is replaced


class Requests:
    """Requests to a server, each in a thread of its own."""

    def __init__(self, fleet: Fleet) -> None:
        self.url = f"http://127.0.0.1:{fleet.ports[0]}"
        self.answers: list[int | str] = []
        self._threads: list[threading.Thread] = []

    def send(self, tokens: int) -> None:
        self._threads.append(threading.Thread(target=self._ask, args=(tokens,)))
        self._threads[-1].start()

    def wait(self) -> list[int | str]:
        for thread in self._threads:
            thread.join()
        return sorted(self.answers, key=str)

    def _ask(self, tokens: int) -> None:
        body = {"model": "stand-in", "prompt": "x", "max_tokens": tokens}
        try:
            self.answers.append(requests.post(f"{self.url}/v1/completions", json=body, timeout=60).status_code)
        except requests.exceptions.RequestException:
            self.answers.append("lost")


def draining(fleet: Fleet) -> bool:
    """Wait until the first server turns requests away."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (fleet.config_dir / "control" / f"{fleet.prefix}-0" / "closed").exists():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("how", ["replaced", "restarted", "absent"])
def test_running_requests_finish_and_new_ones_are_turned_away(fleet: Fleet, how: str) -> None:
    fleet.run(fleet.replica(environment={"STAND_IN_SLOW": "4"}))
    running, late = Requests(fleet), Requests(fleet)
    for _number in range(3):
        running.send(2)
    time.sleep(0.5)
    seen: list[dict[str, Any]] = []

    def meanwhile() -> None:
        assert draining(fleet)
        for _number in range(2):
            late.send(2)
        seen.append(fleet.info_beside()["servers"][0])

    other = threading.Thread(target=meanwhile)
    other.start()
    options: dict[str, dict[str, Any]] = {
        "replaced": {},
        "restarted": {"state": "restarted"},
        "absent": {"state": "absent"},
    }
    changed = fleet.replica(environment={"STAND_IN_SLOW": "4"}, **({"max_num_seqs": 8} if how == "replaced" else {}))
    result = fleet.run(*[changed][: how != "absent"], drain_timeout=30, check_config=False, **options[how])
    other.join()
    assert not result["failed"], result
    assert (running.wait(), late.wait()) == ([200, 200, 200], [503, 503])
    drain = result["drains"][f"{fleet.prefix}-0"]
    assert 0 < drain.pop("waited_s") < 10
    assert drain == {
        "running_at_start": 3,
        "finished": 3,
        "aborted": 0,
        "refused": 2,
        "turned_away": True,
        "answered": True,
    }
    assert seen[0]["phase"] == "draining"
    if how != "absent":
        assert result["replicas"][0]["drain"]["finished"] == 3
        assert answer(fleet) == 200


def test_requests_that_take_too_long_are_aborted_and_counted(fleet: Fleet) -> None:
    fleet.run(fleet.replica(environment={"STAND_IN_SLOW": "60"}))
    running = Requests(fleet)
    running.send(2)
    time.sleep(0.5)
    began = time.monotonic()
    result = fleet.run(state="absent", drain_timeout=2)
    assert time.monotonic() - began < 50  # of the 60 s that the requests take
    assert running.wait() == ["lost"]
    drain = result["drains"][f"{fleet.prefix}-0"]
    assert (drain["finished"], drain["aborted"]) == (0, 1)


def test_a_server_whose_drain_was_interrupted_takes_requests_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run(fleet.replica())
    interrupted(fleet, "finish", fleet.replica(max_num_seqs=8), monkeypatch=monkeypatch, of=stopping.Stopping)
    assert answer(fleet) == 503
    old = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    result = fleet.run(fleet.replica())
    assert f"{fleet.prefix}-0 takes requests again: its drain was interrupted" in result["recovered"]
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (old, 200)


def test_replicas_are_replaced_one_after_another_and_one_failing_stops_the_rest(fleet: Fleet) -> None:
    fleet.run(*(fleet.replica(number) for number in range(3)))
    before = [fleet.engine.containers.get(f"{fleet.prefix}-{number}").id for number in range(3)]
    serving: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            # Asked one after another, so that the turn may pass on between two questions: down is who is so twice.
            looks = [[answer(fleet, number) == 200 for number in range(3)] for _look in range(2)]
            serving.append(sum(map(any, zip(*looks))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    wanted = [
        fleet.replica(0, max_num_seqs=8),
        fleet.replica(1, max_num_seqs=8, max_model_len=10485760),
        fleet.replica(2, max_num_seqs=8),
    ]
    failed = fleet.run(*wanted)
    done.set()
    watcher.join()
    assert (failed["error"]["name"], failed["error"]["details"]["server"]) == (
        "max-model-len-too-long",
        f"{fleet.prefix}-1",
    )
    after = [fleet.engine.containers.get(f"{fleet.prefix}-{number}").id for number in range(3)]
    assert [old == new for old, new in zip(before, after)] == [False, True, True]
    assert [answer(fleet, number) for number in range(3)] == [200, 200, 200]
    assert min(serving) >= 2


def test_servers_that_are_not_wanted_any_more_serve_until_the_others_are_replaced(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0), fleet.replica(1))
    failed = fleet.run(fleet.replica(0, no_such_flag=1), check_config=False)
    assert failed["error"]["name"] == "flag-unknown"
    assert (fleet.names(), answer(fleet, 0), answer(fleet, 1)) == (
        [f"{fleet.prefix}-0", f"{fleet.prefix}-1"],
        200,
        200,
    )


def test_a_server_that_does_not_serve_is_replaced_first(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0), fleet.replica(1))
    fleet.engine.containers.get(f"{fleet.prefix}-1").stop(timeout=3)
    failed = fleet.run(fleet.replica(0, max_num_seqs=8), fleet.replica(1, max_model_len=10485760))
    assert failed["error"]["details"]["server"] == f"{fleet.prefix}-1"
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert "max-num-seqs" not in container.labels["io.gpufleet.spec"]
    assert answer(fleet) == 200


def test_a_port_in_use_is_told_before_anything_is_stopped(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0))
    old = fleet.engine.containers.get(f"{fleet.prefix}-0")
    taken = http.server.HTTPServer(("127.0.0.1", fleet.ports[1]), http.server.BaseHTTPRequestHandler)
    try:
        failed = fleet.run({**fleet.replica(0), "port": fleet.ports[1]})
    finally:
        taken.server_close()
    assert (failed["failed"], failed["error"]["name"]) == (True, "port-in-use")
    assert "pid" in failed["error"]["details"]["holder"]
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (old.id, 200)


def test_ports_that_move_on_by_one_replace_the_servers_together(fleet: Fleet) -> None:
    replicas = [fleet.replica(0), fleet.replica(1)]
    fleet.run(*replicas)
    moved = [{**replicas[0], "port": fleet.ports[1]}, {**replicas[1], "port": fleet.ports[2]}]
    result = fleet.run(*moved)
    assert not result["failed"], result
    assert [answer(fleet, number) for number in (0, 1, 2)] == [0, 200, 200]


@pytest.mark.parametrize(
    ("spoil", "name"), [("folder", "model-folder-missing"), ("config.json", "model-folder-missing")]
)
def test_a_missing_model_folder_is_told(fleet: Fleet, spoil: str, name: str) -> None:
    replica = fleet.replica()
    (fleet.model / "config.json").unlink()
    if spoil == "folder":
        shutil.rmtree(fleet.model)
    failed = fleet.run(replica)
    assert (failed["failed"], failed["error"]["name"], fleet.names()) == (True, name, [])


@pytest.mark.parametrize(
    ("access", "names"),
    [
        ("gpus", {"container-toolkit-missing", "gpu-unknown", "driver-libraries-missing"}),
        ("cdi", {"cdi-device-missing"}),
        ("runtime", {"container-toolkit-missing", "gpu-unknown", "driver-libraries-missing"}),
        ("devices", {"gpu-unknown"}),
    ],
)
def test_a_gpu_that_docker_cannot_give_is_told_and_the_old_server_stays(
    fleet: Fleet, access: str, names: set[str]
) -> None:
    fleet.run(fleet.replica())
    old = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    failed = fleet.run({**fleet.replica(), "gpus": [97]}, device="cuda", gpu_access=access)
    assert failed["failed"]
    assert failed["error"]["name"] in names, failed
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (old, 200)
    assert fleet.names() == [f"{fleet.prefix}-0"]


def test_a_configuration_that_vllm_refuses_is_told_and_the_old_server_goes_on(fleet: Fleet) -> None:
    fleet.run(fleet.replica())
    before = fleet.engine.containers.get(f"{fleet.prefix}-0")
    cases: list[tuple[dict[str, Any], bool, str, str]] = [
        ({"no_such_flag": 1}, True, "unrecognized arguments: --no-such-flag 1", "Take no-such-flag out of vllm_extra_"),
        ({"no_such_flag": 1}, False, "unrecognized arguments: --no-such-flag 1", "Take no-such-flag out of vllm_extra"),
        ({"kv_cache_dtype": "fp99"}, False, "invalid choice: 'fp99'", "Correct vllm_kv_cache_dtype."),
        ({"max_num_seqs": "many"}, False, "invalid int value: 'many'", "Correct vllm_max_num_seqs."),
    ]
    for config, check, said, remedy in cases:
        failed = fleet.run(fleet.replica(**config), check=check)
        assert (failed["failed"], failed["error"]["name"]) == (True, "config-refused"), failed
        assert said in failed["error"]["evidence"]
        assert remedy in failed["error"]["remedy"]
    after = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert (after.id, after.attrs["State"]["StartedAt"]) == (before.id, before.attrs["State"]["StartedAt"])
    assert (answer(fleet), fleet.names()) == (200, [f"{fleet.prefix}-0"])


@pytest.mark.parametrize(("how", "reason"), [("1", "libcuda.so.1: cannot open"), ("hang", "no answer within 2 s")])
def test_a_check_that_cannot_be_run_is_a_warning(
    fleet: Fleet, how: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_check, "TIMEOUT_S", 2.0)
    result = fleet.run(fleet.replica(environment={"STAND_IN_NO_PARSER": how}))
    assert not result["failed"], result
    # Ansible keeps the warnings of earlier runs in one process.
    assert reason in str(result["warnings"][-1])
    assert (answer(fleet), fleet.names()) == (200, [f"{fleet.prefix}-0"])


def test_servers_that_stay_cost_no_check(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[list[str]] = []

    def note(_client: Any, candidates: Any, _prefix: str, *, dry: bool) -> list[str]:
        checked.append([candidate.spec["name"] for candidate in candidates])
        return []

    monkeypatch.setattr(config_check, "check_configs", note)
    fleet.run(fleet.replica(0), fleet.replica(1))
    assert checked == [[f"{fleet.prefix}-0", f"{fleet.prefix}-1"]]
    fleet.run(fleet.replica(0), fleet.replica(1))
    assert fleet.run(fleet.replica(0), log_max_files=2)["replicas"][0]["action"] == "replaced"
    assert len(checked) == 1
    fleet.run(fleet.replica(0), fleet.replica(1, max_num_seqs=8), log_max_files=2)
    assert checked[1:] == [[f"{fleet.prefix}-1"]]


def test_what_an_interrupted_check_left_is_removed(fleet: Fleet) -> None:
    label = {config_check.LABEL_CHECK: fleet.prefix}
    fleet.engine.containers.create(fleet.image, name=f"{fleet.prefix}-config-check-1", labels=label)
    assert not fleet.run(fleet.replica())["failed"]
    assert fleet.names() == [f"{fleet.prefix}-0"]


def test_a_missing_image_and_a_missing_configuration_are_told(fleet: Fleet) -> None:
    replica = fleet.replica()
    assert fleet.run(replica, image="example.com/not/here:1")["error"]["name"] == "image-missing"
    (fleet.config_dir / f"{replica['name']}.yaml").unlink()
    assert fleet.run(replica)["error"]["name"] == "config-missing"
    assert fleet.names() == []


def test_secrets_are_seen_nowhere_and_replace_the_server_when_they_change(fleet: Fleet) -> None:
    result = fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": KEY, "HF_TOKEN": TOKEN})
    assert not result["failed"], result
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    script = (fleet.config_dir / f"{fleet.prefix}-0.sh").read_text()
    for seen in (json.dumps(result), json.dumps(container.labels), script):
        assert KEY not in seen
        assert TOKEN not in seen
    env_file = fleet.config_dir / f"{fleet.prefix}-0.env"
    assert f"--env-file {env_file}" in script
    assert env_file.stat().st_mode & 0o777 == 0o600
    assert env_file.read_text() == f"HF_TOKEN={TOKEN}\nVLLM_API_KEY={KEY}\n"
    changed = fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": KEY, "HF_TOKEN": "hf-other-1234"})
    assert changed["replicas"][0]["why"] == ["secret HF_TOKEN: (hidden) -> (hidden, changed)"]
    gone = fleet.run(fleet.replica())
    assert gone["replicas"][0]["action"] == "replaced"
    assert not env_file.exists()


def statuses(fleet: Fleet, *keys: str) -> list[int]:
    """Return with what the server answers each key."""
    url = f"http://127.0.0.1:{fleet.ports[0]}/v1/models"
    return [requests.get(url, headers={"Authorization": f"Bearer {key}"}, timeout=10).status_code for key in keys]


def test_another_api_key_is_taken_by_the_server_that_runs(fleet: Fleet) -> None:
    new = "sk-other-1234"
    made = fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": KEY})["replicas"][0]["container_id"]
    assert statuses(fleet, KEY, new) == [200, 401]
    told = fleet.run(fleet.replica(), check=True, secrets={"VLLM_API_KEY": new})
    assert (told["changed"], told["keys_changed"]) == (True, [f"{fleet.prefix}-0"])
    both = fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": new}, other_keys_for=-1)
    assert (both["changed"], both["replicas"][0]["action"], both["recorded"]) == (True, "none", ""), both
    assert statuses(fleet, KEY, new) == [200, 200]
    assert not fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": new}, other_keys_for=-1)["changed"]
    one = fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": new})
    assert statuses(fleet, KEY, new) == [401, 200]
    (server,) = fleet.info()["servers"]
    assert (server["phase"], server["detail"], server["model"]) == ("serving", "", "stand-in")
    assert one["replicas"][0]["container_id"] == made
    fleet.engine.containers.get(made).restart()
    fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": new}, state="restarted")
    assert statuses(fleet, KEY, new) == [401, 200], "it is no other after a restart"
    seen = (
        json.dumps([told, both, one]) + (fleet.config_dir / "control" / f"{fleet.prefix}-0" / "keys.sha256").read_text()
    )
    assert KEY not in seen and new not in seen


def test_a_replacement_takes_the_key_of_before_too_and_one_that_fails_gives_the_new_one(fleet: Fleet) -> None:
    new = "sk-other-1234"
    fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": KEY})
    broken = fleet.run(fleet.replica(max_model_len=999999), secrets={"VLLM_API_KEY": new}, other_keys_for=-1)
    assert broken["failed"] and broken["error"]["details"]["restored"] is True
    assert statuses(fleet, KEY, new) == [200, 200]
    replaced = fleet.run(fleet.replica(max_model_len=512), secrets={"VLLM_API_KEY": new}, other_keys_for=-1)
    assert replaced["replicas"][0]["action"] == "replaced"
    assert statuses(fleet, KEY, new) == [200, 200]


def test_the_run_line_makes_the_same_server_by_hand(fleet: Fleet) -> None:
    result = fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": KEY})
    made = fleet.engine.containers.get(f"{fleet.prefix}-0").attrs
    fleet.engine.containers.get(f"{fleet.prefix}-0").remove(force=True)
    assert result["replicas"][0]["docker_run"].startswith("docker ")
    script = fleet.config_dir / f"{fleet.prefix}-0.sh"
    said = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False)
    if "not found" in said.stderr:
        pytest.skip("this machine has no docker command")
    assert said.returncode == 0, said.stderr
    by_hand = fleet.engine.containers.get(f"{fleet.prefix}-0").attrs
    for part, fields in {
        "HostConfig": ["IpcMode", "Init", "RestartPolicy", "PortBindings", "LogConfig", "DeviceRequests"],
        "Config": ["Cmd", "Entrypoint", "Healthcheck"],
    }.items():
        for field in fields:
            assert by_hand[part][field] == made[part][field], field
    assert sorted(by_hand["HostConfig"]["Binds"]) == sorted(made["HostConfig"]["Binds"])
    assert sorted(by_hand["Config"]["Env"]) == sorted(made["Config"]["Env"])


def test_absent_removes_everything_and_keeps_caches_until_told(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0), fleet.replica(1), secrets={"VLLM_API_KEY": KEY})
    left = fleet.engine.containers.create(
        fleet.image, name=f"{fleet.prefix}-0-previous", labels={"io.gpufleet.collection": "gpufleet.vllm"}
    )
    assert left.name
    told = fleet.run(state="absent", check=True)
    assert (told["changed"], len(fleet.names())) == (True, 3)
    result = fleet.run(state="absent")
    assert result["removed"] == [f"{fleet.prefix}-0", f"{fleet.prefix}-0-previous", f"{fleet.prefix}-1"]
    assert fleet.names() == []
    assert [path.suffix for path in fleet.config_dir.iterdir() if path.suffix] == [".yaml", ".yaml"]
    assert (fleet.folder / "cache" / "vllm").is_dir()
    assert fleet.run(state="absent")["changed"] is False
    assert fleet.run(state="absent", purge_caches=True)["changed"] is True
    assert not (fleet.folder / "cache").exists()


def test_a_cache_that_another_deployment_mounts_is_not_purged(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0))
    mount = {str(fleet.folder / "cache"): {"bind": "/cache", "mode": "rw"}}
    label = {"io.gpufleet.collection": "gpufleet.vllm"}
    other = fleet.engine.containers.create(fleet.image, name=f"{fleet.prefix}-small-0", labels=label, volumes=mount)
    try:
        failed = fleet.run(state="absent", purge_caches=True)
    finally:
        other.remove(force=True)
    assert failed["error"]["name"] == "cache-not-removable"
    assert f"{fleet.prefix}-small-0 of another deployment mounts" in failed["error"]["message"]
    assert (fleet.names(), (fleet.folder / "cache").is_dir()) == ([f"{fleet.prefix}-0"], True)


def test_absent_removes_the_files_of_servers_whose_containers_were_removed_by_hand(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0), secrets={"VLLM_API_KEY": KEY})
    fleet.engine.containers.get(f"{fleet.prefix}-0").remove(force=True)
    result = fleet.run(state="absent")
    assert (result["changed"], result["removed"]) == (True, [])
    assert [path.name for path in fleet.config_dir.iterdir() if path.suffix] == [f"{fleet.prefix}-0.yaml"]
    assert fleet.run(state="absent")["changed"] is False


def test_a_replica_that_is_no_longer_wanted_is_removed(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0), fleet.replica(1))
    result = fleet.run(fleet.replica(0))
    assert (result["changed"], result["removed"]) == (True, [f"{fleet.prefix}-1"])
    assert fleet.names() == [f"{fleet.prefix}-0"]
    assert not (fleet.config_dir / f"{fleet.prefix}-1.sh").exists()


def test_restarted_restarts_and_waits(fleet: Fleet) -> None:
    fleet.run(fleet.replica())
    before = fleet.engine.containers.get(f"{fleet.prefix}-0")
    result = fleet.run(fleet.replica(), state="restarted")
    after = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert (result["changed"], result["replicas"][0]["action"]) == (True, "restarted")
    assert after.id == before.id
    assert after.attrs["State"]["StartedAt"] > before.attrs["State"]["StartedAt"]
    assert answer(fleet) == 200


def test_a_stopped_server_is_started(fleet: Fleet) -> None:
    fleet.run(fleet.replica())
    fleet.engine.containers.get(f"{fleet.prefix}-0").stop(timeout=1)
    result = fleet.run(fleet.replica())
    assert (result["changed"], result["replicas"][0]["action"], answer(fleet)) == (True, "started", 200)


def test_what_is_stopped_for_a_while_is_started_again_as_it_was(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0), fleet.replica(1))
    names = [f"{fleet.prefix}-0", f"{fleet.prefix}-1"]
    before = [fleet.engine.containers.get(name).id for name in names]
    assert fleet.run(state="stopped", check=True)["stopped"] == names
    assert answer(fleet) == 200
    result = fleet.run(state="stopped")
    assert (result["changed"], result["stopped"], sorted(result["drains"])) == (True, names, names)
    assert (answer(fleet, 0), answer(fleet, 1)) == (0, 0)
    assert fleet.run(state="stopped")["changed"] is False
    # Meanwhile another one may have its port.
    other = fleet.beside("tune", 0)
    assert other.run(other.replica(), history_keep=0, restart_policy="no")["replicas"][0]["action"] == "created"
    other.run(state="absent")
    result = fleet.run(state="started")
    assert [replica["action"] for replica in result["replicas"]] == ["started", "started"]
    assert [fleet.engine.containers.get(name).id for name in names] == before
    assert (answer(fleet, 0), answer(fleet, 1)) == (200, 200)
    assert fleet.run(state="started")["changed"] is False
    assert [entry["current"] for entry in fleet.info()["deployments"]] == [True]


def test_another_deployment_whose_prefix_begins_with_this_one_is_left_alone(fleet: Fleet) -> None:
    other = fleet.beside("small", 3)
    other.run(other.replica())
    container = fleet.engine.containers.get(f"{other.prefix}-0")
    fleet.run(fleet.replica())
    result = fleet.run(fleet.replica(max_num_seqs=8))
    assert (result["removed"], result["replicas"][0]["action"]) == ([], "replaced")
    assert [server["name"] for server in fleet.info()["servers"]] == [f"{fleet.prefix}-0"]
    assert fleet.run(state="absent")["removed"] == [f"{fleet.prefix}-0"]
    container.reload()
    assert container.status == "running"
    assert other.run(other.replica())["changed"] is False


def server_made_by_hand(fleet: Fleet) -> Container:
    """Return a container that somebody started with the configuration which the last run wrote."""
    return fleet.engine.containers.run(
        fleet.image,
        ["/models/stand-in", "--config", "/etc/vllm/config.yaml"],
        name=f"{fleet.prefix}-0",
        detach=True,
        ports={"8000/tcp": ("127.0.0.1", fleet.ports[0])},
        volumes=[f"{fleet.config_dir}/{fleet.prefix}-0.yaml:/etc/vllm/config.yaml:ro"],
        labels={"io.gpufleet.collection": "gpufleet.vllm"},
        restart_policy={"Name": "always"},
    )


def test_a_server_made_by_hand_is_replaced_and_comes_back_when_that_fails(fleet: Fleet) -> None:
    fleet.run(fleet.replica())
    fleet.engine.containers.get(f"{fleet.prefix}-0").remove(force=True)
    by_hand = server_made_by_hand(fleet)
    # It reads its configuration when it starts, and the next run writes another.
    assert answers_within(fleet, 30)
    failed = fleet.run(fleet.replica(no_such_flag=1), check_config=False)
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("flag-unknown", True), failed["error"]
    by_hand.reload()
    policy = by_hand.attrs["HostConfig"]["RestartPolicy"]["Name"]
    assert (by_hand.name, by_hand.status in ("running", "restarting"), policy) == (f"{fleet.prefix}-0", True, "always")
    result = fleet.run(fleet.replica())
    assert (result["replicas"][0]["action"], answer(fleet)) == ("replaced", 200)


def test_a_server_in_a_restart_loop_is_replaced_and_comes_back_when_that_fails(fleet: Fleet) -> None:
    """Docker refuses to rename a container that waits for its next start."""
    fleet.run(fleet.replica(no_such_flag=1), wait=False, check_config=False)
    fleet.engine.containers.get(f"{fleet.prefix}-0").remove(force=True)
    looping = server_made_by_hand(fleet)
    assert waits_for_its_next_start(looping, 60)
    failed = fleet.run(fleet.replica(no_such_flag=1), check_config=False)
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("flag-unknown", True), failed["error"]
    result = fleet.run(fleet.replica())
    assert (result["replicas"][0]["action"], answer(fleet)) == ("replaced", 200)


def waits_for_its_next_start(container: Container, seconds: float) -> bool:
    """Return whether a container has died so often that Docker now waits for more than a second."""
    deadline = time.monotonic() + seconds
    container.reload()
    while container.status != "restarting" or container.attrs["RestartCount"] < LONG_PAUSE_AFTER:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        container.reload()
    return True


def answers_within(fleet: Fleet, seconds: float) -> bool:
    """Return whether the first replica answers, at the latest after that time."""
    deadline = time.monotonic() + seconds
    while answer(fleet) != 200:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_server_that_dies_again_and_again_is_restarted_and_diagnosed(fleet: Fleet) -> None:
    fleet.run(fleet.replica(no_such_flag=1), wait=False, check_config=False)
    deadline = time.monotonic() + 20
    while fleet.info()["servers"][0]["restarts"] < 3 and time.monotonic() < deadline:
        time.sleep(0.3)
    failed = fleet.run(fleet.replica(no_such_flag=1))
    assert (failed["failed"], failed["error"]["name"]) == (True, "flag-unknown")
    assert fleet.names() == [f"{fleet.prefix}-0"]


def test_an_engine_that_ended_at_its_start_is_restarted_by_the_next_run(fleet: Fleet) -> None:
    """Its API server lives on and answers nothing, so only its log tells."""
    log = LOGS / "engine-dead-container-alive-cpu-0.32.log"
    replica = fleet.replica(environment={"STAND_IN_LOG": "/start.log", "STAND_IN_EXIT": "never"})
    fleet.run(replica, wait=False, volumes=[f"{log}:/start.log:ro"])
    deadline = time.monotonic() + 20
    while fleet.info()["servers"][0]["phase"] != "engine dead" and time.monotonic() < deadline:
        time.sleep(0.2)
    before = fleet.engine.containers.get(f"{fleet.prefix}-0").attrs["State"]["StartedAt"]
    result = fleet.run(replica, wait=False, volumes=[f"{log}:/start.log:ro"])
    assert result["replicas"][0]["action"] == "restarted", result
    assert "its engine has ended" in result["replicas"][0]["why"][0]
    assert fleet.engine.containers.get(f"{fleet.prefix}-0").attrs["State"]["StartedAt"] > before
    failed = fleet.run(replica, volumes=[f"{log}:/start.log:ro"])
    assert failed["error"]["name"] == "compiler-missing"


def test_a_server_that_hangs_is_ended_by_its_health_check_and_started_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(container_spec.HEALTH, "interval_s", 1)
    fleet.run(fleet.replica(), watchdog_timeout=2)
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    deadline = time.monotonic() + 60
    while health(fleet) != "healthy" and time.monotonic() < deadline:
        time.sleep(0.2)
    (processes,) = (
        row for row in container.top()["Processes"] if "bin/vllm" in " ".join(row) and "init" not in row[-1]
    )
    os.kill(int(processes[1]), signal.SIGSTOP)
    while container.attrs["RestartCount"] == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
        container.reload()
    assert container.attrs["RestartCount"] == 1
    while answer(fleet) != 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    # What a busy server prints must not hide it.
    said = container.exec_run(["python3", "-c", "open('/proc/1/fd/1', 'w').write('asked\\n' * 4000)"])
    assert said.exit_code == 0, said.output
    (told,) = fleet.info()["servers"]
    assert (told["phase"], told["restarts"], told["last_death"]["name"]) == ("serving", 1, "ended-by-watchdog")
    assert "/health does not answer" in told["last_death"]["evidence"]
    assert "restarted 1 times, last at 20" in told["summary"]
    assert fleet.run(fleet.replica(), watchdog_timeout=2)["changed"] is False


def test_requests_that_hang_end_a_server_only_where_the_engine_is_to_blame(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of the first does nothing, that of the second spins, of the third only a client hangs."""
    monkeypatch.setitem(container_spec.HEALTH, "interval_s", 1)
    limit = 4
    fleet.run(
        fleet.replica(0, environment={"STAND_IN_SLOW": "600"}),
        fleet.replica(1, environment={"STAND_IN_SPINS": "1"}),
        fleet.replica(2),
        watchdog_timeout=limit,
    )
    boxes = [fleet.engine.containers.get(name) for name in fleet.names()]
    for number in (0, 1):
        threading.Thread(target=ask_in_vain, args=(fleet.ports[number],), daemon=True).start()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", fleet.ports[2])) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert restarts_within(boxes[0], 60)
        boxes[1].reload()
        assert boxes[1].attrs["RestartCount"] == 0 or time.monotonic() - began > 3 * limit
        assert restarts_within(boxes[1], 60)
        assert time.monotonic() - began >= 3 * limit
        told = requests.get(f"http://127.0.0.1:{fleet.ports[2]}/health", timeout=5).headers
        assert (told["x-gpufleet-running"], told["x-gpufleet-waiting"]) == ("1", "0")
        assert not restarts_within(boxes[2], 3)
    deaths = [seen["last_death"] for seen in fleet.info()["servers"]]
    assert [death.get("name") for death in deaths] == ["ended-by-watchdog", "ended-by-watchdog", None]
    assert "requests are waiting and its engine does nothing" in deaths[0]["evidence"]
    assert ["busy" in death.get("evidence", "") for death in deaths] == [False, True, False]


def ask_in_vain(port: int) -> None:
    """Ask for a completion that is never made."""
    body = {"model": "stand-in", "prompt": "San Francisco is a", "max_tokens": 2}
    with contextlib.suppress(requests.exceptions.RequestException):
        requests.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=120)


def restarts_within(container: Container, seconds: float) -> bool:
    """Return whether Docker has started a container again, at the latest after that time."""
    deadline = time.monotonic() + seconds
    container.reload()
    while container.attrs["RestartCount"] == 0 and time.monotonic() < deadline:
        time.sleep(0.2)
        container.reload()
    return bool(container.attrs["RestartCount"])


def test_a_container_of_someone_else_is_not_touched(fleet: Fleet) -> None:
    other = fleet.engine.containers.create(fleet.image, name=f"{fleet.prefix}-0")
    failed = fleet.run(fleet.replica())
    assert (failed["failed"], failed["error"]["name"]) == (True, "name-taken")
    other.reload()
    assert other.name == f"{fleet.prefix}-0"


# What vllm_server_info tells


def test_info_tells_what_a_serving_server_does(fleet: Fleet) -> None:
    fleet.run(fleet.replica(environment={"STAND_IN_LOAD": "2.0,1.0,0.25"}), secrets={"VLLM_API_KEY": KEY})
    (seen,) = fleet.info()["servers"]
    told = {key: seen[key] for key in ("name", "state", "phase", "http_status", "model", "vllm_version", "diagnosis")}
    assert told == {
        "name": f"{fleet.prefix}-0",
        "state": "running",
        "phase": "serving",
        "http_status": 200,
        "model": "stand-in",
        "vllm_version": "0.12.0",
        "diagnosis": {},
    }
    assert seen["load"] == {"requests_running": 2.0, "requests_waiting": 1.0, "kv_cache_usage": 0.25}
    assert seen["summary"].endswith("2 requests running, 1 waiting, KV cache 25 % used")
    assert seen["docker_run"].startswith("docker ") and " run --detach" in seen["docker_run"]
    assert KEY not in json.dumps(seen)


def test_info_tells_phase_stop_death_and_dead_engine(fleet: Fleet) -> None:
    fleet.run(
        fleet.replica(0, environment={"STAND_IN_DELAY": "4"}),
        fleet.replica(1),
        fleet.replica(2, environment={"STAND_IN_SICK": "1"}),
        fleet.replica(3, no_such_flag=1),
        wait=False,
        check_config=False,
    )
    fleet.engine.containers.get(f"{fleet.prefix}-1").stop(timeout=3)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        phases = {seen["name"][-1]: seen for seen in fleet.info()["servers"]}
        if phases["2"]["phase"] == "engine dead" and phases["3"]["restarts"]:
            break
        time.sleep(0.3)
    assert phases["0"]["phase"] in ("container", "engine start")
    assert phases["1"]["phase"] == "stopped"
    assert phases["2"]["phase"] == "engine dead"
    assert phases["3"]["diagnosis"]["name"] == "flag-unknown"
    assert "no-such-flag" in phases["3"]["summary"]


# Runs that were interrupted


def interrupted(
    fleet: Fleet, at: str, *replicas: dict[str, Any], monkeypatch: pytest.MonkeyPatch, of: type = Replacement
) -> None:
    """Run a replacement that is killed when it comes to the method `at` of a class."""

    class KilledError(BaseException):
        pass

    def die(*_args: object, **_options: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(of, at, die)
        with pytest.raises(KilledError):
            fleet.run(*replicas, check_config=False)


@pytest.mark.parametrize("at", ["_set_aside", "_start", "_wait", "_keep_running"])
def test_the_next_run_finishes_an_interrupted_replacement(
    fleet: Fleet, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run(fleet.replica(max_num_seqs=4))
    interrupted(fleet, at, fleet.replica(max_num_seqs=8), monkeypatch=monkeypatch)
    assert len(fleet.names()) == 2
    result = fleet.run(fleet.replica(max_num_seqs=8))
    assert not result["failed"], result
    assert fleet.names() == [f"{fleet.prefix}-0"]
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert '"max-num-seqs":8' in container.labels["io.gpufleet.spec"]
    assert (answer(fleet), container.attrs["HostConfig"]["RestartPolicy"]["Name"]) == (200, "unless-stopped")
    assert fleet.run(fleet.replica(max_num_seqs=8))["changed"] is False


@pytest.mark.parametrize("at", ["_set_aside", "_start", "_wait", "_keep_running"])
def test_the_next_run_may_want_the_old_server_after_all(fleet: Fleet, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.run(fleet.replica(max_num_seqs=4))
    interrupted(fleet, at, fleet.replica(max_num_seqs=8), monkeypatch=monkeypatch)
    result = fleet.run(fleet.replica(max_num_seqs=4))
    assert not result["failed"], result
    assert result["recovered"]
    assert fleet.names() == [f"{fleet.prefix}-0"]
    assert '"max-num-seqs":4' in fleet.engine.containers.get(f"{fleet.prefix}-0").labels["io.gpufleet.spec"]
    assert answer(fleet) == 200


def test_an_interrupted_replacement_that_fails_brings_the_old_server_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run(fleet.replica(max_num_seqs=4))
    old = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    interrupted(fleet, "_wait", fleet.replica(max_model_len=10485760), monkeypatch=monkeypatch)
    failed = fleet.run(fleet.replica(max_model_len=10485760))
    assert (failed["failed"], failed["error"]["name"]) == (True, "max-model-len-too-long")
    assert failed["error"]["details"]["restored"] is True
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (old, 200)


def test_a_replacement_that_was_interrupted_and_is_no_longer_wanted_is_removed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that takes its port over is replaced together with it."""
    fleet.run(fleet.replica(1))
    interrupted(fleet, "_wait", fleet.replica(1, max_num_seqs=8), monkeypatch=monkeypatch)
    assert fleet.names() == [f"{fleet.prefix}-1", f"{fleet.prefix}-1-previous"]
    result = fleet.run({**fleet.replica(0), "port": fleet.ports[1]})
    assert not result["failed"], result
    assert fleet.names() == [f"{fleet.prefix}-0"]
    assert answer(fleet, 1) == 200


def test_servers_that_an_interrupted_run_started_make_room_for_the_old_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when one replica on eight GPUs becomes two on four each: the second one has what the old one needs."""
    old = {**fleet.replica(0), "port": fleet.ports[1]}
    fleet.run(old)
    before = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    wanted = [fleet.replica(0, max_model_len=10485760), fleet.replica(1)]
    interrupted(fleet, "_wait", *wanted, monkeypatch=monkeypatch)
    assert fleet.names() == [f"{fleet.prefix}-{end}" for end in ("0", "0-previous", "1")]
    failed = fleet.run(*wanted)
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("max-model-len-too-long", True)
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, fleet.names()) == (before, [f"{fleet.prefix}-0"])
    assert answer(fleet, 1) == 200


@pytest.mark.parametrize("fails", [False, True])
def test_an_old_server_is_not_started_on_what_an_unfinished_one_has(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """As when two replicas on four GPUs each become one on eight."""
    fleet.run(fleet.replica(0), fleet.replica(1))
    wanted = {**fleet.replica(0, max_model_len=10485760 if fails else 2048), "port": fleet.ports[1]}
    interrupted(fleet, "_wait", wanted, monkeypatch=monkeypatch)
    assert fleet.names() == [f"{fleet.prefix}-{end}" for end in ("0", "0-previous", "1-previous")]
    result = fleet.run(wanted)
    if fails:
        assert (result["error"]["name"], result["error"]["details"]["restored"]) == ("max-model-len-too-long", True)
        assert (answer(fleet, 0), answer(fleet, 1), len(fleet.names())) == (200, 200, 2)
    else:
        assert not result["failed"], result
        assert (fleet.names(), answer(fleet, 0), answer(fleet, 1)) == ([f"{fleet.prefix}-0"], 0, 200)


def test_a_server_that_became_ready_by_itself_keeps_its_restart_policy(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run(fleet.replica(max_num_seqs=4))
    interrupted(fleet, "_keep_running", fleet.replica(max_num_seqs=8), monkeypatch=monkeypatch)
    failed = fleet.run(fleet.replica(no_such_flag=1), check_config=False)
    assert failed["error"]["details"]["restored"] is True
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert '"max-num-seqs":8' in container.labels["io.gpufleet.spec"]
    assert container.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


def test_the_old_server_comes_back_when_what_is_wanted_now_cannot_be_had(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run(fleet.replica(max_num_seqs=4))
    interrupted(fleet, "_start", fleet.replica(max_num_seqs=8), monkeypatch=monkeypatch)
    assert answer(fleet) == 0
    failed = fleet.run(fleet.replica(max_num_seqs=8), image="127.0.0.1:9/not/here:1")
    assert failed["error"]["name"] == "image-missing"
    assert "put the old server" in failed["msg"]
    deadline = time.monotonic() + 30
    while answer(fleet) != 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (fleet.names(), answer(fleet)) == ([f"{fleet.prefix}-0"], 200)
    assert '"max-num-seqs":4' in fleet.engine.containers.get(f"{fleet.prefix}-0").labels["io.gpufleet.spec"]


def test_the_old_server_comes_back_from_what_nobody_thought_of(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.run(fleet.replica())
    before = fleet.engine.containers.get(f"{fleet.prefix}-0").id

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(Replacement, "_start", fail)
        failed = fleet.run(fleet.replica(max_num_seqs=8))
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("unexpected-failure", True)
    assert "Read-only file system" in failed["error"]["evidence"]
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (before, 200)


def test_what_another_run_writes_meanwhile_is_neither_served_nor_recorded(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The play was interrupted, its module goes on, and the next play has written its configuration already."""
    replicas = [fleet.replica(0, max_num_seqs=4), fleet.replica(1, max_num_seqs=4)]
    wait = Replacement._wait

    def meddle(self: Replacement, steps: Sequence[Step]) -> None:
        for number in (0, 1):
            fleet.replica(number, max_num_seqs=99)
        wait(self, steps)

    monkeypatch.setattr(Replacement, "_wait", meddle)
    result = fleet.run(*replicas)
    assert not result["failed"], result
    (entry,) = [json.loads(path.read_text()) for path in (fleet.config_dir / "history").glob("*.json")]
    assert all("max-num-seqs: 4" in text for text in entry["configurations"].values())
    for path in (fleet.config_dir / "active").iterdir():
        assert "max-num-seqs: 4" in path.read_text()
        # An image may run as a user of its own.
        assert path.stat().st_mode & 0o777 == 0o644


def test_an_image_that_moves_meanwhile_is_told_before_anything_is_stopped(
    fleet: Fleet, engine: DockerClient, run_name: str, tiny_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{run_name}/moving"
    engine.images.get(fleet.image).tag(name, "1")
    fleet.image = f"{name}:1"
    fleet.run(fleet.replica())
    before = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    copy = ReplicaFiles.copy_config

    def move(self: ReplicaFiles, spec: Spec) -> str:
        engine.images.get(tiny_image).tag(name, "1")
        return copy(self, spec)

    monkeypatch.setattr(ReplicaFiles, "copy_config", move)
    failed = fleet.run(fleet.replica(max_num_seqs=8))
    assert failed["error"]["name"] == "image-moved"
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (before, 200)
    assert fleet.names() == [f"{fleet.prefix}-0"]


def refusing(call: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return a method of containers that the engine refuses for those of these names."""

    def refuse(container: Container, *arguments: Any, **options: Any) -> Any:
        container.reload()
        if container.name in names:
            raise APIError("500 Server Error", explanation="could not kill container: did not receive an exit event")
        return call(container, *arguments, **options)

    return refuse


def test_the_old_server_comes_back_although_the_new_one_cannot_be_removed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{fleet.prefix}-0"
    fleet.run(fleet.replica())
    before = fleet.engine.containers.get(name).id
    with monkeypatch.context() as patched:
        patched.setattr(Container, "remove", refusing(Container.remove, [name]))
        failed = fleet.run(fleet.replica(no_such_flag=1), check_config=False)
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("flag-unknown", True), failed["error"]
    assert "could not be removed" in failed["error"]["message"]
    assert (fleet.engine.containers.get(name).id, answer(fleet)) == (before, 200)
    result = fleet.run(fleet.replica())
    assert (result["replicas"][0]["action"], fleet.names()) == ("none", [name])


def test_a_server_that_cannot_be_stopped_takes_requests_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{fleet.prefix}-0"
    fleet.run(fleet.replica())
    with monkeypatch.context() as patched:
        patched.setattr(Container, "stop", refusing(Container.stop, [name, f"{name}-previous"]))
        patched.setattr(stopping, "stop_container", functools.partial(stop_container, notice=0.1))
        failed = fleet.run(fleet.replica(max_num_seqs=8))
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("engine-error", True), failed["error"]
    assert not Control(str(fleet.config_dir / "control" / name)).closed()
    assert (fleet.names(), answer(fleet)) == ([name], 200)


def test_two_runs_do_not_work_on_one_host(fleet: Fleet) -> None:
    lock = fleet.config_dir / ".lock"
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        'f.write(\'{"pid": 4711, "operation": "vllm_server, state present", "since": 0}\'); f.flush();'
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        failed = fleet.run(fleet.replica())
    finally:
        holder.kill()
        holder.wait()
    assert (failed["failed"], failed["error"]["name"]) == (True, "busy")
    assert "process 4711" in failed["msg"]
    assert fleet.names() == []


def test_the_progress_file_tells_the_phases(fleet: Fleet) -> None:
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError, ValueError):
                seen.add(json.loads((fleet.folder / "progress").read_text())["phase"])
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    fleet.run(fleet.replica(environment={"STAND_IN_DELAY": "0.5"}))
    done.set()
    watcher.join()
    assert {f"{fleet.prefix}-0: weights", f"{fleet.prefix}-0: serving"} <= seen
