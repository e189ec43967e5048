# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models of the hub that the catalogue does not have, planned by what a hub of our own tells of them."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.action import vllm_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import hub_model, reach
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions import hub_look
from ansible_collections.gpufleet.vllm.tests.fakes.hub import Hub, Repository, Trouble
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action import conftest

LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
SHARDS = [f"model-{number:05d}-of-00030.safetensors" for number in range(1, 31)]
BYTES = 141_107_412_992
OPEN, GATED, TOKEN = "org/Llama-3.3-70B", "org/gated", "hf_sesame_open"
ASKED_FILES = ["config.json", "api/models"]


def repository(**more: Any) -> Repository:
    """A repository that claims the size of the real weights."""
    files = {"config.json": json.dumps(LLAMA_70B).encode(), **dict.fromkeys(SHARDS, b"x")}
    files |= {"original/consolidated.00.pth": b"x", "consolidated.txt": b"x"}
    claimed = {**dict.fromkeys(SHARDS, BYTES // 30), "original/consolidated.00.pth": BYTES}
    return Repository({"main": files, "v2": files}, claimed=claimed, **more)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with an open and a gated model."""
    with Hub({OPEN: repository(), GATED: repository(token=TOKEN)}).running() as running:
        yield running


def run(hub: Hub | None, model: str = OPEN, **wished: Any) -> dict[str, Any]:
    """Plan for eight H200 as a task would."""
    environment = {"HF_ENDPOINT": hub.url} if hub else {}
    variables = {
        "vllm_gpus": [{"name": "NVIDIA H200", "count": 8}],
        "vllm_model": model,
        "vllm_environment": {**environment, **wished.pop("environment", {})},
        **{f"vllm_{name}": value for name, value in wished.items()},
    }
    return conftest.run_action(vllm_plan.ActionModule, {"wishes": {}}, variables)[0]


def reason(result: dict[str, Any], field: str) -> str:
    return next(str(entry["reason"]) for entry in result["plan"]["decisions"] if entry["field"] == field)


def test_a_70b_model_takes_two_cards_a_server(hub: Hub) -> None:
    result = run(hub)
    replicas = result["plan"]["replicas"]
    assert [replica["tensor_parallel_size"] for replica in replicas] == [2] * 4
    assert result["plan"]["capacity"]["weights_gib_per_gpu"] == pytest.approx(BYTES / 1024**3 * 1.026 / 2, rel=0.01)
    assert "at the hub (commit" in reason(result, "weights")


@pytest.mark.parametrize(
    ("sentences", "longest"),
    [(b'{"max_seq_length": 4096, "do_lower_case": false}', 4096), (b"[]", 32768), (b"{", 32768)],
)
def test_a_model_for_embeddings_tells_how_long_a_text_may_be(sentences: bytes, longest: int) -> None:
    files = {**repository().revisions["main"], "sentence_bert_config.json": sentences}
    with Hub({OPEN: Repository({"main": files}, claimed=repository().claimed)}).running() as running:
        assert run(running)["plan"]["replicas"][0]["config"]["max-model-len"] == longest


def test_a_fleet_asks_once_and_another_revision_again(hub: Hub) -> None:
    for _host in range(20):
        run(hub)
    assert len(hub.asked("config.json")) == len(hub.asked("api/models")) == 1
    run(hub, extra_config={"revision": "v2"})
    assert len(hub.asked("config.json")) == 2


def _plan_at_once(url: str, results: Any) -> None:
    question = hub_model.HubQuestion(OPEN, endpoint=url)
    results.put(hub_look.look([question]).answered)


def test_hosts_at_the_same_time_wait_for_the_one_that_asks(hub: Hub) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_plan_at_once, args=(hub.url, results)) for _worker in range(6)]
    for worker in workers:
        worker.start()
    assert all(results.get(timeout=60) for _worker in workers)
    for worker in workers:
        worker.join()
    assert len(hub.asked("config.json")) == 1


def test_a_gated_model_needs_the_token_which_is_kept_nowhere(hub: Hub, no_hub: Path) -> None:
    refused = run(hub, GATED)
    assert refused["error"]["name"] == "model-size-unknown"
    assert "it answers 401" in refused["msg"]
    assert "vllm_hf_token" in refused["msg"]
    result = run(hub, GATED, hf_token=TOKEN)
    assert len(result["plan"]["replicas"]) == 4
    assert TOKEN in hub.tokens
    kept = "".join(path.read_text() + path.name for path in no_hub.rglob("*.json*"))
    assert "num_hidden_layers" in kept
    assert TOKEN not in kept + json.dumps(result)


def test_a_hub_out_of_reach_is_asked_once_and_the_user_can_size_it_himself(no_hub: Path) -> None:
    refused = run(None)
    assert refused["error"]["name"] == "model-size-unknown"
    assert "the connection is refused" in refused["msg"]
    assert "vllm_tensor_parallel_size and vllm_max_model_len" in refused["msg"]
    (kept,) = no_hub.rglob("*.json")
    before = kept.stat().st_mtime_ns
    sized = run(None, tensor_parallel_size=4, max_model_len=8192)
    assert [replica["tensor_parallel_size"] for replica in sized["plan"]["replicas"]] == [4, 4]
    assert kept.stat().st_mtime_ns == before


def test_offline_and_in_the_catalogue_nobody_is_asked(hub: Hub) -> None:
    assert run(hub, offline=True)["error"]["name"] == "model-size-unknown"
    assert run(hub, "nvidia/Llama-4-Scout-17B-16E-Instruct-FP8", accept_license=True)["plan"]
    assert hub.log == []


def test_a_folder_of_the_cache_that_is_whole_is_not_asked_about(hub: Hub) -> None:
    own = {"config": LLAMA_70B, "complete": True, "total_bytes": BYTES, "path": "/hf/x"}
    variables: dict[str, Any] = {"vllm_gpus": [{"name": "NVIDIA H200", "count": 8}], "vllm_model": OPEN}
    variables["vllm_environment"] = {"HF_ENDPOINT": hub.url}
    arguments: dict[str, Any] = {"wishes": {}, "host_info": {"model": own}}
    result = conftest.run_action(vllm_plan.ActionModule, arguments, variables)[0]
    assert len(result["plan"]["replicas"]) == 4
    assert hub.log == []
    arguments["host_info"] = {"model": {**own, "complete": False, "total_bytes": 5}}
    conftest.run_action(vllm_plan.ActionModule, arguments, variables)
    assert hub.asked("config.json")


def test_a_mirror_without_lists_tells_by_the_index(hub: Hub) -> None:
    index = json.dumps({"metadata": {"total_size": BYTES}, "weight_map": {}}).encode()
    for files in hub.repositories[OPEN].revisions.values():
        files["model.safetensors.index.json"] = index
    hub.troubles.append(Trouble("api/models", times=99, status=404))
    assert len(run(hub)["plan"]["replicas"]) == 4


class Proxy(http.server.BaseHTTPRequestHandler):
    """A proxy that gets what it is asked for, and keeps who asked."""

    seen: list[str]

    def do_GET(self) -> None:
        """Answer a GET."""
        self.seen.append(f"{self.path} {self.headers.get('Proxy-Authorization')}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.path) as answer:
            content = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        """Print nothing."""


def test_the_proxy_of_the_servers_is_taken_and_its_password_told_nowhere(hub: Hub, no_hub: Path) -> None:
    seen: list[str] = []
    handler = type("Bound", (Proxy,), {"seen": seen})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://user:sesame@127.0.0.1:{server.server_address[1]}"
    try:
        result = run(hub, secret_environment={"HTTPS_PROXY": address})
    finally:
        server.shutdown()
        server.server_close()
    assert len(result["plan"]["replicas"]) == 4
    assert any("api/models" in entry and "Basic" in entry for entry in seen)
    kept = "".join(path.read_text() for path in no_hub.rglob("*.json*"))
    assert "sesame" not in kept + json.dumps(result)


def test_a_proxy_that_does_not_answer_leaves_the_controllers_own_way(hub: Hub) -> None:
    assert len(run(hub, environment={"HTTPS_PROXY": "http://127.0.0.1:1"})["plan"]["replicas"]) == 4


def test_a_token_does_not_follow_a_redirection(hub: Hub) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{hub.url}/{OPEN}/resolve/main/config.json")
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/x"
        assert json.loads(reach.get(url, reach.Route(), TOKEN, largest=10**6)) == LLAMA_70B
    finally:
        server.shutdown()
        server.server_close()
    assert hub.tokens == set()


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (Trouble("config.json", times=9, status=503), "it answers 503"),
        (Trouble("config.json", times=9, cut=10), "JSON object|IncompleteRead|failed"),
    ],
)
def test_what_a_hub_in_trouble_tells_is_not_believed(hub: Hub, trouble: Trouble, why: str) -> None:
    hub.troubles.append(trouble)
    with pytest.raises(reach.Unreachable, match=why):
        hub_model.read(hub_model.HubQuestion(OPEN, endpoint=hub.url))


def test_more_than_is_to_be_read_is_not_read(hub: Hub) -> None:
    with pytest.raises(reach.Unreachable, match="more than 5 bytes"):
        reach.get(f"{hub.url}/{OPEN}/resolve/main/config.json", reach.Route(), largest=5)


@pytest.mark.parametrize(
    ("files", "loaded"),
    [
        ({"model-00001-of-00002.safetensors": 5, "model-00002-of-00002.safetensors": 6, "adapter.safetensors": 1}, 11),
        ({"model.safetensors": 7, "pytorch_model.bin": 7}, 7),
        ({"consolidated.safetensors": 9, "model-00001-of-00001.safetensors": 9}, 9),
        ({"pytorch_model-00001-of-00001.bin": 8, "training_args.bin": 1}, 8),
        ({"original/consolidated.00.pth": 8, "onnx/model.safetensors": 1}, 0),
    ],
)
def test_the_files_that_vllm_loads(files: dict[str, int], loaded: int) -> None:
    assert sum(entry["size"] for entry in hub_model.loaded(files)) == loaded
