# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How HAProxy chooses among the replicas that serve a request's model.

Requests that begin alike, or belong to one session, go to the same replica, whose cache then has their beginning: by a
consistent hash, so that a replica that comes or goes moves few, and with a bound on its load, beyond which they go on
to the next one. Where a server stands in the ring is told by its name alone, so that a reload moves none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import OWN_HEADERS
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import replica_limit
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

LEASTCONN, PREFIX, SESSION = "leastconn", "prefix", "session"
METHODS = (LEASTCONN, PREFIX, SESSION)
HASH_HEADER = f"{OWN_HEADERS}hash"
# Of a prompt's beginning: long enough to tell conversations behind a short system prompt apart, and too short to tell
# the questions behind a long one.
BEGINNING_BYTES = 1024
# Of a server of average size: a server has 16 times as many places in the ring.
WEIGHT = 100
MOST_WEIGHT = 256
IDS = 2**31 - 1
# Where it is looked for: what begins later, or is longer, is told by the body's own beginning.
HEAD_BYTES = 4096
# Where a prompt begins, and what comes behind a system prompt, for chats and completions and for responses.
FIRST = ("messages[0].content", "messages[0].content[0].text", "prompt", "instructions", "system")
SECOND = ("messages[1].content", "messages[1].content[0].text")
INPUT = ("input", "input[0].content", "input[0].content[0].text")
SESSION_KEYS = ("prompt_cache_key", "user")


def hash_rules(settings: RouterSettings, condition: str = "") -> list[str]:
    """Return the rules of a frontend that make a hash of what keeps requests together, of those with a condition."""
    if settings.balance == LEASTCONN:
        return []
    lines = []
    if settings.balance == SESSION:
        lines.append(
            f"http-request set-var(txn.session) req.hdr({settings.session_header})"
            f" if {{ req.hdr({settings.session_header}) -m found }}"
        )
        lines += [_found("session", key) for key in SESSION_KEYS]
    is_short = f"{{ var(txn.first),length lt {BEGINNING_BYTES} }}"
    # What a conversation begins with is its first question, which an answer follows, or a system prompt and that.
    behind_system = "{ var(txn.role) -m str system developer }"
    lines += [
        f"http-request set-var(txn.head) req.body,bytes(0,{HEAD_BYTES}) if METH_POST {condition}".rstrip(),
        *(_found("first", path) for path in FIRST),
        _found("role", "messages[0].role"),
        *(_found("second", path, f" {behind_system} {is_short}") for path in SECOND),
        *(_found("second", path, " { path_end /responses }") for path in INPUT),
    ]
    raw = f"http-request set-var(txn.beginning) req.body,bytes(0,{BEGINNING_BYTES}) if METH_POST"
    lines += [
        f"{raw} !{{ var(txn.first) -m found }} !{{ var(txn.second) -m found }}",
        f"{raw} {behind_system} {is_short} !{{ var(txn.second) -m found }}",
        "http-request set-var(txn.first) str() if !{ var(txn.first) -m found }",
        f"http-request set-var(txn.beginning) var(txn.first),concat(,txn.second),bytes(0,{BEGINNING_BYTES})"
        " if !{ var(txn.beginning) -m found }",
        f"http-request set-header {HASH_HEADER} %[var(txn.beginning),xxh64] if METH_POST",
    ]
    if settings.balance == SESSION:
        named = "if { var(txn.session) -m found }"
        lines.append(f"http-request set-header {HASH_HEADER} %[var(txn.session),xxh64] {named}")
    return lines


def _found(variable: str, path: str, condition: str = "") -> str:
    """Return the rule that sets a variable to the beginning of a text in the body, unless it is set already."""
    body = "req.body" if variable == "session" else "var(txn.head)"
    text = f"{body},json_query('\\$.{path}'),bytes(0,{BEGINNING_BYTES})"
    missing = f"METH_POST !{{ var(txn.{variable}) -m found }}"
    return f'http-request set-var(txn.{variable}) "{text}" if {missing}{condition}'


def balance_lines(settings: RouterSettings) -> list[str]:
    """Return how a backend chooses."""
    if settings.balance == LEASTCONN:
        return ["balance leastconn"]
    return [
        f"balance hdr({HASH_HEADER})",
        "hash-type consistent sdbm avalanche",
        f"hash-balance-factor {settings.balance_factor}",
    ]


def server_words(settings: RouterSettings, replicas: Sequence[Replica]) -> dict[str, str]:
    """Return what is said of each server by its name: its limit and share by its plan, and its place in the ring."""
    hashed = settings.balance != LEASTCONN
    held = [replica.requests for replica in replicas]
    average = sum(held) / len(held) if held and all(held) else 0
    words: dict[str, str] = {}
    ids: set[int] = set()
    for replica in replicas:
        share = round(WEIGHT * replica.requests / average) if average else WEIGHT
        weight = f" weight {min(max(share, 1), MOST_WEIGHT)}" if hashed or (len(set(held)) > 1 and average) else ""
        limit = replica_limit(settings, replica)
        most = f" maxconn {limit}" if limit else ""
        words[replica.server()] = most + weight + (f" id {_free_id(replica.server(), ids)}" if hashed else "")
    return words


def _free_id(name: str, taken: set[int]) -> int:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % IDS + 1
    while number in taken:
        number = number % IDS + 1
    taken.add(number)
    return number
