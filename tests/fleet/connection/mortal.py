# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection C(local) to a host that can be made to stop answering, by a file of its name in a folder.

Set C(ANSIBLE_CONNECTION_PLUGINS) to this folder, C(ansible_connection: mortal) for the hosts, and
C(GPUFLEET_DEAD_HOSTS) to that folder.
"""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import local

DOCUMENTATION = """
    name: mortal
    short_description: The connection local to a host that can be made to stop answering
    description:
        - Fails while the folder named by E(GPUFLEET_DEAD_HOSTS) has a file of the host's name.
    author: gpufleet contributors (@gpufleet)
    version_added: 0.2.0
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


class Connection(local.Connection):  # type: ignore[misc]
    """See the head of this file."""

    transport = "mortal"

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> Any:
        """Run the command, unless the host has stopped answering."""
        host = self._play_context.remote_addr
        if os.path.exists(os.path.join(os.environ["GPUFLEET_DEAD_HOSTS"], host)):
            raise AnsibleConnectionFailure(f"{host} has stopped answering")
        return super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
