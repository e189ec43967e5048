# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the faults: a server under load for those that strike it, and plays beside it for the others."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import docker_host, engine
from ansible_collections.gpufleet.vllm.tests.faults.provocations import PROVOCATIONS
from ansible_collections.gpufleet.vllm.tests.faults.state import Outcome, Results
from ansible_collections.gpufleet.vllm.tests.faults.table import OWN, Fault
from ansible_collections.gpufleet.vllm.tests.faults.world import MODEL, SHARED, Play, Site, World, end_plays
from ansible_collections.gpufleet.vllm.tests.load.client import Load, Options
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["docker_host", "engine"]  # the fixtures of tests/engine serve here, too

MINIATURE = Path(__file__).resolve().parents[1] / "data" / "scout-miniature"
IMAGE = "gpufleet/vllm-cpu:0.32.0"
AT_ONCE = int(os.environ.get("GPUFLEET_FAULTS_AT_ONCE") or 2)
# A request is open most of the time, and the processors have time for starting servers.
RATE, MAX_TOKENS, TIMEOUT_S = 1.0, 32, 120.0


@pytest.fixture(scope="session")
def world(engine: DockerClient, docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What the provocations work with; its images are removed at the end."""
    folder = tmp_path_factory.mktemp("faults")
    model = folder / "model"
    shutil.copytree(MINIATURE, model)
    world = World(engine, docker_host, f"gpufleet-faults-{os.getpid()}", folder, model, IMAGE)
    yield world
    for image in engine.images.list():
        if any(tag.startswith(world.run_name) for tag in image.tags):
            engine.images.remove(str(image.id), force=True)


@pytest.fixture(scope="session")
def serving(world: World) -> Iterator[Site]:
    """The deployment that serves."""
    site = world.site("serving", free_port())
    try:
        deployed = site.play()
        assert deployed.status == 0, deployed.text
        # Between requests that follow each other closely vLLM's worker spins, which others that start would wait for.
        site.server().update(cpu_shares=64)
        yield site
    finally:
        site.clean()


@pytest.fixture(scope="session")
def load(serving: Site) -> Iterator[Load]:
    """Requests to that deployment, all the while."""
    with Load(Options(serving.url, MODEL, rate=RATE, max_tokens=MAX_TOKENS, timeout=TIMEOUT_S)) as load:
        yield load


@pytest.fixture(scope="session")
def own_plays(world: World, request: pytest.FixtureRequest) -> Iterator[dict[str, concurrent.futures.Future[Outcome]]]:
    """What becomes of the faults that strike a deployment of their own, provoked a few at a time from the start on."""
    if not world.engine.images.list(IMAGE) or not (SHARED / "venv").is_dir():
        request.getfixturevalue("serving")  # makes both, which several plays at once cannot
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    faults: list[Fault] = [spec.params["fault"] for spec in chosen if spec and "fault" in spec.params]
    own = [fault for fault in faults if fault.on == OWN]
    ports = [free_port() for _fault in own]

    def provoke(fault: Fault, port: int) -> Outcome:
        site = world.site(fault.name, port)
        # That the configuration is parsed first is seen where a server serves; here a start is to fail.
        site.wishes["vllm_check_config"] = False
        try:
            play: Play = PROVOCATIONS[fault.how](world, site, fault)
            left = [str(box.name) for box in site.containers()]
            return Outcome(play, left, site.play(wishes={**fault.wishes, **fault.cure}) if fault.cure else None)
        finally:
            site.clean()

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        yield {fault.name: pool.submit(provoke, fault, port) for fault, port in zip(own, ports, strict=True)}
        pool.shutdown(wait=False, cancel_futures=True)
        end_plays()


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    """Which faults passed, and what was measured; printed at the end, and kept where GPUFLEET_FAULTS_RESULTS says."""
    results = Results()
    yield results
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "passed": sorted(results.passed),
        "faults": results.measured,
    }
    text = json.dumps(document, indent=2)
    print(f"\n{text}")
    if os.environ.get("GPUFLEET_FAULTS_RESULTS"):
        Path(os.environ["GPUFLEET_FAULTS_RESULTS"]).write_text(text + "\n", encoding="utf-8")
