# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the replicas of a host out of the router, or back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_backend
short_description: Take the replicas of a host out of the router, or back
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs on a host of the router and speaks to the running HAProxy; the configuration stays as it is.
  - A drained replica gets no new request. Those that it has go on, long streams too, also those of connections from
    before the configuration was last loaded. The module waits for their end.
  - What was set stays when the configuration is loaded again, when HAProxy is started again and when the host is
    rebooted, as long as O(state_dir) is there.
  - With O(max_unavailable) it is also the gate for everything that takes a server out. It looks and takes out as one
    step, so that several runs, whoever started them, do not take out more together than each of them may.
options:
  hosts:
    description:
      - Hosts whose replicas are meant, by their names in the inventory.
    type: list
    elements: str
    required: true
    aliases: [host]
  replicas:
    description:
      - Names of those replicas, as the hosts' plans have them, such as V([vllm-0, vllm-1]). No other is set or waited
        for. Left out, all are meant that the router has of the hosts.
      - One that the router does not have is told in RV(unknown) and not waited for. A plan may have replicas that
        the router gets only when the playbook C(gpufleet.vllm.router) runs.
    type: list
    elements: str
  state:
    description:
      - V(drain) sends no new request and waits until the running ones have ended.
      - V(maint) does so, too, and stops the health checks.
      - V(ready) takes the replicas back and waits until their health checks pass.
    type: str
    choices: [ready, drain, maint]
    required: true
  owner:
    description:
      - Who drains the replicas for a while, such as V(deploy), to put them back itself. Those it has drained are noted
        in O(state_dir) until they are put back, or drained by anyone else.
      - With it, V(ready) takes back those alone. A run after one that was interrupted so finds what that one left, and
        leaves what was drained on purpose.
    type: str
    default: ""
  reason:
    description:
      - Why a person takes the replicas out, for the playbook C(gpufleet.vllm.status). Kept until they are taken back.
    type: str
    default: ""
  run:
    description:
      - What tells the run that drains the replicas from others. The action plugin sets it. Empty, the turn of the host
        is over though it stays out, and no other turn waits for it.
    type: str
    default: ""
  max_unavailable:
    description:
      - How many hosts may get no requests at once, as a number or a percentage such as V(25%) of the hosts that the
        router has; one always may. Hosts that are drained, in maintenance or down count, whoever made them so.
      - When that many are out already, or no other host gets requests, nothing is taken out. If hosts are out for a
        turn that will end, the module waits for that, at most O(turn_timeout) seconds; else it fails at once. The
        detail C(passes) of the error says which it was.
      - Left empty, there is no limit. Hosts that get no requests anyway are always let through.
    type: str
    default: ""
  allow_outage:
    description:
      - Whether the last host that gets requests may be taken out, and whether more requests may be left to the others
        than they can carry.
    type: bool
    default: false
  requests_per_replica:
    description:
      - How many requests one replica can carry at once; V(0) if that is not known. With O(max_unavailable) a host is
        not taken out while more requests run than the other replicas can carry.
    type: int
    default: 0
  turn_timeout:
    description:
      - Seconds to wait until O(max_unavailable) lets the hosts through. They count anew whenever it changes who is out,
        so it is the longest that one turn may take.
    type: int
    default: 0
  timeout:
    description:
      - Seconds to wait at most. What is left then is told in RV(sessions_left) and RV(not_up).
    type: int
    default: 60
  directory:
    description:
      - Folder of the router's configuration. Read in check mode alone.
    type: path
    default: /etc/gpufleet-router
  run_dir:
    description:
      - Folder of HAProxy's sockets.
    type: path
    default: /run/gpufleet-router
  state_dir:
    description:
      - Folder of what is kept over a reboot, which servers are taken out and by whom, the same as that of
        M(gpufleet.vllm.router_server). What an earlier version of this collection left in O(run_dir) is moved here.
    type: path
    default: /var/lib/gpufleet-router
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Send nothing new to gpu-01, and wait up to five minutes for what runs there
  gpufleet.vllm.router_backend:
    host: gpu-01
    state: drain
    timeout: 300
  delegate_to: lb-01

- name: Send nothing new to gpu-02, once fewer than a quarter of the hosts are out
  gpufleet.vllm.router_backend:
    host: gpu-02
    state: drain
    owner: deploy
    max_unavailable: 25%
    turn_timeout: 1800
    timeout: 600
  delegate_to: lb-01

- name: Take it back
  gpufleet.vllm.router_backend:
    host: gpu-01
    state: ready
  delegate_to: lb-01

- name: Take back those of its replicas that its plan still has
  gpufleet.vllm.router_backend:
    host: gpu-01
    replicas: [vllm-0, vllm-1]
    state: ready
  delegate_to: lb-01

- name: Take back what an interrupted deployment has left drained
  gpufleet.vllm.router_backend:
    hosts: "{{ ansible_play_hosts }}"
    state: ready
    owner: deploy
  delegate_to: lb-01
  run_once: true
"""

RETURN = r"""
servers:
  description:
    - For each replica, by its name in HAProxy, C(state) (ready, drain or maint), C(status) (HAProxy's word), and
      C(sessions), the requests that it has.
    - Empty when the router has no replica of the hosts.
  returned: success
  type: dict
  sample: {"gpu-01:vllm-0": {"state": "drain", "status": "DRAIN", "sessions": 0}}
hosts:
  description: Hosts with a replica whose state was changed.
  returned: success
  type: list
  elements: str
  sample: [gpu-01]
reasons:
  description: Why persons have taken hosts out, by host, of those who said so.
  returned: in check mode
  type: dict
  sample: {"gpu-01": "a fan is broken"}
causes:
  description:
    - Why the last health checks of replicas did not pass, by their names in HAProxy; outside of check mode of those in
      RV(not_up).
  returned: success
  type: dict
  sample: {"gpu-01:vllm-0": "connection refused"}
turns_over:
  description: Hosts that a run has left out for good, as they could not be put right; others come back in their turn.
  returned: in check mode
  type: list
  elements: str
  sample: []
in_turn:
  description: Hosts that a run has taken out for their turn. It puts them back, unless it was interrupted.
  returned: in check mode
  type: list
  elements: str
  sample: [gpu-01]
certificate:
  description: The certificate that HAProxy serves, C(not_after) and C(seconds_left); empty where it serves none.
  returned: in check mode
  type: dict
  sample: {"not_after": "2027-12-24T16:00:00Z", "seconds_left": 33696000}
shared:
  description:
    - The address that several routers share, C(address), whether this one has it now, C(held), and whether it has
      compared what is drained with the others since its start, C(in_step). Empty where there is none.
  returned: in check mode
  type: dict
  sample: {"address": "10.0.0.10", "held": true, "in_step": true}
gpu_watch:
  description:
    - What the watch over GPUs last found, see M(gpufleet.vllm.router_gpu_watch). C(at), in seconds since the epoch;
      C(replicas) with a sick GPU, each with C(state) (C(out), C(wanted) for one that has to stay in service, C(why), or
      C(accepted) for one that a person has put back) and C(reasons); and those that tell nothing, C(silent). Empty
      where there is no watch.
  returned: in check mode
  type: dict
  sample: {"at": 1764500000, "replicas": {"gpu-07:vllm-0": {"state": "out", "reasons": ["GPU 3: xid-79"]}}}
unknown:
  description: Replicas of O(replicas) that the router does not have, by their names in HAProxy.
  returned: success
  type: list
  elements: str
  sample: ["gpu-01:vllm-2"]
sessions_left:
  description: Requests that had not ended in time.
  returned: success
  type: int
  sample: 0
still_running:
  description: Replicas that had such requests, by their names in HAProxy.
  returned: success
  type: list
  elements: str
  sample: []
not_up:
  description: Replicas whose health check did not pass in time; of V(ready) alone.
  returned: success
  type: list
  elements: str
  sample: []
others_ready:
  description: Replicas of other hosts that the router can send requests to meanwhile.
  returned: success
  type: int
  sample: 15
waited_s:
  description: Seconds waited.
  returned: success
  type: float
  sample: 12.4
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(router-not-running), V(router-not-answering), V(router-refused), V(busy) and V(write-failed); with
      O(max_unavailable) also V(no-other-serves), V(too-many-unavailable), V(too-busy) and V(invalid-wishes).
  returned: failure
  type: dict
"""

import os
import time
from collections.abc import Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.admission import Limit, obstacle
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate_end import served_end
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.check_causes import check_causes
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import MASTER_SOCKET
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.drain_marks import DrainMarks
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.gpu_watch import REPORT, read_report
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import POLL_S, STATES, Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.shared_address import shared_state
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.state_change import (
    Selection,
    StateChange,
    change_for,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.state_folder import state_folder

ARGUMENTS: dict[str, Any] = {
    "hosts": {"type": "list", "elements": "str", "required": True, "aliases": ["host"]},
    "replicas": {"type": "list", "elements": "str"},
    "state": {"type": "str", "choices": list(STATES), "required": True},
    "owner": {"type": "str", "default": ""},
    "reason": {"type": "str", "default": ""},
    "run": {"type": "str", "default": ""},
    "max_unavailable": {"type": "str", "default": ""},
    "allow_outage": {"type": "bool", "default": False},
    "requests_per_replica": {"type": "int", "default": 0},
    "turn_timeout": {"type": "int", "default": 0},
    "timeout": {"type": "int", "default": 60},
    "directory": {"type": "path", "default": "/etc/gpufleet-router"},
    "run_dir": {"type": "path", "default": "/run/gpufleet-router"},
    "state_dir": {"type": "path", "default": "/var/lib/gpufleet-router"},
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Set the state, wait, and return the module's result."""
    params = module.params
    folder = state_folder(params["state_dir"], params["run_dir"], check=module.check_mode)
    master, marks = Master(f"{params['run_dir']}/{MASTER_SOCKET}", folder), DrainMarks(folder)
    selection = Selection(
        params["hosts"], params["replicas"], params["state"], params["owner"], params["reason"], params["run"]
    )
    if module.check_mode:
        change = change_for(selection, master.servers(), marks)
        reasons = {host: reason for host in params["hosts"] if (reason := marks.reason(host))}
        over = [host for host in params["hosts"] if marks.is_over(host)]
        end = served_end(master)
        certificate = end.as_result() if end else {}
        shared = shared_state(params["directory"], params["run_dir"])
        watch = read_report(os.path.join(folder, REPORT))
        seen = {
            "reasons": reasons,
            "turns_over": over,
            "in_turn": sorted(set(params["hosts"]) & set(marks.in_turn())),
            "certificate": certificate,
            "shared": shared,
            "gpu_watch": watch,
        }
        return {**change.as_result(change.servers(), 0.0), **seen, "causes": causes_of(master, change.names)}
    limit = Limit(params["max_unavailable"], params["allow_outage"], params["requests_per_replica"])
    change = take_turn(master, marks, selection, limit, time.monotonic() + params["turn_timeout"])
    result = change.as_result(*change.wait(master, params["timeout"]))
    return {**result, "causes": causes_of(master, result["not_up"])}


def causes_of(master: Master, names: Sequence[str]) -> dict[str, str]:
    """Return why the last health checks of replicas did not pass; nothing is asked where none is named."""
    causes = check_causes(master.statistics()) if names else {}
    return {name: causes[name].text for name in names if name in causes}


def take_turn(master: Master, marks: DrainMarks, selection: Selection, limit: Limit, deadline: float) -> StateChange:
    """Begin the change as soon as the limit allows it; return it.

    Raises:
        GpufleetError: as obstacle tells, once there is no use in waiting; and as StateChange.begin does.
    """
    master.processes()  # nothing is decided where it does not run
    while True:
        with master.states.turn():
            change = change_for(selection, master.servers(), marks)
            found = None
            if selection.state != "ready":
                found = obstacle(selection.hosts, change.before, marks.in_turn(), limit)
            if found is None:
                change.begin(master, marks)
                return change
        if not found.details["passes"] or time.monotonic() >= deadline:
            raise found
        time.sleep(POLL_S)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
