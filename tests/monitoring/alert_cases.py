# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For each alert series with which it has to fire, and series so close to them that it must not.

Values are in promtool's form, one a step, which is a minute: C(a+bxn) is C(a) and n further ones, each larger by C(b).
"""

from __future__ import annotations

from dataclasses import dataclass

R = 'host="gpu-01",replica="vllm-0",model="m"'
UP = f'up{{job="vllm",{R}}}'
BACKEND = 'instance="lb-1:9443",router="lb-1",proxy="replicas"'
LATE = 'vllm:time_to_first_token_seconds_bucket{le="2.5",model="m"}'
ALL = 'vllm:time_to_first_token_seconds_count{model="m"}'
FRONT = 'instance="lb-1:9443",router="lb-1",proxy="api"'
ANSWERED = f'haproxy_frontend_http_responses_total{{{FRONT},code="2xx"}}'
FAILED = f'haproxy_frontend_http_responses_total{{{FRONT},code="5xx"}}'
OUT = 'haproxy_server_status{proxy="replicas",host="gpu-01",replica="vllm-0",state="DRAIN"}'
DISK = 'instance="gpu-01:9100",job="gpufleet-node",host="gpu-01",mountpoint="/var",fstype="ext4"'
SICK = 'gpufleet_gpu_sick{instance="gpu-01:9100",host="gpu-01",gpu="0",reason="xid-79"}'
READ = 'gpufleet_gpu_health_time_seconds{instance="gpu-01:9100",host="gpu-01"}'
UNREAD = 'gpufleet_gpu_reading_failed{instance="gpu-01:9100",host="gpu-01",gpu="0",reading="ecc"}'


@dataclass(frozen=True)
class Case:
    """Series, and how many alerts of a name fire in a minute after their beginning; a step is that many minutes."""

    alert: str
    what: str
    series: dict[str, str]
    minute: int
    fires: int
    step: int = 1


def active(count: int, known: int) -> dict[str, str]:
    """Return what HAProxy says when so many of its servers get requests."""
    servers = {
        f'haproxy_server_status{{{BACKEND},server="gpu-0{n}:vllm-0",state="UP"}}': "1x20" if n <= count else "0x20"
        for n in range(1, known + 1)
    }
    return {f"haproxy_backend_active_servers{{{BACKEND}}}": f"{count}x20", **servers}


def ways(*images: str, steps: int) -> dict[str, str]:
    """Return a host for each image."""
    return {
        f'up{{job="vllm",host="gpu-{n}",replica="vllm-0",model="m",hardware="1 x H200",image="{image}"}}': f"1x{steps}"
        for n, image in enumerate(images)
    }


def load(running: str, written: str, read: str = "100x20") -> dict[str, str]:
    return {
        f"vllm:num_requests_running{{{R}}}": running,
        f"vllm:generation_tokens_total{{{R}}}": written,
        f"vllm:prompt_tokens_total{{{R}}}": read,
    }


CASES = (
    Case("GpufleetReplicaDown", "down for long", {UP: "1x5 0x30"}, 25, 1),
    Case("GpufleetReplicaDown", "down for a restart", {UP: "1x5 0x10 1x30"}, 25, 0),
    Case("GpufleetReplicaDown", "down for too short", {UP: "1x5 0x30"}, 19, 0),
    Case(
        "GpufleetReplicaDown",
        "the router is down",
        {f'up{{job="vllm",router="lb-1",{R}}}': "0x30", 'up{job="gpufleet-router",router="lb-1"}': "0x30"},
        25,
        0,
    ),
    Case("GpufleetRouterDown", "down", {'up{job="gpufleet-router",router="lb-1"}': "1x5 0x10"}, 9, 1),
    Case("GpufleetRouterDown", "reloaded", {'up{job="gpufleet-router",router="lb-1"}': "1x5 0 1x10"}, 9, 0),
    Case("GpufleetNoProgress", "stuck", load("3x20", "500x20"), 10, 1),
    Case("GpufleetNoProgress", "writes", load("3x20", "500+1x20"), 10, 0),
    Case("GpufleetNoProgress", "reads a long prompt", load("3x20", "500x20", "100+9x20"), 10, 0),
    Case("GpufleetNoProgress", "nothing to do", load("0x20", "500x20"), 10, 0),
    Case("GpufleetNoProgress", "nothing to do in between", load("3x4 0 3x20", "500x20"), 7, 0),
    Case("GpufleetQueueGrowing", "grows", {f"vllm:num_requests_waiting{{{R}}}": "0+5x40"}, 30, 1),
    Case("GpufleetQueueGrowing", "long, and shrinks", {f"vllm:num_requests_waiting{{{R}}}": "300-5x40"}, 30, 0),
    Case("GpufleetQueueGrowing", "grows, and is short", {f"vllm:num_requests_waiting{{{R}}}": "0+0.5x39"}, 30, 0),
    Case(
        "GpufleetKvCacheFull",
        "full, with preemptions",
        {f"vllm:kv_cache_usage_perc{{{R}}}": "0.99x40", f"vllm:num_preemptions_total{{{R}}}": "0+2x40"},
        30,
        1,
    ),
    Case(
        "GpufleetKvCacheFull",
        "full, with preemptions, under the name of before",
        {f"vllm:gpu_cache_usage_perc{{{R}}}": "0.99x40", f"vllm:num_preemptions_total{{{R}}}": "0+2x40"},
        30,
        1,
    ),
    Case(
        "GpufleetKvCacheFull",
        "full, without preemptions",
        {f"vllm:kv_cache_usage_perc{{{R}}}": "0.99x40", f"vllm:num_preemptions_total{{{R}}}": "7x40"},
        30,
        0,
    ),
    Case(
        "GpufleetKvCacheFull",
        "preemptions, and room",
        {f"vllm:kv_cache_usage_perc{{{R}}}": "0.9x40", f"vllm:num_preemptions_total{{{R}}}": "0+2x40"},
        30,
        0,
    ),
    # 80 % late: more than 14.4 times the 5 % that may be.
    Case("GpufleetTtftGoalBurnsFast", "most are late", {LATE: "0+2x90", ALL: "0+10x90"}, 80, 1),
    Case("GpufleetTtftGoalBurnsFast", "half are late", {LATE: "0+5x90", ALL: "0+10x90"}, 80, 0),
    Case(
        "GpufleetTtftGoalBurnsFast",
        "most of an hour were late, and none lately",
        {LATE: "0+1x59 60+10x30", ALL: "0+10x59 600+10x30"},
        75,
        0,
    ),
    Case(
        "GpufleetTtftGoalBurnsFast",
        "most are late lately, few in the hour",
        {LATE: "0+10x80 800+1x10", ALL: "0+10x90"},
        88,
        0,
    ),
    Case("GpufleetTtftGoalBurnsSlowly", "40 % are late", {LATE: "0+6x90", ALL: "0+10x90"}, 390, 1, 5),
    Case("GpufleetTtftGoalBurnsSlowly", "20 % are late", {LATE: "0+8x90", ALL: "0+10x90"}, 390, 0, 5),
    Case(
        "GpufleetTtftGoalBurnsSlowly",
        "40 % were late, and none lately",
        {LATE: "0+6x60 360+10x30", ALL: "0+10x90"},
        380,
        0,
        5,
    ),
    Case("GpufleetErrorRate", "one in ten", {ANSWERED: "0+90x20", FAILED: "0+10x20"}, 15, 1),
    Case("GpufleetErrorRate", "one in a hundred", {ANSWERED: "0+99x20", FAILED: "0+1x20"}, 15, 0),
    Case("GpufleetErrorRate", "half of very few", {ANSWERED: "0+0.2x20", FAILED: "0+0.2x20"}, 15, 0),
    Case("GpufleetFewReplicasLeft", "one of three", active(1, 3), 10, 1),
    Case("GpufleetFewReplicasLeft", "two of three", active(2, 3), 10, 0),
    Case("GpufleetFewReplicasLeft", "the only one there is", active(1, 1), 10, 0),
    Case("GpufleetFewReplicasLeft", "none, which is another alert", active(0, 3), 10, 0),
    Case("GpufleetNoReplicaLeft", "none of three", active(0, 3), 10, 1),
    Case("GpufleetNoReplicaLeft", "none of one", active(0, 1), 10, 1),
    Case("GpufleetNoReplicaLeft", "one of three", active(1, 3), 10, 0),
    # Of the two routers in the rules under test one has a certificate that ends after 10 days.
    Case("GpufleetCertificateEnds", "10 days, and 300", {}, 120, 1),
    Case("GpufleetCertificateEnds", "not yet for an hour", {}, 30, 0),
    Case(
        "GpufleetDiskFull",
        "5 % free",
        {
            f"node_filesystem_avail_bytes{{{DISK}}}": "5x30",
            f"node_filesystem_size_bytes{{{DISK}}}": "100x30",
            f"node_filesystem_readonly{{{DISK}}}": "0x30",
        },
        20,
        1,
    ),
    Case(
        "GpufleetDiskFull",
        "15 % free",
        {
            f"node_filesystem_avail_bytes{{{DISK}}}": "15x30",
            f"node_filesystem_size_bytes{{{DISK}}}": "100x30",
            f"node_filesystem_readonly{{{DISK}}}": "0x30",
        },
        20,
        0,
    ),
    Case(
        "GpufleetDiskFull",
        "an image that is full by its nature",
        {
            f"node_filesystem_avail_bytes{{{DISK}}}": "0x30",
            f"node_filesystem_size_bytes{{{DISK}}}": "100x30",
            f"node_filesystem_readonly{{{DISK}}}": "1x30",
        },
        20,
        0,
    ),
    Case("GpufleetGpuSick", "sick", {SICK: "0x5 1x10"}, 10, 1),
    Case("GpufleetGpuSick", "well", {SICK: "0x20"}, 10, 0),
    Case("GpufleetGpuHealthUnknown", "not read for an hour", {READ: "0x60"}, 55, 1),
    Case("GpufleetGpuHealthUnknown", "read each minute", {READ: "0+60x60"}, 55, 0),
    Case("GpufleetGpuHealthUnknown", "one reading fails", {READ: "0+60x60", UNREAD: "1x60"}, 55, 1),
    Case("GpufleetGpuHealthUnknown", "no reading fails", {READ: "0+60x60", UNREAD: "0x60"}, 55, 0),
    Case("GpufleetDrift", "two images for two days", ways("v1", "v2", steps=100), 1950, 1, 30),
    Case("GpufleetDrift", "two images during a rollout", ways("v1", "v2", steps=100), 1410, 0, 30),
    Case("GpufleetDrift", "one image", ways("v1", "v1", steps=100), 1950, 0, 30),
    Case("GpufleetRolloutStandsStill", "out for long", {OUT: "0x5 1x90"}, 80, 1),
    Case("GpufleetRolloutStandsStill", "out for its turn", {OUT: "0x5 1x20 0x60"}, 80, 0),
)

# An hour of a fleet that does its work: loads that come and go, a queue now and then, one error, one replica that is
# taken out, restarted and put back, as in a rollout.
QUIET: dict[str, str] = {
    UP: "1x20 0x8 1x60",
    'up{job="vllm",host="gpu-02",replica="vllm-0",model="m"}': "1x90",
    'up{job="gpufleet-router",router="lb-1"}': "1x90",
    **load("4 9 2 0 7 12 3x20 0x10 5x60", "0+900x27 24300x10 24300+700x60", "0+2000x27 54000x10 54000+1500x60"),
    f"vllm:num_requests_waiting{{{R}}}": "0 0 3 30 2 0x30 6 9 1 0x60",
    f"vllm:kv_cache_usage_perc{{{R}}}": "0.3x20 0.97 0.8 0.4x70",
    f"vllm:num_preemptions_total{{{R}}}": "0x20 3x80",
    LATE: "0+97x90",
    ALL: "0+100x90",
    ANSWERED: "0+100x90",
    FAILED: "0x30 1x70",
    **{series: values.replace("x20", "x90") for series, values in active(3, 3).items()},
    OUT: "0x19 1x10 0x70",
    f"node_filesystem_avail_bytes{{{DISK}}}": "60-0.1x90",
    f"node_filesystem_size_bytes{{{DISK}}}": "100x90",
    f"node_filesystem_readonly{{{DISK}}}": "0x90",
    SICK: "0x90",
    READ: "0+60x90",
    UNREAD: "0x90",
}
