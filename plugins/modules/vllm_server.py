# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the vLLM servers of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_server
short_description: Run the vLLM servers of a host
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs one Docker container for each replica of a plan, and no other of the deployment, in one module run.
  - A container is replaced only when something that matters for it changed; the difference is in the result. A changed
    restart policy or O(watchdog_timeout) is set without a replacement. Device files that the driver made later, or not
    yet, do not matter; those of another GPU do.
  - Waits until each server has answered a real request, and tells its phases meanwhile. A start that fails is told by
    its one cause, within seconds of the container's death.
  - A GPU holds one model, so replacing a server stops the old one. When the new one does not become ready, the old one
    is put back as it was and the task fails with the diagnosis. A new server that replaces none is removed when it
    fails.
  - What would fail anyway (no image, a model that is missing or damaged, a port in use, a GPU whose memory somebody
    else holds, a configuration that the image's vLLM refuses) fails before anything is stopped.
  - A server that is stopped drains first, see O(drain_timeout). Its requests are counted in the result.
  - Servers are replaced one after another, those that do not serve first; when one fails, the others are not touched.
    Servers that need each other's GPUs or ports are replaced together.
  - Servers look after themselves later, see O(watchdog_timeout).
  - Puts right what an earlier run, interrupted at any point, left unfinished. Two runs cannot work on one host at the
    same time.
options:
  state:
    description:
      - V(present) has the servers run.
      - V(restarted) also restarts those that need no replacement. Without O(image) it restarts what served last, as
        this host's history has it, whatever the inventory asks for by now; only O(secrets) and how to go about it are
        given.
      - V(started) starts those that do not run, of what served last in the same sense, and leaves the others alone. It
        takes back what V(stopped) did.
      - V(stopped) drains and stops all servers of this O(container_prefix). Their containers and all files stay.
      - V(absent) stops and removes them, and with all of them the host's history of deployments.
      - V(rolled_back) has the servers of an earlier deployment of this host's history run, see O(rollback_to). What
        they are is taken from there, O(replicas), O(image) and all else that is kept with it, so only O(secrets) and
        how to go about it are given. Their configuration files, the applied plan and the image's name become what they
        were, too; on a failure they stay as they are.
    type: str
    choices: [present, absent, restarted, started, stopped, rolled_back]
    default: present
  replicas:
    description:
      - The plan's C(replicas). Servers of this O(container_prefix) that are not among them are removed.
      - With O(state=absent), the replicas to remove; all of this O(container_prefix) when it is empty.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the replica and its container; it begins with O(container_prefix) and a dash.
        type: str
        required: true
      gpus:
        description:
          - Indexes of its GPUs.
        type: list
        elements: int
        default: []
      gpu_uuids:
        description:
          - UUIDs of the same GPUs, used instead of the indexes when there are any.
        type: list
        elements: str
        default: []
      host:
        description:
          - Address of the host at which the server is published.
        type: str
        default: 127.0.0.1
      port:
        description:
          - Port of the host at which the server is published.
        type: int
        default: 8000
      tensor_parallel_size:
        description:
          - Number of GPUs that share the model. The server takes it from O(replicas[].config).
        type: int
        default: 1
      config:
        description:
          - What its configuration file holds. A change of it replaces the server; a change of the file's comments does
            not.
        type: dict
        default: {}
      environment:
        description:
          - Its environment variables.
        type: dict
        default: {}
  plan:
    description:
      - The plan that the replicas are of, to be kept as C(plan.json) in O(config_dir) for the router and verification,
        and in the history. It must hold no secret.
      - It is written once the servers have answered, those of each replica by itself, so that a run that fails or is
        killed leaves the plan of what serves. C(plan.unfinished.json) is what a run was at that has not got to its end.
      - Without it C(plan.json) is not touched, except that a replica that O(state=absent) removes leaves it.
    type: dict
  image:
    description:
      - Reference of an image that the host has. Needed with O(state=present).
    type: str
  model_source:
    description:
      - The plan's C(model_source). Needed with O(image).
    type: dict
    suboptions:
      kind:
        description:
          - Where the model comes from.
        type: str
        choices: [hub, path, pypi]
        default: hub
      location:
        description:
          - Its name there.
        type: str
        default: ""
      mount:
        description:
          - Folder of the host that is mounted read-only at O(model_source.argument); empty for none.
        type: str
        default: ""
      argument:
        description:
          - What C(vllm serve) gets, a model's name at the hub or a path in the container.
        type: str
        required: true
  device:
    description:
      - What the servers run on.
    type: str
    choices: [cuda, cpu]
    default: cuda
  gpu_access:
    description:
      - How GPUs reach the container. V(gpus) is C(docker run --gpus), V(cdi) uses CDI device names, V(runtime) the
        runtime C(nvidia), V(devices) passes the device files only, so that O(volumes) and O(environment) have to bring
        the driver's libraries.
      - V(auto) means V(gpus), or V(none) with O(device=cpu).
    type: str
    choices: [auto, gpus, cdi, runtime, devices, none]
    default: auto
  network_mode:
    description:
      - V(bridge) publishes each server at its host and port; V(host) leaves them to the server's configuration.
    type: str
    choices: [bridge, host]
    default: bridge
  ipc_mode:
    description:
      - V(host) shares the host's shared memory with the container, as the recipe does.
    type: str
    choices: [host, private, shareable]
    default: host
  shm_size:
    description:
      - Size of the shared memory, such as V(16g), when O(ipc_mode) is not V(host). Empty for Docker's default.
    type: str
    default: ""
  config_dir:
    description:
      - Folder with the replicas' configurations C(<name>.yaml), as M(gpufleet.vllm.vllm_config) writes them.
      - Gets the equivalent C(docker run) line as C(<name>.sh), the secrets as C(<name>.env), mode V(0600), below
        C(active) the copies of the configurations that containers mount, and below C(control) what the host tells
        running servers.
    type: path
    default: /etc/gpufleet
  hf_home:
    description:
      - Folder for the Hugging Face cache; made if missing.
    type: path
    default: /var/lib/gpufleet/huggingface
  cache_dir:
    description:
      - Folder for the caches of vLLM, FlashInfer and Triton, each in a folder of its own; made if missing.
      - If M(gpufleet.vllm.vllm_caches) has added what another host compiled and a start fails with it, that is removed
        and the server is started once more.
    type: path
    default: /var/lib/gpufleet/cache
  tell_caches:
    description:
      - With O(state=present) and O(state=restarted), also return C(caches), and keep in O(cache_dir) that these
        servers became ready with it.
    type: bool
    default: false
  volumes:
    description:
      - Further mounts, as C(docker run --volume) takes them. One with the target of a mount of ours replaces it.
    type: list
    elements: str
    default: []
  environment:
    description:
      - Further environment variables; they win over those of the replicas.
      - Those that look like secrets by their name, or hold a password in an address, are treated as O(secrets).
    type: dict
    default: {}
  secrets:
    description:
      - Environment variables that are never shown, such as V(VLLM_API_KEY) and V(HF_TOKEN). Empty ones are left out.
      - Servers take another V(VLLM_API_KEY) from their next request on, without being replaced or restarted.
    type: dict
    default: {}
  accepted_keys:
    description:
      - Keys that the servers take besides V(VLLM_API_KEY).
    type: list
    elements: str
    default: []
  other_keys_for:
    description:
      - Seconds for which the servers go on with other keys that they take now; V(-1) until another run says otherwise,
        such as M(gpufleet.vllm.vllm_keys) once a router does not ask with them any more.
    type: int
    default: 0
  restart_policy:
    description:
      - Docker's restart policy. A server gets it once it is ready.
    type: str
    default: unless-stopped
  log_max_size:
    description:
      - Size at which Docker rotates a server's log.
    type: str
    default: 100m
  log_max_files:
    description:
      - Number of log files that Docker keeps of a server.
    type: int
    default: 5
  ca_bundle:
    description:
      - File of the host with certificate authorities that the servers trust; empty for those of the image.
    type: str
    default: ""
  labels:
    description:
      - Further labels of the containers.
    type: dict
    default: {}
  container_prefix:
    description:
      - What the names of this deployment's containers begin with.
    type: str
    default: vllm
  lock_timeout:
    description:
      - Seconds to wait for another run that works on this host, such as one whose play was interrupted.
    type: int
    default: 0
  history_keep:
    description:
      - Number of deployments to keep in the host's history, each a file below C(history) in O(config_dir). A deployment
        is noted there once its servers have answered, and also one whose servers failed.
      - The images of those that served get a name of ours, so that they stay on the host.
      - V(0) keeps none and removes what there is.
    type: int
    default: 10
  rollback_to:
    description:
      - With O(state=rolled_back), the id of the deployment to go back to, as M(gpufleet.vllm.vllm_server_info) tells.
      - When it is empty, the last one that served something else than what runs now; but if what runs now was itself
        brought back, nothing is done.
    type: str
    default: ""
  check_config:
    description:
      - Before anything is stopped, let the image's own vLLM parse the configuration of each server that is to be
        created or replaced, in a container without network and GPU that is removed afterwards. What it would refuse
        fails the task, and no server is touched.
      - This takes as long as vLLM's import, some 10 to 30 seconds, and nothing when all servers are as wanted.
      - A check that cannot be run is a warning only.
    type: bool
    default: true
  wait:
    description:
      - Wait until the servers are ready. Without it, an old server is kept, stopped, until a later run has seen that
        the new one is ready.
    type: bool
    default: true
  ready_timeout:
    description:
      - Seconds for the servers to become ready.
    type: int
    default: 3600
  stall_timeout:
    description:
      - Seconds for which a starting server may print nothing and use neither processor, network nor disk.
    type: int
    default: 900
  phase_timeouts:
    description:
      - Seconds that each phase of a start may take, for those that differ from their defaults, V(container) 300,
        V(engine_start) 900, V(weights) 3600, V(compile) 1800, V(kv_cache) 1800, V(warm_up) 1800, V(graphs) 900,
        V(serving) 600. 0 means no deadline. V(image) is that of M(gpufleet.vllm.vllm_image) and not used here.
      - Counts beside O(ready_timeout), which is for all of a start, and O(stall_timeout).
    type: dict
    default: {}
  drain_timeout:
    description:
      - Seconds that the running requests of a server get before it is stopped, restarted or replaced. What still runs
        then is aborted.
      - Meanwhile the server answers new requests with 503 and C(Retry-After), and C(/health) with 503, so that routers
        send them elsewhere. It takes requests again by itself should this module be killed.
      - A server that this collection's release did not make cannot turn requests away; for one like that, it is waited
        until nothing runs, or its vLLM drains itself where it was started with C(shutdown-timeout).
      - Another value replaces no server, and neither does another C(shutdown-timeout) in O(replicas[].config), which
        counts from the next replacement on.
    type: int
    default: 60
  vram_timeout:
    description:
      - Seconds that the driver gets to free the memory of a server's GPUs before the server is started.
    type: int
    default: 60
  watchdog_timeout:
    description:
      - Seconds for which a server that was healthy may hang, before its health check ends it and Docker's restart
        policy starts it again. It hangs when C(/health) does not answer, or when requests wait for it and the engine
        does not do a single step. A client that sends half a request or stops reading its answer, and a websocket, wait
        for nothing.
      - Such a server whose processes work all the while, as when a first request has kernels compiled, gets three times
        as long, for engines that spin where they hang.
      - A server that says itself that its engine is dead is ended after half a minute.
      - A server that is starting is never ended so. 0 ends none; so does O(restart_policy=no). Set it to 0 for servers
        that are paused or put to sleep while they have requests.
    type: int
    default: 300
  purge_caches:
    description:
      - With O(state=absent), remove O(hf_home) and O(cache_dir) too.
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
seealso:
  - module: gpufleet.vllm.vllm_config
  - module: gpufleet.vllm.vllm_server_info
"""

EXAMPLES = r"""
- name: Run the servers of a plan
  gpufleet.vllm.vllm_server:
    replicas: "{{ plan.replicas }}"
    image: "{{ plan.image.tag }}"
    model_source: "{{ plan.model_source }}"
    plan: "{{ plan }}"
    device: "{{ plan.device }}"
    secrets:
      VLLM_API_KEY: "{{ vllm_api_key }}"
      HF_TOKEN: "{{ vllm_hf_token }}"

- name: Restart what serves
  gpufleet.vllm.vllm_server:
    state: restarted
    secrets:
      VLLM_API_KEY: "{{ vllm_api_key }}"
      HF_TOKEN: "{{ vllm_hf_token }}"

- name: Restart them, and replace those that should be otherwise
  gpufleet.vllm.vllm_server:
    state: restarted
    replicas: "{{ plan.replicas }}"
    image: "{{ plan.image.tag }}"
    model_source: "{{ plan.model_source }}"

- name: Go back to what served before
  gpufleet.vllm.vllm_server:
    state: rolled_back
    secrets:
      VLLM_API_KEY: "{{ vllm_api_key }}"
      HF_TOKEN: "{{ vllm_hf_token }}"

- name: Free the GPUs for a while
  gpufleet.vllm.vllm_server:
    state: stopped

- name: Have what was stopped serve again
  gpufleet.vllm.vllm_server:
    state: started
    secrets:
      VLLM_API_KEY: "{{ vllm_api_key }}"
      HF_TOKEN: "{{ vllm_hf_token }}"

- name: Remove all servers of this host, but keep the caches
  gpufleet.vllm.vllm_server:
    state: absent
"""

RETURN = r"""
replicas:
  description: What was done about each replica; empty with O(state=absent) and O(state=stopped).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the replica and its container.
      type: str
      sample: vllm-0
    action:
      description: C(none), C(created), C(replaced), C(started), C(restarted) or C(updated) (restart policy only).
      type: str
      sample: replaced
    why:
      description: The reasons, for people.
      type: list
      elements: str
      sample: ["config.max-num-seqs: 256 -> 128"]
    changes:
      description: The differences as data, each C(field), C(before) and C(after). Secrets are hidden.
      type: list
      elements: dict
      sample: [{"field": "config.max-num-seqs", "before": 256, "after": 128}]
    container_id:
      description: Id of the container; empty in check mode.
      type: str
      sample: 4c01db0b339c
    url:
      description: Address of the server as seen from its host.
      type: str
      sample: http://127.0.0.1:8000
    image:
      description: Reference of the image.
      type: str
      sample: vllm/vllm-openai:deploy
    image_id:
      description: Id of the image.
      type: str
      sample: sha256:1700a9d57cad0938eb418d756e13be5662b36bb4104839eb942b3fbae130e5e4
    phases:
      description: The phases of the start, each C(name) and C(seconds), in order; empty if there was none.
      type: list
      elements: dict
      sample: [{"name": "container", "seconds": 1.2}, {"name": "engine start", "seconds": 39.8}]
    ready_s:
      description: Seconds from the start of the container to its first answer; 0 if there was no start.
      type: float
      sample: 228.4
    drain:
      description:
        - What became of the requests of the server that was stopped, empty if none was. C(waited_s),
          C(running_at_start) (those that wait in the engine included), of them C(finished) and C(aborted), C(refused)
          meanwhile, whether the server could turn requests away (C(turned_away)), and whether it told of its requests
          at all (C(answered)).
      type: dict
      sample:
        waited_s: 12.1
        running_at_start: 5
        finished: 5
        aborted: 0
        refused: 3
        turned_away: true
        answered: true
    docker_run:
      description: The command that repeats by hand what was done.
      type: str
      sample: docker run --detach --name vllm-0 vllm/vllm-openai:deploy serve
caches:
  description:
    - What the servers compile. C(key) is the same on hosts that compile the same (GPU, driver, processor, image, model,
      options, variables); it is empty where something of it is not known. C(warm) says whether such servers have
      become ready with the caches in C(folder). C(received) is the host whose caches were added and that no server has
      become ready with yet.
  returned: success with O(tell_caches=true)
  type: dict
  sample:
    key: 8f0f3a1c5b0b7f5a0d9e7c2c4c64b8f6f0a4b8f3a5b9f3a29b0d8c4b1c6d7e8f
    warm: true
    received: ""
    folder: /var/lib/gpufleet/cache
drains:
  description:
    - By server, what became of the requests of those that were stopped, as C(replicas[].drain) tells it; also of those
      that were removed.
  returned: success
  type: dict
  sample: {"vllm-0": {"waited_s": 12.1, "running_at_start": 5, "finished": 5, "aborted": 0, "refused": 3}}
keys_changed:
  description: Replicas that take other keys than before, or would; no server is replaced for that.
  returned: success
  type: list
  elements: str
  sample: [vllm-0]
would_change:
  description:
    - Whether a server would be changed. The task's C(changed_when) does not replace it. Neither other keys alone count,
      nor a plan of which nothing but the texts changed.
  returned: in check mode
  type: bool
removed:
  description: Names of the containers that were removed because they are not wanted.
  returned: success
  type: list
  elements: str
  sample: [vllm-1]
stopped:
  description: Names of the containers that were stopped.
  returned: success with O(state=stopped)
  type: list
  elements: str
  sample: [vllm-0]
removed_paths:
  description: Files and folders that O(state=absent) removed.
  returned: success
  type: list
  elements: str
  sample: [/etc/gpufleet/vllm-0.sh]
recovered:
  description: What was put right after an earlier run that did not get to its end.
  returned: success
  type: list
  elements: str
  sample: ["removed vllm-0-next, which an earlier run left"]
recorded:
  description: Id of the entry that this run added to the host's history; empty if it added none.
  returned: success
  type: str
  sample: 20261122-165501
rolled_back_to:
  description: With O(state=rolled_back), the id of the deployment that runs now.
  returned: success
  type: str
  sample: 20261120-081500
error:
  description:
    - Name, evidence and remedy of the failure. C(details.restored) says whether old servers answer again, and
      C(details.drains) what became of their requests.
  returned: failure
  type: dict
  sample:
    name: max-model-len-too-long
    message: The server vllm-0 did not start (exit code 1).
    remedy: Set vllm_max_model_len to 131072 or less.
    evidence: "ValueError: To serve at least one request with the models's max seq len (10485760)"
    details: {exit_code: 1, server: vllm-0, restored: true}
"""

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import (
    DOCKER_ARGUMENTS,
    PROGRESS_ARGUMENTS,
    GpufleetModule,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import split_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.deadlines import deadlines
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.waiting import Limits
from ansible_collections.gpufleet.vllm.plugins.module_utils.images import local
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import deployment, history, history_entries
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.cache_key import cache_key
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.stopping import Stopping
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.warm_caches import WarmCaches

if TYPE_CHECKING:
    from docker import DockerClient

ARGUMENTS: dict[str, Any] = {
    "state": {
        "type": "str",
        "choices": ["present", "absent", "restarted", "started", "stopped", "rolled_back"],
        "default": "present",
    },
    "replicas": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "gpus": {"type": "list", "elements": "int", "default": []},
            "gpu_uuids": {"type": "list", "elements": "str", "default": []},
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "default": 8000},
            "tensor_parallel_size": {"type": "int", "default": 1},
            "config": {"type": "dict", "default": {}},
            "environment": {"type": "dict", "default": {}},
        },
    },
    "plan": {"type": "dict"},
    "image": {"type": "str"},
    "model_source": {
        "type": "dict",
        "options": {
            "kind": {"type": "str", "choices": ["hub", "path", "pypi"], "default": "hub"},
            "location": {"type": "str", "default": ""},
            "mount": {"type": "str", "default": ""},
            "argument": {"type": "str", "required": True},
        },
    },
    "device": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
    "gpu_access": {
        "type": "str",
        "choices": ["auto", "gpus", "cdi", "runtime", "devices", "none"],
        "default": "auto",
    },
    "network_mode": {"type": "str", "choices": ["bridge", "host"], "default": "bridge"},
    "ipc_mode": {"type": "str", "choices": ["host", "private", "shareable"], "default": "host"},
    "shm_size": {"type": "str", "default": ""},
    "config_dir": {"type": "path", "default": "/etc/gpufleet"},
    "hf_home": {"type": "path", "default": "/var/lib/gpufleet/huggingface"},
    "cache_dir": {"type": "path", "default": "/var/lib/gpufleet/cache"},
    "tell_caches": {"type": "bool", "default": False},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "dict", "default": {}},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "accepted_keys": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "other_keys_for": {"type": "int", "default": 0, "no_log": False},
    "restart_policy": {"type": "str", "default": "unless-stopped"},
    "log_max_size": {"type": "str", "default": "100m"},
    "log_max_files": {"type": "int", "default": 5},
    "ca_bundle": {"type": "str", "default": ""},
    "labels": {"type": "dict", "default": {}},
    "container_prefix": {"type": "str", "default": "vllm"},
    "lock_timeout": {"type": "int", "default": 0},
    "history_keep": {"type": "int", "default": 10},
    "rollback_to": {"type": "str", "default": ""},
    "check_config": {"type": "bool", "default": True},
    "wait": {"type": "bool", "default": True},
    "ready_timeout": {"type": "int", "default": 3600},
    "stall_timeout": {"type": "int", "default": 900},
    "phase_timeouts": {"type": "dict", "default": {}},
    "drain_timeout": {"type": "int", "default": 60},
    "vram_timeout": {"type": "int", "default": 60},
    "watchdog_timeout": {"type": "int", "default": 300},
    "purge_caches": {"type": "bool", "default": False},
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def texts(mapping: dict[str, Any]) -> dict[str, str]:
    """Return a mapping with its values as the texts that environment variables and labels are."""
    return {str(name): str(value) for name, value in mapping.items() if value is not None}


def wishes_of(params: dict[str, Any], environment: dict[str, str], image: local.Image) -> ServerOptions:
    """Return what all replicas share, from the module's options."""
    return ServerOptions(
        image=params["image"],
        image_id=image.id,
        python_path=image.python_path,
        config_dir=params["config_dir"],
        model_source=params["model_source"],
        device=params["device"],
        gpu_access=params["gpu_access"],
        network_mode=params["network_mode"],
        hf_home=params["hf_home"],
        cache_dir=params["cache_dir"],
        volumes=tuple(params["volumes"]),
        environment=environment,
        restart_policy=params["restart_policy"],
        log_max_size=params["log_max_size"],
        log_max_files=params["log_max_files"],
        ca_bundle=params["ca_bundle"],
        ipc_mode=params["ipc_mode"],
        shm_size=params["shm_size"],
        labels=texts(params["labels"]),
    )


def settings_of(params: dict[str, Any], check: bool) -> Settings:
    """Return how to go about it, from the module's options."""
    names = (
        "config_dir",
        "hf_home",
        "cache_dir",
        "docker_host",
        "wait",
        "check_config",
        "drain_timeout",
        "vram_timeout",
        "other_keys_for",
    )
    return Settings(
        history_keep=params["history_keep"],
        prefix=params["container_prefix"],
        limits=Limits(params["ready_timeout"], params["stall_timeout"], deadlines(params["phase_timeouts"])),
        watchdog=params["watchdog_timeout"],
        accepted_keys=tuple(params["accepted_keys"]),
        check=check,
        plan=params["plan"] or {},
        **{name: params[name] for name in names},
    )


def work(module: GpufleetModule) -> dict[str, Any]:
    """Bring the host to the wanted state; return the task's result."""
    params = module.params
    client = connect(params["docker_host"], params["docker_timeout"])
    progress = Progress(params["progress_file"])
    environment, secrets = split_secrets(texts(params["environment"]), texts(params["secrets"]))
    if params["state"] == "rolled_back":
        return roll_back(client, params, secrets, progress, check=module.check_mode)
    if params["state"] == "started" or (params["state"] == "restarted" and not params["image"]):
        return restart(client, params, secrets, progress, check=module.check_mode)
    if params["state"] == "stopped":
        return stop(client, settings_of(params, module.check_mode), progress)
    servers = deployment.Deployment(client, settings_of(params, module.check_mode), secrets, progress)
    if params["state"] == "absent":
        names = [replica["name"] for replica in params["replicas"]]
        return servers.absent(names, purge_caches=params["purge_caches"])
    with contextlib.nullcontext() if module.check_mode else servers.recovered_on_failure():
        image = local.resolve_image(client, params["image"], missing_ok=module.check_mode)
    wishes = wishes_of(params, environment, image)
    result = servers.present(params["replicas"], wishes, restart=params["state"] == "restarted")
    if params["tell_caches"]:
        serve = params["wait"] if not module.check_mode else not result["would_change"]
        result["caches"] = caches_of(params, wishes, serve=serve, check=module.check_mode)
    return result


def caches_of(params: dict[str, Any], wishes: ServerOptions, *, serve: bool, check: bool) -> dict[str, Any]:
    """Return what the servers compile; if they serve, keep that they became ready with these caches."""
    caches, key = WarmCaches(params["cache_dir"], params["container_prefix"]), cache_key(params["replicas"], wishes)
    if serve and not check:
        caches.note_warm(key)
    return {
        "key": key,
        "warm": bool(key) and (serve or caches.is_warm(key)),
        "received": caches.received_from(),
        "folder": params["cache_dir"],
    }


def roll_back(
    client: DockerClient, params: dict[str, Any], secrets: dict[str, str], progress: Progress, *, check: bool
) -> dict[str, Any]:
    """Run the servers of an earlier deployment; return the task's result."""
    settings = settings_of(params, check)
    running = OwnContainers(client, settings, progress).running()
    entry = history_entries.select(history_entries.read_entries(params["config_dir"]), params["rollback_to"], running)
    history.check_possible(client, entry)
    wishes = history.recorded_wishes(entry)
    settings = dataclasses.replace(settings, hf_home=wishes.hf_home, cache_dir=wishes.cache_dir, plan=entry["plan"])
    servers = deployment.Deployment(client, settings, secrets, progress)
    with history.brought_back(client, entry, params["config_dir"], check=check) as files:
        result = servers.present(entry["server"]["replicas"], wishes, rolled_back_to=entry["id"])
    result["changed"] = result["changed"] or bool(files)
    result["diff"] += files
    return {**result, "rolled_back_to": entry["id"]}


def restart(
    client: DockerClient, params: dict[str, Any], secrets: dict[str, str], progress: Progress, *, check: bool
) -> dict[str, Any]:
    """Restart, or start, the servers of the deployment that served last; return the task's result."""
    entry = history_entries.serving(history_entries.read_entries(params["config_dir"]))
    wishes = history.recorded_wishes(entry)
    settings = dataclasses.replace(settings_of(params, check), hf_home=wishes.hf_home, cache_dir=wishes.cache_dir)
    servers = deployment.Deployment(client, settings, secrets, progress)
    return servers.present(entry["server"]["replicas"], wishes, restart=params["state"] == "restarted")


def stop(client: DockerClient, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Drain and stop all servers of a deployment; return the task's result."""
    stopping = Stopping(OwnContainers(client, settings, progress), settings, progress)
    stopped = stopping.stop_all()
    return {
        "changed": bool(stopped),
        "replicas": [],
        "stopped": stopped,
        "removed": [],
        "removed_paths": [],
        "keys_changed": [],
        "drains": stopping.drains,
        "recovered": [],
        "recorded": "",
        "diff": [
            {"before_header": name, "after_header": name, "before": "running\n", "after": "stopped\n"}
            for name in stopped
        ],
    }


def locked_work(module: GpufleetModule) -> dict[str, Any]:
    """Do the work while holding the host's lock; in check mode no lock is needed."""
    folder = module.params["config_dir"]
    if module.check_mode or (module.params["state"] == "absent" and not os.path.isdir(folder)):
        return work(module)
    os.makedirs(folder, mode=0o750, exist_ok=True)
    operation = f"vllm_server, state {module.params['state']}"
    with host_lock(os.path.join(folder, ".lock"), operation, timeout=module.params["lock_timeout"]):
        return work(module)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_if=[
            ("state", "present", ("image", "model_source")),
        ],
        required_by={"image": ["model_source"]},
    )
    module.require("docker", "requests")
    module.run(lambda: locked_work(module))


if __name__ == "__main__":
    main()
