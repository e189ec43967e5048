# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines that say how clients reach a router."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.router_access import ActionModule
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.access_lines import Access, access_lines
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

KNOWN = {"llm.example.com", "10.0.0.5"}


def lines(**changes: Any) -> list[str]:
    """Return the lines of a router with its own certificate, with changes."""
    whole = {
        "names": ["llm.example.com", "lb-01", "10.0.0.5"],
        "host": "0.0.0.0",
        "port": 8443,
        "tls": True,
        "connect_to": "",
        "ansible_host": "192.0.2.5",
        "made_certificate": "/site/my certificates/lb-01.pem",
        "authorities": "",
        "asks_for_key": True,
        "models": ["a", "org/b"],
    }
    return access_lines(Access(**{**whole, **changes}), KNOWN.__contains__)


def curl(found: list[str]) -> list[str]:
    """Return the words of the line that a person pastes."""
    assert found[-1].startswith("  curl ")
    return shlex.split(found[-1])


def test_address_certificate_and_a_line_to_paste() -> None:
    found = lines()
    assert found[0] == "OpenAI's API is at https://llm.example.com:8443/v1 for a, org/b."
    assert "/site/my certificates/lb-01.pem" in found[1] and "SSL_CERT_FILE" in found[1]
    assert curl(found) == [
        *("curl", "--cacert", "/site/my certificates/lb-01.pem", "https://llm.example.com:8443/v1/models"),
        *("-H", "Authorization: Bearer $LLM_KEY"),
    ]
    assert '"Authorization: Bearer $LLM_KEY"' in found[-1], "the shell has to put the key in"


@pytest.mark.parametrize(
    ("changes", "url", "detour"),
    [
        ({"names": ["lb-01", "10.0.0.5"]}, "https://10.0.0.5:8443", []),
        ({"names": ["lb-01"]}, "https://lb-01:8443", ["--connect-to", "::192.0.2.5:8443"]),
        ({"names": ["lb-01"], "tls": False}, "http://192.0.2.5:8443", []),
        ({"connect_to": "10.0.0.5"}, "https://10.0.0.5:8443", []),
        ({"connect_to": "fd00::5"}, "https://llm.example.com:8443", ["--connect-to", "::[fd00::5]:8443"]),
        ({"host": "127.0.0.1"}, "https://llm.example.com:8443", ["--connect-to", "::127.0.0.1:8443"]),
        ({"host": "::1", "tls": False}, "http://[::1]:8443", []),
        ({"names": ["fd00::7"], "ansible_host": "fd00::7"}, "https://[fd00::7]:8443", []),
    ],
)
def test_the_line_leads_to_the_router(changes: dict[str, Any], url: str, detour: list[str]) -> None:
    words = curl(lines(**changes))
    assert f"{url}/v1/models" in words
    assert words[words.index("--connect-to") :][:2] == detour if detour else "--connect-to" not in words


def test_a_certificate_that_was_given_is_checked_as_the_variables_say() -> None:
    assert "--cacert" not in curl(lines(made_certificate=""))
    assert curl(lines(made_certificate="", authorities="/ca.pem"))[1:3] == ["--cacert", "/ca.pem"]
    assert not any("trust" in line for line in lines(made_certificate="", authorities="/ca.pem"))


def test_without_keys_none_is_sent() -> None:
    assert "Authorization" not in "".join(lines(asks_for_key=False))


def test_the_host_is_named_before_each_line_but_the_one_to_paste() -> None:
    arguments = {"names": "localhost", "host": "127.0.0.1", "port": 1, "tls": False}
    result, display = run_action(ActionModule, arguments, {"inventory_hostname": "lb-01"})
    (shown,) = [call.args[0] for call in display.display.call_args_list]
    assert shown.splitlines()[0] == f"[lb-01] {result['lines'][0]}"
    assert shown.splitlines()[-1] == result["lines"][-1]
