# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a host's servers, on containers as the Docker SDK shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import parse_time
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions, build_spec, labels
from ansible_collections.gpufleet.vllm.plugins.module_utils.health import status as health_status
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.kernel_log import OWN_LIMIT
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control import Control
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_server_info
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

NEVER = "0001-01-01T00:00:00Z"
STARTED = "2026-11-22T07:24:24.5Z"


class Box:
    """A container as the Docker SDK shows it; lines of its log without a time are of its last life."""

    def __init__(self, name: str, status: str, log: str = "", **state: Any) -> None:
        self.name = name
        self.id = f"id-of-{name}"
        self.status = status
        self._log = [line if line[:4].isdigit() else f"2026-11-22T07:24:30.1Z {line}" for line in log.splitlines()]
        source = {"argument": "org/model"}
        wishes = ServerOptions("vllm:1", "sha256:1", source, "cpu", "auto", "bridge", "/h", "/c", "/etc")
        base = name.replace("-previous", "")
        replica: Any = {"name": base, "host": "127.0.0.1", "port": 1, "config": {"port": 8000}}
        self.labels = labels(build_spec(replica, wishes, (), lambda _path: False))
        running = status in ("running", "restarting")
        started = NEVER if status == "created" else STARTED
        self.attrs = {
            "RestartCount": state.pop("restarts", 0),
            "State": {"Running": running, "StartedAt": started, **state},
            "Config": {"Image": "vllm:1", "Env": []},
            "HostConfig": {},
        }

    def logs(
        self,
        *,
        tail: Any = "all",
        since: float = 0.0,
        until: float = 0.0,
        timestamps: bool = False,
        stream: bool = False,
        follow: bool = True,
    ) -> Any:
        """As the engine does: the tail of the whole log is taken first, then those lines are left out."""
        assert not (stream and follow)
        lines = self._log if tail == "all" else self._log[-tail:]
        lines = [line for line in lines if since <= parse_time(line) and (not until or parse_time(line) <= until)]
        chosen = [f"{line if timestamps else line.partition(' ')[2]}\n".encode() for line in lines]
        return iter(chosen) if stream else b"".join(chosen)


class Client:
    """A Docker client with these containers."""

    def __init__(self, *boxes: Box) -> None:
        self.containers = self
        self._boxes = boxes

    def list(self, **_options: Any) -> list[Box]:
        return list(self._boxes)


def states(*boxes: Box, config_dir: str = "/nowhere") -> list[dict[str, Any]]:
    """Return what is told of these containers; nothing answers at their port."""
    client: Any = Client(*boxes)
    return health_status.server_states(client, "vllm", config_dir, 100)


def test_an_engine_that_does_not_run_is_told(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module(vllm_server_info.main, {"docker_host": f"unix://{tmp_path}/no.sock"})
    assert (result["failed"], result["error"]["name"]) == (True, "engine-not-running")


FULL = "2026-11-22T07:24:24.3Z OSError: [Errno 28] No space left on device"  # printed by the life before
LOOPS = ("restarting", "flag-unknown")
ENDED = "EngineCore encountered a fatal error."
DIED = ("engine dead", "gpu-out-of-memory")


@pytest.mark.parametrize(
    ("box", "phase", "cause"),
    [
        (Box("vllm-0", "running", "Starting to load model x"), "weights", None),
        (Box("vllm-0", "running", "init engine (profile) took 5 s"), "warm-up", None),
        (Box("vllm-0", "running", "INFO:     Application startup complete."), "not answering", None),
        (Box("vllm-0", "exited", "bye", ExitCode=0), "stopped", None),
        (Box("vllm-0", "created"), "stopped", None),
        (Box("vllm-0", "exited", "", ExitCode=137, OOMKilled=True), "dead", "out-of-memory-kill"),
        (Box("vllm-0", "exited", "OSError: [Errno 28] No space left on device", ExitCode=1), "dead", "disk-full"),
        # vLLM may exit with 0 after its engine died.
        (
            Box("vllm-0", "exited", "EngineCore encountered a fatal error.\nXError: x", ExitCode=0),
            "dead",
            "engine-died",
        ),
        (
            Box("vllm-0", "restarting", "error: unrecognized arguments: --x", Restarting=True),
            "restarting",
            "flag-unknown",
        ),
        # Its API server may outlive an engine by minutes.
        (
            Box("vllm-0", "running", "CUDA out of memory\nEngineCore failed to start."),
            "engine dead",
            "gpu-out-of-memory",
        ),
        # What an earlier life died of was fixed.
        (Box("vllm-0", "exited", f"{FULL}\nCUDA out of memory", ExitCode=1, restarts=1), "dead", "gpu-out-of-memory"),
        (Box("vllm-0", "restarting", f"{FULL}\nerror: unrecognized arguments: --x", Restarting=True), *LOOPS),
        (Box("vllm-0", "running", f"{FULL}\nCUDA out of memory\nEngineCore failed to start."), *DIED),
        (Box("vllm-0", "exited", f"{FULL}\nbye", ExitCode=0), "stopped", None),
        (Box("vllm-0", "running", f"CUDA out of memory\n{ENDED}", OOMKilled=True, restarts=1), *DIED),
        # A loop: the life that has begun has printed nothing yet that would tell why.
        (Box("vllm-0", "running", f"{FULL}\nINFO: starting", restarts=2), "engine start", "disk-full"),
        (Box("vllm-0", "running", f"{FULL}\nApplication startup complete.", restarts=2), "not answering", None),
    ],
)
def test_what_does_not_serve_is_told_by_its_phase_and_cause(box: Box, phase: str, cause: str | None) -> None:
    (state,) = states(box)
    assert (state["phase"], state["diagnosis"].get("name")) == (phase, cause)
    assert state["summary"].startswith(phase)
    assert state["model"] == "org/model"


def test_why_docker_restarted_a_server_is_told_from_the_life_before() -> None:
    log = "\n".join(
        [
            "2026-11-22T06:00:00.1Z INFO 11-22 06:00:00 [utils.py:253] non-default args: {}",
            "2026-11-22T06:30:00.1Z torch.cuda.OutOfMemoryError: CUDA out of memory",
            "2026-11-22T06:31:00.1Z INFO 11-22 06:31:00 [utils.py:253] non-default args: {}",
            "2026-11-22T07:24:01.1Z gpufleet-watchdog: /health does not answer, for 315 s. The server is ended so that",
            "2026-11-22T07:24:30.1Z torch.cuda.OutOfMemoryError: of the life that goes on",
        ]
    )
    (state,) = states(Box("vllm-0", "running", log, restarts=2))
    assert (state["last_death"]["name"], state["last_death"]["at"]) == ("ended-by-watchdog", "2026-11-22T07:24:01Z")
    assert "restarted 2 times, last at 2026-11-22T07:24:01Z: ended-by-watchdog" in state["summary"]
    (lost,) = states(Box("vllm-0", "running", "2026-11-22T07:24:30.1Z what was left", restarts=2))
    assert lost["last_death"] == {}


def test_the_life_before_is_found_behind_the_lines_of_a_busy_server() -> None:
    """Docker takes the tail of the whole log before it leaves out what is too new."""
    asked = ["2026-11-22T07:25:00.1Z INFO: 127.0.0.1 - POST /v1/completions 200 OK"] * 2 * health_status.EARLIER_LINES
    log = "\n".join(["2026-11-22T07:24:01.1Z torch.OutOfMemoryError: CUDA out of memory", *asked])
    (state,) = states(Box("vllm-0", "running", log, restarts=1))
    assert (state["last_death"]["name"], state["last_death"]["at"]) == ("gpu-out-of-memory", "2026-11-22T07:24:01Z")


def test_only_the_last_words_before_the_death_are_read() -> None:
    """A log may hold days of a busy server, and the container may have stood still between its death and its start."""
    log = "\n".join(
        [
            "2026-11-22T05:00:00.1Z torch.OutOfMemoryError: CUDA out of memory",
            "2026-11-22T06:00:01.1Z OSError: [Errno 28] No space left on device",
        ]
    )
    (state,) = states(Box("vllm-0", "running", log, restarts=1, FinishedAt="2026-11-22T06:00:02.7Z"))
    assert (state["last_death"]["name"], state["last_death"]["at"]) == ("disk-full", "2026-11-22T06:00:02Z")
    (silent,) = states(Box("vllm-0", "running", log, restarts=1, FinishedAt="2026-11-22T07:24:24.1Z"))
    assert silent["last_death"] == {}


def test_a_server_that_the_kernel_killed_without_a_word_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    died = "2026-11-22T07:24:24.1Z"
    asked: list[float] = []

    def killed(_container: str, since: float) -> str:
        asked.append(since)
        return f"oom-kill:constraint={OWN_LIMIT}"

    monkeypatch.setattr(health_status, "memory_kill", killed)
    (state,) = states(Box("vllm-0", "running", "INFO: starting", restarts=1, FinishedAt=died))
    assert state["last_death"]["name"] == "out-of-memory-kill"
    assert parse_time(died) - health_status.DEATH_S in asked


def test_a_server_that_turns_requests_away_is_draining(tmp_path: Path) -> None:
    control = Control(str(tmp_path / "control" / "vllm-0"))
    (tmp_path / "control" / "vllm-0").mkdir(parents=True)
    control.close(60)
    (state,) = states(Box("vllm-0", "running"), config_dir=str(tmp_path))
    assert (state["phase"], state["diagnosis"]) == ("draining", {})
    control.close(-1)
    assert states(Box("vllm-0", "running"), config_dir=str(tmp_path))[0]["phase"] == "container"


def test_servers_are_told_in_the_order_of_their_numbers() -> None:
    boxes = [Box(name, "exited", ExitCode=0) for name in ("vllm-10", "vllm-9", "vllm-2", "other-1", "vllm-3-next")]
    assert [state["name"] for state in states(*boxes)] == ["vllm-2", "vllm-9", "vllm-10"]


def test_what_an_unfinished_replacement_left_is_told() -> None:
    new, old = Box("vllm-0", "running"), Box("vllm-0-previous", "exited", ExitCode=0)
    (state,) = states(new, old)
    assert (state["previous"], state["state"]) == ("exited", "running")
    assert "unfinished replacement" in state["summary"]
    (alone,) = states(old)
    assert (alone["name"], alone["previous"]) == ("vllm-0", "exited")


def test_the_run_line_is_that_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "vllm-0.sh").write_text("#!/bin/sh\n# Comment\nexec docker run \\\n  x\n")
    (state,) = states(Box("vllm-0", "created"), config_dir=str(tmp_path))
    assert state["docker_run"] == "docker run \\\n  x"
