# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reaching registries and hubs: real servers on this machine, with and without TLS, and a proxy."""

from __future__ import annotations

import dataclasses
import http.server
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import probe, reach
from ansible_collections.gpufleet.vllm.tests.fakes.recording_proxy import RecordingProxy
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

Start = Callable[..., str]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every request with the status of its server, and keeps what was asked."""

    def answer(self) -> None:
        self.server.asked.append((self.command, self.path))  # type: ignore[attr-defined]
        status = self.server.status  # type: ignore[attr-defined]
        self.send_response(status)
        if status in (301, 302):
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    do_HEAD = do_GET = do_CONNECT = answer

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def servers() -> Iterator[list[http.server.ThreadingHTTPServer]]:
    """The servers that a test started."""
    started: list[http.server.ThreadingHTTPServer] = []
    yield started
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def start(servers: list[http.server.ThreadingHTTPServer]) -> Start:
    """Start a server at 127.0.0.1 and return its address, as host:port."""

    def run(status: int = 200, certificate: Path | None = None) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.status, server.asked = status, []  # type: ignore[attr-defined]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    return run


@pytest.fixture
def closed_port() -> str:
    """An address at which nothing listens."""
    return f"127.0.0.1:{free_port()}"


# ---- one question ----


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404])
def test_whoever_answers_is_reached(start: Start, servers: list[http.server.ThreadingHTTPServer], status: int) -> None:
    found = reach.ask(f"http://{start(status)}/model/config.json", reach.Route())
    assert (found["reachable"], found["status"], found["cause"]) == (True, status, "")
    # A redirection is not followed, and nothing is downloaded.
    assert servers[0].asked == [("HEAD", "/model/config.json")]  # type: ignore[attr-defined]


def test_a_server_in_trouble_is_not(start: Start) -> None:
    found = reach.ask(f"http://{start(503)}/", reach.Route())
    assert (found["reachable"], found["cause"], found["reason"]) == (False, "unavailable", "it answers 503")


def test_a_closed_port(closed_port: str) -> None:
    found = reach.ask(f"http://{closed_port}/", reach.Route())
    assert (found["reachable"], found["cause"]) == (False, "refused")


def test_a_name_that_does_not_resolve() -> None:
    assert reach.ask("https://nothing.invalid/", reach.Route())["cause"] == "dns"


def test_a_server_that_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = reach.ask(f"http://127.0.0.1:{silent.getsockname()[1]}/", reach.Route(), timeout=0.2)
    assert (found["reachable"], found["cause"]) == (False, "timeout")


def test_an_address_of_another_kind_is_not_opened() -> None:
    assert reach.ask("file:///etc/passwd", reach.Route())["cause"] == "failed"


def test_a_certificate_is_trusted_or_told(start: Start, certificate: Path) -> None:
    url = f"https://{start(200, certificate)}/"
    found = reach.ask(url, reach.Route())
    assert (found["reachable"], found["cause"]) == (False, "certificate")
    assert "self" in found["reason"]
    assert reach.ask(url, reach.Route(ca_files=[str(certificate)]))["reachable"] is True


# ---- proxies ----


def test_requests_go_through_the_proxy(start: Start, servers: list[http.server.ThreadingHTTPServer]) -> None:
    route = reach.Route({"http": f"http://user:password@{start(200)}"})
    found = reach.ask("http://hub.invalid/file", route)
    assert (found["reachable"], found["proxied"]) == (True, True)
    assert servers[0].asked == [("HEAD", "http://hub.invalid/file")]  # type: ignore[attr-defined]
    assert "password" not in str(found)


def test_exceptions_of_the_proxy_are_honoured(start: Start, closed_port: str) -> None:
    address = start(200)
    proxies = {"http": f"http://{closed_port}", "no": "127.0.0.1"}
    assert reach.ask(f"http://{address}/", reach.Route(proxies))["reachable"] is True
    assert reach.ask(f"http://{address}/", reach.Route({**proxies, "no": "other"}))["cause"] == "proxy"


@pytest.mark.parametrize(
    ("exceptions", "url", "bypassed"),
    [
        ("*.corp.example", "https://registry.corp.example/v2/", True),
        ("*.corp.example", "https://corp.example/v2/", False),
        (".corp.example", "https://registry.corp.example/v2/", True),
        (".corp.example", "https://corp.example/v2/", False),
        ("corp.example", "https://corp.example/v2/", True),
        ("corp.example", "https://a.b.corp.example:5000/v2/", True),
        ("corp.example", "https://mycorp.example/v2/", False),
        ("Corp.Example", "https://REGISTRY.corp.example/v2/", True),
        ("registry.corp.example:5000", "https://registry.corp.example:5000/v2/", True),
        ("registry.corp.example:5000", "https://registry.corp.example/v2/", False),
        ("registry.corp.example:443", "https://registry.corp.example/v2/", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000/v2/", True),
        ("10.0.0.0/8", "https://11.1.2.3/v2/", False),
        ("10.0.0.0/8", "https://registry.corp.example/v2/", False),
        ("10.1.2.3", "https://10.1.2.3:5000/v2/", True),
        ("10.1.2.3:5000", "https://10.1.2.3/v2/", False),
        ("10.1.2", "https://10.1.2.3/v2/", False),
        ("fd00::/8", "https://[fd00::1]:5000/v2/", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/v2/", True),
        ("[fd00::1]:5000", "https://[fd00::1]/v2/", False),
        ("fd00::1", "https://[fd00::1]/v2/", True),
        ("other, *", "https://registry.corp.example/v2/", True),
        ("", "https://127.0.0.1:5000/v2/", True),
        ("", "https://localhost:5000/v2/", True),
        ("", "https://[::1]:5000/v2/", True),
        ("", "https://registry.corp.example/v2/", False),
        ("not/a/network, :80", "https://registry.corp.example/v2/", False),
    ],
)
def test_the_exceptions_of_the_engines_proxy_are_read_as_the_engine_does(
    exceptions: str, url: str, bypassed: bool
) -> None:
    route = reach.Route({"https": "http://proxy:3128", "no": exceptions}, engine=True)
    assert route.proxied(url) is not bypassed


def test_the_hubs_client_reads_exceptions_as_python_does() -> None:
    route = reach.Route({"https": "http://proxy:3128", "no": ".corp.example"})
    assert route.proxied("https://corp.example/") is False


@pytest.mark.parametrize(("url", "status"), [("http://hub.invalid/", 407), ("https://hub.invalid/", 403)])
def test_a_proxy_that_refuses(start: Start, url: str, status: int) -> None:
    proxy = f"http://{start(status)}"
    found = reach.ask(url, reach.Route({"http": proxy, "https": proxy}))
    assert (found["reachable"], found["cause"], found["proxied"]) == (False, "proxy", True)
    assert str(status) in found["reason"]


def test_a_proxy_that_is_not_there_is_told_and_not_the_server(closed_port: str) -> None:
    proxies = {"http": f"http://me:my-secret@{closed_port}", "https": "http://proxy.invalid:3128"}
    refused = reach.ask("http://hub.example.com/", reach.Route(proxies))
    assert refused["cause"] == "proxy"
    assert refused["reason"] == f"the proxy http://{closed_port} is not reached: the connection is refused"
    unknown = reach.ask("https://hub.example.com/", reach.Route(proxies))
    assert unknown["cause"] == "proxy"
    assert unknown["reason"].startswith("the proxy http://proxy.invalid:3128 is not reached: its name cannot")


def test_a_proxys_password_is_sent_and_told_to_nobody_else() -> None:
    proxy = RecordingProxy("me:my-secret")
    route = reach.Route({"http": proxy.url, "https": proxy.url})
    wrong = reach.Route({"http": proxy.url.replace("my-secret", "a-guess")})
    # The stand-in answers 502 to those who have its password.
    assert reach.ask("http://hub.example.com/", route)["status"] == 502
    assert "502" in reach.ask("https://hub.example.com/", route)["reason"]
    assert proxy.asked == ["http://hub.example.com/", "hub.example.com:443"]
    found = reach.ask("http://hub.example.com/", wrong)
    assert found["reason"] == "the proxy does not accept the password of me (407)"
    assert "a-guess" not in str(found)
    proxy.close()


def test_the_environments_proxies_are_not_taken(
    start: Start, closed_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in a container does not know this host's variables."""
    monkeypatch.setenv("http_proxy", f"http://{closed_port}")
    monkeypatch.setenv("no_proxy", "")
    assert reach.ask(f"http://{start(200)}/", reach.Route())["reachable"] is True


# ---- several ----


def test_one_that_hangs_or_breaks_keeps_nobody_waiting() -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("no")

    started = time.monotonic()
    found = reach.ask_all({"hangs": lambda: time.sleep(3), "breaks": broken, "works": lambda: {"reachable": True}}, 0.3)
    assert time.monotonic() - started < 2
    assert {name: answer["reachable"] for name, answer in found.items()} == {
        "hangs": False,
        "breaks": False,
        "works": True,
    }


def test_only_what_is_not_on_the_host_is_asked_for(start: Start, tmp_path: Path) -> None:
    """Without an engine the image is not there; weights are, or are not."""
    registry, hub = start(401), start(200)
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/config.json").write_text("{}")
    length = b'{"w": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}'
    (tmp_path / "whole/model.safetensors").write_bytes(len(length).to_bytes(8, "little") + length + b"\0")
    (tmp_path / "whole/config.json").write_text('{"model_type": "llama"}')
    asked = probe.Questions(
        docker_host=f"unix://{tmp_path}/none.sock",
        registry=f"{registry}/vllm:1",
        hub=f"http://{hub}/org/model/resolve/main/config.json",
    )
    found: Any = probe.probe(dataclasses.replace(asked, weights_paths=[str(tmp_path / "none")]))
    assert {name: answer["reachable"] for name, answer in found["reach"].items()} == {"registry": True, "hub": True}
    found = probe.probe(dataclasses.replace(asked, weights_paths=[str(tmp_path / "whole")]))
    assert list(found["reach"]) == ["registry"]
    assert probe.probe(probe.Questions(asked.docker_host))["reach"] == {}


def test_a_mirror_that_the_engine_is_about_to_get_counts_already(start: Start, tmp_path: Path) -> None:
    """The first deployment behind a mirror would never begin otherwise."""
    mirror = f"http://{start(200)}"
    asked = probe.Questions(
        docker_host=f"unix://{tmp_path}/none.sock",
        registry="vllm/vllm-openai:v0.12.0",
        registry_mirrors=[mirror],
    )
    found: Any = probe.probe(asked)
    registry = found["reach"]["registry"]
    assert (registry["status"], registry["url"]) == (200, f"{mirror}/v2/vllm/vllm-openai/manifests/v0.12.0")


def test_a_proxy_that_the_engine_is_about_to_get_counts_already(start: Start, tmp_path: Path) -> None:
    proxy = f"http://user:password@{start(403)}"
    asked = probe.Questions(
        docker_host=f"unix://{tmp_path}/none.sock",
        registry="vllm/vllm-openai:v0.12.0",
        registry_proxy=proxy,
    )
    found: Any = probe.probe(asked)
    assert (found["reach"]["registry"]["cause"], found["reach"]["registry"]["proxied"]) == ("proxy", True)
    assert "password" not in str(found)


def test_the_hub_is_reached_by_the_servers_proxy_alone(
    start: Start, servers: list[http.server.ThreadingHTTPServer], tmp_path: Path
) -> None:
    proxy = start(200)
    asked = probe.Questions(
        docker_host=f"unix://{tmp_path}/none.sock",
        hub="http://hub.invalid/file",
        hub_proxy=f"http://user:password@{proxy}",
    )
    found: Any = probe.probe(asked)
    assert (found["reach"]["hub"]["reachable"], found["reach"]["hub"]["proxied"]) == (True, True)
    assert "password" not in str(found)
    assert os.environ.get("http_proxy", "") != proxy
