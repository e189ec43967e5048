# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight asks a registry: with and without a password, by token servers and mirrors, with TLS."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import registries
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.registries import Access, look
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import registry_of
from ansible_collections.gpufleet.vllm.tests.fakes.token_registry import TokenRegistry
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port

RIGHT = Access("fleet", "open-sesame")


@pytest.fixture(autouse=True)
def logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where C(docker login) would leave passwords."""
    path = tmp_path / "config.json"
    monkeypatch.setattr(registries.login, "__defaults__", (str(path), ""))
    return path


@pytest.fixture
def registry() -> Iterator[TokenRegistry]:
    registry = TokenRegistry(["vllm/open:1", "library/debian:12"], ["vllm/closed:1"])
    yield registry
    registry.close()


@pytest.mark.parametrize(
    ("name", "access", "status"),
    [
        ("vllm/open:1", Access(), 200),
        ("vllm/open:2", Access(), 404),
        ("vllm/closed:1", Access(), 401),
        ("vllm/closed:1", RIGHT, 200),
        ("vllm/closed:1", Access("fleet", "a-guess"), 401),
        ("vllm/open:1", Access("fleet", "a-guess"), 401),
    ],
)
def test_a_registry_with_a_token_server(registry: TokenRegistry, name: str, access: Access, status: int) -> None:
    found = look(f"{registry.address}/{name}", {}, access)
    repository, _colon, tag = name.partition(":")
    assert found["url"] == f"{registry.url}/v2/{repository}/manifests/{tag}"
    assert (found["reachable"], found["status"]) == (True, status)
    assert "guess" not in json.dumps(found)


def test_what_docker_login_left_counts_where_no_user_is_named(registry: TokenRegistry, logins: Path) -> None:
    reference = f"{registry.address}/vllm/closed:1"
    auth = base64.b64encode(b"fleet:open-sesame").decode()
    logins.write_text(json.dumps({"auths": {registry.address: {"auth": auth}}}))
    assert look(reference, {})["status"] == 200
    assert look(reference, {}, Access("fleet", "a-guess"))["status"] == 401
    # Only the Docker client can ask its helper, so nothing is said of the password.
    logins.write_text(json.dumps({"auths": {registry.address: {}}, "credsStore": "pass"}))
    found = look(reference, {})
    assert (found["reachable"], found["status"]) == (True, None)
    logins.write_text("[]")
    assert look(reference, {})["status"] == 401


def test_a_token_server_that_does_not_answer_is_told(registry: TokenRegistry) -> None:
    address, registry.url = registry.url, f"http://127.0.0.1:{free_port()}"
    found = look(f"{registry.address}/vllm/open:1", {})
    assert found["url"].startswith(address)
    assert (found["reachable"], found["cause"]) == (False, "refused")
    assert found["reason"] == f"its token server {registry.url}/token: the connection is refused"


def test_a_password_goes_to_no_token_server_without_tls(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registries, "accepted_insecure", lambda *_arguments: False)
    registry = TokenRegistry(["vllm/open:1"], certificate=certificate)
    asked = f"{registry.address}/vllm/open:1"
    assert look(asked, {})["cause"] == "certificate"
    assert look(asked, {}, Access("fleet", "open-sesame", certificate.read_text()))["status"] == 200
    (tmp_path / registry.address).mkdir()
    (tmp_path / registry.address / "ca.crt").write_text(certificate.read_text())
    assert look(asked, {}, None, str(tmp_path))["status"] == 200
    registry.url = registry.url.replace("https", "http")
    found = look(asked, {}, RIGHT, str(tmp_path))
    assert (found["cause"], "unencrypted" in found["reason"]) == ("failed", True)
    registry.close()


def test_a_mirror_is_enough_for_docker_hub_and_gets_no_password(registry: TokenRegistry) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    mirrors = {"mirrors": [closed, f"http://user:password@{registry.address}/"]}
    found = look("debian:12", mirrors, Access("fleet", "a-guess"))
    assert (found["status"], found["url"]) == (200, f"{registry.url}/v2/library/debian/manifests/12")
    # One that does not have it leaves it to the registry itself, which the proxy keeps away here.
    settings = {**mirrors, "proxies": {"https": closed}}
    found = look("vllm/closed:1", settings)
    assert (found["reachable"], found["url"]) == (False, "https://registry-1.docker.io/v2/vllm/closed/manifests/1")


def test_the_registry_is_asked_by_the_engines_exceptions() -> None:
    """The proxy would refuse, but the engine does not ask it."""
    proxies = {"https": f"http://127.0.0.1:{free_port()}", "no": "*.invalid"}
    found = look("registry.invalid/vllm:1", {"proxies": proxies})
    assert (found["proxied"], found["cause"]) == (False, "dns")


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("vllm/vllm-openai:v0.12.0", "docker.io"),
        ("debian", "docker.io"),
        ("registry.example.org/vllm:1", "registry.example.org"),
        ("localhost/vllm", "localhost"),
        ("registry:5000/vllm:1", "registry:5000"),
    ],
)
def test_the_registry_in_a_name(reference: str, registry: str) -> None:
    assert registry_of(reference) == registry


@pytest.mark.parametrize(
    ("name", "listed", "insecure"),
    [
        ("localhost:5000", [], True),
        ("127.0.0.1:5000", [], True),
        ("10.1.2.3:5000", ["10.0.0.0/8"], True),
        ("10.1.2.3:5000", [], False),
        ("registry:5000", ["registry:5000"], True),
        ("registry:5001", ["registry:5000"], False),
    ],
)
def test_which_registries_need_no_certificate(name: str, listed: list[str], insecure: bool) -> None:
    assert registries.accepted_insecure(name, listed) is insecure


def test_a_password_is_not_in_what_describes_an_access() -> None:
    shown: Any = repr(RIGHT)
    assert "sesame" not in shown
