# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine that starts before the device files are there, and the program that starts what Docker could not."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import requests

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import spec as container_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import COLLECTION, LABEL_COLLECTION
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet
from ansible_collections.gpufleet.vllm.tools import test_engine

PROGRAM = Path(__file__).resolve().parents[2] / "roles" / "vllm" / "files" / "gpufleet-start-servers"
NULL = os.makedev(1, 3)
PATIENCE_S = 30.0


def make(node: Path) -> None:
    """Make a device file, as the driver's programs make those of a GPU."""
    os.mknod(node, 0o666 | stat.S_IFCHR, NULL)


def started(docker_host: str) -> subprocess.CompletedProcess[str]:
    """Run the program as its unit does."""
    environment = {"PATH": os.environ["PATH"], "DOCKER_HOST": docker_host}
    return subprocess.run([str(PROGRAM)], env=environment, capture_output=True, text=True, check=False)


def state(fleet: Fleet, name: str) -> Any:
    """Return a container's state."""
    return fleet.engine.containers.get(name).attrs["State"]


def serves(fleet: Fleet) -> bool:
    """Return whether the first replica answers."""
    try:
        return requests.get(f"http://127.0.0.1:{fleet.ports[0]}/health", timeout=5).status_code == 200
    except requests.exceptions.RequestException:
        return False


def await_that(true: Callable[[], bool]) -> None:
    """Wait until it is so, or fail."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.skipif(not test_engine.is_ours() or os.geteuid() != 0, reason="the engine is not ours to end")
def test_servers_come_back_once_the_device_files_are_there(
    fleet: Fleet, docker_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if docker_host != test_engine.docker_host():
        pytest.skip("the engine is not ours to end")
    node = tmp_path / "nvidia0"
    make(node)
    monkeypatch.setattr(container_spec, "_device_files", lambda *_arguments: [str(node)])
    served = fleet.run(fleet.replica(), fleet.replica(1))
    assert served.get("msg") is None, served
    server, stopped, previous = f"{fleet.prefix}-0", f"{fleet.prefix}-1", f"{fleet.prefix}-2-previous"
    # Left by an interrupted replacement, and not to be started by anything but the next run.
    like_it: Any = {
        "entrypoint": ["python3", "-c", "import time; time.sleep(3600)"],
        "devices": [f"{node}:{node}:rwm"],
        "labels": {LABEL_COLLECTION: COLLECTION},
        "restart_policy": {"Name": "unless-stopped"},
    }
    fleet.engine.containers.run(fleet.image, name=previous, detach=True, **like_it)
    fleet.engine.containers.get(stopped).stop(timeout=5)
    node.unlink()
    test_engine.restart()
    await_that(lambda: all(state(fleet, name)["Error"] for name in (server, previous)))
    assert state(fleet, server)["Status"] == "exited" and str(node) in state(fleet, server)["Error"]
    # Docker leaves it at that.
    too_early = started(docker_host)
    assert too_early.returncode == 1 and str(node) in too_early.stderr
    make(node)
    assert not serves(fleet)
    again = started(docker_host)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"Started {server}, which Docker could not start before.\n"
    await_that(lambda: serves(fleet))
    assert [state(fleet, name)["Running"] for name in (server, stopped, previous)] == [True, False, False]
    nothing = started(docker_host)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")
    # The next run finds nothing wrong with it.
    assert fleet.run(fleet.replica(), check=True)["replicas"][0]["action"] == "none"
