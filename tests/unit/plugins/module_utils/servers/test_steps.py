# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided about each replica, from its spec and what is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions, build_spec, labels
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import (
    Found,
    Step,
    step_for,
    steps_for_unwanted,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes

SECRETS = {"VLLM_API_KEY": "a-long-secret"}


def spec(**config: Any) -> Spec:
    wishes = ServerOptions("i", "sha256:1", {"argument": "m"}, "cuda", "gpus", "bridge", "/h", "/c", "/etc")
    replica: Any = {
        "name": "vllm-0",
        "host": "127.0.0.1",
        "port": 8000,
        "gpus": [0],
        "config": {"port": 8000, **config},
    }
    return build_spec(replica, wishes, SECRETS, lambda _path: False)


def container(
    status: str = "running", policy: str = "unless-stopped", key: str = SECRETS["VLLM_API_KEY"], **config: Any
) -> Any:
    """Return what stands for a container of ours, as Docker tells of it."""
    return SimpleNamespace(
        name="vllm-0",
        status=status,
        labels=labels(spec(**config)),
        attrs={"HostConfig": {"RestartPolicy": {"Name": policy}}, "Config": {"Env": [f"VLLM_API_KEY={key}"]}},
    )


def decided(found: Found, **options: Any) -> Step:
    return step_for(spec(), found, SECRETS, **options)


@pytest.mark.parametrize(
    ("found", "action", "why"),
    [
        (Found(), "created", "there was none"),
        (Found(container(), health=200), "none", ""),
        (Found(container(max_num_seqs=4), health=200), "replaced", "config.max_num_seqs: 4 -> (not set)"),
        (Found(container(key="another-long-secret"), health=200), "none", ""),
        (Found(container("exited")), "started", "it did not run (exited)"),
        (Found(container("restarting")), "restarted", "it died again and again"),
        (Found(container(), health=503), "restarted", "its engine is dead: /health answers 503"),
        (Found(container(), health=503, closed=True), "none", ""),
        (Found(container(), engine_ended=lambda: True), "restarted", "its engine has ended"),
        (Found(container(), health=503, closed=True, engine_ended=lambda: True), "restarted", "its engine has ended"),
        (Found(container()), "none", ""),
        (Found(container(policy="always"), health=200), "updated", "restart_policy: always -> unless-stopped"),
    ],
)
def test_what_is_done_about_a_replica(found: Found, action: str, why: str) -> None:
    step = decided(found)
    assert (step.action, step.serves) == (action, found.health == 200)
    assert why in "; ".join(step.why)
    assert bool(step.why) == bool(why)


ROLES = Path(__file__).resolve().parents[5] / "roles"
SPECS = [(ROLES / role / "meta" / "argument_specs.yml").read_text() for role in ("vllm", "verify")]
OPTIONS = [name for text in SPECS for name in yaml.safe_load(text)["argument_specs"]["main"]["options"]]


@pytest.mark.parametrize("value", [0, 7, 7000])
@pytest.mark.parametrize("variable", [name for name in OPTIONS if "timeout" in name])
def test_another_time_out_is_no_reason_to_replace_a_server(variable: str, value: int) -> None:
    """Through the plan, which gives some to vLLM; also one that is turned off, or had been."""
    gpus = [{"name": "NVIDIA H200", "memory_mib": 143771, "compute_capability": "9.0"}]
    base: dict[str, Any] = {"vllm_accept_license": True, "vllm_gpus": gpus, "vllm_version": "0.30.0"}
    wished = {variable: {"weights": value} if variable == "vllm_phase_timeouts" else value}
    options = ServerOptions("i", "sha256:1", {"argument": "m"}, "cuda", "gpus", "bridge", "/h", "/c", "/etc")
    plans = [planner.plan({}, wishes.read({**base, **given})) for given in ({}, wished)]
    before, after = (build_spec(plan["replicas"][0], options, SECRETS, lambda _path: True) for plan in plans)
    for one, other in ((before, after), (after, before)):
        there = container()
        there.labels = labels(one)
        assert step_for(other, Found(there, health=200), SECRETS).action == "none"


def test_a_server_that_answers_is_not_asked_for_its_log() -> None:
    def read() -> bool:
        raise AssertionError("the log was read")

    assert decided(Found(container(), health=200, engine_ended=read)).action == "none"
    assert decided(Found(container(max_num_seqs=4), engine_ended=read)).action == "replaced"


def test_a_restart_that_is_asked_for_comes_after_a_change() -> None:
    assert decided(Found(container(), health=200), restart=True).action == "restarted"
    assert decided(Found(container(max_num_seqs=4), health=200), restart=True).action == "replaced"


def test_an_unfinished_replacement_is_gone_on_with() -> None:
    aside = container("exited", max_num_seqs=4)
    step = decided(Found(container()), aside=aside)
    assert (step.action, step.resumed, step.aside) == ("replaced", True, aside)


def test_what_the_plan_does_not_have_is_removed_and_what_stands_beside_a_replica_is_not() -> None:
    there = {name: container("exited") for name in ("vllm-0", "vllm-0-previous", "vllm-1", "vllm-2-previous")}
    steps = steps_for_unwanted(there, {"vllm-0"}, {"vllm-1"})
    assert [(step.name, step.action, step.was_running) for step in steps] == [
        ("vllm-1", "removed", True),
        ("vllm-2-previous", "removed", False),
    ]
