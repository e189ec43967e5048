# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to a host that is not there: modules have the results of a table, and it breaks where told.

Set C(ANSIBLE_CONNECTION_PLUGINS) to this folder, C(ANSIBLE_PIPELINING) to false, C(ansible_connection: wire) for the
hosts, and C(GPUFLEET_WIRE) to a folder with C(wire.json), which has

results  of each module, by its name without the collection; any other one runs on this machine
breaks   for a host, the regular expression of the run that is lost, once; it is matched with the line below
down     hosts of which every run is lost

The file C(log) in that folder gets a line for each module: the host, the module, and its arguments as JSON. A lost one
ends in C(LOST). Everything that Ansible itself does goes through this machine's shell.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import local

DOCUMENTATION = """
    name: wire
    short_description: The connection to a host that is not there
    description:
        - Modules have the results of a table, and the connection breaks where told, see E(GPUFLEET_WIRE).
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

MODULE = re.compile(r"AnsiballZ_(\w+)\.py$")
CHECK_MODE = "_ansible_check_mode"
PARAMETERS = re.compile(r"""^params=(['"].*['"]),$""", re.MULTILINE)


class Connection(local.Connection):  # type: ignore[misc]
    """See the head of this file."""

    transport = "wire"

    def put_file(self, in_path: str, out_path: str) -> None:
        """Put a module's result in the place of the module, or lose the connection."""
        found = MODULE.search(out_path)
        if found and found[1] != "async_wrapper":
            self._answer(found[1], in_path)
        super().put_file(in_path, out_path)

    def _answer(self, module: str, path: str) -> None:
        folder, host = Path(os.environ["GPUFLEET_WIRE"]), str(self._play_context.remote_addr)
        wire: dict[str, Any] = json.loads((folder / "wire.json").read_text(encoding="utf-8"))
        text = Path(path).read_text(encoding="utf-8")
        line = f"{host}\t{module}\t{arguments(text)}"
        broken = folder / f"{host}.broken"
        breaks = host in wire["breaks"] and not broken.exists() and re.search(wire["breaks"][host], line)
        lost = breaks or host in wire.get("down", [])
        with (folder / "log").open("a", encoding="utf-8") as log:
            log.write(f"{line}\tLOST\n" if lost else f"{line}\n")
        if lost:
            broken.touch()
            raise AnsibleConnectionFailure("the connection broke")
        if module not in wire["results"]:
            return
        result = json.dumps(wire["results"][module])
        Path(path).write_text(f"{text.splitlines()[0]}\nprint({result!r})\n", encoding="utf-8")


def arguments(module: str) -> str:
    """Return the arguments in the text of a module as Ansible sends it, as JSON."""
    found = PARAMETERS.search(module)
    given = json.loads(ast.literal_eval(found[1]))["ANSIBLE_MODULE_ARGS"] if found else {}
    return json.dumps({name: value for name, value in given.items() if not name.startswith("_") or name == CHECK_MODE})
