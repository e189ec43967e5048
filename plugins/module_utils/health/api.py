# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talking to a vLLM server over HTTP: its OpenAI-compatible API, its health and its metrics."""

from __future__ import annotations

import json
import re
import shlex
import time
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import KEY_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.answers import (
    BODY_SHOWN,
    Answer,
    check_choice,
    check_usage,
    malformed,
    message_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.metrics import parse_metrics

if TYPE_CHECKING:
    import requests

RECIPE_PROMPT = "San Francisco is a"
CONNECT_TIMEOUT = 5.0
HEALTH_TIMEOUT_S = 5.0


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
        return self._ask("/v1/chat/completions", body, lambda choice: message_text(choice.get("message") or {}))

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


def health_status(url: str) -> int:
    """Return the HTTP status of the server's /health; 0 when nothing answers."""
    try:
        Server(url, timeout=HEALTH_TIMEOUT_S).request("GET", "/health")
    except GpufleetError as error:
        return int(error.details.get("status", 0))
    return 200
