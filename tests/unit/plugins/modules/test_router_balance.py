# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of how a real HAProxy keeps requests together that begin alike; the servers are stand-ins."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.haproxy import Master
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.service import RouterService
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_server
from ansible_collections.gpufleet.vllm.tests.fakes.model_replica import ModelReplica, answering
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import (
    ask,
    chat,
    needs_haproxy,
    router_options,
    serving_at,
)

PROMPTS = [f"{number}: " + "You are one of many assistants. " * 40 for number in range(40)]


class Fleet:
    """Three hosts with the same model behind a router."""

    def __init__(self, run_module: RunModule, options: dict[str, Any], replicas: dict[str, ModelReplica]) -> None:
        self.run_module, self.options, self.replicas = run_module, options, replicas
        self.folders = {name: options[name] for name in ("run_dir", "state_dir")}

    def load(self, **changes: Any) -> str:
        """Load the router's configuration with changes; return what was done."""
        self.options.update(changes)
        result = self.run_module(router_server.main, self.options)
        assert result.get("msg") is None
        master = Master(f"{self.options['run_dir']}/master.sock", self.options["state_dir"])
        deadline = time.monotonic() + 10
        while not all(server.up or server.state != "ready" for server in master.servers().values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return str(result["action"])

    def set(self, host: str, state: str) -> None:
        """Drain a host or take it back."""
        done = self.run_module(router_backend.main, {"host": host, "state": state, "timeout": 20, **self.folders})
        assert done.get("msg") is None

    def answered_by(self, body: bytes, **headers: str) -> str:
        """Return which replica answers a request, once the router knows that the one before has ended."""
        time.sleep(0.02)
        status, document = ask(self.options["port"], body, **headers)
        assert status == 200, document
        return str(document["replica"])

    def places(self, **more: Any) -> dict[str, str]:
        """Return which replica answers each of the prompts, with a question of its own behind."""
        return {
            prompt: self.answered_by(asked(prompt, f"Question {number} of {time.monotonic()}", **more))
            for number, prompt in enumerate(PROMPTS)
        }


def asked(system: str, question: str, **more: Any) -> bytes:
    """Return the body of a chat with a system prompt."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return json.dumps({"messages": messages, "model": "m", **more}).encode()


@pytest.fixture
def fleet(run_module: RunModule, tmp_path: Path) -> Iterator[Fleet]:
    """Let the router run before three stand-ins."""
    options = router_options(tmp_path, balance="prefix")
    with ExitStack() as stack:
        replicas = {host: stack.enter_context(answering(host)) for host in ("gpu-01", "gpu-02", "gpu-03")}
        options["hosts"] = {host: [serving_at(replica.port, ["m"])] for host, replica in replicas.items()}
        found = Fleet(run_module, options, replicas)
        found.load()
        yield found
        RouterService(*(options[name] for name in ("directory", "run_dir", "state_dir", "log_file"))).remove()


@needs_haproxy
def test_requests_that_begin_alike_stay_together_and_others_are_spread(fleet: Fleet) -> None:
    first = fleet.places()
    assert min(Counter(first.values()).values()) >= 5 and len(set(first.values())) == 3
    assert fleet.places() == first, "another question behind it"
    assert fleet.load(rate_limit=9000) == "reloaded"
    assert fleet.places() == first, "a reload"
    # One that goes leaves the others their prompts, and gets its own back.
    fleet.set("gpu-02", "drain")
    moved = fleet.places()
    assert {first[prompt] for prompt in PROMPTS if moved[prompt] != first[prompt]} == {"gpu-02"}
    assert set(moved.values()) == {"gpu-01", "gpu-03"}
    fleet.set("gpu-02", "ready")
    assert fleet.places() == first
    # One that comes takes some from each, and moves none between the others.
    with answering("gpu-00") as fourth:
        hosts = fleet.options["hosts"]
        assert fleet.load(hosts={**hosts, "gpu-04": [serving_at(fourth.port, ["m"])]}) == "reloaded"
        more = fleet.places()
        taken = [prompt for prompt in PROMPTS if more[prompt] != first[prompt]]
        assert {more[prompt] for prompt in taken} == {"gpu-00"} and len(taken) <= len(PROMPTS) / 2
        fleet.load(hosts=hosts)


@needs_haproxy
@pytest.mark.parametrize(
    "body",
    [
        lambda prompt, number: json.dumps({"prompt": prompt * 2 + f"and {number}", "model": "m"}).encode(),
        lambda prompt, number: asked(prompt + "x" * 70000, f"question {number}"),
        lambda prompt, number: asked(prompt, "y" * 70000 + str(number)),
        lambda prompt, number: json.dumps(
            {"model": "m", "messages": [{"content": [{"type": "text", "text": prompt * 2 + str(number)}]}]}
        ).encode(),
        lambda prompt, number: json.dumps(
            {"model": "m", "instructions": prompt * 2, "input": f"and {number}"}
        ).encode(),
        lambda prompt, number: json.dumps({"model": "m", "input": [{"content": prompt * 2 + f"{number}"}]}).encode(),
    ],
    ids=["completion", "long system prompt", "long question", "parts", "response", "response of messages"],
)
def test_what_a_prompt_is_in_does_not_matter(fleet: Fleet, body: Any) -> None:
    first = [fleet.answered_by(body(prompt, 1)) for prompt in PROMPTS[:12]]
    assert [fleet.answered_by(body(prompt, 2)) for prompt in PROMPTS[:12]] == first
    assert len(set(first)) > 1


@needs_haproxy
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]], ids=["without", "with"])
@pytest.mark.parametrize("size", [20, 3000, 80000])
def test_a_conversation_stays_where_it_began_and_others_begin_elsewhere(
    fleet: Fleet, system: list[dict[str, str]], size: int
) -> None:
    began = []
    for number in range(12):
        messages = [*system, {"role": "user", "content": f"{number} " * size}]
        began.append(fleet.answered_by(json.dumps({"messages": messages, "model": "m"}).encode()))
        messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
        assert fleet.answered_by(json.dumps({"messages": messages, "model": "m"}).encode()) == began[-1]
    assert len(set(began)) > 1


@needs_haproxy
def test_a_replica_that_has_too_many_passes_them_on(fleet: Fleet) -> None:
    for replica in fleet.replicas.values():
        replica.hold = 1.0
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(fleet.answered_by(chat("m")))) for _turn in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 125 percent of a third of 24.
    assert len(seen) == 24 and max(Counter(seen).values()) <= 11 and len(set(seen)) == 3


@needs_haproxy
def test_a_session_stays_together_by_its_header_its_key_or_its_user(fleet: Fleet) -> None:
    fleet.load(balance="session")
    for named in ({"prompt_cache_key": "one"}, {"user": "one"}):
        assert len(set(fleet.places(**named).values())) == 1
    assert {fleet.answered_by(asked(prompt, "?"), X_Session_Id="one") for prompt in PROMPTS[:12]} == {
        fleet.answered_by(chat("m"), X_Session_Id="one")
    }
    sessions = {fleet.answered_by(chat("m"), X_Session_Id=str(number)) for number in range(20)}
    assert len(sessions) == 3
    # Without any, by its beginning.
    assert fleet.places() == fleet.places()


@needs_haproxy
def test_what_is_drained_stays_so_when_the_way_to_choose_changes(fleet: Fleet) -> None:
    fleet.load(balance="leastconn")
    fleet.set("gpu-03", "drain")
    for balance in ("prefix", "session", "leastconn"):
        assert fleet.load(balance=balance) == "reloaded"
        assert set(fleet.places().values()) == {"gpu-01", "gpu-02"}


@needs_haproxy
def test_a_replica_that_holds_twice_as_much_gets_twice_as_much(fleet: Fleet) -> None:
    hosts = fleet.options["hosts"]
    for host, requests in (("gpu-01", 80), ("gpu-02", 40), ("gpu-03", 40)):
        hosts[host][0]["requests"] = requests
    fleet.load(balance="leastconn", hosts=hosts)
    for replica in fleet.replicas.values():
        replica.hold = 1.5
    threads = [threading.Thread(target=fleet.answered_by, args=(chat("m"),)) for _turn in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {host: replica.most for host, replica in fleet.replicas.items()} == {"gpu-01": 12, "gpu-02": 6, "gpu-03": 6}
