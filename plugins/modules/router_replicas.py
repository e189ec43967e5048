# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait until the replicas behind the router get requests."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_replicas
short_description: Wait until the replicas behind the router get requests
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs on a host of the router and asks the running HAProxy until the last health check of every replica has passed.
    It fails with the cause of each one whose check did not pass in time.
  - Replicas that were taken out on purpose, drained or in maintenance, are not waited for.
  - The action plugin of the same name makes O(hosts) of O(members), and tells what is waited for.
options:
  members:
    description:
      - Hosts behind the router; those among them that this run of Ansible has asked what they serve become O(hosts).
        Read by the action plugin alone.
    type: list
    elements: str
  hosts:
    description:
      - Hosts whose replicas have to get requests. Those of others are told in RV(others_down), and neither waited for
        nor an error. Left out, all are meant.
    type: list
    elements: str
  timeout:
    description:
      - Seconds to wait at most.
    type: int
    default: 60
  run_dir:
    description:
      - Folder of HAProxy's sockets.
    type: path
    default: /run/gpufleet-router
  state_dir:
    description:
      - Folder of what the router keeps over a reboot.
    type: path
    default: /var/lib/gpufleet-router
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
"""

EXAMPLES = r"""
- name: Wait until every replica gets requests
  gpufleet.vllm.router_replicas:
    timeout: 120
"""

RETURN = r"""
ready:
  description: Number of replicas that get requests.
  returned: always
  type: int
  sample: 15
taken_out:
  description: Replicas that were taken out on purpose, by their names in HAProxy.
  returned: always
  type: list
  elements: str
  sample: ["gpu-07:vllm-0"]
down:
  description: Why replicas of O(hosts) get no requests, by their names in HAProxy.
  returned: always
  type: dict
  sample: {"gpu-01:vllm-0": "connection refused"}
others_down:
  description: The same of replicas of other hosts.
  returned: always
  type: dict
  sample: {}
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(replicas-not-ready), V(router-not-running) and V(router-not-answering).
  returned: failure
  type: dict
"""

import time
from collections.abc import Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import host_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.check_causes import CheckCause, check_causes
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import POLL_S, BackendServer, Master

ARGUMENTS: dict[str, Any] = {
    "members": {"type": "list", "elements": "str"},
    "hosts": {"type": "list", "elements": "str"},
    "timeout": {"type": "int", "default": 60},
    "run_dir": {"type": "path", "default": "/run/gpufleet-router"},
    "state_dir": {"type": "path", "default": "/var/lib/gpufleet-router"},
}
MOST_LINES = 20


def sort_out(
    servers: dict[str, BackendServer], causes: dict[str, CheckCause], hosts: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, CheckCause]]:
    """Return the module's result, and the causes of those replicas that have to get requests and do not."""
    wanted = {name: server for name, server in servers.items() if server.state == "ready"}
    failing = {name: causes[name] for name in wanted if name in causes}
    ours = {name: cause for name, cause in failing.items() if hosts is None or host_of(name) in hosts}
    result = {
        "ready": len(wanted) - len(failing),
        "taken_out": [name for name in servers if name not in wanted],
        "down": {name: cause.text for name, cause in ours.items()},
        "others_down": {name: cause.text for name, cause in failing.items() if name not in ours},
    }
    return result, ours


def not_ready(causes: dict[str, CheckCause], of: int) -> GpufleetError:
    """Return the error that tells each replica with its cause, and each remedy once."""
    lines = [f"  - {name}: {cause.text}" for name, cause in causes.items()]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"  - and {len(lines) - MOST_LINES} more"]
    return GpufleetError(
        f"The router sends nothing to {len(causes)} of {of} replicas:\n" + "\n".join(lines),
        name="replicas-not-ready",
        remedy=" ".join(
            f"{cause.text[0].upper()}{cause.text[1:]}: {cause.remedy}" for cause in dict.fromkeys(causes.values())
        ),
        details={"replicas": {name: cause.text for name, cause in causes.items()}},
    )


def work(module: GpufleetModule) -> dict[str, Any]:
    """Wait, and return the module's result."""
    params = module.params
    master = Master(f"{params['run_dir']}/{MASTER_SOCKET}", params["state_dir"])
    deadline = time.monotonic() + params["timeout"]
    while True:
        servers = master.servers()
        result, failing = sort_out(servers, check_causes(master.statistics()), params["hosts"])
        if not failing:
            return {"changed": False, **result}
        if time.monotonic() >= deadline:
            module.fail_on(not_ready(failing, len(servers)), **result)
        time.sleep(POLL_S)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
