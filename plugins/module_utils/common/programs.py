# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How modules run programs; of those that run for minutes the lines as they come, and their failure told as ours."""

from __future__ import annotations

import collections
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

KEPT_LINES = 15


# ansible-test wants AnsibleModule.run_command instead of these two; what is free of Ansible has no AnsibleModule.


def run_program(command: Sequence[str], *, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with the options and errors of subprocess.run; what it prints is text."""
    options.setdefault("text", True)
    return subprocess.run(command, check=check, **options)  # pylint: disable=ansible-bad-function


def start_program(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program, with the options and errors of subprocess.Popen."""
    return subprocess.Popen(command, **options)  # pylint: disable=ansible-bad-function


def start_detached(
    command: Sequence[str], log_file: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[Any]:
    """Start a program that goes on when this one has ended.

    Args:
        command: the program and its arguments.
        log_file: what it says is added there.
        environment: variables to add to this process's own.

    Raises:
        OSError: it cannot be started, or the file cannot be written.
    """
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    with os.fdopen(descriptor, "ab") as log:
        return start_program(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **(environment or {})},
        )


def run_command(
    command: list[str],
    *,
    name: str,
    doing: str,
    remedy: str = "",
    on_line: Callable[[str], None] | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    """Run C(command) to its end and return its last lines, standard error among them.

    Args:
        command: the program and its arguments; no shell is involved.
        name: the name of the GpufleetError raised when it fails.
        doing: what the command is for, to complete the sentence "... failed".
        remedy: what a person can do when it fails.
        on_line: called with each line of output as it comes.
        environment: variables to add to this process's own.

    Raises:
        GpufleetError: C(name), with the command's last lines as evidence, when it cannot be run or exits non-zero.
    """
    last: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    try:
        process = start_program(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise GpufleetError(f"{doing} failed.", name=name, remedy=remedy, evidence=str(error)) from error
    with process:
        for line in process.stdout or ():
            text = line.rstrip()
            if text:
                last.append(text)
                if on_line:
                    on_line(text)
    output = "\n".join(last)
    if process.returncode:
        raise GpufleetError(
            f"{doing} failed: {command[0]} ended with exit status {process.returncode}.",
            name=name,
            remedy=remedy,
            evidence=output,
        )
    return output
