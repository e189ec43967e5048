# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules by which HAProxy finds a request's model, and tells what goes over the reader.

HAProxy sees of a body what its buffer holds, and clients write a model behind the messages. So what has no model in
its first part goes over a second HAProxy, the reader (`reader_config.py`). So does a longer body that comes without its
length, as it may be too long, and one of a client that is kept to some models, as it may name another one further on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import clients
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.balance_rules import hash_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    MODELS,
    MODELS_MAP,
    OWN_HEADERS,
    READER,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import (
    UNNAMED,
    Route,
    all_named,
    has_several,
    names_shown,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny, openai_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.request_forms import KNOWN_LENGTH, unknown_length
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

MODEL_HEADER = f"{OWN_HEADERS}model"
# Tells the reader that the client is kept to some models.
ONCE_HEADER = f"{OWN_HEADERS}once"
CHOSEN = "use_backend %[var(txn.backend)] if { var(txn.backend) -m found }"
BODY_TIMEOUT_S = 60
# The largest model's name that an answer shows.
SHOWN = 200
# Each is looked for in a whole body.
MOST_ESCAPED = 8
# A model as Python reads it, with or without escapes; no text of a prompt has quotes that are not escaped.
KEY = r'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"\s*:\s*["n]'
# The model in a form, as of a transcription. Its audio goes before or after it.
FORMS = "path_beg /v1/audio/"
TWICE = f"{KEY}.*{KEY}"
FIELD = r'name="model"[^\r\n]*(?:\r\n[^\r\n]+)*\r\n\r\n([^\r\n]{1,256})\r\n'


def find_model(found: Sequence[Route]) -> list[str]:
    """Return the rules that find a request's model in what HAProxy has of its body.

    Clients of PHP write the slash of a name with a backslash, which HAProxy's reading of JSON does not know. Nothing
    but a key has quotes that are not escaped, so that no text of a prompt is taken for one.
    """
    missing = "METH_POST !{ var(txn.model) -m found }"
    names = sorted(name for route in found for name in route.names if "/" in name)[:MOST_ESCAPED]
    escaped = [(name, name.replace("/", "\\\\/")) for name in names]
    return [
        "http-request set-var(txn.model) \"req.body,json_query('\\$.model')\" if METH_POST",
        *(_find_in_form(missing) if has_several(found) else []),
        *(
            f"http-request set-var(txn.model) str({name}) if {missing} !{{ var(txn.cut) -m bool }}"
            f' {{ req.body -m sub \\"model\\":\\"{written}\\" \\"model\\":\\ \\"{written}\\" }}'
            for name, written in escaped
            if not re.search(r"[(),]", name)
        ),
    ]


def _find_in_form(missing: str) -> list[str]:
    """Return the rule that finds the model in a form."""
    pattern = f"(?s)^.*?{FIELD}.*$"
    for sign in ("\\", '"', "$"):
        pattern = pattern.replace(sign, f"\\{sign}")
    there = f"{{ {FORMS} }} {{ req.body -m reg '{FIELD}' }}"
    return [f"http-request set-var(txn.model) \"req.body,regsub('{pattern}','\\\\1')\" if {missing} {there}"]


def named_once(condition: str) -> list[str]:
    """Return the rules for clients that are kept to some models, and have to name theirs once.

    Of two, HAProxy would take the first and a server the last. In a form a name can be written in more ways.
    """
    return [
        deny(
            400,
            'This client has to name its model as "model", once.',
            f"{condition} {{ req.body -m reg '(?s){TWICE}' }}",
        ),
        deny(403, "This client may not use forms.", f"{condition} {{ {FORMS} }}"),
    ]


def list_rules(folder: str, backend: str) -> list[str]:
    """Return the rule that answers with the list of models, as long as there is a replica to ask."""
    return [
        f"http-request return status 200 content-type application/json file {folder}/{MODELS}"
        f" if METH_GET {{ path /v1/models }} {{ nbsrv({backend}) gt 0 }}"
    ]


def model_rules(settings: RouterSettings, found: Sequence[Route], folder: str) -> list[str]:
    """Return the rules of the frontend for clients: wait for the body, find its model, and choose a backend."""
    unsized, restricted = f"!{{ {KNOWN_LENGTH} }}", "{ var(txn.models) -m found }"
    several, kept = has_several(found), any(client.models for client in settings.clients)
    unread = "METH_POST !{ var(txn.model) -m found }"
    lines = [
        f"http-request wait-for-body time {BODY_TIMEOUT_S}s if METH_POST or {unsized}",
        # What HAProxy has seen of the body is not all of it, or need not be.
        "http-request set-var(txn.seen) req.body_len",
        "http-request set-var(txn.cut) bool(true) if { req.body_size,sub(txn.seen) gt 0 }",
        f"http-request set-var(txn.cut) bool(true) if {unsized} {{ req.body_len ge {unknown_length(settings)} }}",
        "acl is_cut var(txn.cut) -m bool",
        *find_model(found),
        f"http-request set-var(txn.backend) var(txn.model),map({folder}/{MODELS_MAP})",
        *unknown(found),
        *([nameless(found, f"{unread} !is_cut")] if several else []),
    ]
    if settings.clients:
        lines += clients.client_models(folder, unless_cut="!is_cut")
    if kept:
        lines += [
            *named_once(f"{restricted} !is_cut"),
            f"http-request set-header {ONCE_HEADER} 1 if {restricted} is_cut",
        ]
    return [
        *lines,
        # The others come back.
        *hash_rules(settings, "{ var(txn.model) -m found }" if several else ""),
        f"use_backend {READER} if is_cut {unsized}",
        *([f"use_backend {READER} if is_cut {unread}"] if several else []),
        *([f"use_backend {READER} if is_cut {restricted}"] if kept else []),
        CHOSEN,
    ]


def unknown(found: Sequence[Route]) -> list[str]:
    """Return the rule for models that no replica serves."""
    condition = "{ var(txn.model) -m found } !{ var(txn.backend) -m found }"
    if not all_named(found):
        # Of some replicas no names are known: they may have it.
        return [f"http-request set-var(txn.backend) str({UNNAMED}) if {condition}"] if has_several(found) else []
    named = f"%[var(txn.model),bytes(0,{SHOWN}),json(utf8s)]"
    text = openai_error(404, f"There is no model MODEL here. There are: {names_shown(found)}")
    text = text.replace("%", "%%").replace("MODEL", named, 1)
    return [f"http-request return status 404 content-type application/json lf-string '{text}' if {condition}"]


def nameless(found: Sequence[Route], condition: str) -> str:
    message = f'A request has to name its model as "model". There are: {names_shown(found)}'
    return deny(400, message, condition)
