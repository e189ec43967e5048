# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients and browsers get from a real HAProxy with the router's configuration."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate, public_part
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import as_settings
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS
from ansible_collections.gpufleet.vllm.tests.router.real_haproxy import routing
from ansible_collections.gpufleet.vllm.tests.router.small_replica import MODEL, SmallReplica, serving
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

pytestmark = pytest.mark.skipif(
    program_path("haproxy") is None, reason="no HAProxy here; tools/check.py engine has one"
)
HERE = Path(__file__).resolve().parent
LIBRARIES = HERE.parent / "requirements-clients.txt"
KEY, SITE = "client-key", "https://chat.example.com"
ODD = "100%-ödd#1,x"
MOST, BUFFER = 300_000, 65_536


class Reply(NamedTuple):
    """What came back: status, headers in lower case, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """The message of an error in OpenAI's form."""
        return str(json.loads(self.body)["error"]["message"])


class Router:
    """A router in front of one replica.

    Args:
        port: of the router.
        replica: the one behind it.
    """

    def __init__(self, port: int, replica: SmallReplica) -> None:
        self.port, self.replica = port, replica

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY, **headers: str) -> Reply:
        """Send a request; a body that is no text is sent in chunks, without its length."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            given["Authorization"] = f"Bearer {key}"
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            chunked = body is not None and not isinstance(body, bytes)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
                connection.request(method, path, body, given, encode_chunked=chunked)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())


@contextlib.contextmanager
def router(folder: Path, **changes: Any) -> Iterator[Router]:
    """Have a router, for the block."""
    given: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": free_port(),
        "tls": False,
        "api_keys": [KEY],
        "max_request_bytes": MOST,
        "rate_limit": 0,
        "buffer_bytes": BUFFER,
        "timeout": 60,
        "check_interval_ms": 200,
        "run_dir": str(folder),
        "state_dir": str(folder),
        "user": "root",
        **changes,
    }
    usual = {name: option.get("default") for name, option in ARGUMENTS.items()}
    settings = as_settings({**usual, **given}, "", "replica-key")
    with serving() as replica:
        behind = Replica("gpu-01", "vllm-0", "127.0.0.1", replica.port, (MODEL, ODD))
        with routing(folder, settings, [behind]):
            yield Router(settings.port, replica)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router as the role makes it."""
    with router(tmp_path_factory.mktemp("router")) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/org/model-1", MODEL),
        ("/v1/models/org%2Fmodel-1", MODEL),
        ("/v1/models/100%25-%C3%B6dd%231,x", ODD),
    ],
)
def test_one_model_is_told_by_its_name(plain: Router, path: str, name: str) -> None:
    plain.replica.asked.clear()
    reply = plain.ask("GET", path)
    assert (reply.status, json.loads(reply.body)["id"]) == (200, name)
    assert plain.ask("GET", path, key="").status == 401
    assert plain.replica.asked == []


@pytest.mark.parametrize("path", ["/v1/models/no", "/v1/models/../../metrics", "/v1/models/%2e%2e/%2e%2e/metrics"])
def test_no_other_name_reaches_a_replica(plain: Router, path: str) -> None:
    plain.replica.asked.clear()
    reply = plain.ask("GET", path)
    assert reply.status == 404 and "no such model" in reply.message
    assert plain.ask("POST", path, b"{}").status == 404
    assert plain.replica.asked == []


def test_head_is_answered_as_get_without_a_body(plain: Router) -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}"):
        head, get = plain.ask("HEAD", path), plain.ask("GET", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"] != "0"
    assert plain.ask("HEAD", "/v1/models", key="").status == 401
    assert plain.ask("HEAD", "/health", key="").status == 200


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_body_in_chunks_passes_up_to_a_limit(plain: Router, method: str) -> None:
    plain.replica.asked.clear()
    # The replica of these tests answers a GET without reading its body.
    for size in (BUFFER // 2 - 1, BUFFER // 2, 2 * BUFFER, MOST - 1000)[: 4 if method == "POST" else 1]:
        assert plain.ask(method, "/tokenize", chunks(size)).status in (200, 404)
    plain.replica.asked.clear()
    reply = plain.ask(method, "/tokenize", chunks(MOST + 10_000))  # who goes on sending may be cut off
    assert reply.status == 413 and str(MOST) in reply.message
    assert plain.replica.asked == []


def test_a_body_in_chunks_arrives_whole(plain: Router) -> None:
    plain.replica.asked.clear()
    assert plain.ask("POST", "/tokenize", chunks(20_000)).status == 200
    assert plain.ask("POST", "/tokenize", b"x" * MOST).status == 200
    assert [size for *_head, size in plain.replica.asked] == [20_000, MOST]
    assert plain.ask("POST", "/tokenize", b"x" * (MOST + 1)).status == 413


def chunks(size: int) -> Iterable[bytes]:
    """Yield a body of this size in parts."""
    while size > 0:
        yield b"x" * min(size, 7000)
        size -= 7000


def test_what_the_replica_does_not_have_is_its_own_answer_and_operators_paths_stay_closed(plain: Router) -> None:
    plain.replica.asked.clear()
    assert plain.ask("POST", "/classify", b"{}").body == b'{"detail": "Not Found"}'
    assert [path for _method, path, *_rest in plain.replica.asked] == ["/classify"]
    for path in ("/metrics", "/pause", "/invocations", "/tokenizer_info", "/v1/load_lora_adapter", "//rerank"):
        assert plain.ask("POST", path, b"{}").status == 404


def test_a_key_in_anthropics_header_counts_and_goes_no_further(plain: Router) -> None:
    plain.replica.asked.clear()
    assert plain.ask("POST", "/v1/messages", b"{}", key="", X_Api_Key=KEY).status == 200
    assert plain.ask("POST", "/v1/messages", b"{}", X_Api_Key="another").status == 200
    assert plain.ask("POST", "/v1/messages", b"{}", key="", X_Api_Key="another").status == 401
    for _method, _path, headers, _size in plain.replica.asked:
        assert headers["authorization"] == "Bearer replica-key" and "x-api-key" not in headers


def test_no_page_may_ask_unless_its_site_is_named(plain: Router) -> None:
    preflight = plain.ask("OPTIONS", "/v1/models", key="", Origin=SITE, Access_Control_Request_Method="GET")
    assert preflight.status == 401
    told = plain.ask("GET", "/v1/models", Origin=SITE).headers
    assert [name for name in told if name.startswith("access-control")] == []


@pytest.mark.parametrize(("origins", "told"), [((SITE, "http://localhost:3000"), SITE), (("*",), "*")])
def test_pages_of_named_sites_may_ask(tmp_path: Path, origins: tuple[str, ...], told: str) -> None:
    with router(tmp_path, cors_origins=origins) as found:
        asks = {
            "Access_Control_Request_Method": "POST",
            "Access_Control_Request_Headers": "authorization,x-stainless-os",
        }
        preflight = found.ask("OPTIONS", "/v1/chat/completions", key="", Origin=SITE, **asks)
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == told
        assert preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        for key, status in ((KEY, 200), ("wrong", 401)):
            reply = found.ask("POST", "/v1/chat/completions", b"{}", key=key, Origin=SITE)
            assert reply.status == status
            assert reply.headers["access-control-allow-origin"] == told
            assert "access-control-allow-credentials" not in reply.headers
            assert "Origin" in reply.headers["vary"]
        # A request that only looks like a preflight needs a key as any other does.
        assert found.ask("OPTIONS", "/v1/models", key="", Origin=SITE).status == 401
        for other in ("https://evil.example.com", f"{SITE}.evil.example.com", "null"):
            stranger = found.ask("OPTIONS", "/v1/chat/completions", key="", Origin=other, **asks)
            assert stranger.status == (204 if told == "*" else 401)
            allowed = found.ask("GET", "/v1/models", Origin=other).headers.get("access-control-allow-origin")
            assert allowed == ("*" if told == "*" else None)


def asked_by_libraries(folder: Path, url: str, certificate: str) -> dict[str, Any]:
    """Return what the libraries of OpenAI and Anthropic make of a router, installed in a folder."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(LIBRARIES)], check=True)
    words = [str(python), str(HERE / "ask_with_libraries.py"), url, KEY, MODEL]
    trust = {**os.environ, "SSL_CERT_FILE": certificate}
    asked = subprocess.run(words, env=trust, capture_output=True, text=True, timeout=300, check=False)
    assert asked.returncode == 0, asked.stderr
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


@pytest.mark.skipif(program_path("openssl") is None, reason="no openssl here")
def test_what_the_libraries_of_openai_and_anthropic_make_of_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificate = tmp_path / "site.pem"
    make_certificate(str(certificate), ["localhost"], 2)
    (tmp_path / "trusted.pem").write_text(public_part(str(certificate)), encoding="utf-8")
    installed = tmp_path_factory.getbasetemp().parent / "clients"
    with router(tmp_path, tls=True) as plain:
        found = asked_by_libraries(installed, f"https://localhost:{plain.port}", str(tmp_path / "trusted.pem"))
    no_model, wrong_key, no_endpoint = (found.pop(name) for name in ("no model", "wrong key", "no endpoint"))
    assert found.pop("no vLLM endpoint")[0] == no_endpoint[0] == no_model[0] == "NotFoundError"
    assert "no such model" in no_model[1] and "no such endpoint" in no_endpoint[1]
    assert wrong_key[0] == "AuthenticationError" and "valid API key" in wrong_key[1]
    assert found == {
        "models": [ODD, MODEL],
        "model": MODEL,
        "chat": "hello",
        "stream": "hello",
        "embedding": [0.5, 0.25],
        "message": "hello",
    }
