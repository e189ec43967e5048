# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_server on a real engine: every container is real, only the program in it stands in for vLLM."""

from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from ansible_collections.gpufleet.vllm.plugins.module_utils import config_check
from ansible_collections.gpufleet.vllm.tests.engine.conftest import debian_program, free_port
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet, import_stand_in
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

if TYPE_CHECKING:
    from docker import DockerClient

LOGS = Path(__file__).parents[1] / "unit" / "data" / "logs"
KEY, TOKEN = "sk-secret-4711", "hf_secret0815"


@pytest.fixture(scope="session")
def stand_in(engine: DockerClient, run_name: str) -> str:
    """The name of the stand-in's image."""
    name = f"{run_name}/stand-in:1"
    import_stand_in(engine, name, debian_program("busybox-static", "bin/busybox"))
    return name


@pytest.fixture
def fleet(
    engine: DockerClient, docker_host: str, run_module: RunModule, run_name: str, stand_in: str, tmp_path: Path
) -> Iterator[Fleet]:
    """A deployment of its own."""
    ports = [free_port() for _number in range(4)]
    fleet = Fleet(engine, docker_host, run_module, f"{run_name}-{ports[0]}", stand_in, tmp_path, ports)
    yield fleet
    fleet.clean()


def answer(fleet: Fleet, number: int = 0) -> int:
    """Return the status of the replica's /health; 0 when nothing answers."""
    try:
        return requests.get(f"http://127.0.0.1:{fleet.ports[number]}/health", timeout=5).status_code
    except requests.exceptions.ConnectionError:
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
    assert names == ["container", "engine start", "weights", "compile", "KV cache", "warm-up", "serving"]
    assert answer(fleet) == 200
    assert health(fleet) == "healthy"
    container = fleet.engine.containers.get(f"{fleet.prefix}-0")
    assert container.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert container.attrs["HostConfig"]["IpcMode"] == "host"
    second = fleet.run(fleet.replica())
    assert (second["changed"], second["replicas"][0]["action"], second["diff"]) == (False, "none", [])
    assert fleet.engine.containers.get(f"{fleet.prefix}-0").id == container.id


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
    assert time.monotonic() - began < 15
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


def test_a_port_in_use_is_told_before_anything_is_stopped(fleet: Fleet) -> None:
    fleet.run(fleet.replica(0))
    old = fleet.engine.containers.get(f"{fleet.prefix}-0")
    taken = http.server.HTTPServer(("127.0.0.1", fleet.ports[1]), http.server.BaseHTTPRequestHandler)
    try:
        began = time.monotonic()
        failed = fleet.run({**fleet.replica(0), "port": fleet.ports[1]})
    finally:
        taken.server_close()
    assert (failed["failed"], failed["error"]["name"]) == (True, "port-in-use")
    assert "pid" in failed["error"]["details"]["holder"]
    assert time.monotonic() - began < 5
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
        fleet.model.rmdir()
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
    changed = fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": "sk-other-1234", "HF_TOKEN": TOKEN})
    assert changed["replicas"][0]["why"] == ["secret VLLM_API_KEY: (hidden) -> (hidden, changed)"]
    gone = fleet.run(fleet.replica())
    assert gone["replicas"][0]["action"] == "replaced"
    assert not env_file.exists()


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


def test_a_server_made_by_hand_is_replaced_and_comes_back_when_that_fails(fleet: Fleet) -> None:
    fleet.run(fleet.replica())
    fleet.engine.containers.get(f"{fleet.prefix}-0").remove(force=True)
    by_hand = fleet.engine.containers.run(
        fleet.image,
        ["/models/stand-in", "--config", "/etc/vllm/config.yaml"],
        name=f"{fleet.prefix}-0",
        detach=True,
        ports={"8000/tcp": ("127.0.0.1", fleet.ports[0])},
        volumes=[f"{fleet.config_dir}/{fleet.prefix}-0.yaml:/etc/vllm/config.yaml:ro"],
        labels={"io.gpufleet.collection": "gpufleet.vllm"},
        restart_policy={"Name": "always"},
    )
    failed = fleet.run(fleet.replica(no_such_flag=1), check_config=False)
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("flag-unknown", True)
    by_hand.reload()
    policy = by_hand.attrs["HostConfig"]["RestartPolicy"]["Name"]
    assert (by_hand.name, by_hand.status in ("running", "restarting"), policy) == (f"{fleet.prefix}-0", True, "always")
    result = fleet.run(fleet.replica())
    assert (result["replicas"][0]["action"], answer(fleet)) == ("replaced", 200)


def test_a_server_that_dies_again_and_again_is_restarted_and_diagnosed(fleet: Fleet) -> None:
    fleet.run(fleet.replica(no_such_flag=1), wait=False, check_config=False)
    deadline = time.monotonic() + 20
    while fleet.info()["servers"][0]["restarts"] < 3 and time.monotonic() < deadline:
        time.sleep(0.3)
    failed = fleet.run(fleet.replica(no_such_flag=1))
    assert (failed["failed"], failed["error"]["name"]) == (True, "flag-unknown")
    assert fleet.names() == [f"{fleet.prefix}-0"]


def test_a_container_of_someone_else_is_not_touched(fleet: Fleet) -> None:
    other = fleet.engine.containers.create(fleet.image, name=f"{fleet.prefix}-0")
    failed = fleet.run(fleet.replica())
    assert (failed["failed"], failed["error"]["name"]) == (True, "name-taken")
    other.reload()
    assert other.name == f"{fleet.prefix}-0"


# What vllm_server_info tells


def test_info_tells_what_a_serving_server_does(fleet: Fleet) -> None:
    fleet.run(fleet.replica(), secrets={"VLLM_API_KEY": KEY})
    (server,) = fleet.info()["servers"]
    told = {key: server[key] for key in ("name", "state", "phase", "http_status", "model", "vllm_version", "diagnosis")}
    assert told == {
        "name": f"{fleet.prefix}-0",
        "state": "running",
        "phase": "serving",
        "http_status": 200,
        "model": "stand-in",
        "vllm_version": "0.12.0",
        "diagnosis": {},
    }
    assert server["load"] == {"requests_running": 2.0, "requests_waiting": 1.0, "kv_cache_usage": 0.25}
    assert server["summary"].endswith("2 requests running, 1 waiting, KV cache 25 % used")
    assert server["docker_run"].startswith("docker ") and " run --detach" in server["docker_run"]
    assert KEY not in json.dumps(server)


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
        phases = {server["name"][-1]: server for server in fleet.info()["servers"]}
        if phases["2"]["phase"] == "engine dead" and phases["3"]["restarts"]:
            break
        time.sleep(0.3)
    assert phases["0"]["phase"] in ("container", "engine start")
    assert phases["1"]["phase"] == "stopped"
    assert phases["2"]["phase"] == "engine dead"
    assert phases["3"]["diagnosis"]["name"] == "flag-unknown"
    assert "no-such-flag" in phases["3"]["summary"]


# Runs that were interrupted


def interrupted(fleet: Fleet, at: str, replica: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a replacement that is killed when it comes to the step C(at) of Deployment."""
    from ansible_collections.gpufleet.vllm.plugins.module_utils.deployment import Deployment

    class KilledError(BaseException):
        pass

    def die(*_args: object, **_options: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Deployment, at, die)
        with pytest.raises(KilledError):
            fleet.run(replica)


@pytest.mark.parametrize("at", ["_set_aside", "_start", "_wait", "_keep_running"])
def test_the_next_run_finishes_an_interrupted_replacement(
    fleet: Fleet, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.run(fleet.replica(max_num_seqs=4))
    interrupted(fleet, at, fleet.replica(max_num_seqs=8), monkeypatch)
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
    interrupted(fleet, at, fleet.replica(max_num_seqs=8), monkeypatch)
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
    interrupted(fleet, "_wait", fleet.replica(max_model_len=10485760), monkeypatch)
    failed = fleet.run(fleet.replica(max_model_len=10485760))
    assert (failed["failed"], failed["error"]["name"]) == (True, "max-model-len-too-long")
    assert failed["error"]["details"]["restored"] is True
    assert (fleet.engine.containers.get(f"{fleet.prefix}-0").id, answer(fleet)) == (old, 200)


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
