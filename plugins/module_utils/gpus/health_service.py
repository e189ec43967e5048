# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Installs the program that looks after a host's GPUs, and the timer of systemd that runs it.

A host has one of it for all its deployments: each adds itself to the settings, and the last one takes all away.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import remove_file, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.packed_programs import (
    MAIN,
    PREFIX,
    file_difference,
    packed_program,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import Unit, on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.health_program import METRICS, REPAIRED, SETTINGS

PROGRAM = "/usr/local/lib/gpufleet-gpu-health"
RUN_DIR = "/run/gpufleet-gpu-health"
FAILURE = ("gpu-health-not-started", "vllm_gpu_health: false leaves it out.")
SERVICE, TIMER = (Unit(f"gpufleet-gpu-health.{kind}", *FAILURE) for kind in ("service", "timer"))
ACTIONS = ("none", "drain")


class Deployment(NamedTuple):
    """A deployment of the host.

    Attributes:
        name: what tells it from others, the prefix of its containers.
        directory: folder of its configuration, with plan.json and the servers' control folders.
        action: what is to happen to a server with a sick GPU, of ACTIONS.
    """

    name: str
    directory: str
    action: str


def settings_of(deployments: Sequence[Deployment], interval: int, textfile_dir: str) -> dict[str, Any]:
    """Return the program's settings.

    Args:
        deployments: all of the host.
        interval: seconds between two runs.
        textfile_dir: folder of node_exporter's textfile collector; empty for no metrics.
    """
    return {
        "deployments": [deployment._asdict() for deployment in deployments],
        "interval": interval,
        "textfile_dir": textfile_dir,
    }


def deployments_in(text: str) -> list[Deployment]:
    """Return the deployments in the text of the settings; none if it is not one."""
    try:
        return [
            Deployment(str(entry["name"]), str(entry["directory"]), str(entry["action"]))
            for entry in json.loads(text)["deployments"]
        ]
    except (ValueError, TypeError, LookupError):
        return []


def program_files(settings: dict[str, Any]) -> dict[str, str]:
    """Return the files of the program's folder by their paths in it."""
    return {**packed_program(f"{PREFIX}gpus.health_program", "main"), SETTINGS: json.dumps(settings, indent=1) + "\n"}


def command(folder: str = PROGRAM, run_dir: str = RUN_DIR) -> list[str]:
    """Return the command that looks once: Python without the site's packages, which it starts faster without.

    Args:
        folder: that of the program.
        run_dir: folder of what it writes, which a reboot empties.
    """
    return [program_path("python3") or sys.executable, "-I", "-S", os.path.join(folder, MAIN), run_dir]


def units(interval: int) -> dict[str, str]:
    """Return the units by their paths."""
    return {
        SERVICE.path: (
            "# Written by the collection gpufleet.vllm. Started by the timer of the same name.\n"
            "[Unit]\n"
            "Description=Look after the GPUs (gpufleet.vllm)\n\n"
            "[Service]\n"
            "Type=oneshot\n"
            f"ExecStart={' '.join(command())}\n"
            "TimeoutStartSec=1min\n"
        ),
        TIMER.path: (
            "# Written by the collection gpufleet.vllm.\n"
            "[Unit]\n"
            "Description=Look after the GPUs again and again (gpufleet.vllm)\n\n"
            "[Timer]\n"
            "OnBootSec=30s\n"
            f"OnUnitActiveSec={interval}s\n"
            "AccuracySec=1s\n\n"
            "[Install]\n"
            "WantedBy=timers.target\n"
        ),
    }


def ensure(own: Deployment, *, wanted: bool, interval: int, textfile: str, check: bool) -> dict[str, Any]:
    """Install the program for a deployment, or remove it; return the module's result.

    Args:
        own: the deployment.
        wanted: whether it is to have the program.
        interval: seconds between two looks.
        textfile: folder of node_exporter's textfile collector; empty for no metrics.
        check: whether nothing may change.

    Raises:
        GpufleetError: `write-failed` or `gpu-health-not-started`.
    """
    before = deployments_in(read_text(PROGRAM, SETTINGS))
    others = [deployment for deployment in before if deployment.name != own.name]
    deployments = sorted([*others, own]) if wanted else others
    if not on_systemd() or not deployments:
        return {**_remove(check), "installed": False}
    texts = {
        os.path.join(PROGRAM, name): text
        for name, text in program_files(settings_of(deployments, interval, textfile)).items()
    }
    unit_texts = units(interval)
    diff = [file_difference(path, text) for path, text in {**texts, **unit_texts}.items() if read_text(path) != text]
    changed_units = any(entry["after_header"] in unit_texts for entry in diff)
    if diff and not check:
        for path, text in {**texts, **unit_texts}.items():
            write_file(path, text, 0o644)
        if changed_units:
            TIMER.reload()
            TIMER.systemctl("enable")
            TIMER.systemctl("restart")
        # So that it is known at once, and a program that cannot run is seen here.
        SERVICE.systemctl("start")
    return {"changed": bool(diff), "diff": diff, "installed": True}


def take_for_repaired(check: bool) -> dict[str, Any]:
    """Make the program take the events so far for dealt with; return the module's result."""
    there = bool(read_text(PROGRAM, SETTINGS))
    if there and not check:
        run_command(
            [*command(), REPAIRED], name="gpu-health-not-started", doing="Taking the GPUs' events for dealt with"
        )
    return {"changed": False, "diff": [], "installed": there}


def _remove(check: bool) -> dict[str, Any]:
    there = [path for path in (TIMER.path, SERVICE.path, PROGRAM, RUN_DIR) if os.path.exists(path)]
    diff = [{"before_header": path, "after_header": path, "before": "there\n", "after": ""} for path in there]
    if there and not check:
        textfile = _textfile_dir()
        # Before the timer: systemd is told of both at once.
        remove_file(SERVICE.path)
        TIMER.remove()
        if textfile:
            remove_file(os.path.join(textfile, METRICS))
        for folder in (PROGRAM, RUN_DIR):
            shutil.rmtree(folder, ignore_errors=True)
    return {"changed": bool(there), "diff": diff}


def _textfile_dir() -> str:
    try:
        return str(json.loads(read_text(PROGRAM, SETTINGS))["textfile_dir"])
    except (ValueError, TypeError, LookupError):
        return ""
