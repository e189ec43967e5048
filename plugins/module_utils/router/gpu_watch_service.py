# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the watch over GPUs, which follows its settings and its own text, and ends when the settings are gone."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.packed_programs import (
    MAIN,
    PREFIX,
    file_difference,
    packed_program,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import start_detached
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import Unit, on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.gpu_watch import LOCK, SETTINGS

UNIT = Unit("gpufleet-router-gpu-watch.service", "router-not-started")
FOLDER = "gpu-watch"
START_S, POLL_S = 30.0, 0.1


def files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of the program's folder by their paths in it."""
    program = packed_program(f"{PREFIX}router.gpu_watch", "main")
    version = hashlib.sha256(json.dumps(program, sort_keys=True).encode()).hexdigest()
    return {**program, SETTINGS: json.dumps({**settings, "version": version}, indent=1) + "\n"}


def runs(run_dir: str) -> bool:
    """Return whether one is at work."""
    try:
        descriptor = os.open(os.path.join(run_dir, LOCK), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def ensure_watch(settings: Mapping[str, Any], log_file: str, *, check: bool) -> dict[str, Any]:
    """Run it with these settings; return the module's result.

    Raises:
        GpufleetError: `gpu-watch-not-started` or `write-failed`.
    """
    folder = os.path.join(settings["directory"], FOLDER)
    texts = files(settings)
    changed = [name for name, text in texts.items() if read_text(folder, name) != text]
    running = runs(settings["run_dir"])
    diff = [file_difference(os.path.join(folder, name), texts[name]) for name in changed]
    if check or (running and not changed):
        return {"changed": bool(changed) or not running, "diff": diff}
    # The settings last: they name the version that it becomes.
    for name in sorted(texts, key=lambda name: name == SETTINGS):
        write_file(os.path.join(folder, name), texts[name], 0o644)
    if on_systemd():
        UNIT.write(unit_text(folder))
        UNIT.systemctl("enable", "--now")
    elif not running:
        start_detached(command(folder), log_file)
    if not until(lambda: runs(settings["run_dir"]), START_S, POLL_S):
        raise GpufleetError(
            "The program that watches the GPUs behind the router does not start.",
            name="gpu-watch-not-started",
            remedy=f"Its messages are in {log_file}, or in journalctl --unit {UNIT.name}.",
        )
    return {"changed": True, "diff": diff}


def remove_watch(directory: str, run_dir: str, *, check: bool) -> dict[str, Any]:
    """End it and remove its files; return the module's result."""
    folder = os.path.join(directory, FOLDER)
    there = os.path.isdir(folder)
    if there and not check:
        if on_systemd():
            UNIT.remove()
        # One without systemd ends when it finds no settings, and must not write into folders that are removed next.
        shutil.rmtree(folder)
        until(lambda: not runs(run_dir), START_S, POLL_S)
    return {"changed": there, "diff": [file_difference(os.path.join(folder, SETTINGS), "")] if there else []}


def command(folder: str) -> list[str]:
    """Return the command that runs it."""
    return [program_path("python3") or sys.executable, os.path.join(folder, MAIN)]


def unit_text(folder: str) -> str:
    """Return its systemd unit."""
    return (
        "[Unit]\n"
        "Description=Watch over the GPUs of vLLM servers behind the router, by the collection gpufleet.vllm\n"
        "After=gpufleet-router.service\n\n"
        "[Service]\n"
        f"ExecStart={' '.join(command(folder))}\n"
        "Restart=on-failure\n"
        "RestartSec=5\n\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )
