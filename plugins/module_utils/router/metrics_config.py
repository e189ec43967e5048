# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listener for monitoring: HAProxy's own metrics, those of each replica, and the list of what there is to ask.

The list has the form of Prometheus' HTTP service discovery. It names the address at which it was asked itself, so that
each router of several has its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority, bracketed
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    CERTIFICATE,
    METRICS_SUM,
    REPLICA_KEY,
    TARGETS,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica, key_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

BACKEND = "replicas_metrics"
MOST_CONNECTIONS = 100
# HAProxy evaluates the list into one buffer, and each entry names the address once, in place of ASKED.
ASKED, LONGEST_ADDRESS, RESERVE = "%[req.hdr(host)]", 80, 2048


def metrics_sections(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> list[list[str]]:
    """Return the sections of the configuration; none where no port is wanted."""
    if not settings.metrics_port:
        return []
    return [_frontend(settings, replicas, folder), *([_backend(settings, replicas, folder)] if replicas else [])]


def metrics_files(settings: RouterSettings, replicas: Sequence[Replica]) -> dict[str, str]:
    """Return the files that these sections name, name to text."""
    if not settings.metrics_port:
        return {}
    token = {METRICS_SUM: f"{key_sum(settings.metrics_token)}\n"} if settings.metrics_token else {}
    return {**token, **{name: _as_list(part) for name, part in _parts(settings, replicas).items()}}


def _frontend(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> list[str]:
    crypt = f" ssl crt {folder}/{CERTIFICATE} alpn h2,http/1.1" if settings.tls else ""
    known = f"req.fhdr(authorization),sha2(256),hex,lower -m str -f {folder}/{METRICS_SUM}"
    wanted = deny(401, "A valid token is needed.", "!known_token", " hdr WWW-Authenticate Bearer")
    lines = [
        "frontend metrics",
        f"bind {bracketed(settings.metrics_host)}:{settings.metrics_port}{crypt}",
        f"maxconn {MOST_CONNECTIONS}",
        "timeout client 60s",
        *([f"acl known_token {known}", wanted] if settings.metrics_token else []),
        deny(405, "This method is not allowed.", "!METH_GET"),
        deny(400, "The header Host is no address.", "!{ req.hdr(host) -m reg ^[][A-Za-z0-9.:_-]{1,80}$ }"),
        "http-request use-service prometheus-exporter if { path /metrics }",
    ]
    for number, name in enumerate(_parts(settings, replicas), 1):
        path = "/targets" if number == 1 else f"/targets/{number}"
        answer = f"return status 200 content-type application/json lf-file {folder}/{name}"
        lines.append(f"http-request {answer} if {{ path {path} }}")
    lines += [f"acl a_replica path -m str {_path(replica)}" for replica in replicas]
    lines.append(deny(404, "There is no such path here.", "!a_replica" if replicas else "TRUE"))
    return [*lines, *([f"default_backend {BACKEND}"] if replicas else [])]


def _backend(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> list[str]:
    key = f'set-header Authorization "Bearer %[str(replica),map({folder}/{REPLICA_KEY})]"'
    return [
        f"backend {BACKEND}",
        # Each is asked whatever its state, or another one would answer in its place.
        "load-server-state-from-file none",
        "timeout server 60s",
        # The path is looked at before it becomes another one.
        "http-request set-var(txn.replica) path,field(3,/)",
        "http-request set-path /metrics",
        f"http-request {key if settings.replica_key else 'del-header Authorization'}",
        "use-server %[var(txn.replica)] if TRUE",
        *(f"server {replica.server()} {authority(replica.address, replica.port)}" for replica in replicas),
    ]


def _path(replica: Replica) -> str:
    return f"/replicas/{replica.server()}/metrics"


def _parts(settings: RouterSettings, replicas: Sequence[Replica]) -> dict[str, list[str]]:
    """Return the entries of the list by the files that have them: as many as fit into one buffer of HAProxy."""
    room = settings.buffer_bytes - RESERVE
    parts: list[list[str]] = [[]]
    left = room
    for entry in [_entry(), *(_entry(replica) for replica in replicas)]:
        length = len(entry) + LONGEST_ADDRESS
        if length > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(entry)
        left -= length
    return {TARGETS if number == 1 else f"{number}-{TARGETS}": part for number, part in enumerate(parts, 1)}


def _entry(replica: Replica | None = None) -> str:
    """Return what the list says of a replica, or of HAProxy itself."""
    labels = {"__metrics_path__": "/metrics", "job": "gpufleet-router"}
    if replica:
        labels = {"__metrics_path__": _path(replica), "job": "vllm", "host": replica.host, "replica": replica.name}
        models = vars(replica).get("models") or []
        if models:
            labels["model"] = ",".join(models).replace("%", "%%")
    return json.dumps({"targets": [ASKED], "labels": labels})


def _as_list(entries: Sequence[str]) -> str:
    return "[" + ",\n".join(entries) + "]\n"
