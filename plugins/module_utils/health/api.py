# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talking to a vLLM server over HTTP: its OpenAI-compatible API, its health and its metrics."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

if TYPE_CHECKING:
    import requests

RECIPE_PROMPT = "San Francisco is a"
KEY_VARIABLE = "VLLM_API_KEY"
BODY_SHOWN = 300
CONNECT_TIMEOUT = 5.0

# The gauges we show, by the names that they have had; the first that a server has counts.
METRICS: dict[str, tuple[str, ...]] = {
    "requests_running": ("vllm:num_requests_running",),
    "requests_waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "prompt_tokens": ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
    "generation_tokens": ("vllm:generation_tokens_total", "vllm:generation_tokens"),
}
# Summed over the engines of a server, except for shares, of which the largest counts.
SHARES = {"kv_cache_usage"}

SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")


@dataclass(frozen=True)
class Answer:
    """One checked completion.

    Attributes:
        text: what the model wrote.
        finish_reason: C(length), C(stop), …
        usage: C(prompt_tokens), C(completion_tokens) and C(total_tokens).
        model: the name under which the server answered.
        latency: seconds from the request to the whole answer.
        curl: the command that repeats the request; it reads the key from C($VLLM_API_KEY).
    """

    text: str
    finish_reason: str
    usage: dict[str, int]
    model: str
    latency: float
    curl: str

    def as_result(self) -> dict[str, Any]:
        """Return the answer as values of a task's result."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "model": self.model,
            "latency_s": round(self.latency, 3),
            "curl": self.curl,
        }


class Server:
    """A vLLM server at an address.

    Args:
        url: its base address, such as C(http://127.0.0.1:8000); a trailing C(/v1) is ignored.
        api_key: the key it wants, or C("").
        timeout: seconds to wait for each answer.
        verify: whether to check the server's certificate, or the path of the CA bundle to check it with.
        retries: further attempts after the first where the cause may pass.
        pause: seconds between two attempts.
        sleep: how to wait.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout: float = 60,
        verify: bool | str = True,
        retries: int = 0,
        pause: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import requests

        self.url = base_url(url)
        self.timeout = timeout
        self.retries = retries
        self.pause = pause
        self.verify = verify
        self._api_key = api_key
        self._sleep = sleep
        self._session = requests.Session()
        # A proxy of the environment is for the way out, never for a server of the fleet.
        self._session.trust_env = False
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[str]:
        """Return the names of the models that the server serves.

        Raises:
            GpufleetError: as request, and C(malformed-answer) when the list has no names.
        """
        answer = self.json("GET", "/v1/models")
        entries = answer.get("data") if isinstance(answer, dict) else None
        names = [entry["id"] for entry in entries or [] if isinstance(entry, dict) and entry.get("id")]
        if not names:
            raise malformed("/v1/models", "it names no model", answer)
        return names

    def served_model(self, model: str = "") -> str:
        """Return the model to ask: C(model) if it is served, or the first served one if C(model) is empty.

        Raises:
            GpufleetError: C(model-not-served), naming those that are, and as models.
        """
        return self.pick(self.models(), model)

    def pick(self, served: list[str], model: str = "") -> str:
        """Return C(model), or the first of C(served) if it is empty.

        Raises:
            GpufleetError: C(model-not-served), naming those that are.
        """
        if model and model not in served:
            raise not_served(self.url, model, served)
        return model or served[0]

    def complete(self, model: str, prompt: str, max_tokens: int, temperature: float) -> Answer:
        """Return the checked answer of C(/v1/completions)."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}
        return self._ask("/v1/completions", body, lambda choice: choice.get("text"))

    def chat(self, model: str, prompt: str, max_tokens: int, temperature: float) -> Answer:
        """Return the checked answer of C(/v1/chat/completions) to one message of a user."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        return self._ask("/v1/chat/completions", body, lambda choice: _said(choice.get("message") or {}))

    def health(self) -> bool:
        """Say whether the server is ready: False while it starts (nothing listens) or when its engine died (503)."""
        try:
            self.request("GET", "/health")
        except GpufleetError as error:
            if error.name in ("not-ready", "server-error"):
                return False
            raise
        return True

    def metrics(self) -> dict[str, float]:
        """Return the server's load, as parse_metrics does."""
        return parse_metrics(self.request("GET", "/metrics").text)

    def curl(self, path: str, body: dict[str, Any] | None = None) -> str:
        """Return the curl command of a request; the key stays in C($VLLM_API_KEY)."""
        words = ["curl", "-sS", shlex.quote(self.url + path)]
        if self.verify is False:
            words.append("-k")
        elif isinstance(self.verify, str):
            words += ["--cacert", shlex.quote(self.verify)]
        if self._api_key:
            words += ["-H", f'"Authorization: Bearer ${KEY_VARIABLE}"']
        if body is not None:
            words += ["-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(body, ensure_ascii=False))]
        return " ".join(words)

    def json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Do a request and return the JSON document of its answer."""
        response = self.request(method, path, body)
        try:
            return response.json()
        except ValueError as error:
            raise malformed(path, "it is no JSON", response.text) from error

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> requests.Response:
        """Do a request, again where the cause may pass, and return an answer of the 200s.

        Raises:
            GpufleetError: C(not-ready), C(server-unreachable), C(timeout), C(unauthorized), C(model-not-served) or
                C(server-error).
        """
        for attempt in range(self.retries + 1):
            try:
                return self._request_once(method, path, body)
            except GpufleetError as error:
                may_pass = error.name in ("not-ready", "server-unreachable") or error.details.get("status", 0) >= 500
                if attempt == self.retries or not may_pass:
                    raise
            self._sleep(self.pause)
        raise AssertionError("the last attempt returns or raises")

    def _request_once(self, method: str, path: str, body: dict[str, Any] | None) -> requests.Response:
        import requests

        try:
            response = self._session.request(
                method, self.url + path, json=body, timeout=(CONNECT_TIMEOUT, self.timeout), verify=self.verify
            )
        except requests.exceptions.SSLError as error:
            raise GpufleetError(
                f"The certificate of {self.url} is not trusted.",
                name="server-unreachable",
                remedy="Set vllm_url_ca (ca_path of the module) to a file of the host with the authority that"
                " signed it.",
                evidence=str(error),
            ) from error
        except requests.exceptions.ConnectTimeout as error:
            raise unreachable(self.url, error) from error
        except requests.exceptions.Timeout as error:
            raise self._too_slow(path, error) from error
        except requests.exceptions.ConnectionError as error:
            if "refused" in str(error):
                raise not_ready(self.url, error) from error
            if "timed out" in str(error):
                raise self._too_slow(path, error) from error
            raise unreachable(self.url, error) from error
        except (requests.exceptions.RequestException, ValueError) as error:
            raise unreachable(self.url, error) from error
        except OSError as error:  # of the CA bundle
            raise GpufleetError(
                f"The certificate of {self.url} cannot be checked: {error}.",
                name="server-unreachable",
                remedy="Set vllm_url_ca, or else vllm_ca_bundle (ca_path of the module), to a file that is on the"
                " host.",
            ) from error
        if not response.ok:
            raise self._refusal(path, body, response)
        return response

    def _too_slow(self, path: str, error: Exception) -> GpufleetError:
        return GpufleetError(
            f"{self.url}{path} did not answer within {self.timeout:g} s.",
            name="timeout",
            remedy="Raise timeout if the server is under load (playbook gpufleet.vllm.status shows the requests"
            " waiting); otherwise look at the server's log: its engine may hang.",
            evidence=str(error),
        )

    def _refusal(self, path: str, body: dict[str, Any] | None, response: requests.Response) -> GpufleetError:
        """Return the error for an answer that is not of the 200s."""
        status, text = response.status_code, response.text[:BODY_SHOWN]
        details = {"status": status}
        if status in (401, 403):
            given = "refuses the key it got" if self._api_key else "wants an API key"
            return GpufleetError(
                f"{self.url}{path} {given} (HTTP {status}).",
                name="unauthorized",
                remedy="Set vllm_api_key to the key with which the server was started.",
                evidence=text,
                details=details,
            )
        if status == 404 and body and "model" in body and "does not exist" in response.text:
            return not_served(self.url, str(body["model"]), [])
        return GpufleetError(
            f"{self.url}{path} answered with HTTP {status}.",
            name="server-error",
            remedy="Look at the server's log (docker logs <replica>): the cause stands there."
            if status >= 500
            else "The server does not accept this request: compare it with the API of that vLLM version.",
            evidence=text,
            details=details,
        )

    def _ask(self, path: str, body: dict[str, Any], text_of: Callable[[dict[str, Any]], Any]) -> Answer:
        started = time.monotonic()
        document = self.json("POST", path, body)
        latency = time.monotonic() - started
        text, finish_reason = check_choice(path, document, text_of)
        usage = check_usage(path, document, body["max_tokens"])
        return Answer(
            text=text,
            finish_reason=finish_reason,
            usage=usage,
            model=str(document.get("model") or body["model"]),
            latency=latency,
            curl=self.curl(path, body),
        )


def _said(message: dict[str, Any]) -> Any:
    """Return what a chat message says: its content or, where a reasoning parser has put all of it aside, that."""
    texts = [message.get(key) for key in ("content", "reasoning", "reasoning_content")]
    return next((text for text in texts if isinstance(text, str) and text.strip()), texts[0])


def lacks_chat_template(error: GpufleetError) -> bool:
    """Return whether a server refused a chat message because its model has no chat template."""
    refused = error.name == "server-error" and error.details.get("status") == 400
    return refused and re.search(r"chat.?template", error.evidence, re.IGNORECASE) is not None


def check_endpoints(server: Server, api_key: str, *, required: bool) -> dict[str, Any]:
    """Check what a vLLM server offers besides completions.

    Args:
        server: the server.
        api_key: the key that it was given, or C("").
        required: whether all of it must be there, as with vLLM; otherwise what another server lacks is left out.

    Returns:
        C(healthy), C(version), C(load) (as parse_metrics returns it) and C(refuses_without_key) (None without a key).

    Raises:
        GpufleetError: what is wrong with an endpoint, C(metrics-missing), or C(key-not-enforced).
    """
    found: dict[str, Any] = {"healthy": None, "version": "", "load": {}, "refuses_without_key": None}
    try:
        server.request("GET", "/health")
        found["healthy"] = True
        found["version"] = str(server.json("GET", "/version")["version"])
        found["load"] = server.metrics()
    except (GpufleetError, KeyError, TypeError) as error:
        if required and isinstance(error, GpufleetError):
            raise
        if required:
            raise malformed("/version", "it names no version", str(error)) from error
    if required and "requests_running" not in found["load"]:
        raise malformed("/metrics", "it does not tell how many requests are running", found["load"])
    if api_key:
        found["refuses_without_key"] = _refuses_without_key(server)
    return found


def _refuses_without_key(server: Server) -> bool:
    try:
        Server(server.url, timeout=server.timeout, verify=server.verify).request("GET", "/v1/models")
    except GpufleetError as error:
        if error.name == "unauthorized":
            return True
        raise
    raise GpufleetError(
        f"{server.url}/v1 answers without an API key, though vllm_api_key is set.",
        name="key-not-enforced",
        remedy="Deploy again, so that the server is started with the key (VLLM_API_KEY); whoever reaches the port can"
        " use it until then.",
    )


def ready_request(url: str, model: str = "", api_key: str = "", *, timeout: float = 60) -> Answer:
    """Ask a server for one token and return its answer: a server that gives it does serve the model.

    Raises:
        GpufleetError: as Server.request, Server.served_model and Server.complete.
    """
    server = Server(url, api_key=api_key, timeout=timeout)
    return server.complete(server.served_model(model), RECIPE_PROMPT, max_tokens=4, temperature=0)


def base_url(url: str) -> str:
    """Return a server's base address without trailing slashes and without C(/v1).

    Raises:
        GpufleetError: C(url-invalid) when it does not start with http:// or https://.
    """
    if not re.match(r"https?://[^/\s]+", url):
        raise GpufleetError(
            f"url: {url!r} is no address of a server.",
            name="url-invalid",
            remedy="Write http://<host>:<port>, such as http://127.0.0.1:8000.",
        )
    return re.sub(r"/+(?:v1/*)?$", "", url)


def check_choice(path: str, document: Any, text_of: Callable[[dict[str, Any]], Any]) -> tuple[str, str]:
    """Return text and finish reason of the first choice.

    Raises:
        GpufleetError: C(malformed-answer) when there is none, C(empty-answer) when its text is blank.
    """
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise malformed(path, "it has no choices", document)
    text, finish_reason = text_of(choices[0]), choices[0].get("finish_reason")
    if text is not None and not isinstance(text, str):
        raise malformed(path, "the text of its first choice is no text", document)
    if not isinstance(finish_reason, str) or not finish_reason:
        raise malformed(path, "its first choice has no finish_reason", document)
    if not (text or "").strip():
        raise GpufleetError(
            f"{path} answered with an empty text (finish_reason {finish_reason}).",
            name="empty-answer",
            remedy="A model that stops at once often lacks its chat template or got the wrong weights; try another"
            " prompt, and look at the server's log.",
            evidence=shown(document),
        )
    return str(text), finish_reason


def check_usage(path: str, document: dict[str, Any], max_tokens: int) -> dict[str, int]:
    """Return the token counts of an answer.

    Raises:
        GpufleetError: C(malformed-answer) when they are missing or contradict each other or C(max_tokens).
    """
    usage = document.get("usage")
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    prompt, completion, total = (
        count if isinstance(count, int) and not isinstance(count, bool) else -1 for count in counts or [None] * 3
    )
    if min(prompt, completion, total) < 0:
        raise malformed(path, "its usage has no token counts", document)
    if prompt + completion != total:
        raise malformed(path, f"its usage does not add up: {prompt} + {completion} is not {total}", document)
    if not 0 < completion <= max_tokens:
        raise malformed(path, f"it counts {completion} completion tokens where 1 to {max_tokens} are right", document)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def parse_metrics(text: str) -> dict[str, float]:
    """Return a server's load from the text of its C(/metrics) page.

    Returns:
        those of C(requests_running), C(requests_waiting), C(kv_cache_usage) (0 to 1), C(preemptions),
        C(prompt_tokens) and C(generation_tokens) that the server tells.
    """
    values: dict[str, list[float]] = {}
    for name, _labels, value in parse_samples(text.splitlines()):
        values.setdefault(name, []).append(value)
    load = {}
    for key, names in METRICS.items():
        found = next((values[name] for name in names if name in values), None)
        if found:
            load[key] = max(found) if key in SHARES else sum(found)
    return load


def parse_samples(lines: Iterable[str]) -> list[tuple[str, str, float]]:
    """Return name, labels (as written) and value of each sample in lines of Prometheus' text format."""
    samples = []
    for line in lines:
        match = None if line.startswith("#") else SAMPLE.fullmatch(line.strip())
        if match:
            try:
                samples.append((match[1], match[2] or "", float(match[3])))
            except ValueError:
                continue
    return samples


def shown(document: Any) -> str:
    """Return the beginning of an answer, for evidence."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    return text[:BODY_SHOWN]


def malformed(path: str, problem: str, document: Any) -> GpufleetError:
    """Return the error for an answer that is not what the API promises."""
    return GpufleetError(
        f"The answer of {path} is malformed: {problem}.",
        name="malformed-answer",
        remedy="Check that vLLM itself answers at this address, and not a proxy or another service.",
        evidence=shown(document),
    )


def not_served(url: str, model: str, served: list[str]) -> GpufleetError:
    """Return the error for a model that a server does not serve."""
    names = f"; it serves {', '.join(served)}" if served else ""
    return GpufleetError(
        f"{url} does not serve the model {model}{names}.",
        name="model-not-served",
        remedy="Ask for a model by the name under which it is served (vllm_served_model_name, or else vllm_model).",
        details={"model": model, "served": served},
    )


def not_ready(url: str, error: Exception) -> GpufleetError:
    """Return the error for an address where nothing listens."""
    return GpufleetError(
        f"Nothing listens at {url} (yet): vLLM opens its port only when it is ready to serve.",
        name="not-ready",
        remedy="Wait until the server is ready, or look whether it runs (playbook gpufleet.vllm.status, docker ps);"
        " check vllm_host and vllm_port.",
        evidence=str(error),
    )


def unreachable(url: str, error: Exception) -> GpufleetError:
    """Return the error for a connection that fails or breaks."""
    return GpufleetError(
        f"{url} cannot be reached.",
        name="server-unreachable",
        remedy="Check vllm_host and vllm_port, and that a firewall lets this host through.",
        evidence=str(error),
    )


HEALTH_TIMEOUT_S = 5.0


def health_status(url: str) -> int:
    """Return the HTTP status of the server's /health; 0 when nothing answers."""
    try:
        Server(url, timeout=HEALTH_TIMEOUT_S).request("GET", "/health")
    except GpufleetError as error:
        return int(error.details.get("status", 0))
    return 200
