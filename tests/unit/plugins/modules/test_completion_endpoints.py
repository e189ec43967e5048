# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vllm_completion checks besides completions, with a server that has it all and with one that lacks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import Server, unreachable
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.endpoints import check_endpoints

METRICS = "vllm:num_requests_running 2\n"


class Answer:
    """An answer of the server."""

    def __init__(self, text: str) -> None:
        self.text = text

    def json(self) -> Any:
        return {"version": self.text}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    """Return a server whose endpoints answer with these texts; others are not found, keys may be wanted."""

    def make(key_wanted: bool = True, **texts: str) -> Server:
        def request(self: Server, _method: str, path: str, _body: Any = None) -> Any:
            name = path.rsplit("/", 1)[-1]
            if path.startswith("/v1") and key_wanted and not self._session.headers.get("Authorization"):
                raise GpufleetError("no key", name="unauthorized")
            if path.startswith("/v1"):
                return Answer("")
            if name not in texts:
                raise GpufleetError("HTTP 404", name="server-error", details={"status": 404})
            return Answer(texts[name])

        monkeypatch.setattr(Server, "request", request)
        return Server("http://127.0.0.1:1", api_key="k")

    return make


def test_a_vllm_server_has_it_all(server: Callable[..., Server]) -> None:
    found = check_endpoints(server(health="", version="0.26.0", metrics=METRICS), "k", required=True)
    assert found == {
        "healthy": True,
        "version": "0.26.0",
        "load": {"requests_running": 2.0},
        "refuses_without_key": True,
    }


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ({"version": "1", "metrics": METRICS}, "server-error"),
        ({"health": "", "metrics": METRICS}, "server-error"),
        ({"health": "", "version": "1"}, "server-error"),
        ({"health": "", "version": "1", "metrics": "other 1\n"}, "malformed-answer"),
    ],
    ids=["no health", "no version", "no metrics", "foreign metrics"],
)
def test_what_is_lacking_is_an_error_only_where_it_is_required(
    server: Callable[..., Server], texts: dict[str, str], name: str
) -> None:
    with pytest.raises(GpufleetError) as raised:
        check_endpoints(server(**texts), "", required=True)
    assert raised.value.name == name
    assert check_endpoints(server(**texts), "", required=False)["refuses_without_key"] is None


def test_a_server_that_answers_without_its_key(server: Callable[..., Server]) -> None:
    open_server = server(key_wanted=False, health="", version="1", metrics=METRICS)
    with pytest.raises(GpufleetError, match="without an API key") as raised:
        check_endpoints(open_server, "k", required=True)
    assert raised.value.name == "key-not-enforced"


def test_a_server_that_is_away_does_not_count_as_refusing(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = server(health="", version="1", metrics=METRICS)

    def request(_self: Server, _method: str, path: str, _body: Any = None) -> Any:
        raise unreachable("http://127.0.0.1:1", OSError("gone"))

    monkeypatch.setattr(Server, "request", request)
    with pytest.raises(GpufleetError) as raised:
        check_endpoints(away, "k", required=False)
    assert raised.value.name == "server-unreachable"
