# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts without weights: the role fetches them from the hub once, and from host to host.

The real huggingface_hub runs in a container, the hub is one on the loopback, sshd and rsync are real.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tests.engine import test_model
from ansible_collections.gpufleet.vllm.tests.engine.test_model import RELEASES
from ansible_collections.gpufleet.vllm.tests.fakes.hub import MAIN, Hub, Repository
from ansible_collections.gpufleet.vllm.tests.plays import test_weights_sharing
from ansible_collections.gpufleet.vllm.tests.plays.test_weights_sharing import (
    FILES,
    REPOSITORY,
    SHARDS,
    Host,
    Play,
    listening,
)

# What a server needs, which the downloader alone takes.
WANTED = {name: content for name, content in FILES.items() if name != "README.md"}
# Fixtures of other tests.
hosts = test_weights_sharing.hosts
image = test_model.image


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with the model."""
    with Hub({REPOSITORY: Repository({MAIN: FILES})}).running() as running:
        yield running


@pytest.fixture
def play(
    hosts: list[Host],
    hub: Hub,
    image: str,
    docker_host: str,
    run_name: str,
    tmp_path: Path,
) -> Play:
    """The play on three hosts."""
    variables = {"image": image, "vllm_docker_host": docker_host, "mark": run_name}
    return Play(tmp_path, hosts, hub.url, variables)


def weights_asked(hub: Hub) -> int:
    """Return how many files of weights the hub was asked for."""
    return len(hub.asked(r"GET .*/resolve/.*-of-.*\.safetensors"))


@pytest.mark.parametrize("image", RELEASES[-1:], indirect=True, scope="module")
def test_three_hosts_cost_the_hub_one_copy(play: Play, hub: Hub, hosts: list[Host]) -> None:
    looked = play.run("--check")
    assert "fetches the weights from other hosts: one" in looked
    assert not any(host.home.exists() for host in hosts)
    first = play.run(forks=2)
    assert weights_asked(hub) == SHARDS
    assert hub.sent < 1.1 * sum(map(len, FILES.values()))
    assert all(host.files() == WANTED for host in hosts)
    assert "from one (" in first
    assert not any(map(listening, hosts))
    second = play.run()
    assert second.count("changed=0") == 3
    assert weights_asked(hub) == SHARDS
    # A further host has it without the hub.
    shutil.rmtree(hosts[2].home)
    third = play.run()
    assert (third.count("changed=0"), third.count("changed=1")) == (2, 1)
    assert weights_asked(hub) == SHARDS
    assert hosts[2].files() == WANTED


@pytest.mark.parametrize("image", RELEASES[-1:], indirect=True, scope="module")
def test_without_a_host_that_serves_the_hub_is_asked(play: Play, hub: Hub, hosts: list[Host], tmp_path: Path) -> None:
    (tmp_path / "bin" / "sshd").write_text("#!/bin/sh\necho no >&2\nexit 1\n", encoding="utf-8")
    began = time.monotonic()
    said = play.run()
    assert "This host cannot give its weights to others: sshd does not start at port" in said, said
    assert "no host of the fleet has it whole, which the hub is asked for" in said, said
    assert "gives them to" not in said
    assert all(host.files() == WANTED for host in hosts)
    assert weights_asked(hub) == 3 * SHARDS
    assert time.monotonic() - began < 300


@pytest.mark.parametrize("image", RELEASES[-1:], indirect=True, scope="module")
def test_with_another_strategy_all_hosts_have_them_too(play: Play, hub: Hub, hosts: list[Host]) -> None:
    play.run(strategy="free")
    assert all(host.files() == WANTED for host in hosts)
    assert weights_asked(hub) <= 3 * SHARDS
