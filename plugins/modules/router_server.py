# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the router before all replicas of the fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_server
short_description: Run the router before all replicas of the fleet
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Writes HAProxy's configuration for the replicas that the hosts serve, has HAProxy check it, and starts HAProxy with
    it or has it loaded without dropping a connection.
  - Hosts that could not be asked keep the replicas that the router knows of them; its health checks decide whether
    they get requests. Hosts that are not named any more are taken out, and told in RV(left_out).
  - HAProxy's master process runs under systemd (unit C(gpufleet-router)) where that is there, and by itself elsewhere.
  - The last replica is taken out only when every host was asked and has nothing deployed.
  - The action plugin of the same name makes O(hosts), O(left_out), O(unknown) and O(replica_keys) from the variables of
    the hosts in O(members).
options:
  state:
    description:
      - V(absent) ends HAProxy and removes O(directory), O(run_dir) and O(state_dir).
    type: str
    choices: [present, absent]
    default: present
  members:
    description:
      - Hosts of the inventory behind the router. Read by the action plugin alone.
    type: list
    elements: str
  from_variables:
    description:
      - Take the options that are not given from the variables of the router's host, O(port) from C(router_port) for
        example, as the role P(gpufleet.vllm.router#role) documents them. In a delegated task these are the variables of
        the host that it is delegated to. Read by the action plugin alone.
    type: bool
    default: false
  hosts:
    description:
      - For each host that was asked, its replicas, each with C(name), C(address) and C(port); none where nothing is
        deployed. By C(models), the names by which a replica is asked for its model, requests find those that serve
        theirs; C(requests), C(max_num_seqs) and C(max_model_len) say what it carries, as far as its plan knows.
    type: dict
    default: {}
  left_out:
    description:
      - Why replicas of hosts in O(hosts) cannot be had here, by host.
    type: dict
    default: {}
  unknown:
    description:
      - Hosts of the inventory that could not be asked.
    type: list
    elements: str
    default: []
  host:
    description:
      - Address to listen on.
    type: str
    default: 0.0.0.0
  port:
    description:
      - Port to listen on.
    type: int
    default: 8443
  tls:
    description:
      - Whether clients must speak TLS. The certificate and its key are C(site.pem) in O(directory).
    type: bool
    default: true
  certificate:
    description:
      - Certificate, chain and private key, as PEM. It becomes C(site.pem) once HAProxy has found nothing wrong with it.
        Left out, C(site.pem) stays as it is, such as made by M(gpufleet.vllm.router_certificate).
    type: str
    default: ""
  api_keys:
    description:
      - Keys of the clients. They are kept as SHA-256 sums.
    type: list
    elements: str
    default: []
  clients:
    description:
      - Clients with a name of their own, besides O(api_keys). The log of requests and the sums of usage call them by
        it. Everything that is wrong with them is told at once, by the action plugin, before anything is sent to the
        host.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the client, 1 to 63 letters, digits and C(_ . @ -).
        type: str
        required: true
      key:
        description:
          - Its key, or a list of keys while it changes from one to the other. They are kept as SHA-256 sums.
        type: list
        elements: str
        required: true
      models:
        description:
          - Models that it may use; another one is answered with 403. Left out, it may use all.
        type: list
        elements: str
      rate:
        description:
          - Requests in ten seconds that are let through, in the place of O(rate_limit); V(0) for no limit.
        type: int
      expires:
        description:
          - Date through which its keys work, V(2027-01-31) for example, or the time at which they end, such as
            V(2027-01-31T18:00:00+01:00). Without a zone it is UTC. From then on they are answered with 401.
        type: str
  replica_keys:
    description:
      - Keys with which the replicas are asked, by host, also for O(unknown) ones. Hosts that have replicas behind the
        router must have the same.
      - One with which fewer of the servers that answer could be asked than with the one before is refused; for servers
        are given a key before the router is. Check mode does not try it.
    type: dict
    default: {}
  key_may_wait:
    description:
      - Go on with the key of before where the one in O(replica_keys) would be refused so, instead of failing.
    type: bool
    default: false
  allow_unauthenticated:
    description:
      - Whether other machines may ask without a key.
    type: bool
    default: false
  endpoints:
    description:
      - Paths that pass. /health is answered by the router itself.
    type: list
    elements: str
    default:
      - /v1/models
      - /v1/completions
      - /v1/chat/completions
      - /v1/responses
      - /v1/messages
      - /v1/messages/count_tokens
      - /v1/embeddings
      - /v1/rerank
      - /v2/rerank
      - /rerank
      - /v1/score
      - /score
      - /classify
      - /pooling
      - /v1/audio/transcriptions
      - /v1/audio/translations
      - /tokenize
      - /detokenize
  cors_origins:
    description:
      - Origins whose pages may ask from a browser; V(*) alone for those of every site.
    type: list
    elements: str
    default: []
  max_request_bytes:
    description:
      - Largest body of a request.
    type: int
    default: 33554432
  balance:
    description:
      - V(leastconn) sends a request to the replica that has the fewest. With V(prefix) requests that begin alike go to
        the same one, with V(session) those of one session.
    type: str
    choices: [leastconn, prefix, session]
    default: leastconn
  balance_factor:
    description:
      - How many requests a replica may have with O(balance=prefix) and O(balance=session), in percent of its share of
        all that run. Beyond that the next replica gets them.
    type: int
    default: 125
  session_header:
    description:
      - Header of a request that names its session. Without it that is C(prompt_cache_key) or C(user) in the body, or
        else the request's beginning.
    type: str
    default: x-session-id
  rate_limit:
    description:
      - Requests of one key (of one address where there are no keys) in ten seconds; V(0) for no limit.
    type: int
    default: 10000
  max_connections:
    description:
      - Connections of clients at once, as a number; a request beyond it gets 503 at once. V(auto) is twice what may run
        and wait, V(8192) at least.
    type: str
    default: auto
  max_connections_per_address:
    description:
      - Connections of one address at once, as a number; V(0) for no limit. V(auto) is a quarter of O(max_connections).
    type: str
    default: auto
  connection_rate:
    description:
      - New connections of one address in ten seconds, beyond which they are closed; V(0) for no limit.
    type: int
    default: 5000
  operators:
    description:
      - Addresses and networks that no limit of connections shuts out, such as those of monitoring.
    type: list
    elements: str
    default: []
  max_requests_per_replica:
    description:
      - Requests at one replica at once, beyond which they wait in the router, as a number; V(0) for no limit. V(auto)
        is what its KV cache holds by its plan times O(requests_factor), and no less than it works on at once.
    type: str
    default: auto
  requests_factor:
    description:
      - How many requests a replica gets for each that its KV cache holds.
    type: float
    default: 2.0
  max_queue:
    description:
      - Requests that may wait for the replicas of a model, as a number; one more gets 503 at once. V(auto) is as many
        as run there.
    type: str
    default: auto
  max_requests_per_key:
    description:
      - Requests of one key at once, as a number; V(0) for no limit. V(auto) is three quarters of what all replicas get
        where there are several keys.
    type: str
    default: auto
  large_requests:
    description:
      - Requests that are read whole at once. A request is, if it is longer than O(buffer_bytes) and the replicas do not
        all serve the same models and its own does not stand in that part, if it comes without its length, or if its
        client is kept to some models. Each takes up to one and a half times O(max_request_bytes) of memory meanwhile.
    type: int
    default: 32
  buffer_bytes:
    description:
      - A request up to this size can be sent to another replica when the first one dies before it answered.
    type: int
    default: 65536
  timeout:
    description:
      - Seconds for which an answer may be silent, and for which streams go on after a new configuration was loaded.
    type: int
    default: 3600
  check_interval_ms:
    description:
      - Milliseconds between two health checks of a replica.
    type: int
    default: 1000
  metrics_host:
    description:
      - Address of the listener for monitoring. One that other machines reach needs O(metrics_token) and O(tls).
    type: str
    default: 127.0.0.1
  metrics_port:
    description:
      - Port of that listener; V(0) for none. It answers C(/metrics) with HAProxy's own metrics,
        C(/replicas/<host>:<replica>/metrics) with those of a replica, and C(/targets) with the list of all of them.
    type: int
    default: 0
  metrics_token:
    description:
      - What monitoring sends in C(Authorization), after C(Bearer). It is kept as a SHA-256 sum. Empty lets in everyone.
    type: str
    default: ""
  proxy_protocol:
    description:
      - Whether the load balancers before the router begin each connection with the header of the PROXY protocol. One
        without it is closed.
    type: bool
    default: false
  trusted_proxies:
    description:
      - Addresses or networks of load balancers before the router. In their C(X-Forwarded-For) the last address that is
        none of theirs is the client's. That of others is dropped.
      - With O(proxy_protocol), or without O(tls), connections of all others are closed, but for those of this host.
    type: list
    elements: str
    default: []
  access_log:
    description:
      - File of the log of requests, a line of JSON each. Empty writes none.
    type: str
    default: ""
  access_log_max_bytes:
    description:
      - Size at which O(access_log) is rotated, within a second. It is rotated each day (UTC), too.
    type: int
    default: 104857600
  access_log_files:
    description:
      - Rotated files that are kept at most.
    type: int
    default: 20
  access_log_days:
    description:
      - Days for which rotated files are kept.
    type: int
    default: 90
  count_tokens:
    description:
      - Whether to log how many tokens an answer took, where it tells, is not streamed and fits O(buffer_bytes). HAProxy
        waits for the whole of such an answer before it passes it on, and for each request it makes a connection of its
        own to the replica.
    type: bool
    default: true
  directory:
    description:
      - Folder of the configuration.
    type: path
    default: /etc/gpufleet-router
  run_dir:
    description:
      - Folder of HAProxy's sockets.
    type: path
    default: /run/gpufleet-router
  state_dir:
    description:
      - Folder of what is kept over a reboot, which servers are taken out and by whom. What an earlier version of this
        collection left in O(run_dir) is moved here.
    type: path
    default: /var/lib/gpufleet-router
  log_file:
    description:
      - HAProxy's messages where systemd does not keep them.
    type: path
    default: /var/log/gpufleet-router.log
  user:
    description:
      - User and group that HAProxy becomes.
    type: str
    default: haproxy
  chroot:
    description:
      - Folder HAProxy locks itself into, if it exists.
    type: str
    default: /var/lib/haproxy
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Have the router run before every host that is no router itself
  gpufleet.vllm.router_server:
    members: "{{ groups['all'] | difference(groups['router']) }}"
    api_keys: ["{{ vllm_api_key }}"]

- name: Take it away
  gpufleet.vllm.router_server:
    state: absent
"""

RETURN = r"""
action:
  description: What was done to HAProxy, V(none), V(started), V(reloaded) or V(removed).
  returned: success
  type: str
  sample: reloaded
replicas:
  description: What the router now has behind it.
  returned: success
  type: list
  elements: dict
  sample: [{"host": "gpu-01", "name": "vllm-0", "address": "10.0.0.11", "port": 8000, "models": ["scout"],
            "requests": 60, "max_num_seqs": 128, "max_model_len": 32768}]
kept:
  description: Hosts that could not be asked and keep the replicas that the router knew.
  returned: success
  type: list
  elements: str
  sample: [gpu-07]
left_out:
  description: Why hosts have no replica behind the router, by host; also those that this run has taken out.
  returned: success
  type: dict
  sample: {"gpu-09": "it could not be asked, and the router does not know it"}
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(invalid-router), V(router-config-refused), V(router-not-started), V(router-not-reloaded),
      V(router-not-answering), V(router-emptied), V(router-key-refused), V(haproxy-missing), V(write-failed), V(busy),
      V(router-log-not-started), V(keys-differ), V(key-unreadable) and V(setting-unreadable).
  returned: failure
  type: dict
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config, config_names, members, router_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.access_log import KEEPER_SETTINGS
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.balance_rules import LEASTCONN, METHODS
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import findings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.keeper_service import ensure_keeper, keeper_answers
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.replica_key import check_key, refused_by
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import AUTO
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService, differences
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.state_folder import state_folder

NOTHING = "nothing is deployed there"
UNKNOWN = "it could not be asked, and the router does not know it"
GONE = "it is not among the hosts behind the router any more, so its replicas were taken out"

ENDPOINTS = (
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/classify",
    "/pooling",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/tokenize",
    "/detokenize",
)

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "members": {"type": "list", "elements": "str"},
    "from_variables": {"type": "bool", "default": False},
    "hosts": {"type": "dict", "default": {}},
    "left_out": {"type": "dict", "default": {}},
    "unknown": {"type": "list", "elements": "str", "default": []},
    "host": {"type": "str", "default": "0.0.0.0"},  # noqa: S104  a router is for other machines, and wants a key
    "port": {"type": "int", "default": 8443},
    "tls": {"type": "bool", "default": True},
    "certificate": {"type": "str", "default": "", "no_log": True},
    "api_keys": {"type": "list", "elements": "str", "default": [], "no_log": True},
    "clients": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "key": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "models": {"type": "list", "elements": "str"},
            "rate": {"type": "int"},
            "expires": {"type": "str"},
        },
    },
    "replica_keys": {"type": "dict", "default": {}, "no_log": True},
    "key_may_wait": {"type": "bool", "default": False, "no_log": False},
    "allow_unauthenticated": {"type": "bool", "default": False},
    "endpoints": {"type": "list", "elements": "str", "default": list(ENDPOINTS)},
    "cors_origins": {"type": "list", "elements": "str", "default": []},
    "max_request_bytes": {"type": "int", "default": 33554432},
    "balance": {"type": "str", "choices": list(METHODS), "default": LEASTCONN},
    "balance_factor": {"type": "int", "default": 125},
    "session_header": {"type": "str", "default": "x-session-id"},
    "rate_limit": {"type": "int", "default": 10000},
    "max_connections": {"type": "str", "default": AUTO},
    "max_connections_per_address": {"type": "str", "default": AUTO},
    "connection_rate": {"type": "int", "default": 5000},
    "operators": {"type": "list", "elements": "str", "default": []},
    "max_requests_per_replica": {"type": "str", "default": AUTO},
    "requests_factor": {"type": "float", "default": 2.0},
    "max_queue": {"type": "str", "default": AUTO},
    "max_requests_per_key": {"type": "str", "default": AUTO, "no_log": False},
    "large_requests": {"type": "int", "default": 32},
    "buffer_bytes": {"type": "int", "default": 65536},
    "timeout": {"type": "int", "default": 3600},
    "check_interval_ms": {"type": "int", "default": 1000},
    "metrics_host": {"type": "str", "default": "127.0.0.1"},
    "metrics_port": {"type": "int", "default": 0},
    "metrics_token": {"type": "str", "default": "", "no_log": True},
    "proxy_protocol": {"type": "bool", "default": False},
    "trusted_proxies": {"type": "list", "elements": "str", "default": []},
    "access_log": {"type": "str", "default": ""},
    "access_log_max_bytes": {"type": "int", "default": 104857600},
    "access_log_files": {"type": "int", "default": 20},
    "access_log_days": {"type": "int", "default": 90},
    "count_tokens": {"type": "bool", "default": True},
    "directory": {"type": "path", "default": "/etc/gpufleet-router"},
    "run_dir": {"type": "path", "default": "/run/gpufleet-router"},
    "state_dir": {"type": "path", "default": "/var/lib/gpufleet-router"},
    "log_file": {"type": "path", "default": "/var/log/gpufleet-router.log"},
    "user": {"type": "str", "default": "haproxy"},
    "chroot": {"type": "str", "default": "/var/lib/haproxy"},
}


def remove(router: RouterService, folders: Sequence[str], check: bool) -> dict[str, Any]:
    """Take the router away and return the module's result."""
    there = router.processes() is not None or any(map(os.path.isdir, folders))
    text = router.text(config_names.CONFIG)
    if there and not check:
        router.remove()
    path = router.path(config_names.CONFIG)
    diff = [{"before_header": path, "after_header": path, "before": text, "after": ""}] if text else []
    action = "removed" if there else "none"
    return {"changed": there, "action": action, "replicas": [], "kept": [], "left_out": {}, "diff": diff}


def ensure_router(router: RouterService, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Make the router run as wanted and return the module's result."""
    known = {host: [members.replica_of(host, entry) for entry in entries] for host, entries in params["hosts"].items()}
    before = members.read_replicas(router.text(config_names.REPLICAS))
    replicas, said = members.merge(known, params["unknown"], before)
    unsure = {**params["left_out"], **{host: UNKNOWN for host, what in said.items() if what == "left out"}}
    members.check_not_emptied(before, replicas, unsure)
    wanted = members.one_key(params["replica_keys"], replicas)
    chroot = params["chroot"] if os.path.isdir(params["chroot"]) else ""
    settings = router_settings.as_settings(params, chroot, wanted)
    router_settings.check_settings(settings, replicas, params["allow_unauthenticated"])
    key, refusing = (wanted, []) if check else settled_key(router, wanted, replicas, may_wait=params["key_may_wait"])
    settings = replace(settings, replica_key=key)
    certificate = {config_names.CERTIFICATE: params["certificate"]} if params["tls"] and params["certificate"] else {}

    def render(folder: str) -> dict[str, str]:
        return {**config.files(settings, replicas, folder), **certificate}

    served = {name for replica in replicas for name in replica.models or ("",)}
    client_findings = findings(settings.clients, () if "" in served else served, time.time())
    return {
        **load(router, render, params, check),
        "replicas": [vars(replica) for replica in replicas],
        "kept": sorted(host for host, what in said.items() if what == "kept"),
        "left_out": {
            **{host: GONE for host, what in said.items() if what == "gone"},
            **{host: NOTHING for host, entries in known.items() if not entries},
            **unsure,
        },
        "warnings": [*([refused_by(refusing)] if refusing else []), *client_findings],
    }


def load(
    router: RouterService, render: Callable[[str], dict[str, str]], params: dict[str, Any], check: bool
) -> dict[str, Any]:
    """Run HAProxy and the keeper of its log with the files that are made for a folder; return what was done."""
    files = render(params["directory"])
    changes, running = differences(router, files), router.processes()
    action, log_missing = "none", not keeper_answers(files[KEEPER_SETTINGS])
    if changes or not (running and router.loaded(files)):
        action = "reloaded" if running else "started"
        if not check:
            router.check(render)
            action = router.load(files)
    if (changes or log_missing) and not check:
        ensure_keeper(params["directory"], files[KEEPER_SETTINGS], params["log_file"])
    return {"changed": bool(changes) or action != "none" or log_missing, "action": action, "diff": changes}


def settled_key(router: RouterService, key: str, replicas: list[Replica], *, may_wait: bool) -> tuple[str, list[str]]:
    """Return the key with which the replicas are to be asked, and the hosts that refuse it, if it is another one.

    Raises:
        GpufleetError: C(router-key-refused), unless it may wait.
    """
    there = os.path.exists(router.path(config_names.REPLICA_KEY))
    before = members.replica_key_of(router.text(config_names.REPLICA_KEY)) if there else None
    if key == before:
        return key, []
    try:
        return key, check_key(replicas, key, before)
    except GpufleetError:
        if before is None or not may_wait:
            raise
        return before, []


def work(module: GpufleetModule) -> dict[str, Any]:
    """Bring the router to the wanted state; return the task's result."""
    params = module.params
    folders = (params["directory"], params["run_dir"], params["state_dir"])
    router = RouterService(*folders, params["log_file"])
    if params["state"] == "absent":
        return remove(router, folders, module.check_mode)
    if module.check_mode:
        return ensure_router(router, params, check=True)
    os.makedirs(params["directory"], mode=0o755, exist_ok=True)
    with host_lock(os.path.join(params["directory"], ".lock"), "router_server"):
        state_folder(params["state_dir"], params["run_dir"], check=False)
        return ensure_router(router, params, check=False)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
