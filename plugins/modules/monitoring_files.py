# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin monitoring_files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: monitoring_files
version_added: 0.2.0
short_description: Make the files by which Prometheus and Grafana watch a fleet
description:
  - Returns the texts of files; it writes none. They hold no secret.
  - What a host serves is in its fact C(__monitoring_member), which the entry point C(collect) of the role
    C(gpufleet.vllm.monitoring) makes. Hosts without it keep the targets that they have in O(before).
  - Runs on the controller; use it with C(run_once).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  kinds:
    description:
      - Which files to make. V(targets) are for file-based service discovery, V(scrape) has the jobs, V(rules) what is
        recorded and the alerts, V(dashboards) are Grafana's, V(dashboard_providers) and V(data_sources) tell Grafana of
        them and of Prometheus. V(prometheus) and V(alertmanager) are whole configurations.
    type: list
    elements: str
    required: true
    choices: [targets, scrape, rules, dashboards, dashboard_providers, data_sources, prometheus, alertmanager]
  members:
    description:
      - Hosts of the inventory that may serve.
    type: list
    elements: str
    default: []
  routers:
    description:
      - Hosts of the routers. The replicas' metrics come through the first one whose listener for monitoring is reached.
    type: list
    elements: str
    default: []
  here:
    description:
      - Hosts on which Prometheus itself runs, which reach what listens on their own loopback address.
    type: list
    elements: str
    default: []
  node_hosts:
    description:
      - Hosts that run node_exporter.
    type: list
    elements: str
    default: []
  before:
    description:
      - Text of the file of replicas that is there already.
    type: str
    default: ""
  certificates:
    description:
      - What C(openssl x509 -enddate) shows of the certificate of each router, by its name.
    type: dict
    default: {}
  thresholds:
    description:
      - From when on a number is worth an alert; those that are left out have their defaults.
    type: dict
    default: {}
  runbooks_url:
    description:
      - Address of the page with the runbooks.
    type: str
    default: ""
  scrape_seconds:
    description:
      - Seconds between two times that Prometheus asks.
    type: int
    default: 15
  targets_path:
    description:
      - Folder of the files of targets, as Prometheus sees it.
    type: str
    default: /etc/prometheus/file_sd
  token_path:
    description:
      - File with the routers' token, as Prometheus sees it. It is named where a router asks for a token.
    type: str
    default: ""
  ca_path:
    description:
      - File with the authorities that signed certificates, as Prometheus sees it; empty for those of its system.
    type: str
    default: ""
  node_port:
    description:
      - Port of node_exporter.
    type: int
    default: 9100
  node_job:
    description:
      - Regular expression for the jobs that have node_exporter's metrics.
    type: str
    default: gpufleet-node
  node_user:
    description:
      - Whom Prometheus is to node_exporter.
    type: str
    default: gpufleet
  node_password_path:
    description:
      - File with the password of O(node_user), as Prometheus sees it; empty where node_exporter asks for none, and
        speaks plain HTTP.
    type: str
    default: ""
  dcgm_port:
    description:
      - Port of DCGM exporter on each host; V(0) for none.
    type: int
    default: 0
  dashboards_path:
    description:
      - Folder of the dashboards, as Grafana sees it.
    type: str
    default: /var/lib/grafana/dashboards
  prometheus_url:
    description:
      - Address of Prometheus, as Grafana sees it.
    type: str
    default: http://127.0.0.1:9090
  rules_path:
    description:
      - File of the rules, for V(prometheus).
    type: str
    default: ""
  alertmanager:
    description:
      - Prometheus' entry for Alertmanager, for V(prometheus).
    type: dict
    default: {}
  alertmanager_config:
    description:
      - Alertmanager's configuration; empty for one that tells no one.
    type: dict
    default: {}
  itself:
    description:
      - The job by which Prometheus asks itself, for V(prometheus).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Make what a site's Prometheus reads
  gpufleet.vllm.monitoring_files:
    kinds: [targets, scrape, rules]
    members: "{{ groups['vllm'] }}"
    routers: "{{ groups['router'] }}"
    token_path: /etc/prometheus/gpufleet.token
  run_once: true
  register: made
"""

RETURN = r"""
files:
  description: Each file, by its C(kind), with its C(name) and its C(content).
  returned: success
  type: list
  elements: dict
  sample: [{"kind": "targets", "name": "gpufleet-router.json", "content": "[]"}]
left_out:
  description: What cannot be watched, and why.
  returned: success
  type: list
  elements: str
  sample: ["lb-01: router_metrics_port is 0, so nothing is known of the router"]
authorities:
  description: The certificates in O(certificates), as PEM.
  returned: success
  type: str
  sample: ""
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(invalid-thresholds) and V(setting-unreadable).
  returned: failure
  type: dict
"""
