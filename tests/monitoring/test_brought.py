# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook monitoring on a host that has nothing: it runs, a second run changes nothing, a teardown removes it.

Prometheus, Alertmanager and node_exporter are real. systemd is a stand-in, in a mount namespace where the role finds
one, and packages are not installed: the programs are in the PATH.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.tests.fakes.markers import (
    SECRETS,
    CommandLines,
    excerpt,
    holders,
    told_everything,
)
from ansible_collections.gpufleet.vllm.tests.monitoring import programs, stand_in_systemd
from ansible_collections.gpufleet.vllm.tests.monitoring.measured_replica import MeasuredReplica
from ansible_collections.gpufleet.vllm.tests.monitoring.test_prometheus import wait_for
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

COLLECTIONS = Path(programs.__file__).absolute().parents[5]
UNITS = ("gpufleet-prometheus", "gpufleet-alertmanager", "gpufleet-node-exporter")
PASSWORD = SECRETS["monitoring_password"]
RECAP = re.compile(r"^gpu-01 +: .*changed=(\d+) .*unreachable=0 +failed=0 ", re.MULTILINE)
# The names of the tasks that changed something.
CHANGED = re.compile(r"^TASK \[([^\n]*)\] \**\n(?:(?!^TASK |^PLAY )[^\n]*\n)*?changed: ", re.MULTILINE)
# Only here is there something that looks like a host that systemd runs.
WITH_SYSTEMD = 'mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec "$@"'


class Box:
    """A host that is in both groups, vllm and monitoring, and serves.

    Args:
        folder: of all its files.
        replica: its server.
    """

    def __init__(self, folder: Path, replica: MeasuredReplica) -> None:
        self.folder, self.systemd = folder, folder / "systemd"
        self.lines = CommandLines()
        self.port, self.node_port = free_port(), free_port()
        self.config, self.data = folder / "etc/monitoring", folder / "data"
        (folder / "etc").mkdir()
        served = {"name": "vllm-0", "host": "127.0.0.1", "port": replica.port, "gpus": [0]}
        (folder / "etc/plan.json").write_text(json.dumps({"model": "scout", "replicas": [served]}))
        paths = [str(Path(programs.path_of(program)).parent) for program in programs.PACKAGES]
        found = stand_in_systemd.install(self.systemd)["PATH"]
        self.environment = {
            **os.environ,
            "PATH": ":".join([*dict.fromkeys(found.split(":")[:1] + paths), found]),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "true",
            **told_everything(folder),
        }
        variables = {
            **SECRETS,
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "vllm_config_dir": str(folder / "etc"),
            "monitoring_manage_packages": False,
            "monitoring_system_user": "root",
            "monitoring_config_dir": str(self.config),
            "monitoring_data_dir": str(self.data),
            "monitoring_unit_dir": str(self.systemd / stand_in_systemd.UNITS),
            "monitoring_textfile_dir": str(folder / "textfile"),
            "monitoring_host": "0.0.0.0",
            "monitoring_port": self.port,
            "monitoring_alertmanager_port": free_port(),
            "monitoring_scrape_seconds": 1,
            "monitoring_node_host": "127.0.0.1",
            "monitoring_node_port": self.node_port,
        }
        hosts = {"gpu-01": variables}
        (folder / "hosts.json").write_text(
            json.dumps({"all": {"children": {"vllm": {"hosts": hosts}, "monitoring": {"hosts": hosts}}}})
        )

    def play(self, playbook: str, *words: str, **variables: Any) -> str:
        """Run a playbook; return what it says."""
        command = [
            "ansible-playbook",
            f"gpufleet.vllm.{playbook}",
            "-i",
            "hosts.json",
            "-e",
            json.dumps(variables),
            *words,
        ]
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                WITH_SYSTEMD,
                "sh",
                sys.executable,
                "-m",
                "ansible",
                "playbook",
                *command[1:],
            ],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert excerpt(done.stdout + done.stderr) == ""
        return done.stdout

    def teardown(self, **variables: Any) -> str:
        """Run the part of the playbook teardown that is about monitoring; return what it says."""
        first = "See what the playbook monitoring has brought"
        return self.play("teardown", "--start-at-task", first, **variables)

    def running(self) -> dict[str, int]:
        """Return the process of each unit."""
        return {unit: stand_in_systemd.process_of(self.systemd, unit) for unit in UNITS}

    def told(self) -> list[str]:
        """Return what systemd was told since the last time, but for questions."""
        path = self.systemd / "told"
        lines = path.read_text().splitlines()
        path.write_text("")
        return [line for line in lines if line.split()[0] not in ("show", "is-active", "is-enabled")]

    def ask(self, expression: str, password: str = PASSWORD) -> list[Any]:
        """Return what Prometheus answers to who knows the password."""
        words = base64.b64encode(f"gpufleet:{password}".encode()).decode()
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}/api/v1/query?query={expression}",
            headers={"Authorization": f"Basic {words}"},
        )
        trusted = ssl.create_default_context(cafile=str(self.config / "ca.pem"))
        with urllib.request.urlopen(request, timeout=30, context=trusted) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
        return found


def changed(said: str) -> list[str]:
    """Return the tasks of a run that changed something; their number is the recap's."""
    (count,) = RECAP.findall(said)
    tasks = CHANGED.findall(said)
    assert bool(tasks) == bool(int(count)), said
    return tasks


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A host to which monitoring was brought."""
    replica = MeasuredReplica()
    found = Box(tmp_path_factory.mktemp("box"), replica)
    with stand_in_systemd.everything_ended(found.systemd), found.lines:
        found.play("monitoring")
        yield found
    replica.stop()


def test_what_is_brought_runs_and_watches(box: Box) -> None:
    assert all(box.running().values())
    assert {path.stem for path in box.systemd.glob("*.enabled")} == set(UNITS)

    def up() -> set[tuple[str, str]]:
        return {(entry["metric"]["job"], entry["value"][1]) for entry in box.ask("up")}

    wait_for("all is up", lambda: up() == {(job, "1") for job in ("vllm", "gpufleet-node", "prometheus")})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        box.ask("up", "a guess")


def test_a_second_run_changes_nothing(box: Box) -> None:
    before = box.running()
    box.told()
    assert changed(box.play("monitoring")) == []
    assert box.running() == before
    assert set(box.told()) <= {"daemon-reload"}


def test_a_dry_run_changes_nothing_and_says_what_would(box: Box) -> None:
    rules = (box.config / "gpufleet-rules.yml").read_text()
    before = box.running()
    said = box.play("monitoring", "--check", monitoring_thresholds={"queue_length": 7})
    assert set(changed(said)) == {"gpufleet.vllm.monitoring : Write targets, rules and dashboards"}
    assert (box.config / "gpufleet-rules.yml").read_text() == rules and box.running() == before


def test_other_rules_are_taken_without_a_restart(box: Box) -> None:
    before = box.running()
    box.told()
    box.play("monitoring", monitoring_thresholds={"queue_length": 7})
    assert box.running() == before
    assert {"reload gpufleet-prometheus", "reload gpufleet-alertmanager"} <= set(box.told())


def test_a_marker_in_every_secret_is_found_nowhere(box: Box) -> None:
    assert "alerts@" in (box.config / "alertmanager.yml").read_text()
    assert holders(box.folder, ("hosts.json",)) == []
    assert (box.folder / "play.events").stat().st_size and "task path: " in (box.folder / "ansible.log").read_text()
    assert box.lines.looks > 5 and box.lines.found == set()


def test_a_teardown_removes_it(box: Box) -> None:
    before = box.running()
    assert all(before.values())
    changed(box.teardown())
    assert not any(box.running().values())
    assert not any(Path(f"/proc/{number}").exists() for number in before.values())
    assert not list((box.systemd / stand_in_systemd.UNITS).iterdir()) and not list(box.systemd.glob("*.enabled"))
    assert not box.config.exists()
    assert (box.data / "prometheus").is_dir(), "what Prometheus saw stays"
    # A second one has nothing else to do than what it is told besides.
    assert changed(box.teardown(vllm_purge_caches=True)) == ["gpufleet.vllm.monitoring : Remove it"]
    assert not box.data.exists()
