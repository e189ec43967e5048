# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_completion and its HTTP client, against a server that answers as vLLM does, or as told."""

from __future__ import annotations

import contextlib
import http.server
import json
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import (
    Server,
    base_url,
    ready_request,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.metrics import parse_metrics, parse_samples
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_completion
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule, free_port

MODEL = "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8"
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model"}, {"id": "alias", "object": "model"}]}
USAGE = {"prompt_tokens": 5, "total_tokens": 25, "completion_tokens": 20, "prompt_tokens_details": None}
# The recipe's own sample.
COMPLETION = {
    "id": "cmpl-11f390a191304552b233ad103d9c7f69",
    "object": "text_completion",
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "text": " vibrant and eclectic city that offers something for everyone.",
            "logprobs": None,
            "finish_reason": "length",
        }
    ],
    "usage": USAGE,
}
CHAT = {
    "object": "chat.completion",
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "It is a city."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 14, "total_tokens": 20, "completion_tokens": 6},
}
KEY = "sk-fleet-123456"


class Vllm(http.server.ThreadingHTTPServer):
    """A server that answers each path with what C(answers) holds for it: a status and a JSON document or a text."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, Any]] = {
            "/v1/models": (200, MODELS),
            "/v1/completions": (200, COMPLETION),
            "/v1/chat/completions": (200, CHAT),
            "/health": (200, ""),
        }
        self.key = ""
        self.delay = 0.0
        self.failures = 0
        self.asked: list[tuple[str, Any]] = []

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Vllm

    def do_GET(self) -> None:
        """Answer as told."""
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((self.path, body))
        time.sleep(self.server.delay)
        status, content = self.server.answers.get(self.path, (404, {"detail": "Not Found"}))
        if self.server.failures:
            self.server.failures -= 1
            status, content = 503, "starting"
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status, content = 401, {"error": "Unauthorized"}
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client that did not wait
            self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    """A running server."""
    server = Vllm()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def changed(document: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return a copy of an answer with some values replaced, in its first choice where they are from there."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for key, value in values.items():
        (copy["choices"][0] if key in copy["choices"][0] else copy)[key] = value
    return copy


# The module


def test_recipes_test_with_the_model_that_is_served(run_module: RunModule, vllm: Vllm) -> None:
    result = run_module(vllm_completion.main, {"url": vllm.url})

    assert not result["failed"] and not result["changed"]
    assert result["text"] == COMPLETION["choices"][0]["text"]  # type: ignore[index]
    assert result["finish_reason"] == "length"
    assert result["usage"] == {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    assert result["model"] == MODEL
    assert result["models"] == [MODEL, "alias"]
    assert 0 <= result["latency_s"] < 10
    path, body = vllm.asked[-1]
    assert path == "/v1/completions"
    assert body == {"model": MODEL, "prompt": "San Francisco is a", "max_tokens": 20, "temperature": 0}


def test_chat_is_asked_too(run_module: RunModule, vllm: Vllm) -> None:
    result = run_module(vllm_completion.main, {"url": vllm.url, "chat": True, "model": "alias", "prompt": "Hi?"})

    assert result["chat"]["text"] == "It is a city."
    assert result["chat"]["finish_reason"] == "stop"
    path, body = vllm.asked[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hi?"}]
    assert body["model"] == "alias"


def test_key_is_sent_and_never_shown(run_module: RunModule, vllm: Vllm) -> None:
    vllm.key = KEY
    result = run_module(vllm_completion.main, {"url": vllm.url, "api_key": KEY})

    assert not result["failed"]
    result.pop("invocation", None)  # which ansible-core 2.21 leaves out
    assert KEY not in json.dumps(result)
    assert '"Authorization: Bearer $VLLM_API_KEY"' in result["curl"]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_line_repeats_the_request(run_module: RunModule, vllm: Vllm) -> None:
    vllm.key = KEY
    result = run_module(vllm_completion.main, {"url": vllm.url, "api_key": KEY, "prompt": 'It\'s "a" $HOME\ntest'})
    asked = vllm.asked[-1]
    answer = subprocess.run(
        ["bash", "-c", result["curl"]], env={"VLLM_API_KEY": KEY}, capture_output=True, check=True, timeout=20
    )
    assert json.loads(answer.stdout) == COMPLETION
    assert vllm.asked[-1] == asked


@pytest.mark.parametrize(("given", "says"), [("", "wants an API key"), ("wrong-key", "refuses the key")])
def test_unauthorized(run_module: RunModule, vllm: Vllm, given: str, says: str) -> None:
    vllm.key = KEY
    result = run_module(vllm_completion.main, {"url": vllm.url, "api_key": given})
    assert result["error"]["name"] == "unauthorized"
    assert says in result["msg"]
    assert "vllm_api_key" in result["msg"]


def test_model_that_is_not_served_names_those_that_are(run_module: RunModule, vllm: Vllm) -> None:
    result = run_module(vllm_completion.main, {"url": vllm.url, "model": "nvidia/Llama-4-Scout-Instruct-FP8"})
    assert result["error"]["name"] == "model-not-served"
    assert MODEL in result["msg"]
    assert result["error"]["details"]["served"] == [MODEL, "alias"]


@pytest.mark.parametrize(
    ("path", "status", "content", "name", "evidence"),
    [
        ("/v1/models", 200, {"data": []}, "malformed-answer", "data"),
        ("/v1/models", 200, [1], "malformed-answer", "[1]"),
        ("/v1/models", 200, "<html>nginx", "malformed-answer", "nginx"),
        ("/v1/completions", 200, "<html>nginx", "malformed-answer", "nginx"),
        ("/v1/completions", 200, {}, "malformed-answer", "{}"),
        ("/v1/completions", 200, changed(COMPLETION, choices=[]), "malformed-answer", "choices"),
        ("/v1/completions", 200, changed(COMPLETION, text=5), "malformed-answer", "choices"),
        ("/v1/completions", 200, changed(COMPLETION, finish_reason=None), "malformed-answer", "choices"),
        ("/v1/completions", 200, changed(COMPLETION, usage=None), "malformed-answer", "choices"),
        ("/v1/completions", 200, changed(COMPLETION, usage={**USAGE, "total_tokens": 24}), "malformed-answer", ""),
        ("/v1/completions", 200, changed(COMPLETION, usage={**USAGE, "prompt_tokens": "5"}), "malformed-answer", ""),
        (
            "/v1/completions",
            200,
            changed(COMPLETION, usage={"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}),
            "malformed-answer",
            "",
        ),
        (
            "/v1/completions",
            200,
            changed(COMPLETION, usage={"prompt_tokens": 5, "completion_tokens": 21, "total_tokens": 26}),
            "malformed-answer",
            "",
        ),
        ("/v1/completions", 200, changed(COMPLETION, text=" \n"), "empty-answer", "choices"),
        ("/v1/completions", 200, changed(COMPLETION, text=None), "empty-answer", "choices"),
        ("/v1/completions", 500, {"error": {"message": "EngineCore died"}}, "server-error", "EngineCore died"),
        ("/v1/completions", 400, {"error": {"message": "max_tokens too large"}}, "server-error", "too large"),
        (
            "/v1/completions",
            404,
            {"error": {"message": f"The model `{MODEL}` does not exist."}},
            "model-not-served",
            "",
        ),
        ("/v1/completions", 404, {"detail": "Not Found"}, "server-error", "Not Found"),
    ],
)
def test_bad_answers_have_a_name(
    run_module: RunModule, vllm: Vllm, path: str, status: int, content: Any, name: str, evidence: str
) -> None:
    vllm.answers[path] = (status, content)
    result = run_module(vllm_completion.main, {"url": vllm.url, "retries": 0})
    assert result["failed"]
    assert result["error"]["name"] == name
    assert evidence in result["error"]["evidence"]


def test_body_of_an_error_is_cut(vllm: Vllm) -> None:
    vllm.answers["/v1/models"] = (500, "x" * 5000)
    with pytest.raises(GpufleetError) as caught:
        Server(vllm.url).models()
    assert len(caught.value.evidence) == 300
    assert caught.value.details == {"status": 500}


def test_chat_without_a_template_fails(run_module: RunModule, vllm: Vllm) -> None:
    vllm.answers["/v1/chat/completions"] = (400, {"error": {"message": "no chat template"}})
    result = run_module(vllm_completion.main, {"url": vllm.url, "chat": True})
    assert result["error"]["name"] == "server-error"
    assert "no chat template" in result["msg"]


NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the"
    " tokenizer does not define one."
)


@pytest.mark.parametrize(
    ("chat", "status", "message", "told"),
    [
        ("auto", 200, "", (False, None)),
        ("auto", 400, NO_TEMPLATE, (False, "no chat template")),
        ("true", 400, NO_TEMPLATE, (True, None)),
        ("auto", 400, "max_tokens too large", (True, None)),
        ("auto", 500, NO_TEMPLATE, (True, None)),
        ("false", 500, "", (False, None)),
    ],
)
def test_a_base_model_needs_no_chat_template(
    run_module: RunModule, vllm: Vllm, chat: str, status: int, message: str, told: tuple[bool, str | None]
) -> None:
    if status != 200:
        vllm.answers["/v1/chat/completions"] = (status, {"error": {"message": message, "code": status}})
    result = run_module(vllm_completion.main, {"url": vllm.url, "chat": chat, "retries": 0})
    assert (result["failed"], result.get("no_chat")) == told
    assert ("chat" in result) is (chat == "auto" and status == 200)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "reasoning": "The user asks"}, "The user asks"),
        ({"content": None, "reasoning_content": "The user asks"}, "The user asks"),
        ({"content": "", "reasoning": "The user asks"}, "The user asks"),
        ({"content": "A city.", "reasoning": "The user asks"}, "A city."),
        ({"content": None, "reasoning": " ", "reasoning_content": None}, None),
        ({"content": None}, None),
    ],
)
def test_an_answer_that_is_all_reasoning_so_far_is_one(
    run_module: RunModule, vllm: Vllm, message: dict[str, Any], text: str | None
) -> None:
    vllm.answers["/v1/chat/completions"] = (200, changed(CHAT, message={"role": "assistant", **message}))
    result = run_module(vllm_completion.main, {"url": vllm.url, "chat": True})
    if text is None:
        assert result["error"]["name"] == "empty-answer"
    else:
        assert result["chat"]["text"] == text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:{closed}", "not-ready"),
        ("http://no-such-host.invalid:8000", "server-unreachable"),
        ("ftp://127.0.0.1", "url-invalid"),
        ("127.0.0.1:8000", "url-invalid"),
    ],
)
def test_addresses_without_a_server(run_module: RunModule, url: str, name: str) -> None:
    result = run_module(vllm_completion.main, {"url": url.format(closed=free_port()), "retries": 0})
    assert result["error"]["name"] == name
    assert result["error"]["remedy"]


def test_server_too_slow(run_module: RunModule, vllm: Vllm) -> None:
    vllm.delay = 0.5
    result = run_module(vllm_completion.main, {"url": vllm.url, "timeout": 0.1, "retries": 3})
    assert result["error"]["name"] == "timeout"
    assert len(vllm.asked) == 1


def test_answer_that_breaks_off(run_module: RunModule) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _peer = listener.accept()
            connection.recv(1000)
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = run_module(vllm_completion.main, {"url": url, "retries": 0})
    assert result["error"]["name"] == "server-unreachable"


def test_plain_http_where_https_is_expected(run_module: RunModule, vllm: Vllm) -> None:
    result = run_module(vllm_completion.main, {"url": vllm.url.replace("http:", "https:"), "retries": 0})
    assert result["error"]["name"] == "server-unreachable"


# The client


def test_failures_that_may_pass_are_tried_again(vllm: Vllm) -> None:
    vllm.failures = 2
    pauses: list[float] = []
    assert Server(vllm.url, retries=2, pause=0.5, sleep=pauses.append).models() == [MODEL, "alias"]
    assert pauses == [0.5, 0.5]


def test_attempts_end(vllm: Vllm) -> None:
    vllm.failures = 5
    with pytest.raises(GpufleetError, match="503"):
        Server(vllm.url, retries=2, sleep=lambda _seconds: None).models()
    assert len(vllm.asked) == 3


def test_refusals_are_not_tried_again(vllm: Vllm) -> None:
    vllm.answers["/v1/models"] = (400, "no")
    with pytest.raises(GpufleetError):
        Server(vllm.url, retries=5, sleep=lambda _seconds: None).models()
    assert len(vllm.asked) == 1


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a:8000", "http://a:8000"),
        ("http://a:8000/", "http://a:8000"),
        ("https://a/v1", "https://a"),
        ("https://a/v1/", "https://a"),
        ("https://a/models/v1/", "https://a/models"),
        ("https://a/v10", "https://a/v10"),
    ],
)
def test_base_address(url: str, base: str) -> None:
    assert base_url(url) == base


def test_proxy_of_the_environment_is_not_asked(vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert Server(vllm.url).models()


def test_health(vllm: Vllm) -> None:
    assert Server(vllm.url).health()
    vllm.answers["/health"] = (503, "")
    assert not Server(vllm.url).health()
    assert not Server(f"http://127.0.0.1:{free_port()}").health()


def test_ready_request_is_a_short_completion(vllm: Vllm) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    vllm.answers["/v1/completions"] = (200, changed(COMPLETION, usage=usage))
    answer = ready_request(vllm.url, MODEL)
    assert answer.usage == usage
    assert vllm.asked[-1][1]["max_tokens"] == 4
    with pytest.raises(GpufleetError) as caught:
        ready_request(vllm.url, "other")
    assert caught.value.name == "model-not-served"


@pytest.mark.parametrize(
    ("verify", "words"), [(False, ["-k"]), ("/etc/ca.pem", ["--cacert", "/etc/ca.pem"]), (True, [])]
)
def test_curl_line_checks_the_certificate_as_asked(verify: bool | str, words: list[str]) -> None:
    line = Server("https://a", verify=verify).curl("/v1/models")
    assert shlex.split(line) == ["curl", "-sS", "https://a/v1/models", *words]


METRICS_012 = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m, {odd}"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:num_preemptions_total{engine="0",model_name="m"} 349.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:prompt_tokens_total{engine="0"} 1.024e+06 1700000000000
not a sample
vllm:broken nonsense
"""


def test_metrics_are_summed_over_the_engines() -> None:
    assert parse_metrics(METRICS_012) == {
        "requests_running": 7.0,
        "requests_waiting": 2.0,
        "kv_cache_usage": 0.5,
        "preemptions": 349.0,
        "prompt_tokens": 1024000.0,
    }


def test_metrics_of_older_servers() -> None:
    assert parse_metrics("vllm:gpu_cache_usage_perc 0.75\n") == {"kv_cache_usage": 0.75}
    assert parse_metrics("") == {}


def test_samples_keep_their_labels() -> None:
    assert parse_samples(['a:b{x="1",y="}"} 2', "# a 3", "c 4"]) == [("a:b", 'x="1",y="}"', 2.0), ("c", "", 4.0)]


def test_metrics_over_http(vllm: Vllm) -> None:
    vllm.answers["/metrics"] = (200, METRICS_012)
    assert Server(vllm.url).metrics()["requests_waiting"] == 2.0
