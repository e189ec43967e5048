# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks that need no server tell and keep with a marker in every variable that may hold a secret.

Real runs of ansible-playbook on this machine, with C(-vvv), C(--diff), a persistent cache of facts and every result
kept as AWX keeps them. tests/fleet/marked.py does the same with servers and a router, and
tests/monitoring/test_brought.py with Prometheus and what is around it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tests.fakes.markers import (
    SECRETS,
    CommandLines,
    excerpt,
    holders,
    told_everything,
)
from ansible_collections.gpufleet.vllm.tests.unit.plugins.conftest import _collections_root

PLAYBOOKS = ("preflight", "status", "deploy")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="the probe wants root before anything else")
def test_a_marker_in_every_secret_is_found_nowhere(tmp_path: Path) -> None:
    variables = {
        **SECRETS,
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "vllm_device": "cpu",
        "vllm_venv": str(tmp_path / "venv"),
        "vllm_config_dir": str(tmp_path / "etc"),
        "vllm_state_dir": str(tmp_path / "state"),
        "vllm_docker_host": f"unix://{tmp_path}/docker.sock",
        "vllm_image": "registry.invalid/vllm",
        "vllm_image_source": "pull",
        "docker_manage": False,
    }
    hosts = {"all": {"children": {"vllm": {"hosts": {"gpu-01": variables}}}}}
    (tmp_path / "hosts.json").write_text(json.dumps(hosts), encoding="utf-8")
    environment = {
        **os.environ,
        **told_everything(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ANSIBLE_COLLECTIONS_PATH": _collections_root(),
        "ANSIBLE_NOCOLOR": "true",
        "HOME": str(tmp_path),
    }
    told = ""
    with CommandLines() as lines:
        for playbook in PLAYBOOKS:
            command = [sys.executable, "-m", "ansible", "playbook", str(ROOT / "playbooks" / f"{playbook}.yml")]
            done = subprocess.run(
                [*command, "-i", "hosts.json"],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            told += done.stdout + done.stderr
    # They ran as far as a host without an engine goes, and asked the registry and the index by the proxies.
    assert "task path: " in told and "registry-unreachable" in told and "package-index-unreachable" in told, told[
        -3000:
    ]
    assert excerpt(told) == ""
    assert holders(tmp_path, ("hosts.json",)) == []
    assert (tmp_path / "play.events").stat().st_size > 0 and lines.looks > 5
    assert lines.found == set()
