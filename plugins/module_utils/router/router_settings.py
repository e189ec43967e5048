# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the router is to do, besides where the replicas are, and what of it would be unsafe or no configuration."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import MODEL_NAME
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.browsers import origin_problems
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import Client, read_clients
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import (
    ADDRESS,
    ENDPOINT,
    SERVER_NAME,
    Replica,
)

AUTO = "auto"
LIMITS = (
    "max_connections",
    "max_connections_per_address",
    "max_requests_per_replica",
    "max_queue",
    "max_requests_per_key",
)
LISTS = ("endpoints", "operators", "trusted_proxies", "cors_origins")
HEADER = re.compile(r"[A-Za-z0-9-]+")


@dataclass(frozen=True)
class RouterSettings:
    """What the router does, besides where the replicas are.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        tls: whether clients must speak TLS.
        keys: keys of clients without a name; empty, where there are no clients with one either, lets in everyone.
        clients: clients with a name, and what each may do.
        replica_key: key with which the replicas are asked; empty sends none.
        endpoints: paths that pass.
        max_request_bytes: largest body of a request.
        balance: leastconn, prefix or session: what chooses among the replicas.
        balance_factor: how much more than its share a replica may have before the next one is taken, in percent.
        session_header: of a request, names its session.
        rate_limit: requests of one key (or, without keys, of one address) in ten seconds; 0 for no limit.
        max_connections: connections of clients at once. Of this and the next four, None is what the plans say.
        max_connections_per_address: of them, of one address; 0 for no limit.
        max_requests_per_replica: requests at one replica at once, beyond which they wait here; 0 for no limit.
        max_queue: requests that wait at once for the replicas of a model; 0 for none.
        max_requests_per_key: requests of one key at once; 0 for no limit.
        requests_factor: how many requests a replica gets for each that its cache holds.
        connection_rate: new connections of one address in ten seconds; 0 for no limit.
        operators: addresses and networks that no limit shuts out.
        large_requests: requests beyond the buffer that are read at once to find their models.
        buffer_bytes: a request up to this size can be sent again when a replica dies.
        timeout: seconds for which an answer may be silent.
        check_interval_ms: between two health checks of a replica.
        access_log: file of the log of requests; empty for none.
        access_log_max_bytes: size at which it is rotated; it is each day, too.
        access_log_files: rotated files that are kept.
        access_log_days: days for which they are kept.
        count_tokens: whether to log how many tokens an answer took.
        run_dir: folder of the sockets.
        state_dir: folder of what has to outlive a reboot.
        metrics_host: address of the listener for monitoring.
        metrics_port: its port; 0 for none.
        metrics_token: the key of those who ask there; empty lets in everyone.
        proxy_protocol: whether connections begin with the header of the PROXY protocol.
        trusted_proxies: networks of load balancers whose word for the address of a client counts.
        user: HAProxy's own user and group.
        chroot: folder HAProxy locks itself into; empty for none.
        cors_origins: origins whose pages may ask from a browser; `*` for all.
    """

    host: str
    port: int
    tls: bool
    keys: tuple[str, ...]
    clients: tuple[Client, ...]
    replica_key: str
    endpoints: tuple[str, ...]
    max_request_bytes: int
    balance: str
    balance_factor: int
    session_header: str
    rate_limit: int
    max_connections: int | None
    max_connections_per_address: int | None
    max_requests_per_replica: int | None
    max_queue: int | None
    max_requests_per_key: int | None
    requests_factor: float
    connection_rate: int
    operators: tuple[str, ...]
    large_requests: int
    buffer_bytes: int
    timeout: int
    check_interval_ms: int
    access_log: str
    access_log_max_bytes: int
    access_log_files: int
    access_log_days: int
    count_tokens: bool
    run_dir: str
    state_dir: str
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    metrics_token: str = ""
    proxy_protocol: bool = False
    trusted_proxies: tuple[str, ...] = ()
    user: str = "haproxy"
    chroot: str = ""
    cors_origins: tuple[str, ...] = ()

    def wants_key(self) -> bool:
        """Return whether a request needs a key."""
        return bool(self.keys or self.clients)


def check_settings(settings: RouterSettings, replicas: Sequence[Replica], allow_unauthenticated: bool) -> None:
    """Refuse what would be unsafe, or would not be a configuration.

    Raises:
        GpufleetError: C(invalid-router), naming every problem at once.
    """
    problems = [
        *_unsafe(settings, allow_unauthenticated),
        *_unsafe_metrics(settings),
        *_wrong_proxies(settings),
        *_log_problems(settings),
        *origin_problems(settings.cors_origins),
    ]
    problems += [
        f"router_endpoints: {path!r} is not a path such as /v1/completions"
        for path in settings.endpoints
        if not ENDPOINT.fullmatch(path)
    ]
    if not HEADER.fullmatch(settings.session_header):
        problems.append(f"router_session_header: {settings.session_header!r} is no name of a header")
    if settings.balance_factor <= 100:
        problems.append(f"router_balance_factor: {settings.balance_factor} is not above 100, a replica's own share")
    if settings.max_connections is not None and settings.max_connections < 1:
        problems.append("router_max_connections: 0 would let in no one")
    if not settings.requests_factor >= 1:
        problems.append(
            f"router_requests_factor: {settings.requests_factor} would leave room in a cache unused; 1 or more"
        )
    problems += [
        f"router_operators: {one!r} is no address or network" for one in settings.operators if not _is_net(one)
    ]
    if not settings.endpoints:
        problems.append("router_endpoints: is empty, so nothing could pass; leave it at its default")
    for key in (*settings.keys, settings.replica_key):
        if re.search(r"[\s\x00-\x1f\x7f]", key):
            problems.append("router_api_keys or vllm_api_key: a key has white space in it, which no header can carry")
    if re.search(r"[\s\x00-\x1f\x7f]", settings.metrics_token):
        problems.append("router_metrics_token: it has white space in it, which no header can carry")
    problems += _replica_problems(replicas)
    if problems:
        raise invalid_router(problems)


def _replica_problems(replicas: Sequence[Replica]) -> Iterable[str]:
    """Yield what of the replicas cannot stand in the configuration."""
    for replica in replicas:
        if not SERVER_NAME.fullmatch(replica.server()):
            yield f"{replica.server()}: HAProxy's names have letters, digits and _ . : - alone; rename the host"
        if not ADDRESS.fullmatch(replica.address):
            yield f"vllm_router_address: {replica.address!r} of {replica.host} is neither name nor address"
        for name in replica.models:
            if not MODEL_NAME.fullmatch(name):
                yield f"vllm_served_model_name: {name!r} of {replica.host} has white space, quotes or backslashes in it"


def invalid_router(problems: list[str]) -> GpufleetError:
    """Return the error that names every problem of the router's variables."""
    return GpufleetError(
        "The router cannot be had like this:\n" + "\n".join(f"  - {problem}" for problem in problems),
        name="invalid-router",
        remedy="Set the variables as said above; ansible-doc -t role gpufleet.vllm.router lists them.",
        details={"problems": problems},
    )


def clients_in(value: Any) -> tuple[Client, ...]:
    """Return the clients in a value of `router_clients`.

    Raises:
        GpufleetError: C(invalid-router), naming every problem at once.
    """
    clients, problems = read_clients(value)
    if problems:
        raise invalid_router(problems)
    return clients


def _is_net(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _unsafe(settings: RouterSettings, allow_unauthenticated: bool) -> Iterable[str]:
    if is_loopback(settings.host):
        return
    if not settings.wants_key() and not allow_unauthenticated:
        yield (
            f"router_host: {settings.host} lets other machines in, and there is no key; set vllm_api_key,"
            " router_api_keys or router_clients, set router_host: 127.0.0.1, or say vllm_allow_unauthenticated: true"
        )
    if not settings.tls and not settings.trusted_proxies:
        yield (
            f"router_tls: false on router_host: {settings.host} would send keys and prompts in the clear; leave it at"
            " true, set router_host: 127.0.0.1, or, where a load balancer before it ends TLS, list its addresses in"
            " router_trusted_proxies, from which alone connections are taken then"
        )


def _unsafe_metrics(settings: RouterSettings) -> Iterable[str]:
    if not settings.metrics_port or is_loopback(settings.metrics_host):
        return
    if not settings.metrics_token:
        yield (
            f"router_metrics_host: {settings.metrics_host} lets other machines in, and there is no"
            " router_metrics_token; set one, or set router_metrics_host: 127.0.0.1"
        )
    if not settings.tls:
        yield (
            f"router_metrics_host: {settings.metrics_host} would send router_metrics_token in the clear, as router_tls"
            " is false; set router_metrics_host: 127.0.0.1"
        )


def _wrong_proxies(settings: RouterSettings) -> Iterable[str]:
    for network in settings.trusted_proxies:
        try:
            everyone = ipaddress.ip_network(network, strict=False).prefixlen == 0
        except ValueError:
            yield f"router_trusted_proxies: {network!r} is neither address nor network such as 10.0.0.0/24"
            continue
        if everyone:
            yield f"router_trusted_proxies: {network} is everyone; list the addresses of the load balancers"
    if settings.proxy_protocol and not settings.trusted_proxies and not is_loopback(settings.host):
        yield (
            "router_proxy_protocol: true has whoever connects say which address he has; list the load balancers'"
            " addresses in router_trusted_proxies, from which alone connections are taken then"
        )


def _log_problems(settings: RouterSettings) -> list[str]:
    """Return what is wrong with the variables of the log."""
    problems = []
    path = settings.access_log
    if path and (not os.path.isabs(path) or path.endswith("/") or any(sign.isspace() for sign in path)):
        problems.append(
            f"router_access_log: {path!r} must be an absolute path of a file, without white space, or empty"
        )
    for name in ("max_bytes", "files", "days"):
        if getattr(settings, f"access_log_{name}") < 1:
            problems.append(f"router_access_log_{name}: must be 1 or more; to have no log set router_access_log to ''")
    return problems


def as_settings(params: Mapping[str, Any], chroot: str, replica_key: str) -> RouterSettings:
    """Return the settings in the options of the module router_server.

    Raises:
        GpufleetError: C(invalid-router) for clients that cannot be read, or a limit that is neither number nor C(auto).
    """
    keys = tuple(dict.fromkeys(str(key) for key in params["api_keys"] if key))
    own = {"keys", "clients", "chroot", "user", "replica_key", *LISTS, *LIMITS}
    given = {name: params[name] for name in set(RouterSettings.__dataclass_fields__) - own}
    given.update({name: tuple(params[name]) for name in LISTS})
    given.update({name: _limit(name, params[name]) for name in LIMITS})
    return RouterSettings(
        keys=keys,
        clients=clients_in(params["clients"]),
        replica_key=replica_key,
        chroot=chroot,
        user=params["user"],
        **given,
    )


def _limit(name: str, value: Any) -> int | None:
    text = str(value).strip()
    if text == AUTO:
        return None
    if not re.fullmatch(r"\d{1,9}", text):
        raise GpufleetError(
            f"router_{name}: {text!r} is neither a number nor auto.",
            name="invalid-router",
            remedy=f"Set router_{name} to a number, or leave it at auto.",
            details={"problems": [f"router_{name}"]},
        )
    return int(text)
