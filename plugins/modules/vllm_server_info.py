# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell what the vLLM servers of a host are doing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_server_info
short_description: Tell what the vLLM servers of a host are doing
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - For each server that M(gpufleet.vllm.vllm_server) made on the host, its state, the phase of its start, its load, and
    for one that died the cause.
options:
  container_prefix:
    description:
      - What the names of the deployment's containers begin with.
    type: str
    default: vllm
  config_dir:
    description:
      - Folder with the applied plan and the servers' C(docker run) lines.
    type: path
    default: /etc/gpufleet
  log_lines:
    description:
      - Number of lines from the end of the log of a server that does not serve, to tell its phase or the cause of its
        death from. Those that it printed before it was last started do not count.
    type: int
    default: 5000
  starts:
    description:
      - Also tell the phases of each serving server's last start, from its log.
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
  - gpufleet.vllm.common.docker
seealso:
  - module: gpufleet.vllm.vllm_server
"""

EXAMPLES = r"""
- name: See what the servers of the host do
  gpufleet.vllm.vllm_server_info:
  register: servers

- name: Show those that do not serve
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.summary }}"
  loop: "{{ servers.servers | rejectattr('phase', 'eq', 'serving') }}"
"""

RETURN = r"""
servers:
  description: The servers, in the order of their names.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the replica and its container.
      type: str
      sample: vllm-0
    summary:
      description: One line for people.
      type: str
      sample: "serving, model stand-in, up 2 h 5 min, 3 requests running, 0 waiting, KV cache 12 % used"
    state:
      description: The container's state in Docker's words.
      type: str
      sample: running
    phase:
      description:
        - C(serving), a phase of the start (C(container), C(engine start), C(weights), C(compile), C(KV cache),
          C(warm-up), C(graphs)), C(draining), C(not answering), C(engine dead), C(restarting), C(stopped) or C(dead).
      type: str
      sample: serving
    detail:
      description: More about the phase, such as the percentage of the weights.
      type: str
      sample: 45 %
    health:
      description: What Docker's health check says, C(starting), C(healthy), C(unhealthy), or C(none).
      type: str
      sample: healthy
    http_status:
      description: HTTP status of the server's /health; 0 when nothing answers.
      type: int
      sample: 200
    uptime_s:
      description: Seconds since the container was started; 0 when it does not run.
      type: int
      sample: 7512
    restarts:
      description: How often Docker has restarted it.
      type: int
      sample: 0
    exit_code:
      description: Exit code of a server that has ended, otherwise null.
      type: int
      sample: 1
    url:
      description: Address of the server as seen from its host; empty when it is not known.
      type: str
      sample: http://127.0.0.1:8000
    model:
      description: Name under which the model is served.
      type: str
      sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    image:
      description: Reference of the image.
      type: str
      sample: vllm/vllm-openai:deploy
    vllm_version:
      description: Version that the server itself tells; empty unless it serves.
      type: str
      sample: 0.12.0
    gpus:
      description: Its GPUs, by UUID or index.
      type: list
      elements: str
      sample: ["0"]
    load:
      description:
        - C(requests_running), C(requests_waiting), C(kv_cache_usage) (0 to 1), C(preemptions) and more from the
          server's metrics; empty unless it serves.
      type: dict
      sample: {"requests_running": 3, "requests_waiting": 0, "kv_cache_usage": 0.12}
    docker_run:
      description: The command that repeats by hand what was done; empty when it is not known.
      type: str
      sample: docker run --detach --name vllm-0 vllm/vllm-openai:deploy serve
    diagnosis:
      description:
        - Cause of the death of a server that died, as an error with name, message, evidence and remedy; else empty.
        - For a server that Docker restarted and that does not serve yet, the cause of its earlier death.
      type: dict
      sample: {"name": "out-of-memory-kill", "evidence": "OOMKilled: true"}
    last_death:
      description:
        - Why Docker last started the container again, from the half hour of the log before it ended, as an error with
          name, message, evidence and remedy and the time C(at); empty when it was never restarted, or the log is lost.
      type: dict
      sample: {"at": "2026-11-22T14:03:05Z", "name": "ended-by-watchdog", "evidence": "gpufleet-watchdog: ..."}
    start:
      description: Phases of the last start, each C(name) and C(seconds); empty if its log has lost them.
      type: list
      elements: dict
      sample: [{"name": "weights", "seconds": 10.2}]
    previous:
      description: State of the old container that an unfinished replacement keeps; empty when there is none.
      type: str
      sample: exited
deployments:
  description: The host's history of deployments, the newest first.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its name, for C(vllm_rollback_to).
      type: str
      sample: 20261122-165501
    time:
      description: When it was made.
      type: str
      sample: "2026-11-22T16:55:01Z"
    outcome:
      description: C(ready), or C(failed) for one whose servers did not become ready.
      type: str
      sample: ready
    current:
      description: Whether it is the newest that became ready.
      type: bool
      sample: true
    rolled_back_to:
      description: The id of the deployment that it brought back; empty for any other.
      type: str
      sample: ""
    model:
      description: The model.
      type: str
      sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    vllm_version:
      description: The version that the plan was made for; empty if there was no plan.
      type: str
      sample: 0.12.0
    image:
      description: C(reference), C(id), C(digests) and C(kept_as) of the image.
      type: dict
      sample: {"reference": "vllm/vllm-openai:v0.12.0", "kept_as": "gpufleet/kept:vllm-1700a9d57cad"}
    replicas:
      description: Number of servers.
      type: int
      sample: 8
    error:
      description: C(name) and C(message) of the failure; empty otherwise.
      type: dict
      sample: {}
gpu_health:
  description:
    - What the host found when it last looked after its GPUs; empty where it does not, see the module
      M(gpufleet.vllm.vllm_gpu_health). C(findings), each with C(gpu), C(reason), C(severity) (C(sick) or C(warning))
      and C(evidence); C(unread), each with C(gpu) and C(reading), what could not be read; C(interval), the seconds
      between two looks, and C(age_s), how many seconds ago the last one was.
  returned: success
  type: dict
  sample: {"age_s": 12, "findings": [{"gpu": "3", "reason": "xid-79", "severity": "sick"}]}
plan:
  description:
    - The plan of what serves on the host; empty when there is none. It becomes that of a deployment once its servers
      have answered. Of a deployment that was killed it has the replicas that answer by now.
  returned: success
  type: dict
  sample: {"schema_version": 1, "model": "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8"}
"""

import json
import time
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import DOCKER_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.status import server_states
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import applied_plan, history_entries

# What the program of module_utils/gpus/health_program.py writes.
GPU_REPORT = "/run/gpufleet-gpu-health/report.json"

ARGUMENTS: dict[str, Any] = {
    "container_prefix": {"type": "str", "default": "vllm"},
    "config_dir": {"type": "path", "default": "/etc/gpufleet"},
    "log_lines": {"type": "int", "default": 5000},
    "starts": {"type": "bool", "default": False},
    **DOCKER_ARGUMENTS,
}


def work(params: dict[str, Any]) -> dict[str, Any]:
    """Return the task's result."""
    client = connect(params["docker_host"], params["docker_timeout"])
    states = server_states(
        client, params["container_prefix"], params["config_dir"], params["log_lines"], starts=params["starts"]
    )
    return {
        "changed": False,
        "servers": states,
        "deployments": history_entries.brief(history_entries.read_entries(params["config_dir"])),
        "gpu_health": read_gpu_report(),
        "plan": applied_plan.plan_of_host(client, params["container_prefix"], params["config_dir"]),
    }


def read_gpu_report() -> dict[str, Any]:
    """Return what the host found of its GPUs last, with its age; empty where there is no report."""
    try:
        with open(GPU_REPORT, encoding="utf-8") as stream:
            report = json.load(stream)
        return {**report, "age_s": max(0, round(time.time() - float(report["time"])))}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: work(module.params))


if __name__ == "__main__":
    main()
