# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts through hosts that are not there, behind a router whose HAProxy is a double, for tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.tests.plays.wired import ARRANGED, PLAN, RESULTS, log_of, play


class Rolling:
    """A fleet and the rollouts through it.

    Args:
        folder: for what this writes, with the sockets of the router and the rollouts' state.
        hosts: with their variables.
    """

    def __init__(self, folder: Path, hosts: dict[str, dict[str, Any]]) -> None:
        self.folder, self.hosts, self.said = folder, hosts, ""
        self.state_dir = folder / "state"

    def run(
        self,
        playbook: str = "",
        *,
        succeeds: bool,
        results: dict[str, Any] | None = None,
        breaks: dict[str, str] | None = None,
        **variables: Any,
    ) -> list[list[str]]:
        """Run a playbook, by default from the arrangement of an upgrade on, and return the log of this run."""
        common = {
            "ansible_connection": "wire",
            "ansible_python_interpreter": sys.executable,
            "vllm_venv": sys.prefix,
            "vllm_accept_license": True,
            "vllm_plan": PLAN,
            "vllm_rollout_batches": [1],
            "vllm_rollout_verify_canary": ["basic"],
            "vllm_rollout_state_dir": str(self.state_dir),
            "vllm_baseline_dir": str(self.folder / "baselines"),
            "router_run_dir": str(self.folder),
            "router_state_dir": str(self.folder),
            "router_host": "127.0.0.1",
            **variables,
        }
        groups = {"vllm": {"hosts": self.hosts}, "router": {"hosts": {"lb": {}}}}
        inventory = {"all": {"children": groups, "vars": common}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
        plays = f"- ansible.builtin.import_playbook: gpufleet.vllm.{playbook}\n" if playbook else ARRANGED
        (self.folder / "plays.yml").write_text(plays, encoding="utf-8")
        wire = {"results": {**RESULTS, **(results or {})}, "breaks": breaks or {}}
        (self.folder / "wire.json").write_text(json.dumps(wire), encoding="utf-8")
        run = play(self.folder)
        self.said = run.stdout + run.stderr
        (self.folder / "said").write_text(self.said, encoding="utf-8")
        assert (run.returncode == 0) is succeeds, self.said
        return log_of(self.folder)

    def last(self) -> dict[str, Any]:
        """Return what is kept of the hosts of the last rollout, by host."""
        text = (self.state_dir / "last.json").read_text(encoding="utf-8")
        hosts: dict[str, Any] = json.loads(text)["hosts"]
        return hosts


def changed(*, serves: bool = True, changes: tuple[str, ...] = ("x",), before: str = "before") -> dict[str, Any]:
    """Return the variables of a host for which the preparation found that."""
    return {
        "__rollout_prepared": {"plan": PLAN, "changes": list(changes), "serves": serves, "gates": {"floors": []}},
        "__rollout_served_before": {"deployment": before},
    }
