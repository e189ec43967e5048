# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the program C(vllm) in the container of tests that need many starts: no model, no waiting.

It reads its configuration file and its environment as vLLM does, prints the lines that vLLM prints, answers the part of
the API that the collection uses, and fails where vLLM would:

- a configuration key it does not know: C(unrecognized arguments), exit code 2;
- C(max-model-len) above 131072: the engine's error, then the wrapper's, exit code 1.

As the package C(vllm) of the image it also stands in for vLLM's parser, for what imports that and starts no server. It
knows a few options, by Python's argparse; vLLM's own parser is met where the CPU image is deployed.

What cannot be told from a configuration is asked for by environment variables:

- C(STAND_IN_DELAY): seconds between two lines;
- C(STAND_IN_LOG): a file of a recorded start to print instead, after which it exits with C(STAND_IN_EXIT), or, with
  C(never), lives on as vLLM's API server may do, or, with C(serve), serves;
- C(STAND_IN_WRITES): a file that it writes after that log, as vLLM keeps what it compiled;
- C(STAND_IN_COMPILES): a file that it makes in C(STAND_IN_COMPILE_S) seconds, or reads where it is there, as vLLM does
  with what it compiled; it fails if that is damaged;
- C(STAND_IN_SILENT): print a line and hang for ever;
- C(STAND_IN_SICK): the status to answer at /health; 1 is 503;
- C(STAND_IN_SLOW): seconds that a completion of more than one token takes;
- C(STAND_IN_PACE): seconds between two tokens of a streamed completion;
- C(STAND_IN_SPINS): never get done with one, and use a processor all the while;
- C(STAND_IN_LOAD): requests running, waiting and share of the KV cache to tell at /metrics instead of the true ones;
- C(STAND_IN_NO_PARSER): fail to make the parser, or, with C(hang), never get done with it.

C(vllm bench serve) sends as many short requests as it is asked to, one after the other, and saves how many were
answered; it measures nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from typing import Any

KNOWN = {
    "host",
    "port",
    "max-model-len",
    "max-num-seqs",
    "max-num-batched-tokens",
    "served-model-name",
    "dtype",
    "gpu-memory-utilization",
    "tensor-parallel-size",
    "kv-cache-dtype",
    "enforce-eager",
    "shutdown-timeout",
    "load-format",
}
INTEGERS = {"port", "max-model-len", "max-num-seqs", "max-num-batched-tokens", "tensor-parallel-size"}
CHOICES = {"dtype": ["auto", "float32", "bfloat16"], "kv-cache-dtype": ["auto", "fp8"]}
LINES = """
(APIServer pid=1) INFO 11-22 07:24:24 [api_utils.py:345] vLLM API server version 0.12.0
(APIServer pid=1) INFO 11-22 07:24:43 [model.py:623] Resolved architecture: LlamaForCausalLM
(APIServer pid=1) INFO 11-22 07:24:43 [model.py:1788] Using max model len 1024
(EngineCore pid=8) INFO 11-22 07:25:03 [core.py:116] Initializing a V1 LLM engine (v0.12.0) with config: model='x'
(EngineCore pid=8) INFO 11-22 07:25:06 [gpu_model_runner.py:5250] Starting to load model x...
Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]
(EngineCore pid=8) INFO 11-22 07:25:15 [gpu_model_runner.py:5347] Model loading took 0.5 GiB memory and 0.2 seconds
(EngineCore pid=8) INFO 11-22 07:26:08 [monitor.py:53] torch.compile took 5.39 s in total
(EngineCore pid=8) INFO 11-22 07:27:49 [kv_cache_utils.py:2177] GPU KV cache size: 215,548 tokens
Capturing CUDA graphs (decode, FULL):  50%|          | 1/2 [00:00<?, ?it/s]
(EngineCore pid=8) INFO 11-22 07:28:12 [core.py:340] init engine (profile, create kv cache, warmup model) took 7.9 s
(APIServer pid=1) INFO:     Application startup complete.
"""
EVENTS = "text/event-stream"
TOO_LONG = """
(EngineCore pid=8) ERROR 11-22 07:27:49 [core.py:1330] ValueError: To serve at least one request with the models's max seq
 len ({}), (960.00 GiB KV cache is needed, which is larger than the available KV cache memory (19.73 GiB). Based on the
 available memory, the estimated maximum model length is 131072. Try increasing `gpu_memory_utilization`.
"""  # noqa: E501 - as vLLM prints it
WRAPPER = (
    "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)


def say(line: str) -> None:
    print(line, flush=True)


def read_config(path: str) -> dict[str, str]:
    """Return the entries of a configuration file of plain C(key: value) lines."""
    config = {}
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            key, colon, value = line.partition(":")
            if colon and not line.startswith("#"):
                config[key.strip().strip("'\"")] = value.strip().strip("'\"")
    return config


class FlexibleArgumentParser(argparse.ArgumentParser):
    """Reads the entries of the file named by C(--config) as if they stood before the other arguments."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        if "--config" in given:
            at = given.index("--config")
            config = [part for key, value in read_config(given[at + 1]).items() for part in (f"--{key}", value)]
            given = given[:2] + config + given[2:at] + given[at + 2 :]
        return super().parse_args(given, namespace)


class Serve:
    """The command C(vllm serve)."""

    name = "serve"

    def subparser_init(self, subparsers: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = subparsers.add_parser(self.name, usage="vllm serve [model_tag] [options]")
        parser.add_argument("model_tag", nargs="?")
        for key in sorted(KNOWN):
            parser.add_argument(f"--{key}", type=int if key in INTEGERS else str, choices=CHOICES.get(key))
        parser.add_argument("--middleware", action="append", default=[])
        return parser

    def validate(self, args: argparse.Namespace) -> None:
        if args.served_model_name == "":
            raise ValueError("Error: --served-model-name is empty")


def cmd_init() -> list[Serve]:
    """Return the commands, as vLLM's modules of commands do."""
    if os.environ.get("STAND_IN_NO_PARSER") == "hang":
        threading.Event().wait()
    if os.environ.get("STAND_IN_NO_PARSER"):
        raise ImportError("libcuda.so.1: cannot open shared object file")
    return [Serve()]


class NoPlatform:
    """What vLLM's CUDA build takes for its platform on a machine without a GPU."""

    def is_unspecified(self) -> bool:
        return True


class Application:
    """The API, as an ASGI application like vLLM's own, so that middleware stands in front of it in the same way."""

    model = "stand-in"
    longest = 0

    def __init__(self) -> None:
        self.running = 0
        self.steps = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"] or b"{}")
        status, kind, data = self.answer(scope, body)
        headers = [(b"content-type", kind.encode())]
        if kind == EVENTS:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await self.stream(body.get("max_tokens", 1), send)
            return
        headers.append((b"content-length", str(len(data)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    def answer(self, scope: Any, body: Any) -> tuple[int, str, bytes]:
        path, json_type = scope["path"], "application/json"
        if path == "/health":
            status = int(os.environ.get("STAND_IN_SICK") or 200)
            return (503 if status == 1 else status), json_type, b"{}"
        if path == "/metrics":
            return 200, "text/plain", self.metrics().encode()
        if path == "/version":
            return 200, json_type, b'{"version": "0.12.0"}'
        key = os.environ.get("VLLM_API_KEY")
        if key and dict(scope["headers"]).get(b"authorization") != f"Bearer {key}".encode():
            return 401, json_type, b'{"error": "Unauthorized"}'
        if path == "/v1/models":
            model = {"id": self.model, "object": "model", "max_model_len": self.longest}
            document = {"object": "list", "data": [model]}
            return 200, json_type, json.dumps(document).encode()
        if path == "/v1/completions" and body.get("stream"):
            return 200, EVENTS, b""
        if path == "/v1/completions":
            return 200, json_type, json.dumps(self.complete(body.get("max_tokens", 1))).encode()
        return 404, json_type, b'{"detail": "Not Found"}'

    def metrics(self) -> str:
        running, waiting, cache = os.environ.get("STAND_IN_LOAD", f"{self.running},0,0.0").split(",")
        return (
            f'vllm:num_requests_running{{engine="0"}} {running}\n'
            f'vllm:num_requests_waiting{{engine="0"}} {waiting}\n'
            f'vllm:kv_cache_usage_perc{{engine="0"}} {cache}\n'
            f'vllm:iteration_tokens_total_count{{engine="0"}} {self.steps}\n'
        )

    async def stream(self, count: int, send: Any) -> None:
        self.running += 1
        try:
            for number in range(1, count + 1):
                choice = {"index": 0, "text": " city", "finish_reason": "length" if number == count else None}
                event = json.dumps({"id": "x", "model": self.model, "choices": [choice]})
                await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
                self.steps += 1
                await asyncio.sleep(float(os.environ.get("STAND_IN_PACE", "0")))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            self.running -= 1

    def complete(self, count: int) -> dict[str, Any]:
        self.running += 1
        if count > 1:
            time.sleep(float(os.environ.get("STAND_IN_SLOW", "0")))
            while os.environ.get("STAND_IN_SPINS"):
                sum(range(10_000))
        self.steps += count
        self.running -= 1
        choice = {"index": 0, "text": " city", "finish_reason": "length"}
        usage = {"prompt_tokens": 4, "completion_tokens": count, "total_tokens": 4 + count}
        return {"id": "x", "model": self.model, "choices": [choice], "usage": usage}


class Handler(http.server.BaseHTTPRequestHandler):
    """Hands each request to the application."""

    application: Any = Application()

    def do_GET(self) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        scope = {"type": "http", "method": self.command, "path": self.path, "headers": headers}
        left = int(self.headers.get("Content-Length", 0))

        async def receive() -> Any:
            nonlocal left
            body, left = self.rfile.read(left), 0
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                self.wfile.write(message["body"])
                return
            self.send_response(message["status"])
            for name, value in message["headers"]:
                self.send_header(name.decode(), value.decode())
            self.end_headers()

        asyncio.run(type(self).application(scope, receive, send))
        self.rfile.read(left)  # of a request that was turned away: what is not read when it is closed resets it

    do_POST = do_GET

    def log_message(self, *_args: object) -> None:
        pass


def bench(words: list[str]) -> None:
    """Send requests to a server, and save how many it has answered, as C(vllm bench serve) does."""
    given = dict(zip(words, words[1:]))
    count, length = int(given["--num-prompts"]), int(given["--random-output-len"])
    body = json.dumps({"model": given["--model"], "prompt": "x", "max_tokens": length}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    completed, began = 0, time.monotonic()
    for _number in range(count):
        request = urllib.request.Request(f"{given['--base-url']}/v1/completions", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                completed += answer.status == 200
        except OSError as error:
            say(f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - began
    found = {"completed": completed, "failed": count - completed, "duration": seconds}
    found |= {"total_output_tokens": completed * length, "output_throughput": completed * length / seconds}
    with open(os.path.join(given["--result-dir"], given["--result-filename"]), "w", encoding="utf-8") as stream:
        json.dump(found, stream)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if sys.argv[1:3] == ["bench", "serve"]:
        bench(sys.argv[3:])
        return
    argument, config = sys.argv[2], read_config(sys.argv[sys.argv.index("--config") + 1])
    if os.environ.get("STAND_IN_LOG"):
        with open(os.environ["STAND_IN_LOG"], encoding="utf-8") as stream:
            say(stream.read())
        if os.environ.get("STAND_IN_WRITES"):
            os.makedirs(os.path.dirname(os.environ["STAND_IN_WRITES"]), exist_ok=True)
            with open(os.environ["STAND_IN_WRITES"], "wb") as written:
                written.write(bytes(1024 * 1024))
        if os.environ.get("STAND_IN_EXIT") == "never":
            threading.Event().wait()
        if os.environ.get("STAND_IN_EXIT") == "serve":
            serve(argument, config)
        sys.exit(int(os.environ.get("STAND_IN_EXIT", "1")))
    if os.environ.get("STAND_IN_SILENT"):
        say("(APIServer pid=1) INFO 11-22 07:24:24 [api_utils.py:345] vLLM API server version 0.12.0")
        threading.Event().wait()
    unknown = [f"--{key} {value}" for key, value in config.items() if key not in KNOWN]
    if unknown:
        say(f"usage: vllm serve [model_tag] [options]\nvllm: error: unrecognized arguments: {' '.join(unknown)}")
        sys.exit(2)
    for line in LINES.strip().splitlines():
        time.sleep(float(os.environ.get("STAND_IN_DELAY", "0.02")))
        if "KV cache size" in line and int(config.get("max-model-len", 1024)) > 131072:
            say(TOO_LONG.strip().replace("\n", "").format(config["max-model-len"]))
            say(WRAPPER)
            sys.exit(1)
        if "torch.compile took" in line and os.environ.get("STAND_IN_COMPILES"):
            compile_or_read(os.environ["STAND_IN_COMPILES"])
        say(line)
    serve(argument, config)


def compile_or_read(path: str) -> None:
    """Read what was compiled before, or compile it."""
    if not os.path.exists(path):
        time.sleep(float(os.environ.get("STAND_IN_COMPILE_S", "2")))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("compiled")
    with open(path, encoding="utf-8", errors="replace") as stream:
        if stream.read() != "compiled":
            say("(EngineCore pid=8) ERROR 11-22 07:26:08 RuntimeError: Expected tensors only, but got: <class 'bytes'>")
            say(WRAPPER)
            sys.exit(1)


def serve(argument: str, config: dict[str, str]) -> None:
    """Answer requests for ever."""
    Application.model = config.get("served-model-name", argument)
    Application.longest = int(config.get("max-model-len", 0))
    for middleware in (sys.argv[at + 1] for at, given in enumerate(sys.argv) if given == "--middleware"):
        module, _dot, name = middleware.rpartition(".")
        Handler.application = getattr(importlib.import_module(module), name)(Handler.application)
    address = (config.get("host", "0.0.0.0"), int(config.get("port", 8000)))
    if ":" in address[0]:
        http.server.ThreadingHTTPServer.address_family = socket.AF_INET6
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()


if __name__ == "__main__":
    main()
