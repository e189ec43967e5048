# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of requests: one line of JSON each, which HAProxy sends to the program in `log_keeper.py`.

A line has names, numbers and an endpoint of `router_endpoints`. Of what a client wrote it has the model's name alone:
no key, prompt, address or query.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import log_keeper
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

KEEPER_PROGRAM = "log_keeper.py"
KEEPER_SETTINGS = "access_log.json"
SOCKET = "log.sock"
LINE_BYTES = 4096
MODEL_BYTES = 256
# Beside the body, the head of an answer has to fit the buffer, and what HAProxy keeps for rewriting it.
HEAD_BYTES = 5120
# Numbers are as they are, also where HAProxy has none (-1); a text that is not there is "-".
FIELDS = (
    ("time", "%Ts.%ms"),
    ("client", '"%[var(txn.client)]"'),
    ("model", f'"%[var(txn.model),bytes(0,{MODEL_BYTES}),json(utf8ps)]"'),
    ("method", '"%[method,json(utf8ps)]"'),
    ("endpoint", '"%[var(txn.endpoint)]"'),
    ("replica", '"%[var(txn.replica)]"'),
    ("status", "%ST"),
    ("bytes_in", "%U"),
    ("bytes_out", "%B"),
    ("queue_ms", "%Tw"),
    ("first_byte_ms", "%Tr"),
    ("total_ms", "%Ta"),
    ("tokens_in", '"%[var(txn.tokens_in)]"'),
    ("tokens_out", '"%[var(txn.tokens_out)]"'),
    ("end", '"%ts"'),
)
# Where completions, and where responses and messages, tell their tokens.
TOKENS = {"tokens_in": ("prompt_tokens", "input_tokens"), "tokens_out": ("completion_tokens", "output_tokens")}


def frontend_lines(settings: RouterSettings) -> list[str]:
    """Return the lines by which the frontend logs its requests; none without a log."""
    if not settings.access_log:
        return []
    line = "{" + ",".join(f'"{name}":{value}' for name, value in FIELDS) + "}"
    return [
        "no log",
        f"log {_socket(settings, seen_from_within=True)} len {LINE_BYTES} format raw local0",
        "no option dontlog-normal",
        f"log-format '{line}'",
        "",
    ]


def request_rules(settings: RouterSettings) -> list[str]:
    """Return the rules that keep of a request what its line needs; they come after the path is known to be allowed."""
    return ["http-request set-var(txn.endpoint) path"] if settings.access_log else []


def answer_rules(settings: RouterSettings) -> list[str]:
    """Return the rules that read how many tokens an answer took, where it tells and fits the buffer as a whole.

    A streamed answer has no Content-Length and is passed on as it comes.
    """
    if not (settings.access_log and settings.count_tokens):
        return []
    rules = [
        "acl whole_answer res.hdr_val(content-length) gt 0",
        f"acl small_answer res.hdr_val(content-length) le {max(settings.buffer_bytes - HEAD_BYTES, 1024)}",
        "acl json_answer res.hdr(content-type) -m beg application/json",
        "http-response wait-for-body time 10s if whole_answer small_answer json_answer",
    ]
    for name, (usual, other) in TOKENS.items():
        query = f"http-response set-var(txn.{name}) res.body,json_query('$.usage.{{}}','int') if json_answer"
        rules += [query.format(usual), f"{query.format(other)} !{{ var(txn.{name}) -m found }}"]
    return rules


def backend_lines(settings: RouterSettings) -> list[str]:
    """Return what the backend needs for that."""
    # A worker of HAProxy 2.6 that has waited for answers, and ends after a reload with connections to servers kept for
    # later, ends by a segmentation fault: after its last request, yet the system's log tells of a crash.
    return ["http-reuse never"] if answer_rules(settings) else []


def keeper_files(settings: RouterSettings) -> dict[str, str]:
    """Return the files of the program that writes the log, name to text; empty ones without a log."""
    if not settings.access_log:
        return {KEEPER_PROGRAM: "", KEEPER_SETTINGS: ""}
    wanted = {
        "socket": _socket(settings, seen_from_within=False),
        "owner": settings.user,
        "file": settings.access_log,
        "max_bytes": settings.access_log_max_bytes,
        "files": settings.access_log_files,
        "days": settings.access_log_days,
    }
    return {KEEPER_PROGRAM: inspect.getsource(log_keeper), KEEPER_SETTINGS: json.dumps(wanted, indent=1) + "\n"}


def _socket(settings: RouterSettings, *, seen_from_within: bool) -> str:
    """Return the path of the socket, which HAProxy opens anew at any time, from within the folder it is locked into."""
    if not settings.chroot:
        return os.path.join(settings.run_dir, SOCKET)
    # One for each router of the host.
    name = f"gpufleet-{hashlib.sha256(settings.run_dir.encode()).hexdigest()[:12]}.sock"
    return f"/{name}" if seen_from_within else os.path.join(settings.chroot, name)
