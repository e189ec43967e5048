# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a host's servers, on containers as the Docker SDK shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils import server_status
from ansible_collections.gpufleet.vllm.plugins.module_utils.control import Control
from ansible_collections.gpufleet.vllm.plugins.module_utils.server import Wishes, build_spec, labels
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_server_info
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

NEVER = "0001-01-01T00:00:00Z"


class Box:
    """A container as the Docker SDK shows it."""

    def __init__(self, name: str, status: str, log: str = "", **state: Any) -> None:
        self.name = name
        self.id = f"id-of-{name}"
        self.status = status
        self._log = log
        source = {"argument": "org/model"}
        wishes = Wishes("vllm:1", "sha256:1", source, "cpu", "auto", "bridge", "/h", "/c", "/etc")
        base = name.replace("-previous", "")
        replica = {"name": base, "host": "127.0.0.1", "port": 1, "config": {"port": 8000}}
        self.labels = labels(build_spec(replica, wishes, (), lambda _path: False))
        running = status == "running"
        self.attrs = {
            "State": {"Running": running, "StartedAt": "2026-11-22T07:24:24.5Z" if running else NEVER, **state},
            "Config": {"Image": "vllm:1", "Env": []},
            "HostConfig": {},
            "RestartCount": state.pop("restarts", 0),
        }

    def logs(self, **_options: Any) -> bytes:
        return self._log.encode()


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
    return server_status.server_states(client, "vllm", config_dir, 100)


def test_an_engine_that_does_not_run_is_told(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module(vllm_server_info.main, {"docker_host": f"unix://{tmp_path}/no.sock"})
    assert (result["failed"], result["error"]["name"]) == (True, "engine-not-running")


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
        (Box("vllm-0", "running", "CUDA out of memory", restarts=2), "engine start", "gpu-out-of-memory"),
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


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (65, "1 min 5 s"), (7500, "2 h 5 min"), (400000, "4 days 15 h")]
)
def test_uptime_is_told_as_people_say_it(seconds: int, text: str) -> None:
    assert server_status._span(seconds) == text
