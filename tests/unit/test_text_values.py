# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""C(-e name=value) gives text, also for a dictionary, a list or a number; the roles read it as modules do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import Templar, trust_as_template

from ansible_collections.gpufleet.vllm.plugins.lookup.site import LookupModule
from ansible_collections.gpufleet.vllm.tests.unit.test_structure import read_yaml, tasks_of

ROLES = Path(__file__).resolve().parents[2] / "roles"


def task(file: str, name: str) -> dict[str, Any]:
    """Return a task of a role."""
    return next(found for found in tasks_of(read_yaml(ROLES / file)) if found["name"] == name)


def rendered(expression: Any, variables: dict[str, Any], values: dict[str, Any]) -> Any:
    """Return what Ansible makes of an expression.

    Args:
        expression: a template.
        variables: templates, such as a task's vars.
        values: of further variables.
    """
    trusted = {name: trust_as_template(text) if isinstance(text, str) else text for name, text in variables.items()}
    return Templar(loader=DataLoader(), variables={**trusted, **values}).template(trust_as_template(expression))


def when(found: dict[str, Any], values: dict[str, Any]) -> Any:
    return rendered("{{ (" + found["when"] + ") | bool }}", found.get("vars") or {}, values)


@pytest.fixture(autouse=True)
def lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ansible finds the collection's lookup, as it does in a play."""
    find = lookup_loader.get

    def get(name: str, *arguments: Any, **options: Any) -> Any:
        ours = name == "gpufleet.vllm.site"
        return LookupModule(*arguments, **options) if ours else find(name, *arguments, **options)

    monkeypatch.setattr(lookup_loader, "get", get)


@pytest.mark.parametrize(("given", "truth"), [("false", False), (False, False), ("true", True), (True, True)])
@pytest.mark.parametrize(
    ("mode", "before", "wanted"),
    [("apply", False, True), ("rehearse", False, True), ("apply", True, False), ("compare", False, False)],
)
def test_whether_the_configuration_is_checked(given: Any, truth: bool, mode: str, before: bool, wanted: bool) -> None:
    options = task("vllm/tasks/server.yml", "Serve")["gpufleet.vllm.vllm_server"]
    values = {"vllm_check_config": given, "__vllm_mode": mode, "__vllm_config_checked": before}
    assert rendered(options["check_config"], {}, values) is (truth and wanted)


@pytest.mark.parametrize("given", [{"debug": True}, '{"debug": true}', "debug=true"])
def test_the_engine_is_configured(given: Any) -> None:
    host_info = {"engine": {"running": True}, "daemon_config": {"content": {"debug": False}}}
    found = task("docker/tasks/main.yml", "Start and configure it")
    assert when(found, {"__preflight_host_info": host_info, "docker_daemon_config": given}) is True


def test_an_engine_that_is_configured_is_left_alone() -> None:
    host_info = {"engine": {"running": True}, "daemon_config": {"content": {"debug": True}}}
    found = task("docker/tasks/main.yml", "Start and configure it")
    assert when(found, {"__preflight_host_info": host_info, "docker_daemon_config": {"debug": True}}) is False


@pytest.mark.parametrize(
    ("environment", "engine", "proxies"),
    [
        ({"HTTPS_PROXY": "p"}, {"proxies": {"https-proxy": "q"}}, ("p", "q")),
        ('{"HTTPS_PROXY": "p"}', '{"proxies": {"https-proxy": "q"}}', ("p", "q")),
        ("HTTPS_PROXY=p", "debug=true", ("", "")),  # refused by what reads them next
        ({}, None, ("", "")),
    ],
)
def test_the_ways_out_that_preflight_asks_about(environment: Any, engine: Any, proxies: tuple[str, str]) -> None:
    found = task("preflight/tasks/probe_host.yml", "Look at the host")
    values = {"vllm_environment": environment, "vllm_secret_environment": {"A": "b"}}
    if engine is not None:
        values["docker_daemon_config"] = engine
    options = found["gpufleet.vllm.host_info"]
    asked = tuple(rendered(options[name], found["vars"], values) for name in ("hub_proxy", "registry_proxy"))
    assert asked == proxies


@pytest.mark.parametrize("given", [{"download": 9, "image": 8}, '{"download": 9, "image": 8}'])
def test_the_deadlines_of_phases(given: Any) -> None:
    variables = {"__vllm_phase_timeouts": read_yaml(ROLES / "vllm/vars/main.yml")["__vllm_phase_timeouts"]}
    for file, name, seconds in (("image", "Pull or load the image", 8), ("fetch_weights", "Fetch the weights", 9)):
        found = next(
            value
            for step in tasks_of(read_yaml(ROLES / f"vllm/tasks/{file}.yml"))
            for key, value in step.items()
            if key.startswith("gpufleet.vllm.") and "timeout" in value
        )
        assert rendered(found["timeout"], variables, {"vllm_phase_timeouts": given}) == seconds, name


@pytest.mark.parametrize("given", [{"TOKEN": "secret-1"}, '{"TOKEN": "secret-1"}'])
@pytest.mark.parametrize("file", ["server", "restart", "rollback", "fetch_weights"])
def test_the_secrets_of_the_servers(given: Any, file: str) -> None:
    variables = {"__vllm_secret_environment": read_yaml(ROLES / "vllm/vars/main.yml")["__vllm_secret_environment"]}
    secrets = next(
        value["secrets"]
        for step in tasks_of(read_yaml(ROLES / f"vllm/tasks/{file}.yml"))
        for key, value in step.items()
        if key.startswith("gpufleet.vllm.") and "secrets" in value
    )
    values = {"vllm_secret_environment": given, "vllm_api_key": "", "vllm_hf_token": "hf"}
    found = rendered(secrets, variables, values)
    assert (found["TOKEN"], found["HF_TOKEN"]) == ("secret-1", "hf")


@pytest.mark.parametrize("given", [["basic", "accuracy"], "basic,accuracy", "basic, accuracy"])
def test_the_stages_of_a_turn(given: Any) -> None:
    found = task("rollout/tasks/verify.yml", "Verify by stages")
    values = {"vllm_rollout_verify": given, "vllm_rollout_verify_canary": [], "__rollout_is_canary": False}
    variables = {"__rollout_stages": found["vars"]["__rollout_stages"]}
    assert list(rendered(found["loop"], variables, values)) == ["basic", "accuracy"]


@pytest.mark.parametrize(("names", "keys"), [(["a.example", "b"], ["k1", "k2"]), ("a.example,b", "k1, k2")])
def test_the_first_of_the_routers_names_and_keys(names: Any, keys: Any) -> None:
    found = task("router/tasks/security.yml", "Try what must be refused")
    options = task("router/tasks/security.yml", "Try it from the controller")["gpufleet.vllm.vllm_security"]
    values = {"router_names": names, "router_api_keys": keys, "router_address": "", "router_virtual_address": ""}
    variables = {name: text for name, text in found["vars"].items() if name in ("__router_called", "__router_keys")}
    asked = [rendered(options[name], variables, values) for name in ("address", "server_name", "api_key")]
    assert asked == ["a.example", "a.example", "k1"]


@pytest.mark.parametrize(
    ("file", "name", "option", "variable"),
    [
        ("verify/tasks/accuracy.yml", "Evaluate the model with lm_eval", "limit", "vllm_accuracy_limit"),
        ("verify/tasks/performance.yml", "Measure with vllm bench serve", "num_prompts", "vllm_benchmark_num_prompts"),
    ],
)
@pytest.mark.parametrize(("given", "expected"), [("0", "left out"), (0, "left out"), ("8", 8), (8, 8)])
def test_no_limit(file: str, name: str, option: str, variable: str, given: Any, expected: Any) -> None:
    (options,) = (value for key, value in task(file, name).items() if key.startswith("gpufleet.vllm."))
    assert rendered(options[option], {}, {variable: given, "omit": "left out"}) == expected
