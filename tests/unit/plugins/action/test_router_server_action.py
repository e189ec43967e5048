# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the router learns from the hosts' variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import trust_as_template
from ansible.vars.hostvars import HostVarsVars

from ansible_collections.gpufleet.vllm.plugins.action import router_server
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.modules.router_server import ARGUMENTS
from ansible_collections.gpufleet.vllm.tests.unit.plugins.action.conftest import run_action

ROLES = Path(__file__).resolve().parents[4] / "roles"


def member(host: str = "10.0.0.1", *, address: str = "", reached: str = "gpu.example.com") -> dict[str, Any]:
    """Return the fact of a host with one replica that listens on C(host)."""
    replicas = [{"name": "vllm-0", "host": host, "port": 8000, "config": {"max-num-seqs": 64}}] if host else []
    plan = {"replicas": replicas, "model": "org/model", "capacity": {"max_concurrent_requests": 12}}
    return {**plan, "address": address, "ansible_host": reached}


@pytest.mark.parametrize(
    ("listens", "address", "same_host", "expected"),
    [
        ("10.0.0.1", "", False, "10.0.0.1"),
        ("0.0.0.0", "", False, "gpu.example.com"),
        ("::", "", False, "gpu.example.com"),
        ("127.0.0.1", "", True, "127.0.0.1"),
        ("::1", "", True, "::1"),
        ("::1", "", False, ""),
        ("::", "[fd00::7]", False, "fd00::7"),
        ("127.0.0.1", "", False, ""),
        ("127.0.0.1", "10.9.9.9", False, "10.9.9.9"),
    ],
)
def test_where_the_router_reaches_a_replica(listens: str, address: str, same_host: bool, expected: str) -> None:
    assert router_server.address_of(member(address=address), listens, same_host) == expected


def test_every_host_is_taken_left_out_or_unknown() -> None:
    hostvars = {
        "serves": {"__router_member": member(), "vllm_api_key": "k"},
        "empty": {"__router_member": member(""), "vllm_api_key": "does not matter"},
        "alone": {"__router_member": member("127.0.0.1")},
        "silent": {"vllm_api_key": "another"},
    }
    found = router_server.gather(hostvars, list(hostvars), "lb")
    assert found["hosts"] == {
        "serves": [
            {
                "name": "vllm-0",
                "address": "10.0.0.1",
                "port": 8000,
                "models": ["org/model"],
                "requests": 12,
                "max_num_seqs": 64,
                "max_model_len": 0,
            }
        ],
        "empty": [],
        "alone": [],
    }
    assert found["unknown"] == ["silent"]
    assert list(found["left_out"]) == ["alone"]
    assert "vllm_router_address" in found["left_out"]["alone"]
    assert found["replica_keys"] == {"serves": "k", "alone": "", "silent": "another"}


@pytest.mark.parametrize(
    ("config", "models"),
    [
        ({}, ["org/model"]),
        ({"served-model-name": "scout"}, ["scout"]),
        ({"served-model-name": ["scout", "org/model"]}, ["scout", "org/model"]),
        ({"served-model-name": "scout", "lora-modules": ["sql=/adapters/sql", '{"name": "law", "path": "/a"}']}, None),
        ({"served-model-name": "two\nlines"}, ["two", "lines"]),
        ({"served-model-name": ['qu"ote', "scout"]}, ["scout"]),
    ],
)
def test_the_names_of_a_replica_are_those_that_its_server_takes(
    config: dict[str, Any], models: list[str] | None
) -> None:
    entry = router_server.entry_of(member(), {"name": "vllm-0", "config": config})
    assert entry["models"] == (["scout", "sql", "law"] if models is None else models)
    # A host whose plan was written by hand has no more than it says.
    assert router_server.entry_of({}, {"name": "vllm-0"})["models"] == []


def test_the_key_of_a_host_that_was_not_asked_is_templated_and_one_that_cannot_be_is_named() -> None:
    def hostvars(key: str) -> dict[str, Any]:
        variables = {"vllm_api_key": trust_as_template(key), "vault_key": "from the vault"}
        return {"gpu-01": HostVarsVars(variables, DataLoader(), "gpu-01")}

    found = router_server.gather(hostvars("{{ vault_key }}"), ["gpu-01"], "lb")
    assert (found["unknown"], found["replica_keys"]) == (["gpu-01"], {"gpu-01": "from the vault"})
    with pytest.raises(GpufleetError, match=r"vllm_api_key of gpu-01 cannot be read: .*no_such_key") as caught:
        router_server.gather(hostvars("{{ no_such_key }}"), ["gpu-01"], "lb")
    assert caught.value.name == "key-unreadable"


def test_what_was_kept_and_left_out_is_said() -> None:
    lines = router_server.said({"kept": ["gpu-01"], "left_out": {"gpu-02": "nothing is deployed there"}})
    assert lines == [
        "gpu-01 was not asked: the router keeps what it knew of it",
        "left out gpu-02: nothing is deployed there",
    ]


class Action(router_server.ActionModule):
    """The plugin with a module that returns what it was given."""

    def _execute_module(self, module_args: dict[str, Any], **_parts: Any) -> dict[str, Any]:
        return {"given": module_args, "kept": ["gpu-02"], "left_out": module_args["left_out"]}


@pytest.mark.parametrize("delegate_to", [None, "lb"])
def test_a_host_that_has_the_router_follow_is_not_the_router(delegate_to: str | None) -> None:
    hostvars = {"gpu-01": {"__router_member": member("127.0.0.1")}, "gpu-02": {}}
    variables = {"inventory_hostname": "gpu-01", "hostvars": hostvars}
    result, display = run_action(Action, {"members": ["gpu-01", "gpu-02"]}, variables, delegate_to=delegate_to)
    shown = [call.args[0] for call in display.display.call_args_list]
    if delegate_to:
        assert result["given"]["hosts"]["gpu-01"] == []
        assert [line.partition(":")[0] for line in shown] == ["[lb] left out gpu-01"], "whom it did not ask is no news"
    else:
        (replica,) = result["given"]["hosts"]["gpu-01"]
        assert (replica["name"], replica["address"], replica["port"]) == ("vllm-0", "127.0.0.1", 8000)
        assert shown == ["[gpu-01] gpu-02 was not asked: the router keeps what it knew of it"]


# Options that no variable of the router's host gives.
OTHERS = {"state", "members", "from_variables", "hosts", "left_out", "unknown", "replica_keys", "certificate"}
OTHERS |= {"key_may_wait"}
FIXED = {"user", "chroot"}


def test_every_setting_has_its_variable_and_that_variable_its_default() -> None:
    assert {*router_server.SETTINGS, *OTHERS, *FIXED} == ARGUMENTS.keys()
    defaults = yaml.safe_load((ROLES / "router" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    assert router_server.SETTINGS.values() - defaults.keys() == {"vllm_allow_unauthenticated"}


def test_the_role_and_a_reload_take_the_settings_alike() -> None:
    """All but the certificate, which is as it is when it is left out, and another key, which the role wants at once."""

    def options(file: str) -> list[dict[str, Any]]:
        tasks = yaml.safe_load((ROLES / "router" / "tasks" / f"{file}.yml").read_text(encoding="utf-8"))
        return [task["gpufleet.vllm.router_server"] for task in tasks if "gpufleet.vllm.router_server" in task]

    (role,), follow = options("main"), options("reload")
    alike = {"members": "{{ __router_members }}", "from_variables": True}
    assert role == {**alike, "certificate": role["certificate"]}
    assert follow == [{**alike, "key_may_wait": True}] * 2


def test_a_reload_gives_a_router_what_its_own_variables_say_and_else_the_defaults() -> None:
    own = {"router_port": 443, "router_rate_limit": 0, "router_tls": False, "vllm_api_key": "k"}
    defaults = {variable: f"default of {variable}" for variable in router_server.SETTINGS.values()}
    found = router_server.settings_of({"lb": own}, "lb", defaults.__getitem__)
    assert (found["port"], found["rate_limit"], found["tls"]) == (443, 0, False), "what is false is a value, too"
    assert found["directory"] == "default of router_dir"
    # These two are not the host's that asks: its keys and its permission are another matter.
    assert (found["api_keys"], found["allow_unauthenticated"]) == (["k"], False)
    named = {"lb": {"router_api_keys": ["a", "b"], "vllm_allow_unauthenticated": True}, "lb-2": {}}
    found = router_server.settings_of(named, "lb", defaults.__getitem__)
    assert (found["api_keys"], found["allow_unauthenticated"]) == (["a", "b"], True)
    assert router_server.settings_of(named, "lb-2", defaults.__getitem__)["api_keys"] == []


def test_a_setting_that_only_the_router_itself_can_template_is_named() -> None:
    variables = {"router_port": trust_as_template("{{ no_such_port }}")}
    hostvars = {"lb": HostVarsVars(variables, DataLoader(), "lb")}
    with pytest.raises(GpufleetError, match="router_port of lb cannot be read") as caught:
        router_server.settings_of(hostvars, "lb", lambda variable: variable)
    assert caught.value.name == "setting-unreadable"


@pytest.mark.parametrize(("delegate_to", "port", "keys"), [(None, 8443, ["mine"]), ("lb", 443, ["its"])])
def test_the_settings_are_those_of_the_router_s_host(delegate_to: str | None, port: int, keys: list[str]) -> None:
    variables = {
        **dict.fromkeys(router_server.SETTINGS.values(), ""),
        "inventory_hostname": "gpu-01",
        "hostvars": {"lb": {"router_port": 443, "vllm_api_key": "its"}, "gpu-01": {}},
        "router_port": trust_as_template("{{ base + 443 }}"),
        "base": 8000,
        "router_api_keys": ["mine"],
    }
    arguments = {"members": [], "from_variables": True, "timeout": 5}
    given = run_action(Action, arguments, variables, delegate_to=delegate_to)[0]["given"]
    assert (given["port"], given["api_keys"], given["timeout"]) == (port, keys, 5), "what the task gives wins"
    assert "from_variables" not in given
