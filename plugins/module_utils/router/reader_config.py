# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader, a second HAProxy whose buffers hold a whole request, and how the first one and it hand requests on.

It gets what has to be seen as a whole and does not fit the first one's buffer: it finds the model, notes it in a header
and hands the request back. Both ways are sockets that only HAProxy may use.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import clients, too_large
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.balance_rules import hash_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    BACKEND,
    INNER,
    MODELS_MAP,
    OWN_HEADERS,
    READER,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.global_config import reader_defaults
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import Limits
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import Route, has_several
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_rules import (
    BODY_TIMEOUT_S,
    CHOSEN,
    MODEL_HEADER,
    ONCE_HEADER,
    find_model,
    named_once,
    nameless,
    unknown,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

# Room for what stands before a body in the reader's buffers.
HEAD_BYTES = 131072
SLOWEST_BYTES_S = 131072


def reader_backend(settings: RouterSettings, limit: Limits) -> list[str]:
    """Return the backend that hands a request to the reader."""
    most, message = settings.large_requests, "Too many large requests are arriving. Try again later."
    # Those that it reads now, without those that it has handed back.
    arriving = f"be_conn({READER}),sub(txn.handed_back)"
    return [
        f"backend {READER}",
        f"http-request set-var(txn.handed_back) fe_conn({INNER})",
        deny(503, message, f"{{ {arriving} gt {most} }}", " hdr Retry-After 1"),
        "retries 3",
        *too_large.honest_502(settings),
        f"http-response set-var(txn.model) res.hdr({MODEL_HEADER}),b64dec",
        f"http-response set-var(txn.replica) res.hdr({OWN_HEADERS}replica)",
        f"http-response set-var(txn.handed_back) fe_conn({INNER})",
        too_large.cut_short(settings, f"{{ {arriving} gt {most // 2} }}"),
        f"http-response del-header {OWN_HEADERS} -m beg",
        f"server reader unix@{socket_path(settings, READER, bound=False)} maxconn {limit.large}",
    ]


def inner_frontend(settings: RouterSettings, found: Sequence[Route], folder: str) -> list[str]:
    """Return the frontend to which the reader hands requests back."""
    hashed = hash_rules(settings)
    return [
        f"frontend {INNER}",
        # With HTTP/2 an answer that is given before the whole body has come, as by a full backend, is not lost.
        f"bind unix@{socket_path(settings, INNER)} mode 600 user {settings.user} proto h2",
        # So that its connections are the requests that it has.
        "option http-server-close",
        "timeout http-keep-alive 1s",
        f"http-request set-var(txn.model) req.hdr({MODEL_HEADER}),b64dec",
        f"http-request set-var(txn.backend) var(txn.model),map({folder}/{MODELS_MAP})",
        f"http-request del-header {OWN_HEADERS} -m beg",
        *([nameless(found, "!{ var(txn.model) -m found }")] if has_several(found) else []),
        *unknown(found),
        *([*clients.identity_rules(folder), *clients.client_models(folder)] if settings.clients else []),
        # The hash is of what the buffer holds, whatever of it has arrived at first.
        *([f"http-request wait-for-body time {BODY_TIMEOUT_S}s if METH_POST", *hashed] if hashed else []),
        f"http-response set-header {MODEL_HEADER} %[var(txn.model),base64]",
        f"http-response set-header {OWN_HEADERS}replica %[var(txn.replica)]",
        CHOSEN,
        f"default_backend {BACKEND}",
    ]


def reader_config(settings: RouterSettings, found: Sequence[Route], limit: Limits, folder: str) -> list[list[str]]:
    """Return the sections of the reader's configuration."""
    most = settings.max_request_bytes
    seconds = max(BODY_TIMEOUT_S, most // SLOWEST_BYTES_S)
    return [
        [
            "global",
            f"user {settings.user}",
            f"group {settings.user}",
            "log stdout format raw local0",
            f"maxconn {limit.large}",
            f"hard-stop-after {settings.timeout}s",
            f"tune.bufsize {most + HEAD_BYTES}",
            # The default is the size of a buffer, and HTTP/2 has less.
            "tune.h2.max-frame-size 16384",
            *too_large.load_lines(folder),
            *([f"chroot {settings.chroot}"] if settings.chroot else []),
        ],
        reader_defaults(settings, folder, seconds),
        [
            f"frontend {READER}",
            f"bind unix@{socket_path(settings, READER)} mode 600 user {settings.user}",
            # The connection on which a request was handed back ends with this one, and is counted as long as it lives.
            "option httpclose",
            f"http-request wait-for-body time {seconds}s at-least {most + 1}",
            *too_large.refusal(settings, f"{{ req.body_len gt {most} }}"),
            *named_once(f"{{ req.hdr({ONCE_HEADER}) -m found }}"),
            *find_model(found),
            *([nameless(found, "!{ var(txn.model) -m found }")] if has_several(found) else []),
            f"http-request set-var(txn.backend) var(txn.model),map({folder}/{MODELS_MAP})",
            *unknown(found),
            # In letters that no header can be made of.
            f"http-request set-header {MODEL_HEADER} %[var(txn.model),base64] if {{ var(txn.model) -m found }}",
            f"default_backend {INNER}",
        ],
        [
            f"backend {INNER}",
            "option http-server-close",
            "http-reuse never",
            "retries 3",
            f"server router unix@{socket_path(settings, INNER, bound=False)} proto h2",
        ],
    ]


def socket_path(settings: RouterSettings, name: str, *, bound: bool = True) -> str:
    """Return where one HAProxy reaches the other, as who binds it sees it, or who connects from inside the chroot."""
    if not settings.chroot:
        return f"{settings.run_dir}/{name}.sock"
    # One chroot has the sockets of all routers of a host.
    router = hashlib.sha256(settings.run_dir.encode()).hexdigest()[:8]
    return f"{settings.chroot if bound else ''}/gpufleet-{router}-{name}.sock"


def sockets_in(text: str) -> list[str]:
    """Return the sockets of a reader's configuration, on both ways; a HAProxy that is locked in leaves them behind."""
    bound = re.findall(r"^ *bind unix@(\S+)", text, re.MULTILINE)
    return [path.replace(f"{READER}.sock", f"{name}.sock") for path in bound for name in (READER, INNER)]
