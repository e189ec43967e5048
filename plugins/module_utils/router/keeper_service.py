# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the program that writes the router's log of requests.

Nothing else is needed: it follows its settings and its own text when they change, and ends when they are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import start_detached
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import Unit, on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.access_log import KEEPER_PROGRAM, KEEPER_SETTINGS

UNIT = Unit("gpufleet-router-log.service", "router-not-started")
# It looks at its settings once a second.
FOLLOW_S, START_S, POLL_S = 3.0, 10.0, 0.1


def keeper_answers(settings: str) -> bool:
    """Return whether a program listens where these settings say; true where they want none."""
    if not settings:
        return True
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(json.loads(settings)["socket"])
        except OSError:
            return False
    return True


def ensure_keeper(directory: str, settings: str, log_file: str) -> None:
    """Run it with the files that are in the router's folder.

    Args:
        directory: that folder.
        settings: the text of its settings; empty where there is to be no log.
        log_file: where its own messages go when there is no systemd.

    Raises:
        GpufleetError: C(router-log-not-started).
    """
    if on_systemd():
        if settings:
            UNIT.write(unit_text(directory))
            UNIT.systemctl("enable", "--now")
        else:
            UNIT.remove()
    if until(lambda: keeper_answers(settings), FOLLOW_S, POLL_S):
        return
    if on_systemd():
        UNIT.systemctl("restart")
    else:
        start_detached(command(directory), log_file)
    if not until(lambda: keeper_answers(settings), START_S, POLL_S):
        raise GpufleetError(
            "The program that writes the router's log of requests does not start.",
            name="router-log-not-started",
            remedy=f"Its messages are in {log_file}, or in journalctl --unit {UNIT.name}. See that the folder of"
            " router_access_log can be written, or set router_access_log to ''.",
        )


def command(directory: str) -> list[str]:
    """Return the command that runs it."""
    program, settings = (os.path.join(directory, name) for name in (KEEPER_PROGRAM, KEEPER_SETTINGS))
    return [program_path("python3") or sys.executable, program, settings]


def unit_text(directory: str) -> str:
    """Return its systemd unit."""
    return (
        "[Unit]\n"
        "Description=Log of requests of the router of vLLM servers, by the collection gpufleet.vllm\n"
        "Before=gpufleet-router.service\n\n"
        "[Service]\n"
        f"ExecStart={' '.join(command(directory))}\n"
        "Restart=on-failure\n"
        "RestartSec=1\n\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )
