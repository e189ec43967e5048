# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather from the hosts' variables what the router needs to know, run the module, and say who was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bare, is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import (
    MODEL_NAME,
    adapter_names,
    served_names,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import as_options
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import clients_in
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_setting import setting_of

MEMBER = "__router_member"
# Each option that the router has from a variable, and that variable.
SETTINGS = {
    "host": "router_host",
    "port": "router_port",
    "tls": "router_tls",
    "api_keys": "router_api_keys",
    "clients": "router_clients",
    "allow_unauthenticated": "vllm_allow_unauthenticated",
    "endpoints": "router_endpoints",
    "cors_origins": "router_cors_origins",
    "max_request_bytes": "router_max_request_bytes",
    "balance": "router_balance",
    "balance_factor": "router_balance_factor",
    "session_header": "router_session_header",
    "rate_limit": "router_rate_limit",
    "max_connections": "router_max_connections",
    "max_connections_per_address": "router_max_connections_per_address",
    "connection_rate": "router_connection_rate",
    "operators": "router_operators",
    "max_requests_per_replica": "router_max_requests_per_replica",
    "requests_factor": "router_requests_factor",
    "max_queue": "router_max_queue",
    "max_requests_per_key": "router_max_requests_per_key",
    "large_requests": "router_large_requests",
    "buffer_bytes": "router_buffer_bytes",
    "timeout": "router_timeout",
    "check_interval_ms": "router_check_interval_ms",
    "metrics_host": "router_metrics_host",
    "metrics_port": "router_metrics_port",
    "metrics_token": "router_metrics_token",
    "proxy_protocol": "router_proxy_protocol",
    "trusted_proxies": "router_trusted_proxies",
    "access_log": "router_access_log",
    "access_log_max_bytes": "router_access_log_max_bytes",
    "access_log_files": "router_access_log_files",
    "access_log_days": "router_access_log_days",
    "count_tokens": "router_count_tokens",
    "directory": "router_dir",
    "run_dir": "router_run_dir",
    "state_dir": "router_state_dir",
    "log_file": "router_log_file",
}


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.router_server."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and display which hosts it kept or left out."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = dict(self._task.args)
        # A host behind the router has it follow by a delegated task, and asked only those of its batch.
        follows = self._task.delegate_to
        here = str(follows or variables.get("inventory_hostname", ""))
        members = arguments.pop("members", None)
        from_variables = boolean(arguments.pop("from_variables", False))
        try:
            if from_variables:
                arguments = {**self._settings(here, variables), **arguments}
            if "clients" in arguments:
                # Here, where a field with a wrong name that holds a key is sent to no host and shown nowhere.
                arguments["clients"] = as_options(clients_in(arguments["clients"]))
            if members is not None:
                arguments.update(gather(variables["hostvars"], members, here))
        except GpufleetError as error:
            return {**result, **error.as_failure()}
        result.update(
            self._execute_module(
                module_name="gpufleet.vllm.router_server", module_args=arguments, task_vars=variables, tmp=tmp
            )
        )
        for line in said({**result, "kept": []} if follows else result):
            self._display.display(f"[{here}] {line}")
        return result

    def _settings(self, here: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that the variables of the router's host give."""

        def own(variable: str) -> Any:
            return self._templar.template(variables[variable])

        if here == variables.get("inventory_hostname"):
            return {option: own(variable) for option, variable in SETTINGS.items()}
        return settings_of(variables["hostvars"], here, own)


def settings_of(hostvars: Mapping[str, Any], router: str, default: Callable[[str], Any]) -> dict[str, Any]:
    """Return the options that the role router gives a router, for a task of another host.

    Args:
        hostvars: the variables of every host; the defaults of roles are not among them.
        router: its host in the inventory.
        default: returns the role's default of a variable.

    Raises:
        GpufleetError: C(setting-unreadable).
    """
    found: dict[str, Any] = {}
    for option, variable in SETTINGS.items():
        value = setting_of(hostvars, router, variable)
        if value is None and option == "api_keys":
            value = [key] if (key := key_of(hostvars, router)) else []
        elif value is None and option == "allow_unauthenticated":
            value = False
        found[option] = default(variable) if value is None else value
    return found


def gather(hostvars: Mapping[str, Any], members: Sequence[str], here: str) -> dict[str, Any]:
    """Return the module's options hosts, left_out, unknown and replica_keys.

    Args:
        hostvars: the variables of every host; the entry point C(collect_replicas) gave a fact to those that were asked.
        members: hosts of the inventory that may serve.
        here: the host of the router.

    Raises:
        GpufleetError: C(key-unreadable).
    """
    hosts: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    keys: dict[str, str] = {}
    for host in members:
        member = hostvars[host].get(MEMBER)
        if member is None:
            unknown.append(host)
            keys[host] = key_of(hostvars, host)
            continue
        hosts[host] = []
        if member["replicas"]:
            keys[host] = key_of(hostvars, host)
        for replica in member["replicas"]:
            address = address_of(member, str(replica["host"]), here == host)
            if address:
                hosts[host].append({**entry_of(member, replica), "address": address, "port": int(replica["port"])})
            else:
                left_out[host] = (
                    f"{replica['name']} listens on {replica['host']} alone; set vllm_host to an address that the front"
                    " end reaches, or vllm_router_address to say how it reaches this host"
                )
    return {"hosts": hosts, "left_out": left_out, "unknown": unknown, "replica_keys": keys}


def entry_of(member: Mapping[str, Any], replica: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the router knows of a replica, besides where it is: its models, and what it carries by its plan."""
    config, model = replica.get("config") or {}, str(member.get("model") or "")
    names = [*served_names(config, model), *adapter_names(config)]
    capacity = member.get("capacity") or {}
    return {
        "name": replica["name"],
        "models": list(dict.fromkeys(filter(MODEL_NAME.fullmatch, names))),
        "requests": int(capacity.get("max_concurrent_requests") or 0),
        "max_num_seqs": _number(config.get("max-num-seqs")),
        "max_model_len": _number(config.get("max-model-len")),
    }


def _number(value: Any) -> int:
    """Return an option's number; 0 where it is left to vLLM, or written in another way."""
    return int(value) if str(value or "").isdigit() else 0


def address_of(member: Mapping[str, Any], listens: str, same_host: bool) -> str:
    """Return the address at which the router reaches a replica; empty when it cannot."""
    if member.get("address"):
        return bare(str(member["address"]))
    if is_loopback(listens):
        return listens if same_host else ""
    return bare(str(member["ansible_host"])) if listens in ("0.0.0.0", "::") else listens  # noqa: S104  compared


def key_of(hostvars: Mapping[str, Any], host: str) -> str:
    """Return a host's vllm_api_key, which no host has to be asked for; empty when it has none.

    Raises:
        GpufleetError: C(key-unreadable).
    """
    try:
        return str(hostvars[host].get("vllm_api_key") or "")
    except AnsibleError as error:
        raise GpufleetError(
            f"vllm_api_key of {host} cannot be read: {error}",
            name="key-unreadable",
            remedy="Set it for all hosts alike, in group_vars/all, and give the vault's password if it is in a vault.",
        ) from None


def said(result: Mapping[str, Any]) -> list[str]:
    """Return what is to be shown: the hosts that were kept as they were, and those that were left out."""
    lines = [f"{host} was not asked: the router keeps what it knew of it" for host in result.get("kept") or []]
    return lines + [f"left out {host}: {why}" for host, why in sorted((result.get("left_out") or {}).items())]
