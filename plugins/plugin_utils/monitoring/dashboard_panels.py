# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the dashboards show: a table of panels, each with its questions to Prometheus.

C($by) stands for the labels by which a dashboard picks what it is about, such as a model; C($goal) for the goal for the
time to the first token. Where vLLM changed a name, a panel asks for both.
"""

from __future__ import annotations

from dataclasses import dataclass

HAPROXY = 'proxy="replicas"'


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: what it shows.
        unit: Grafana's name of the unit.
        queries: each a question in PromQL, and how its answers are called.
        kind: Grafana's kind of panel.
        width: of 24 columns.
        about: a sentence for who does not know what the panel means.
        optional: what has to be there for it to show something; empty if nothing has to.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    about: str = ""
    optional: str = ""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard: its name in addresses, its title, by which labels it picks, its panels."""

    uid: str
    title: str
    picks: tuple[str, ...]
    panels: tuple[Panel, ...]


def quantiles(metric: str, legend: str, *, of: str = "0.5 0.95 0.99") -> tuple[tuple[str, str], ...]:
    """Return a query for each quantile of a histogram of vLLM."""
    rate = f"sum by (le, model) (rate({metric}_bucket{{$by}}[$__rate_interval]))"
    return tuple((f"histogram_quantile({share}, {rate})", f"{legend} p{float(share) * 100:g}") for share in of.split())


def rate(metric: str, by: str) -> str:
    """Return the query for the rate of a counter of vLLM."""
    return f"sum by ({by}) (rate({metric}{{$by}}[$__rate_interval]))"


KV_CACHE = "max by (host, replica) (vllm:kv_cache_usage_perc{$by} or vllm:gpu_cache_usage_perc{$by})"
PREFIX_HITS = (
    "sum by (model) (rate(vllm:prefix_cache_hits_total{$by}[$__rate_interval])"
    " or rate(vllm:gpu_prefix_cache_hits_total{$by}[$__rate_interval]))"
    " / sum by (model) (rate(vllm:prefix_cache_queries_total{$by}[$__rate_interval])"
    " or rate(vllm:gpu_prefix_cache_queries_total{$by}[$__rate_interval]))"
)
LATE = "gpufleet:ttft_late:ratio5m{$model}"

SERVICE = (
    Panel("Replicas that serve", "short", (('sum(up{job="vllm",$by})', "serve"),), "stat", 3),
    Panel(
        "Replicas that do not answer",
        "short",
        (('count(up{job="vllm",$by} == 0) or vector(0)', "do not answer"),),
        "stat",
        3,
    ),
    Panel(
        "Taken out at the router",
        "short",
        ((f'sum(haproxy_server_status{{{HAPROXY},state=~"DRAIN|MAINT"}})', "out"),),
        "stat",
        3,
        "Drained by a person, a rollout or the health of a GPU.",
        "a router",
    ),
    Panel("Requests that run", "short", (("sum(vllm:num_requests_running{$by})", "run"),), "stat", 3),
    Panel("Requests that wait", "short", (("sum(vllm:num_requests_waiting{$by})", "wait"),), "stat", 3),
    Panel(
        "Tokens written a second",
        "short",
        (("sum(rate(vllm:generation_tokens_total{$by}[$__rate_interval]))", "written"),),
        "stat",
        3,
    ),
    Panel(
        "Late for the first token", "percentunit", ((LATE, "{{model}}"),), "stat", 3, "Later than the goal, $goal s."
    ),
    Panel(
        "Alerts",
        "short",
        (('count(ALERTS{alertname=~"Gpufleet.*",alertstate="firing"}) or vector(0)', "fire"),),
        "stat",
        3,
    ),
)
WORK = (
    Panel(
        "Tokens a second",
        "short",
        (
            (rate("vllm:generation_tokens_total", "model"), "{{model}} written"),
            (rate("vllm:prompt_tokens_total", "model"), "{{model}} read"),
        ),
    ),
    Panel(
        "Requests ended a second",
        "reqps",
        ((rate("vllm:request_success_total", "model, finished_reason"), "{{model}} {{finished_reason}}"),),
    ),
    Panel(
        "Time to the first token",
        "s",
        (*quantiles("vllm:time_to_first_token_seconds", "{{model}}"), ("vector($goal)", "goal")),
    ),
    Panel("Time between tokens", "s", quantiles("vllm:inter_token_latency_seconds", "{{model}}")),
    Panel("Time of whole requests", "s", quantiles("vllm:e2e_request_latency_seconds", "{{model}}")),
    Panel(
        "Where the time goes",
        "s",
        tuple(
            (
                f"sum by (model) (rate(vllm:request_{part}_time_seconds_sum{{$by}}[$__rate_interval]))"
                f" / sum by (model) (rate(vllm:request_{part}_time_seconds_count{{$by}}[$__rate_interval]))",
                f"{{{{model}}}} {part}",
            )
            for part in ("queue", "prefill", "decode")
        ),
        about="Seconds of an average request.",
    ),
    Panel(
        "Requests that run and wait",
        "short",
        (
            ("sum by (host, replica) (vllm:num_requests_running{$by})", "{{host}} {{replica}} run"),
            ("sum by (host, replica) (vllm:num_requests_waiting{$by})", "{{host}} {{replica}} wait"),
        ),
    ),
    Panel("KV cache in use", "percentunit", ((KV_CACHE, "{{host}} {{replica}}"),)),
    Panel(
        "Preemptions a second",
        "short",
        ((rate("vllm:num_preemptions_total", "host, replica"), "{{host}} {{replica}}"),),
    ),
    Panel(
        "Prompts found in the prefix cache",
        "percentunit",
        ((PREFIX_HITS, "{{model}}"),),
        about="Share of their tokens.",
    ),
)
ROUTER = (
    Panel(
        "Answers of the router a second",
        "reqps",
        (
            (
                'sum by (router, code) (rate(haproxy_frontend_http_responses_total{proxy="api"}[$__rate_interval]))',
                "{{router}} {{code}}",
            ),
        ),
        optional="a router",
    ),
    Panel(
        "Errors of clients and servers a second",
        "short",
        (
            (
                'sum by (router) (rate(haproxy_frontend_request_errors_total{proxy="api"}[$__rate_interval]))',
                "{{router}} broken requests",
            ),
            (
                'sum by (router) (rate(haproxy_frontend_requests_denied_total{proxy="api"}[$__rate_interval]))',
                "{{router}} denied",
            ),
            (
                f"sum by (host, replica) (rate(haproxy_server_connection_errors_total{{{HAPROXY}}}[$__rate_interval]))",
                "{{host}} {{replica}} not connected",
            ),
            (
                f"sum by (host, replica) (rate(haproxy_server_response_errors_total{{{HAPROXY}}}[$__rate_interval]))",
                "{{host}} {{replica}} broken answers",
            ),
        ),
        optional="a router",
    ),
    Panel(
        "Requests that vLLM failed a second",
        "short",
        (
            (
                "sum by (host, replica, status) (rate(http_requests_total"
                '{status=~"4xx|5xx",$by}[$__rate_interval])) or vector(0)',
                "{{host}} {{replica}} {{status}}",
            ),
        ),
    ),
)
MARKS_OUT = f'max by (host, replica, state) (haproxy_server_status{{{HAPROXY},state=~"UP|DOWN|DRAIN|MAINT"}})'
HOST = (
    Panel(
        "Processors in use",
        "percentunit",
        (('1 - avg by (host) (rate(node_cpu_seconds_total{mode="idle",$host}[$__rate_interval]))', "{{host}}"),),
        optional="node_exporter",
    ),
    Panel(
        "Memory in use",
        "percentunit",
        (("1 - node_memory_MemAvailable_bytes{$host} / node_memory_MemTotal_bytes{$host}", "{{host}}"),),
        optional="node_exporter",
    ),
    Panel(
        "Disk in use",
        "percentunit",
        (
            (
                '1 - node_filesystem_avail_bytes{fstype!~"tmpfs|ramfs|overlay|squashfs|iso9660",$host}'
                " / node_filesystem_size_bytes{$host}",
                "{{mountpoint}}",
            ),
        ),
        optional="node_exporter",
    ),
    Panel(
        "Read from disk a second",
        "Bps",
        (("sum by (host) (rate(node_disk_read_bytes_total{$host}[$__rate_interval]))", "{{host}}"),),
        optional="node_exporter",
    ),
    Panel(
        "Network a second",
        "Bps",
        (
            (
                'sum by (host) (rate(node_network_receive_bytes_total{device!="lo",$host}[$__rate_interval]))',
                "{{host}} in",
            ),
            (
                'sum by (host) (rate(node_network_transmit_bytes_total{device!="lo",$host}[$__rate_interval]))',
                "{{host}} out",
            ),
        ),
        optional="node_exporter",
    ),
    Panel(
        "Memory of the server's process", "bytes", (('process_resident_memory_bytes{job="vllm",$by}', "{{replica}}"),)
    ),
    Panel(
        "Sick GPUs",
        "short",
        (("max by (host, gpu, reason) (gpufleet_gpu_sick{$host})", "GPU {{gpu}} {{reason}}"),),
        optional="the health program",
    ),
)
GPU = (
    Panel(
        "Sick",
        "short",
        (("max by (host, gpu, reason) (gpufleet_gpu_sick{$host,$gpu})", "{{host}} GPU {{gpu}} {{reason}}"),),
        width=12,
        optional="the health program",
    ),
    Panel(
        "XID events since boot",
        "short",
        (("max by (host, gpu, xid) (gpufleet_gpu_xid_total{$host,$gpu})", "{{host}} GPU {{gpu}} XID {{xid}}"),),
        width=12,
        optional="the health program",
    ),
    Panel(
        "Readings that failed",
        "short",
        (
            (
                "max by (host, gpu, reading) (gpufleet_gpu_reading_failed{$host,$gpu})",
                "{{host}} GPU {{gpu}} {{reading}}",
            ),
        ),
        width=12,
        optional="the health program",
    ),
    Panel(
        "Age of the last reading",
        "s",
        (("time() - max by (host) (gpufleet_gpu_health_time_seconds{$host})", "{{host}}"),),
        width=12,
        optional="the health program",
    ),
    Panel(
        "In use", "percent", (("DCGM_FI_DEV_GPU_UTIL{$host,$gpu}", "{{host}} GPU {{gpu}}"),), optional="DCGM exporter"
    ),
    Panel(
        "Memory in use",
        "decmbytes",
        (("DCGM_FI_DEV_FB_USED{$host,$gpu}", "{{host}} GPU {{gpu}}"),),
        optional="DCGM exporter",
    ),
    Panel(
        "Temperature",
        "celsius",
        (("DCGM_FI_DEV_GPU_TEMP{$host,$gpu}", "{{host}} GPU {{gpu}}"),),
        optional="DCGM exporter",
    ),
    Panel(
        "Power", "watt", (("DCGM_FI_DEV_POWER_USAGE{$host,$gpu}", "{{host}} GPU {{gpu}}"),), optional="DCGM exporter"
    ),
    Panel(
        "Last XID",
        "short",
        (("DCGM_FI_DEV_XID_ERRORS{$host,$gpu}", "{{host}} GPU {{gpu}}"),),
        optional="DCGM exporter",
        about="The last code, not a count.",
    ),
)
ROLLOUT = (
    Panel("Serve", "short", (('sum(up{job="vllm",$by})', "serve"),), "stat", 6),
    Panel(
        "Out at the router",
        "short",
        ((f'sum(haproxy_server_status{{{HAPROXY},state=~"DRAIN|MAINT"}})', "out"),),
        "stat",
        6,
        optional="a router",
    ),
    Panel("Images in use", "short", (('count(count by (image) (up{job="vllm",$by}))', "images"),), "stat", 6),
    Panel(
        "Errors of servers",
        "percentunit",
        (("gpufleet:router_errors:ratio5m", "{{router}}"),),
        "stat",
        6,
        optional="a router",
    ),
    Panel(
        "State of each replica at the router",
        "short",
        ((f"{MARKS_OUT} == 1", "{{host}} {{replica}} {{state}}"),),
        "state-timeline",
        24,
        optional="a router",
    ),
    Panel("Replicas by image", "short", (('count by (image) (up{job="vllm",$by} == 1)', "{{image}}"),), width=12),
    Panel(
        "Since when each server runs",
        "dateTimeFromNow",
        (('process_start_time_seconds{job="vllm",$by} * 1000', "{{host}} {{replica}}"),),
        "table",
        12,
    ),
    Panel(
        "Requests that run",
        "short",
        (("sum by (host, replica) (vllm:num_requests_running{$by})", "{{host}} {{replica}}"),),
        width=12,
    ),
    Panel(
        "Time to the first token", "s", quantiles("vllm:time_to_first_token_seconds", "{{model}}", of="0.95"), width=12
    ),
)
DASHBOARDS = (
    Dashboard("gpufleet-fleet", "GPU fleet", ("model",), (*SERVICE, *WORK, *ROUTER)),
    Dashboard("gpufleet-host", "GPU fleet: a host", ("host",), (*HOST, *WORK)),
    Dashboard("gpufleet-gpu", "GPU fleet: a GPU", ("host", "gpu"), GPU),
    Dashboard("gpufleet-rollout", "GPU fleet: a rollout", ("model",), ROLLOUT),
)
# What is marked on every dashboard, by name: a question whose answers are marks, their text, their colour.
CAME = 'up{job="vllm"} unless on (host, replica, image) (up{job="vllm"} offset 5m)'
KNOWN = 'max_over_time(up{job="vllm"}[7d] offset 5m)'
MARKS = {
    "Deployed": (f"({CAME}) unless on (host, replica, image) {KNOWN}", "{{host}} {{replica}}: {{image}}", "blue"),
    "Rolled back": (
        f"({CAME}) and on (host, replica, image) {KNOWN}",
        "{{host}} {{replica}}: {{image}} again",
        "orange",
    ),
    "Drained": (
        f'max by (host, replica) (haproxy_server_status{{{HAPROXY},state=~"DRAIN|MAINT"}}) == 1'
        f' unless max by (host, replica) (haproxy_server_status{{{HAPROXY},state=~"DRAIN|MAINT"}} offset 2m) == 1',
        "{{host}} {{replica}} out",
        "yellow",
    ),
}
