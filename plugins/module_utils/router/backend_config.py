# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend of HAProxy's configuration: the replicas, their health checks, and what is sent to which of them."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import access_log
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.balance_rules import balance_lines, server_words
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import BACKEND, REPLICA_KEY
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import queue_limit, room
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import Route
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

# Seconds after which a client may try again.
BUSY_S = 5
PLACES = "pool-purge-delay 2s init-addr libc,last,none"


def replicas_backend(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> list[str]:
    """Return the backend that has every replica, and looks after their health."""
    interval = settings.check_interval_ms
    asked = f" hdr Authorization {_key(folder)}" if settings.replica_key else ""
    # A name that has another address now is followed; the last known one serves where names cannot be resolved.
    # One failed connection takes a replica out; two passed checks take it back.
    checks = f"inter {interval}ms fastinter {max(interval // 4, 100)}ms downinter {max(interval // 2, 100)}ms"
    words = server_words(settings, replicas)
    return [
        f"backend {BACKEND}",
        "option httpchk",
        # With the key, so that a server that does not take it gets no request.
        f"http-check send meth GET uri /health{asked}",
        "http-check expect status 200",
        *_requests(settings, folder, BACKEND, replicas),
        f"default-server check {checks} fall 2 rise 2 observe layer4 error-limit 1 on-error mark-down {PLACES}",
        *(f"server {replica.server()} {_at(replica)}{words[replica.server()]}" for replica in replicas),
    ]


def model_backend(settings: RouterSettings, route: Route, folder: str) -> list[str]:
    """Return the backend of the replicas that serve some models; their health and drains are those of the first one."""
    words = server_words(settings, route.replicas)
    return [
        f"backend {route.backend}",
        *_requests(settings, folder, route.backend, route.replicas),
        f"default-server {PLACES}",
        *(
            f"server {replica.server()} {_at(replica)} track {BACKEND}/{replica.server()}{words[replica.server()]}"
            for replica in route.replicas
        ),
    ]


def _requests(settings: RouterSettings, folder: str, backend: str, replicas: Sequence[Replica]) -> list[str]:
    """Return what is done with a request that a backend has."""
    lines = [
        *balance_lines(settings),
        *access_log.backend_lines(settings),
        # Sent again, elsewhere: what found no connection, what a dying replica had answered nothing to, and what one
        # turned away that is about to stop. For that a request must be here whole.
        "option http-buffer-request",
        "option redispatch 1",
        "retries 3",
        "retry-on conn-failure empty-response 503",
        "http-response set-var(txn.replica) srv_name",
    ]
    if room(settings, replicas):
        message = "The servers have as much to do as they can. Try again later."
        full = f"{{ queue({backend}) ge {queue_limit(settings, replicas)} }}"
        # Without a queue, by what runs.
        full = full if queue_limit(settings, replicas) else f"{{ be_conn({backend}) gt {room(settings, replicas)} }}"
        lines.append(deny(503, message, full, f" hdr Retry-After {BUSY_S}"))
    if settings.replica_key:
        return [*lines, f"http-request set-header Authorization {_key(folder)}"]
    return [*lines, "http-request del-header Authorization"] if settings.wants_key() else lines


def _key(folder: str) -> str:
    return f'"Bearer %[str(replica),map({folder}/{REPLICA_KEY})]"'


def _at(replica: Replica) -> str:
    return authority(replica.address, replica.port)
