# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What attacks and mistakes get from the router: one table, which a test tries and the guide shows."""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass
from pathlib import Path

KEY = "the-client-key"
CLOSED = "closed"
GUIDE = Path(__file__).resolve().parents[4] / "docs" / "docsite" / "rst" / "router.rst"
BEGIN, END = "..\n   table of attacks\n", "..\n   end of the table of attacks\n"


@dataclass(frozen=True)
class Row:
    """One attack or mistake.

    Attributes:
        what: in a few words.
        sent: what the client sends, once its TLS is there.
        answer: the status, or that the connection is closed.
        since_3: that of HAProxy 3.0 and later where it differs.
    """

    what: str
    sent: bytes
    answer: str
    since_3: str = ""


def head(line: str, *headers: str, key: str = KEY) -> bytes:
    """Return the head of a request."""
    given = [f"{line} HTTP/1.1", "Host: llm.example.com", *([f"Authorization: Bearer {key}"] if key else []), *headers]
    return "\r\n".join([*given, "", ""]).encode("latin-1")


def post(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    """Return a request with a body."""
    return head(f"POST {path}", f"Content-Length: {len(body)}", *headers) + body


def chat(model: str, text: str = "hi") -> bytes:
    """Return a body whose model stands last."""
    return f'{{"messages": [{{"role": "user", "content": "{text}"}}], "model": "{model}"}}'.encode()


KEYS = [
    Row("no key", head("GET /v1/models", key=""), "401"),
    Row("a wrong key", head("GET /v1/models", key="wrong"), "401"),
    Row("a key of 12 KB", head("GET /v1/models", key="k" * 12000), "401"),
    Row("the key without ``Bearer``", head("GET /v1/models", f"Authorization: {KEY}", key=""), "401"),
    Row("the key in other letters", head("GET /v1/models", key=KEY.upper()), "401"),
    Row("the key in the address", head(f"GET /v1/models?api_key={KEY}", key=""), "401"),
    Row("the key in a cookie", head("GET /v1/models", f"Cookie: api_key={KEY}", key=""), "401"),
    Row("two keys, the right one first", head("GET /v1/models", "Authorization: Bearer wrong"), "400"),
    Row(
        "two keys, the right one last",
        head("GET /v1/models", "Authorization: Bearer wrong", f"Authorization: Bearer {KEY}", key=""),
        "400",
    ),
]
PATHS = [
    Row(f"``{path}``", head(f"GET {path}"), answer)
    for path, answer in {
        "/metrics": "404",
        "/pause": "404",
        "/reset_prefix_cache": "404",
        "/invocations": "404",
        "/v1/load_lora_adapter": "404",
        "//metrics": "404",
        "/v1/../metrics": "404",
        "/v1/models/../../metrics": "404",
        "/%6detrics": "404",
        "/v1/%2e%2e/metrics": "404",
        "/v1/models%2f..%2f..%2fmetrics": "404",
        "/v1/models/": "404",
        "/v1/models;/../metrics": "404",
        "/v1/models%00": "404",
        "/V1/Models": "404",
        "/metrics?/v1/models": "404",
        "/metrics#/v1/models": "400",
        "http://localhost/metrics": "400",
    }.items()
]
METHODS = [
    Row(f"the method ``{method}``", head(f"{method} /v1/models", "Content-Length: 0"), "405")
    for method in ("DELETE", "PUT", "PATCH", "TRACE", "PROPFIND")
]
METHODS.append(Row("``CONNECT`` to another server", head("CONNECT 10.0.0.11:8000"), "400"))
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
POST = "POST /v1/completions"
SMUGGLED = [
    Row(
        "``Content-Length`` beside ``Transfer-Encoding``",
        head(POST, "Content-Length: 6", "Transfer-Encoding: chunked") + CHUNKED,
        "400",
    ),
    Row("two lengths", head(POST, "Content-Length: 6", "Content-Length: 60") + b"123456", "400"),
    Row("a list of lengths", head(POST, "Content-Length: 6, 60") + b"123456", "400"),
    Row("a negative length", head(POST, "Content-Length: -1"), "400"),
    Row("a length with a sign", head(POST, "Content-Length: +6") + b"123456", "400"),
    Row("a length in hexadecimal", head(POST, "Content-Length: 0x6") + b"123456", "400"),
    Row("white space before the colon", head(POST, "Content-Length : 6") + b"123456", "400"),
    Row("``Transfer-Encoding: xchunked``", head(POST, "Transfer-Encoding: xchunked") + CHUNKED, "400"),
    Row("``Transfer-Encoding: gzip, chunked``", head(POST, "Transfer-Encoding: gzip, chunked") + CHUNKED, "422"),
    Row("a chunk whose length is no number", head(POST, "Transfer-Encoding: chunked") + b"zz\r\n", "400"),
    Row("``GET`` of HTTP/1.0 with a body", b"GET /v1/models HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", "413"),
    Row(
        "``Transfer-Encoding: chunked, identity``", head(POST, "Transfer-Encoding: chunked, identity") + CHUNKED, "400"
    ),
    Row("a NUL in a header", head("GET /v1/models", "X-A: a\0b"), "200", "400"),
    Row("a header without a colon", head("GET /v1/models", "nothing"), "400"),
    Row("a second request behind a short body", head(POST, "Content-Length: 2") + b"{}" + head("GET /metrics"), "400"),
]
FORMS = [
    Row("no HTTP", b"hello\r\n\r\n", "400"),
    Row("HTTP/0.9", b"GET /v1/models\r\n\r\n", "400"),
    Row("another version of HTTP, and no key", b"GET /v1/models HTTP/9.1\r\n\r\n", "401"),
    Row("a head of 100 KB", head("GET /v1/models", "X-A: " + "a" * 100000), "400"),
    Row("an address of 70 KB", head("GET /v1/models?" + "a" * 70000), "400"),
    Row("500 headers", head("GET /v1/models", *(f"X-{number}: a" for number in range(500))), "400"),
]
BODIES = [
    Row("a body above ``router_max_request_bytes``", head(POST, "Content-Length: 1000001"), "413"),
    Row("a body of 10 TB, as its length says", head(POST, "Content-Length: 10000000000000"), "413"),
    Row(
        "a body above ``router_max_request_bytes`` without its length",
        head(POST, "Transfer-Encoding: chunked") + b"ffff\r\n" + (b"x" * 65535 + b"\r\nffff\r\n") * 17,
        "413",
    ),
    Row("a compressed body", post(gzip.compress(chat("large")), "Content-Encoding: gzip"), "400"),
    Row("a body that is announced and too long", head(POST, "Content-Length: 1000001", "Expect: 100-continue"), "413"),
    Row("no length", head(POST), "400"),
    Row("no body", post(b""), "400"),
    Row("no JSON", post(b"model=large"), "400"),
    Row("no model", post(b'{"messages": []}'), "400"),
    Row("no model in 200 KB", post(b'{"messages": "' + b"x" * 200000 + b'"}'), "400"),
    Row("a model that is not served", post(chat("none")), "404"),
    Row("a model that is not served, behind 200 KB", post(chat("none", "x" * 200000)), "404"),
    Row("a model's name of 30 KB", post(chat("m" * 30000)), "404"),
    Row("a model's name with a line's end and a header in it", post(chat("none\\r\\nX-A: b")), "404"),
    Row("… behind 200 KB", post(chat("none\\r\\nX-A: b", "x" * 200000)), "404"),
    Row("a model that is a list", post(b'{"model": ["large"]}'), "400", "404"),
    Row("a model in a message only", post(b'{"messages": [{"model": "large"}]}'), "400"),
    Row("JSON that is 30000 deep", post(b'{"a": ' + b"[" * 30000 + b"]" * 30000 + b"}"), "400"),
    Row("the router's own header beside no model", post(b"{}", "X-Gpufleet-Model: bGFyZ2U="), "400"),
]
# HAProxy cannot read these, and answers before any rule of a configuration.
UNREAD = {
    *(row.what for row in (*SMUGGLED, *FORMS)),
    *(row.what for row in (*PATHS, *METHODS) if row.answer == "400"),
}
ROWS = [*KEYS, *PATHS, *METHODS, *SMUGGLED, *FORMS, *BODIES]

# What takes time, or many: the test of each has its name.
SLOW = {
    "a connection that says nothing": "closed after 30 s",
    "a TLS handshake that does not come": "closed after 30 s",
    "TLS, and then nothing": "closed after 30 s",
    "half a head, and then nothing": "408 after 30 s",
    "a head byte by byte": "408 after 30 s",
    "half a body, and then nothing": "408 after 30 s",
    "a body byte by byte": "408 after 60 s",
    "HTTP instead of TLS": "closed",
}
FLOODS = {
    "more connections of one address than ``router_max_connections_per_address``": "closed at once",
    "more new connections of one address than ``router_connection_rate``": "closed at once",
    "more connections than ``router_max_connections``": "503 with ``Retry-After``; ``router_operators`` get through",
    "more than 100 wrong keys of one address in ten seconds": "429; the right key passes",
    "more requests of one key than ``router_rate_limit``": "429 with ``Retry-After``",
    "more requests of one key at once than ``router_max_requests_per_key``": "429 with ``Retry-After``",
    "more requests than may run and wait": "503 with ``Retry-After``",
}


def table() -> str:
    """Return the table for the guide."""
    rows = [(row.what, row.answer + (row.since_3 and f"; {row.since_3} since HAProxy 3.0")) for row in ROWS] + [
        *SLOW.items(),
        *FLOODS.items(),
    ]
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 65 35",
        "",
        "   * - What is sent",
        "     - What it gets",
    ]
    for what, answer in rows:
        lines += [f"   * - {what}", f"     - {answer}"]
    return "\n".join(["", *lines, "", ""])


def main() -> int:
    """Write the table into the guide."""
    text = GUIDE.read_text(encoding="utf-8")
    before, _begin, rest = text.partition(BEGIN)
    _old, _end, after = rest.partition(END)
    GUIDE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
