# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather from the hosts' variables what there is to watch, and return the files for Prometheus and Grafana."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from typing import Any

import yaml
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.gpufleet.vllm.plugins.action.router_server import address_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bare
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_setting import setting_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring import grafana, prometheus_config, scrape_targets
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.alert_rules import rule_groups
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.scrape_targets import Fleet, Router
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.thresholds import read_thresholds

MEMBER = "__monitoring_member"
# What the role router has where a host's variables say nothing; a test compares.
ROUTER_DEFAULTS: dict[str, Any] = {
    "router_metrics_host": "127.0.0.1",
    "router_metrics_port": 0,
    "router_metrics_token": "",
    "router_tls": True,
    "router_virtual_address": "",
}
KINDS = (
    "targets",
    "scrape",
    "rules",
    "dashboards",
    "dashboard_providers",
    "data_sources",
    "prometheus",
    "alertmanager",
)
ARGUMENTS: dict[str, Any] = {
    "kinds": {"type": "list", "elements": "str", "required": True, "choices": list(KINDS)},
    "members": {"type": "list", "elements": "str", "default": []},
    "routers": {"type": "list", "elements": "str", "default": []},
    "here": {"type": "list", "elements": "str", "default": []},
    "node_hosts": {"type": "list", "elements": "str", "default": []},
    "before": {"type": "str", "default": ""},
    "certificates": {"type": "dict", "default": {}},
    "thresholds": {"type": "dict", "default": {}},
    "runbooks_url": {"type": "str", "default": ""},
    "scrape_seconds": {"type": "int", "default": 15},
    "targets_path": {"type": "str", "default": "/etc/prometheus/file_sd"},
    "token_path": {"type": "str", "default": ""},
    "ca_path": {"type": "str", "default": ""},
    "node_port": {"type": "int", "default": 9100},
    "node_job": {"type": "str", "default": "gpufleet-node"},
    "node_user": {"type": "str", "default": "gpufleet"},
    "node_password_path": {"type": "str", "default": ""},
    "dcgm_port": {"type": "int", "default": 0},
    "dashboards_path": {"type": "str", "default": "/var/lib/grafana/dashboards"},
    "prometheus_url": {"type": "str", "default": "http://127.0.0.1:9090"},
    "rules_path": {"type": "str", "default": ""},
    "alertmanager": {"type": "dict", "default": {}},
    "alertmanager_config": {"type": "dict", "default": {}},
    "itself": {"type": "dict", "default": {}},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.monitoring_files."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return the files of the kinds that are wanted, and what cannot be watched."""
        watched = Watched(arguments, variables["hostvars"])
        files = [
            {"kind": kind, "name": name, "content": content}
            for kind in arguments["kinds"]
            for name, content in getattr(watched, kind)().items()
        ]
        return {"files": files, "left_out": watched.fleet.left_out, "authorities": watched.authorities()}


class Watched:
    """The files by their kinds, each a name and its text.

    Args:
        arguments: those of the task.
        hostvars: the variables of every host.
    """

    def __init__(self, arguments: Mapping[str, Any], hostvars: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._members = {
            host: member for host in arguments["members"] if (member := hostvars[host].get(MEMBER)) is not None
        }
        self._ends = {name: end for name, shown in arguments["certificates"].items() if (end := end_in(str(shown)))}
        known = [*arguments["members"], *arguments["routers"], *arguments["node_hosts"]]
        self.fleet = Fleet(
            plans={host: member["plan"] for host, member in self._members.items()},
            addresses={host: bare(str(hostvars[host].get("ansible_host") or host)) for host in dict.fromkeys(known)},
            unknown=[host for host in arguments["members"] if host not in self._members],
            routers=[router_of(hostvars, name) for name in arguments["routers"]],
            here=arguments["here"],
        )
        tokens = [str(router_value(hostvars, name, "router_metrics_token")) for name in arguments["routers"]]
        self._asks_for_token = any(tokens)

    def targets(self) -> dict[str, str]:
        """Return the files with targets."""
        hosts, port = self._arguments["node_hosts"], self._arguments["dcgm_port"]
        files = {
            scrape_targets.VLLM: scrape_targets.replica_entries(self.fleet, self._address, self._arguments["before"]),
            scrape_targets.ROUTER: scrape_targets.router_entries(self.fleet),
            scrape_targets.NODE: scrape_targets.host_entries(self.fleet, hosts, self._arguments["node_port"]),
        }
        if port:
            files[scrape_targets.DCGM] = scrape_targets.host_entries(self.fleet, self._arguments["members"], port)
        return {name: scrape_targets.as_text(entries) for name, entries in files.items()}

    def scrape(self) -> dict[str, str]:
        """Return the file of jobs."""
        return {"gpufleet.yml": as_yaml({"scrape_configs": prometheus_config.jobs(self._how())})}

    def rules(self) -> dict[str, str]:
        """Return the file of rules."""
        groups = rule_groups(
            read_thresholds(self._arguments["thresholds"]),
            runbooks=self._arguments["runbooks_url"],
            node_job=self._arguments["node_job"],
            certificates=self._ends,
        )
        return {prometheus_config.RULES: as_yaml(groups)}

    def dashboards(self) -> dict[str, str]:
        """Return the dashboards."""
        goal = read_thresholds(self._arguments["thresholds"])["ttft_goal_seconds"]
        return {name: json.dumps(board, indent=1) + "\n" for name, board in grafana.dashboards(goal).items()}

    def dashboard_providers(self) -> dict[str, str]:
        """Return what tells Grafana where dashboards are."""
        return {"gpufleet.yml": as_yaml(grafana.providers(self._arguments["dashboards_path"]))}

    def data_sources(self) -> dict[str, str]:
        """Return what tells Grafana where Prometheus is."""
        return {"gpufleet.yml": as_yaml(grafana.data_sources(self._arguments["prometheus_url"]))}

    def prometheus(self) -> dict[str, str]:
        """Return the whole configuration of Prometheus."""
        given = {name: self._arguments[name] for name in ("alertmanager", "itself")}
        config = prometheus_config.prometheus_file(self._how(), rules=self._arguments["rules_path"], **given)
        return {"prometheus.yml": as_yaml(config)}

    def alertmanager(self) -> dict[str, str]:
        """Return the whole configuration of Alertmanager: the one that is given, or one that tells no one."""
        config = self._arguments["alertmanager_config"] or prometheus_config.alertmanager_file()
        return {"alertmanager.yml": as_yaml(config)}

    def authorities(self) -> str:
        """Return the certificates in what openssl showed, for Prometheus to trust."""
        shown = [str(text) for _name, text in sorted(self._arguments["certificates"].items())]
        found = [
            pem
            for text in shown
            for pem in re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.S)
        ]
        return "".join(f"{pem}\n" for pem in dict.fromkeys(found))

    def _address(self, host: str, listens: str) -> str:
        return address_of(self._members[host], listens, host in self._arguments["here"])

    def _how(self) -> prometheus_config.Scraping:
        way = self.fleet.way()
        return prometheus_config.Scraping(
            seconds=self._arguments["scrape_seconds"],
            targets=self._arguments["targets_path"],
            through_router=way is not None,
            tls=way is not None and way.tls,
            token=self._arguments["token_path"] if self._asks_for_token else "",
            ca=self._arguments["ca_path"],
            node_password=self._arguments["node_password_path"],
            node_user=self._arguments["node_user"],
            dcgm=bool(self._arguments["dcgm_port"]),
        )


def router_of(hostvars: Mapping[str, Any], name: str) -> Router:
    """Return a router by the variables of its host."""
    return Router(
        name=name,
        address=bare(str(hostvars[name].get("ansible_host") or name)),
        port=int(router_value(hostvars, name, "router_metrics_port")),
        listens=bare(str(router_value(hostvars, name, "router_metrics_host"))),
        tls=boolean(router_value(hostvars, name, "router_tls")),
        shared=str(router_value(hostvars, name, "router_virtual_address")).partition("/")[0],
    )


def router_value(hostvars: Mapping[str, Any], name: str, variable: str) -> Any:
    """Return what a router's host has in a variable.

    Raises:
        GpufleetError: C(setting-unreadable).
    """
    value = setting_of(hostvars, name, variable)
    return ROUTER_DEFAULTS[variable] if value is None else value


def end_in(shown: str) -> int:
    """Return the end of a certificate in what openssl shows of it, in seconds since the epoch; 0 for none."""
    found = re.search(r"notAfter=(.+)", shown)
    return int(ssl.cert_time_to_seconds(found[1].strip())) if found else 0


def as_yaml(document: Any) -> str:
    """Return a document as YAML, in the order in which it was made."""
    # Ansible's own kinds of text become plain.
    text: str = yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, width=1000, allow_unicode=True)
    return text
