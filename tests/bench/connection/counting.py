# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection C(local) that notes what is run over it: the trips to a host that a play makes.

Set C(ANSIBLE_CONNECTION_PLUGINS) to this folder, C(ansible_connection: counting) for the hosts, and
C(GPUFLEET_COUNT_FILE) to a file. It gets a line for each command: the host, C(module) or C(command), and the module's
full name; words are separated by tabs.
"""

from __future__ import annotations

import os
import re
from typing import Any

from ansible.plugins.connection import local

DOCUMENTATION = """
    name: counting
    short_description: The connection local, counting what is run over it
    description:
        - Notes every command and every module in the file named by E(GPUFLEET_COUNT_FILE).
    author: gpufleet contributors (@gpufleet)
    version_added: 0.1.0
    options:
        become_success_timeout:
            type: int
            default: 10
            description: As for the connection local.
            vars:
                - name: ansible_local_become_success_timeout
        become_strip_preamble:
            type: bool
            default: true
            description: As for the connection local.
            vars:
                - name: ansible_local_become_strip_preamble
    extends_documentation_fragment:
        - connection_pipelining
"""

# How Ansible sends a module: as the standard input of Python, or as a file that a later command names.
PIPELINED = re.compile(rb"""module_fqn\s*=\s*['"]([\w.]+)['"]""")
TRANSFERRED = re.compile(r"AnsiballZ_(\w+)\.py")


def module_of(command: str, data: bytes | None) -> str:
    """Return the name of the module that a command runs; empty if it runs none."""
    if data:
        found = PIPELINED.search(data)
        return found.group(1).decode() if found else "(unknown)"
    transferred = TRANSFERRED.search(command)
    # The file is first made executable, then run.
    return transferred.group(1) if transferred and "chmod " not in command else ""


class Connection(local.Connection):  # type: ignore[misc]
    """See the head of this file."""

    transport = "counting"

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Any:
        """Note the command, and run it."""
        name = module_of(str(cmd), in_data)
        line = f"{self._play_context.remote_addr}\t{'module' if name else 'command'}\t{name}\n"
        descriptor = os.open(os.environ["GPUFLEET_COUNT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
