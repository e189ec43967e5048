# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_usage, also of what two routers by the HAProxy of this machine log of a client that counts itself."""

from __future__ import annotations

import contextlib
import csv
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.action import router_usage_summary
from ansible_collections.gpufleet.vllm.plugins.modules import router_usage
from ansible_collections.gpufleet.vllm.tests.fakes.counting_replica import PROMPT_TOKENS, counting
from ansible_collections.gpufleet.vllm.tests.fakes.running_router import RunningRouter, running_router
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import needs_haproxy


def test_days_that_are_none_and_no_log_are_told(run_module: RunModule, tmp_path: Path) -> None:
    for given in ({"first_day": "yesterday"}, {"last_day": "2027-13-01"}, {"access_log": ""}):
        result = run_module(router_usage.main, {"access_log": str(tmp_path / "log"), **given})
        assert result["failed"] and result["error"]["name"] == "invalid-router"
    empty = run_module(router_usage.main, {"access_log": str(tmp_path / "log")}, check=True)
    assert (empty["failed"], empty["changed"], empty["usage"]) == (False, False, [])


def ask_much(routers: list[RunningRouter], client: str, number: int, told: Counter[tuple[str, str, str]]) -> None:
    """Send requests of all kinds, and count them as a client can."""
    for place in range(number):
        model, size = f"m/{place % 3}", place % 40
        body: dict[str, Any] = {"model": model, "max_tokens": size, "stream": place % 4 == 3}
        status, _headers, answer = routers[place % len(routers)].ask(f"the-key-of-{client}", **body)
        failed = status != 200
        told[client, "(unknown)" if failed else model, "requests"] += 1
        told[client, "(unknown)" if failed else model, "failures"] += failed
        if not failed and not body["stream"]:
            told[client, model, "tokens_in"] += PROMPT_TOKENS
            told[client, model, "tokens_out"] += size
            told[client, model, "with_tokens"] += 1
        assert failed or len(answer) > size


@needs_haproxy
def test_the_sums_are_those_of_clients_that_count_what_they_send(run_module: RunModule, tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [{"name": name, "key": f"the-key-of-{name}"} for name in ("a", "b")]
    given.append({"name": "c", "key": "the-key-of-c", "models": ["none-of-them"]})
    told: dict[str, Counter[tuple[str, str, str]]] = {name: Counter() for name in "abc"}
    with contextlib.ExitStack() as stack:
        routers = []
        for name in ("lb-1", "lb-2"):
            replica = stack.enter_context(counting())
            router = stack.enter_context(running_router(run_module, tmp_path / name, replica.port))
            (tmp_path / name).mkdir()
            router.options["access_log"] = str(tmp_path / name / "requests" / "access.log")
            router.run(given, access_log_max_bytes=15000)
            routers.append(router)
        threads = [threading.Thread(target=ask_much, args=(routers, name, 120, told[name])) for name in told]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + 10
        while sum(row["requests"] for rows in found.values() for row in rows["usage"]) < 360:
            assert time.monotonic() < deadline
            for name, router in zip(("lb-1", "lb-2"), routers):
                found[name] = run_module(router_usage.main, {"access_log": router.options["access_log"]})
    assert all(answer["unreadable"] == 0 and answer["usage"] for answer in found.values())
    page, _display = run_action(router_usage_summary.ActionModule, {"routers": found, "file": str(tmp_path / "x.csv")})
    assert page["changed"] and page["missing"] == {}
    sums: Counter[tuple[str, str, str]] = Counter()
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            for column in ("requests", "failures", "tokens_in", "tokens_out", "with_tokens"):
                sums[row["client"], row["model"], column] += int(row[column])
    assert +sums == sum((+counted for counted in told.values()), Counter())
    assert sum(number for key, number in sums.items() if key[2] == "requests") == 360
