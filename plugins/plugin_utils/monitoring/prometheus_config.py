# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' own configuration: its jobs, and all of it where the collection brings Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.scrape_targets import DCGM, NODE, ROUTER, VLLM

RULES = "gpufleet-rules.yml"


@dataclass(frozen=True)
class Scraping:
    """How Prometheus asks.

    Attributes:
        seconds: between two times.
        targets: the folder of the files with targets, as Prometheus sees it.
        through_router: whether the replicas' metrics come through a router.
        tls: whether the router speaks TLS.
        token: path of the file with the router's token; empty for none.
        ca: path of the file with the authorities; empty for the system's.
        node_password: path of the file with node_exporter's password; empty where it asks for none.
        node_user: whose password that is.
        dcgm: whether there are DCGM exporters.
    """

    seconds: int
    targets: str
    through_router: bool
    tls: bool
    token: str = ""
    ca: str = ""
    node_password: str = ""
    node_user: str = ""
    dcgm: bool = False


def jobs(how: Scraping) -> list[dict[str, Any]]:
    """Return the jobs."""
    by_router: dict[str, Any] = {}
    if how.token:
        by_router["authorization"] = {"credentials_file": how.token}
    if how.tls:
        by_router |= {"scheme": "https", **_authorities(how)}
    of_node: dict[str, Any] = {}
    if how.node_password:
        login = {"username": how.node_user, "password_file": how.node_password}
        of_node = {"scheme": "https", "basic_auth": login, **_authorities(how)}
    # A series of HAProxy names a replica by host:replica.
    by_replica = [
        {"source_labels": ["server"], "regex": "(.+):([^:]+)", "target_label": label, "replacement": part}
        for label, part in (("host", "$1"), ("replica", "$2"))
    ]
    return [
        _job("vllm", how, VLLM, by_router if how.through_router else {}),
        {**_job("gpufleet-router", how, ROUTER, by_router), "metric_relabel_configs": by_replica},
        _job("gpufleet-node", how, NODE, of_node),
        *([_job("gpufleet-dcgm", how, DCGM, {})] if how.dcgm else []),
    ]


def prometheus_file(
    how: Scraping, *, rules: str, alertmanager: dict[str, Any], itself: dict[str, Any]
) -> dict[str, Any]:
    """Return the whole configuration of a Prometheus that the collection brings.

    Args:
        how: how it asks.
        rules: path of the file of rules.
        alertmanager: the entry for Alertmanager.
        itself: the job for Prometheus' own metrics.
    """
    return {
        "global": {"scrape_interval": f"{how.seconds}s", "evaluation_interval": f"{how.seconds}s"},
        "rule_files": [rules],
        "alerting": {"alertmanagers": [alertmanager]},
        "scrape_configs": [itself, *jobs(how)],
    }


def alertmanager_file() -> dict[str, Any]:
    """Return a configuration of Alertmanager that tells no one, and shows alerts on its page."""
    return {
        "route": {"receiver": "page", "group_by": ["alertname", "model", "router"]},
        "receivers": [{"name": "page"}],
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="GpufleetNoReplicaLeft"'],
                "target_matchers": ['alertname="GpufleetErrorRate"'],
                "equal": ["router"],
            }
        ],
    }


def _authorities(how: Scraping) -> dict[str, Any]:
    return {"tls_config": {"ca_file": how.ca}} if how.ca else {}


def _job(name: str, how: Scraping, file: str, further: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_name": name,
        "scrape_interval": f"{how.seconds}s",
        **further,
        "file_sd_configs": [{"files": [f"{how.targets}/{file}"]}],
    }
