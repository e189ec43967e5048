# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook router ends green only where the servers behind the router get requests, and says how to ask it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tests.plays.test_key_rotation import CLIENTS, HOSTS, OLD, Site
from ansible_collections.gpufleet.vllm.tests.plays.test_key_rotation import pytestmark as needs_haproxy

pytestmark = needs_haproxy
SOON = ("-e", "router_ready_timeout=3")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Three hosts of which the last one's server is gone and the one before is drained by hand."""
    found = Site(tmp_path)
    try:
        for host in HOSTS:
            found.start(host)
        found.play(OLD)
        found.router.master.set_state(["gpu-02:vllm-0"], "drain")
        found.stop("gpu-02")
        found.stop("gpu-03")
        yield found
    finally:
        found.end()


# As JSON or as YAML, by the ansible.cfg that counts.
NOT_REACHED = re.compile(r"""name"?: "?router-not-reached""")
NOT_TRIED = re.compile(r"Not tried: whether the servers''? ports of gpu-01, gpu-02, gpu-03 are closed")


def test_a_server_that_is_down_fails_the_play_by_host_and_cause_at_its_end(site: Site) -> None:
    names = site.play(OLD, *SOON, succeeds=False)
    assert "replicas-not-ready" in site.said
    assert "gpu-03:vllm-0: connection refused" in site.said
    assert "gpu-02:vllm-0: " not in site.said, "it was taken out on purpose"
    assert any("take only the new key" in name for name in names), "the rest is done all the same"
    # Of a host that this run has not asked it is told alone.
    site.play(OLD, *SOON, "--limit", "gpu-01,gpu-02,lb")
    assert "not of this run: the router sends nothing to gpu-03:vllm-0: connection refused" in site.said
    site.start("gpu-03")
    site.play(OLD)
    assert not re.search(r"changed=[1-9]", site.said), site.said


def test_what_the_controller_does_not_reach_is_tried_elsewhere(site: Site) -> None:
    site.start("gpu-03")
    site.play(OLD, "--tags", "security", "-e", "router_address=127.0.0.1", playbook="verify")
    assert "Not tried" not in site.said and not NOT_REACHED.search(site.said)
    behind = site.folder / "router" / "replicas.json"
    behind.write_text(behind.read_text(encoding="utf-8").replace("127.0.0.1", "no-such-host.invalid"), encoding="utf-8")
    away = ("-e", "router_address=no-such-host.invalid", "-e", "ansible_host=no-such-host.invalid")
    site.play(OLD, "--tags", "security", *away, playbook="verify")
    assert NOT_REACHED.search(site.said)
    assert "HTTP 401" in site.said, "the router was tried from its own host"
    assert NOT_TRIED.search(site.said)


def test_the_line_that_is_printed_works_as_it_is(site: Site) -> None:
    site.start("gpu-03")
    site.play(OLD)
    (line,) = [line for line in site.said.splitlines() if line.startswith("  curl ")]
    assert CLIENTS not in site.said
    asked = subprocess.run(
        line, shell=True, env={**os.environ, "LLM_KEY": CLIENTS}, capture_output=True, text=True, check=True
    )
    assert json.loads(asked.stdout)["object"] == "list", asked
