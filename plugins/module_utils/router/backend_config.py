# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend of HAProxy's configuration: the replicas, their health checks, and what is sent to which of them."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import access_log
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import BACKEND, REPLICA_KEY
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings


def replicas_backend(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> list[str]:
    interval = settings.check_interval_ms
    limit = f" maxconn {settings.max_requests_per_replica}" if settings.max_requests_per_replica else ""
    replica_key = f'"Bearer %[str(replica),map({folder}/{REPLICA_KEY})]"' if settings.replica_key else ""
    lines = [
        f"backend {BACKEND}",
        "balance leastconn",
        *access_log.backend_lines(settings),
        "option httpchk",
        # With the key, so that a server that does not take it gets no request.
        f"http-check send meth GET uri /health{f' hdr Authorization {replica_key}' if replica_key else ''}",
        "http-check expect status 200",
        # Sent again, elsewhere: what found no connection, what a dying replica had answered nothing to, and what one
        # turned away that is about to stop. For that a request must be here whole. (In the frontend this would have the
        # rules wait for the body.)
        "option http-buffer-request",
        "option redispatch 1",
        "retries 3",
        "retry-on conn-failure empty-response 503",
    ]
    if replica_key:
        lines.append(f"http-request set-header Authorization {replica_key}")
    elif settings.wants_key():
        lines.append("http-request del-header Authorization")
    # A name that has another address now is followed; the last known one serves where names cannot be resolved.
    # One failed connection takes a replica out; two passed checks take it back.
    checks = f"inter {interval}ms fastinter {max(interval // 4, 100)}ms downinter {max(interval // 2, 100)}ms"
    lines.append(
        f"default-server check {checks} fall 2 rise 2 observe layer4 error-limit 1 on-error mark-down"
        f" pool-purge-delay 2s init-addr libc,last,none{limit}"
    )
    lines += [f"server {replica.server()} {_at(replica)}" for replica in replicas]
    return lines


def _at(replica: Replica) -> str:
    return authority(replica.address, replica.port)
