# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that status prints."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.fleet import status_lines


def server(name: str, phase: str = "serving", **parts: Any) -> dict[str, Any]:
    """Return a server as vllm_server_info does."""
    return {"name": name, "phase": phase, "summary": phase, "docker_run": f"docker run --name {name} image", **parts}


def test_those_that_do_not_serve_come_first_with_cause_and_remedy() -> None:
    """A person reads what is wrong before what is right."""
    dead = server("vllm-1", "dead", diagnosis={"evidence": "OOMKilled:  true", "remedy": "Give it memory."})
    found = status_lines({"gpu-2": [server("vllm-0"), dead], "gpu-1": [server("vllm-0")]})
    assert found["lines"][0] == "2 of 3 replicas serving on 2 hosts"
    assert found["lines"][2].split(maxsplit=2) == ["gpu-2", "vllm-1", "dead; OOMKilled: true; Give it memory."]
    assert [line.split()[0] for line in found["lines"][3:]] == ["gpu-1", "gpu-2"]
    assert found["not_serving"] == ["gpu-2/vllm-1"]
    assert found["docker_run"][0] == "gpu-1 vllm-0: docker run --name vllm-0 image"


def test_hosts_without_a_server_are_named_together() -> None:
    """Nothing deployed is said, not left out."""
    found = status_lines({"gpu-01": [], "gpu-02": [], "gpu-03": [server("vllm-0")]})
    assert found["lines"][0] == "1 of 1 replicas serving on 3 hosts"
    assert found["lines"][-1] == "No server on gpu-[01:02]."
