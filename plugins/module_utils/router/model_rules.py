# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules by which HAProxy finds a request's model, and a body that is too long for its buffer gets one.

HAProxy sees of a body what its buffer holds, and clients write a model behind the messages. So what has no model in
its first part goes over a second HAProxy, the reader, whose buffers hold a whole request: it notes the model in a
header and hands the request back. Both ways are sockets that only HAProxy may use.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.balance_rules import hash_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import client_models, identity_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    INNER,
    MODELS,
    MODELS_MAP,
    OWN_HEADERS,
    READER,
    READER_CONFIG,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import Limits
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import (
    UNNAMED,
    Route,
    all_named,
    has_several,
    names_shown,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny, openai_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

MODEL_HEADER = f"{OWN_HEADERS}model"
BODY_TIMEOUT_S = 60
# The largest model's name that an answer shows.
SHOWN = 200
# Room for what stands before a body in the reader's buffers.
HEAD_BYTES = 131072
SLOWEST_BYTES_S = 131072
OVERLAP_S = 5
# Each is looked for in a whole body.
MOST_ESCAPED = 8


def find_model(found: Sequence[Route]) -> list[str]:
    """Return the rules that find a request's model in what HAProxy has of its body.

    Clients of PHP write the slash of a name with a backslash, which HAProxy's reading of JSON does not know. Nothing
    but a key has quotes that are not escaped, so that no text of a prompt is taken for one.
    """
    missing = "if METH_POST !{ var(txn.model) -m found }"
    names = sorted(name for route in found for name in route.names if "/" in name)[:MOST_ESCAPED]
    escaped = [(name, name.replace("/", "\\\\/")) for name in names]
    return [
        "http-request set-var(txn.model) \"req.body,json_query('\\$.model')\" if METH_POST",
        *(
            f"http-request set-var(txn.model) str({name}) {missing}"
            f' {{ req.body -m sub \\"model\\":\\"{written}\\" \\"model\\":\\ \\"{written}\\" }}'
            for name, written in escaped
            if not re.search(r"[(),]", name)
        ),
    ]


def list_rules(folder: str, backend: str) -> list[str]:
    """Return the rule that answers with the list of models, as long as there is a replica to ask."""
    return [
        f"http-request return status 200 content-type application/json file {folder}/{MODELS}"
        f" if METH_GET {{ path /v1/models }} {{ nbsrv({backend}) gt 0 }}"
    ]


def model_rules(settings: RouterSettings, found: Sequence[Route], folder: str) -> list[str]:
    """Return the rules of the frontend for clients: wait for the body, find its model, and choose a backend."""
    lines = [f"http-request wait-for-body time {BODY_TIMEOUT_S}s if METH_POST", *find_model(found)]
    lines += [f"http-request set-var(txn.backend) var(txn.model),map({folder}/{MODELS_MAP})", *_unknown(found)]
    if settings.clients:
        # What the reader has to find is looked at where it hands the request back.
        lines += client_models(folder, readable=has_several(found))
    if has_several(found):
        # What HAProxy has seen of the body is not all of it.
        lines += [
            "http-request set-var(txn.seen) req.body_len",
            "acl is_cut req.body_size,sub(txn.seen) gt 0",
            f"acl is_cut req.body_len ge {settings.buffer_bytes // 2}",
            _nameless(found, "METH_POST !{ var(txn.model) -m found } !is_cut"),
            # The others come back.
            *hash_rules(settings, "{ var(txn.model) -m found }"),
            f"use_backend {READER} if METH_POST !{{ var(txn.model) -m found }}",
        ]
    else:
        lines += hash_rules(settings)
    return [*lines, "use_backend %[var(txn.backend)] if { var(txn.backend) -m found }"]


def _unknown(found: Sequence[Route]) -> list[str]:
    """Return the rule for models that no replica serves."""
    condition = "{ var(txn.model) -m found } !{ var(txn.backend) -m found }"
    if not all_named(found):
        # Of some replicas no names are known: they may have it.
        return [f"http-request set-var(txn.backend) str({UNNAMED}) if {condition}"] if has_several(found) else []
    named = f"%[var(txn.model),bytes(0,{SHOWN}),json(utf8s)]"
    text = openai_error(404, f"There is no model MODEL here. There are: {names_shown(found)}")
    text = text.replace("%", "%%").replace("MODEL", named, 1)
    return [f"http-request return status 404 content-type application/json lf-string '{text}' if {condition}"]


def _nameless(found: Sequence[Route], condition: str) -> str:
    message = f'A request has to name its model as "model". There are: {names_shown(found)}'
    return deny(400, message, condition)


def reader_backend(settings: RouterSettings, limit: Limits) -> list[str]:
    """Return the backend that hands a request to the reader."""
    most, message = settings.large_requests, "Too many large requests are arriving. Try again later."
    return [
        f"backend {READER}",
        # Those that it reads now, without those that it has handed back.
        f"http-request set-var(txn.handed_back) fe_conn({INNER})",
        deny(
            503,
            message,
            f"{{ be_conn({READER}),sub(txn.handed_back) gt {most} }}",
            " hdr Retry-After 1",
        ),
        "retries 3",
        f"http-response set-var(txn.model) res.hdr({MODEL_HEADER}),b64dec",
        f"http-response set-var(txn.replica) res.hdr({OWN_HEADERS}replica)",
        f"http-response del-header {OWN_HEADERS} -m beg",
        f"server reader unix@{socket_path(settings, READER, bound=False)} maxconn {limit.large}",
    ]


def inner_frontend(settings: RouterSettings, found: Sequence[Route], folder: str) -> list[str]:
    """Return the frontend to which the reader hands requests back."""
    return [
        f"frontend {INNER}",
        f"bind unix@{socket_path(settings, INNER)} mode 600 user {settings.user}",
        # So that its connections are the requests that it has.
        "option http-server-close",
        "timeout http-keep-alive 1s",
        f"http-request set-var(txn.model) req.hdr({MODEL_HEADER}),b64dec",
        f"http-request set-var(txn.backend) var(txn.model),map({folder}/{MODELS_MAP})",
        f"http-request del-header {OWN_HEADERS} -m beg",
        _nameless(found, "!{ var(txn.model) -m found }"),
        *_unknown(found),
        *([*identity_rules(folder), *client_models(folder, readable=True)] if settings.clients else []),
        *hash_rules(settings),
        f"http-response set-header {MODEL_HEADER} %[var(txn.model),base64]",
        f"http-response set-header {OWN_HEADERS}replica %[var(txn.replica)]",
        "use_backend %[var(txn.backend)]",
    ]


def reader_config(settings: RouterSettings, found: Sequence[Route], limit: Limits) -> list[list[str]]:
    """Return the sections of the reader's configuration."""
    seconds = max(BODY_TIMEOUT_S, settings.max_request_bytes // SLOWEST_BYTES_S)
    return [
        [
            "global",
            f"user {settings.user}",
            f"group {settings.user}",
            "log stdout format raw local0",
            f"maxconn {limit.large}",
            f"hard-stop-after {settings.timeout}s",
            f"tune.bufsize {settings.max_request_bytes + HEAD_BYTES}",
            *([f"chroot {settings.chroot}"] if settings.chroot else []),
        ],
        [
            "defaults",
            "mode http",
            "log global",
            "option httplog",
            "option dontlog-normal",
            "option abortonclose",
            "timeout connect 3s",
            f"timeout http-request {seconds}s",
            "timeout queue 60s",
            f"timeout client {settings.timeout}s",
            f"timeout server {settings.timeout}s",
        ],
        [
            f"frontend {READER}",
            f"bind unix@{socket_path(settings, READER)} mode 600 user {settings.user}",
            f"http-request wait-for-body time {seconds}s if METH_POST",
            *find_model(found),
            # In letters that no header can be made of.
            f"http-request set-header {MODEL_HEADER} %[var(txn.model),base64] if {{ var(txn.model) -m found }}",
            f"default_backend {INNER}",
        ],
        [
            f"backend {INNER}",
            "option http-server-close",
            "http-reuse never",
            "retries 3",
            f"server router unix@{socket_path(settings, INNER, bound=False)}",
        ],
    ]


def reader_program(settings: RouterSettings, folder: str) -> list[str]:
    """Return the section that lets HAProxy's master run the reader.

    At a reload the master tells the old one to stop as it starts the new one. The shell passes that on once the new one
    has taken the socket over, so that there always is one that listens. One that dies is started again, and does not
    take the router with it.
    """
    shell = (
        f'stop=; trap "stop=1; (sleep {OVERLAP_S}; kill -USR1 \\$pid 2>/dev/null) &" USR1;'
        ' trap "stop=1; kill \\$pid" TERM INT;'
        f" while :; do {settings.program} -db -f {folder}/{READER_CONFIG} & pid=$!;"
        " while :; do wait $pid; code=$?; kill -0 $pid 2>/dev/null || break; done;"
        ' test -z "$stop" || exit $code; sleep 1; done'
    )
    return [f"program {READER}", f"command /bin/sh -c '{shell}'"]


def socket_path(settings: RouterSettings, name: str, *, bound: bool = True) -> str:
    """Return where one HAProxy reaches the other, as who binds it sees it, or who connects from inside the chroot."""
    if not settings.chroot:
        return f"{settings.run_dir}/{name}.sock"
    # One chroot has the sockets of all routers of a host.
    router = hashlib.sha256(settings.run_dir.encode()).hexdigest()[:8]
    return f"{settings.chroot if bound else ''}/gpufleet-{router}-{name}.sock"


def sockets_in(text: str) -> list[str]:
    """Return the sockets that a configuration has; a HAProxy that is locked in leaves them behind."""
    return re.findall(r"^ *bind unix@(\S+)", text, re.MULTILINE)
