# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs with the variables of `exempting` reach servers without the proxy that the rest of them names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.proxies import exempting
from ansible_collections.gpufleet.vllm.tests.fakes.recording_proxy import RecordingProxy

# What vllm bench and lm_eval ask a server with.
CLIENTS = """
import aiohttp, asyncio, contextlib, requests, sys

async def ask(url):
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(url) as answer:
            await answer.read()

for url in sys.argv[1:]:
    with contextlib.suppress(OSError):
        requests.get(url, timeout=5)
    with contextlib.suppress(OSError, aiohttp.ClientError):
        asyncio.run(ask(url))
print("done")
"""
SERVERS = ("http://127.0.0.1:9/v1", "http://localhost:9/v1", "http://[::1]:9/v1", "http://127.0.0.77:9/v1")


@pytest.fixture
def proxy() -> Iterator[RecordingProxy]:
    proxy = RecordingProxy()
    yield proxy
    proxy.close()


def ask(environment: dict[str, str]) -> None:
    pytest.importorskip("aiohttp")
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-c", CLIENTS, *SERVERS]
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_a_server_is_asked_without_the_proxy(proxy: RecordingProxy) -> None:
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), proxy.url)
    given = {**proxies, "no_proxy": ".example.com"}
    ask({**given, **exempting(given, ["127.0.0.77"])})
    assert proxy.asked == []


def test_without_them_the_proxy_sees_the_prompts(proxy: RecordingProxy) -> None:
    """The test above can fail: the user's own exceptions name neither this machine nor the server."""
    ask({"http_proxy": proxy.url, "NO_PROXY": ".example.com"})
    assert sorted(set(proxy.asked)) == sorted(SERVERS)


def test_what_is_exempt_already_stays_so_once() -> None:
    both = exempting({"NO_PROXY": "a, localhost", "no_proxy": "b,a"}, ["c", ""])
    assert both == dict.fromkeys(("NO_PROXY", "no_proxy"), "a,localhost,b,127.0.0.1,::1,c")
