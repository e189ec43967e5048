# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Walks every row of the table at the head of deployment.py: what a run finds, and what it does about it."""

from __future__ import annotations

import re
from typing import Any, Callable

import pytest
from docker.models.containers import Container

from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import deployment
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replacement import Replacement
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.stopping import Stopping
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet

OLD, NEW, OTHER = {"max_num_seqs": 4}, {"max_num_seqs": 8}, {"max_num_seqs": 16}
REFUSED_LATE = {"max_model_len": 10485760}  # the stand-in ends with vLLM's own message, after it was started


def rows() -> list[str]:
    """Return the left column of the table; a cell that goes on in the next line has an indented right side."""
    lines = (deployment.__doc__ or "").splitlines()
    first, second, last = (number for number, line in enumerate(lines) if re.fullmatch(r"=+ =+", line))
    width = lines[first].index(" ")
    assert second == first + 2
    return [line[:width].strip() for line in lines[second + 1 : last] if line[:width].strip()]


class World:
    """One deployment whose runs can be killed.

    Args:
        fleet: the deployment.
        monkeypatch: of the test.
    """

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fleet = fleet
        self.name = f"{fleet.prefix}-0"
        self._monkeypatch = monkeypatch

    def run(self, config: dict[str, Any]) -> dict[str, Any]:
        """Run the deployment with a configuration and return the result."""
        return self.fleet.run(self.fleet.replica(**config), check_config=False)

    def killed(self, at: str, config: dict[str, Any], of: type = Replacement) -> None:
        """Run it and end it, as kill -9 would, when it comes to a method; then look at it as a rolling change does."""

        class KilledError(BaseException):
            pass

        def die(*_arguments: object, **_options: object) -> None:
            raise KilledError

        with self._monkeypatch.context() as patched:
            patched.setattr(of, at, die)
            with pytest.raises(KilledError):
                self.run(config)
        left = [(box.name, box.id, box.status) for box in self.containers()]
        for wanted in (config, OTHER):
            looked = self.fleet.run(self.fleet.replica(**wanted), check_config=False, check=True)
            assert not looked["failed"], looked
        assert [(box.name, box.id, box.status) for box in self.containers()] == left

    def containers(self) -> list[Container]:
        """Return the containers of the deployment."""
        return [self.fleet.engine.containers.get(name) for name in self.fleet.names()]

    def there(self) -> list[str]:
        """Return the containers of the deployment, without its prefix and number."""
        return [name.removeprefix(self.name) for name in self.fleet.names()]

    def serves(self) -> str:
        """Return the id of the container that runs under the replica's own name."""
        container = self.fleet.engine.containers.get(self.name)
        assert container.status == "running"
        return str(container.id)

    def remove(self, suffix: str) -> None:
        """Remove a container by hand."""
        self.fleet.engine.containers.get(self.name + suffix).remove(force=True)


def nothing_unfinished(world: World) -> None:
    before = world.serves()
    assert world.there() == [""]
    result = world.run(OLD)
    assert (result["changed"], result["recovered"], world.serves()) == (False, [], before)


def left_over_next(world: World) -> None:
    before = world.serves()
    world.killed("_exchange", NEW)
    assert world.there() == ["", "-next"]
    result = world.run(OLD)
    assert result["recovered"] == [f"removed {world.name}-next, which an earlier run left"]
    assert (world.there(), world.serves()) == ([""], before)


def only_previous(world: World) -> None:
    before = world.serves()
    world.killed("_start", NEW)
    world.remove("-next")
    assert world.there() == ["-previous"]
    result = world.run(OLD)
    assert result["recovered"] == [f"put the old server {world.name} back: its replacement was interrupted"]
    assert (world.there(), world.serves()) == ([""], before)
    # And one that still runs.
    world.killed("stop", NEW, of=Stopping)
    assert world.there() == ["-next", "-previous"]
    assert world.fleet.engine.containers.get(f"{world.name}-previous").status == "running"
    result = world.run(NEW)
    assert (result["failed"], world.there(), world.serves() == before) == (False, [""], False)


def goes_on(world: World) -> None:
    before = world.serves()
    world.killed("_wait", NEW)
    assert world.there() == ["", "-previous"]
    unfinished = world.serves()
    result = world.run(NEW)
    assert result["replicas"][0]["why"] == ["goes on with the replacement that an earlier run began"]
    assert (world.there(), world.serves()) == ([""], unfinished)
    # And one that fails after all.
    world.killed("_wait", REFUSED_LATE)
    failed = world.run(REFUSED_LATE)
    assert (failed["error"]["name"], failed["error"]["details"]["restored"]) == ("max-model-len-too-long", True)
    assert (world.there(), world.serves(), before == unfinished) == ([""], unfinished, False)


def not_as_wanted(world: World) -> None:
    before = world.serves()
    world.killed("_keep_running", NEW)
    assert world.there() == ["", "-previous"]
    result = world.run(OTHER)
    assert result["recovered"] == [f"removed {world.name}-previous: the server that replaced it answers"]
    assert (world.there(), world.serves() == before) == ([""], False)
    # And one that does not answer.
    before = world.serves()
    world.killed("_wait", REFUSED_LATE)
    result = world.run(OTHER)
    assert result["recovered"] == [f"put the old server {world.name} back: its replacement was interrupted"]
    assert (world.there(), world.serves()) == ([""], before)


WALKS: dict[str, Callable[[World], None]] = {
    "name": nothing_unfinished,
    "name-next (and others)": left_over_next,
    "name-previous": only_previous,
    "name as wanted, name-previous": goes_on,
    "name not as wanted, name-previous": not_as_wanted,
}


def test_every_row_of_the_table_is_walked() -> None:
    assert rows() == list(WALKS)


@pytest.mark.parametrize("row", WALKS)
def test_a_run_does_what_the_table_says(row: str, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(fleet, monkeypatch)
    assert not world.run(OLD)["failed"]
    WALKS[row](world)
