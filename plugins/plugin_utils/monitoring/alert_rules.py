# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alerts, and what is recorded for them, as Prometheus' rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.thresholds import ttft_bound

BY = "host, replica, model"
# The backends with replicas: all of them, and those of a model where there are several.
BACKENDS = 'proxy=~"replicas|model:.*"'
OUT = 'haproxy_server_status{proxy="replicas",state=~"DRAIN|MAINT"}'
# File systems that are no disk.
NO_DISK = "tmpfs|ramfs|overlay|squashfs|iso9660|fuse.*"
ERRORS = 'haproxy_frontend_http_responses_total{proxy="api",code="5xx"}'
ANSWERS = 'haproxy_frontend_http_responses_total{proxy="api"}'
# Windows of which a goal's alerts need two each.
FAST, SLOW = ("5m", "1h"), ("30m", "6h")

# What vLLM counts, under names that stay: where vLLM changed a name, both are asked for.
RECORDED: dict[str, str] = {
    "gpufleet:requests_running:sum": f"sum by ({BY}) (vllm:num_requests_running)",
    "gpufleet:requests_waiting:sum": f"sum by ({BY}) (vllm:num_requests_waiting)",
    "gpufleet:kv_cache_usage:max": f"max by ({BY}) (vllm:kv_cache_usage_perc or vllm:gpu_cache_usage_perc)",
    "gpufleet:generation_tokens:rate5m": f"sum by ({BY}) (rate(vllm:generation_tokens_total[5m]))",
    "gpufleet:prompt_tokens:rate5m": f"sum by ({BY}) (rate(vllm:prompt_tokens_total[5m]))",
    "gpufleet:preemptions:rate10m": f"sum by ({BY}) (rate(vllm:num_preemptions_total[10m]))",
    "gpufleet:router_errors:ratio5m": (
        f"sum by (instance, router) (rate({ERRORS}[5m])) / sum by (instance, router) (rate({ANSWERS}[5m]))"
    ),
}


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        name: also the heading of its runbook.
        expression: a condition in PromQL; thresholds stand in it in braces.
        lasts: for how long it has to hold.
        severity: C(critical) for what clients notice, C(warning) for what they may soon.
        summary: one line, with Prometheus' labels.
        description: what it means.
    """

    name: str
    expression: str
    lasts: str
    severity: str
    summary: str
    description: str


ALERTS = (
    Alert(
        "GpufleetReplicaDown",
        # Behind a router that is down itself nothing is known of them.
        'up{job="vllm"} == 0 unless on (router) (up{job="gpufleet-router"} == 0)',
        "{replica_down_minutes}m",
        "critical",
        "The replica {{ $labels.replica }} on {{ $labels.host }} does not answer",
        "Its metrics could not be read for {replica_down_minutes} minutes: it serves no requests, or is not reached.",
    ),
    Alert(
        "GpufleetRouterDown",
        'up{job="gpufleet-router"} == 0',
        "{no_router_minutes}m",
        "critical",
        "The router {{ $labels.router }} does not answer",
        "The metrics of HAProxy could not be read for {no_router_minutes} minutes.",
    ),
    Alert(
        "GpufleetNoProgress",
        "min_over_time(gpufleet:requests_running:sum[{no_progress_minutes}m]) > 0"
        " and on (host, replica) (sum by (host, replica)"
        " (increase(vllm:generation_tokens_total[{no_progress_minutes}m])) == 0)"
        " and on (host, replica) (sum by (host, replica)"
        " (increase(vllm:prompt_tokens_total[{no_progress_minutes}m])) == 0)",
        "1m",
        "critical",
        "The replica {{ $labels.replica }} on {{ $labels.host }} has requests and makes no tokens",
        "For {no_progress_minutes} minutes {{ $value }} requests or more ran without a token read or written.",
    ),
    Alert(
        "GpufleetQueueGrowing",
        "gpufleet:requests_waiting:sum > {queue_length} and deriv(gpufleet:requests_waiting:sum[{queue_minutes}m]) > 0",
        "{queue_minutes}m",
        "warning",
        "{{ $value }} requests wait at {{ $labels.replica }} on {{ $labels.host }}, more and more",
        "More requests come than the replica can work on.",
    ),
    Alert(
        "GpufleetKvCacheFull",
        "gpufleet:kv_cache_usage:max > {kv_cache_share} and on (host, replica) gpufleet:preemptions:rate10m > 0",
        "{kv_cache_minutes}m",
        "warning",
        "The KV cache of {{ $labels.replica }} on {{ $labels.host }} is full, and requests are preempted",
        "Preempted requests are computed again, so the replica does less and less that clients get.",
    ),
    Alert(
        "GpufleetTtftGoalBurnsFast",
        "gpufleet:ttft_late:ratio5m > {ttft_fast_share} and on (model) gpufleet:ttft_late:ratio1h > {ttft_fast_share}",
        "2m",
        "critical",
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} wait too long for the first token",
        "More than {ttft_fast_share} of them, within 5 minutes and within an hour, had to wait for more than"
        " {ttft_goal_seconds} seconds.",
    ),
    Alert(
        "GpufleetTtftGoalBurnsSlowly",
        "gpufleet:ttft_late:ratio30m > {ttft_slow_share} and on (model) gpufleet:ttft_late:ratio6h > {ttft_slow_share}",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} wait too long for the first token",
        "More than {ttft_slow_share} of them, within half an hour and within 6 hours, had to wait for more than"
        " {ttft_goal_seconds} seconds.",
    ),
    Alert(
        "GpufleetErrorRate",
        "gpufleet:router_errors:ratio5m > {error_share}"
        f" and on (instance) sum by (instance) (increase({ERRORS}[5m]))"
        " >= {error_count}",
        "5m",
        "critical",
        "{{ $value | humanizePercentage }} of the answers of the router {{ $labels.router }} are errors of the servers",
        "Clients get answers with a status from 500 on.",
    ),
    Alert(
        "GpufleetFewReplicasLeft",
        "haproxy_backend_active_servers{" + BACKENDS + "} <= {replicas_left}"
        " and on (instance, proxy) haproxy_backend_active_servers > 0"
        " and on (instance, proxy) count by (instance, proxy)"
        ' (haproxy_server_status{state="UP"}) > {replicas_left}',
        "2m",
        "warning",
        "The router {{ $labels.router }} has {{ $value }} replicas left in {{ $labels.proxy }}",
        "The next one that fails may leave clients without an answer.",
    ),
    Alert(
        "GpufleetNoReplicaLeft",
        "haproxy_backend_active_servers{" + BACKENDS + "} == 0"
        " and on (instance, proxy) count by (instance, proxy)"
        ' (haproxy_server_status{state="UP"}) > 0',
        "1m",
        "critical",
        "The router {{ $labels.router }} has no replica left in {{ $labels.proxy }}",
        "Clients get 503.",
    ),
    Alert(
        "GpufleetCertificateEnds",
        "gpufleet:certificate_end:seconds - time() < {certificate_days} * 86400",
        "1h",
        "warning",
        "The certificate of the router {{ $labels.router }} ends in {{ $value | humanizeDuration }}",
        "Its end is the one that the last run of the playbook router or deploy saw.",
    ),
    Alert(
        "GpufleetDiskFull",
        'node_filesystem_avail_bytes{job=~"{node_job}",fstype!~"' + NO_DISK + '"}'
        " / node_filesystem_size_bytes < {disk_free_share} and on (instance, mountpoint) node_filesystem_readonly == 0",
        "15m",
        "warning",
        "{{ $value | humanizePercentage }} of {{ $labels.mountpoint }} on {{ $labels.host }} is free",
        "Weights, images and compiled kernels are what grows on a GPU host.",
    ),
    Alert(
        "GpufleetGpuSick",
        "max by (host, instance, gpu, reason) (gpufleet_gpu_sick) == 1",
        "1m",
        "critical",
        "GPU {{ $labels.gpu }} of {{ $labels.host }} is sick: {{ $labels.reason }}",
        "The health program of the host says so.",
    ),
    Alert(
        "GpufleetGpuHealthUnknown",
        "max by (host, instance) (time() - gpufleet_gpu_health_time_seconds) > {gpu_reading_minutes} * 60"
        " or max by (host, instance, gpu, reading) (gpufleet_gpu_reading_failed) == 1",
        "{gpu_reading_minutes}m",
        "warning",
        "The health of the GPUs of {{ $labels.host }} is not known",
        "The health program has not run, or could not read {{ $labels.reading }}.",
    ),
    Alert(
        "GpufleetDrift",
        'count by (model, hardware) (count by (model, hardware, image, precision, profile) (up{job="vllm"})) > 1',
        "{drift_hours}h",
        "warning",
        "Replicas of {{ $labels.model }} on {{ $labels.hardware }} run in {{ $value }} different ways",
        "For {drift_hours} hours image, precision or profile were not the same on all hosts.",
    ),
    Alert(
        "GpufleetRolloutStandsStill",
        f"max by (host, replica) ({OUT}) == 1",
        "{rollout_minutes}m",
        "warning",
        "{{ $labels.replica }} on {{ $labels.host }} has been out of the router for {rollout_minutes} minutes",
        "A rollout that was interrupted, or a drain that was forgotten: the replica gets no requests.",
    ),
)


def rule_groups(
    thresholds: Mapping[str, float], *, runbooks: str, node_job: str, certificates: Mapping[str, int]
) -> dict[str, Any]:
    """Return the file of rules.

    Args:
        thresholds: all of them.
        runbooks: address of the page with the runbooks.
        node_job: the job with node_exporter's metrics.
        certificates: when the certificate of each router ends, in seconds since the epoch.
    """
    values = {
        **{name: f"{value:g}" for name, value in thresholds.items()},
        **{
            f"ttft_{kind}_share": f"{thresholds[f'ttft_{kind}_burn'] * (1 - thresholds['ttft_share']):.4g}"
            for kind in ("fast", "slow")
        },
        "node_job": node_job,
    }
    recorded: list[dict[str, Any]] = [{"record": name, "expr": expression} for name, expression in RECORDED.items()]
    recorded += [_late(window, ttft_bound(thresholds["ttft_goal_seconds"])) for window in (*FAST, *SLOW)]
    recorded += [
        {"record": "gpufleet:certificate_end:seconds", "expr": f"vector({end})", "labels": {"router": router}}
        for router, end in sorted(certificates.items())
    ]
    return {
        "groups": [
            {"name": "gpufleet-recorded", "rules": recorded},
            {"name": "gpufleet-alerts", "rules": [_rule(alert, values, runbooks) for alert in ALERTS]},
        ]
    }


def _late(window: str, bound: str) -> dict[str, Any]:
    """Return the rule for the share of requests that wait for the first token for longer than the goal."""
    metric = "vllm:time_to_first_token_seconds"
    in_time = f'sum by (model) (rate({metric}_bucket{{le="{bound}"}}[{window}]))'
    return {
        "record": f"gpufleet:ttft_late:ratio{window}",
        "expr": f"1 - {in_time} / sum by (model) (rate({metric}_count[{window}]))",
    }


def _rule(alert: Alert, values: Mapping[str, str], runbooks: str) -> dict[str, Any]:
    """Return an alert as Prometheus has it."""
    return {
        "alert": alert.name,
        "expr": _text(alert.expression, values),
        "for": _text(alert.lasts, values),
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": _text(alert.summary, values),
            "description": _text(alert.description, values),
            "runbook_url": f"{runbooks}#{alert.name.lower()}",
        },
    }


def _text(text: str, values: Mapping[str, str]) -> str:
    """Return a text with the thresholds in it; what is in double braces is Prometheus' own."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text
