# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which servers of a host a verification tries, and with what: from the applied plan, or from vllm_url."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import reachable
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

# What the recipe's benchmark sends at once.
RECIPE_CONCURRENCY = 512
# Where a server listens does not make its figures another server's.
PLACE = ("host", "port")
AUTO = "auto"


def targets(
    plan: Mapping[str, Any], *, url: str, model: str, environment: Mapping[str, Any], gpu_info: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the server at C(url), or each replica of the plan.

    Args:
        plan: the applied one.
        url: vllm_url; empty for the plan's replicas.
        model: vllm_served_model_name, of the server at C(url).
        environment: vllm_environment, for the server at C(url).
        gpu_info: what the module of that name returned; may be empty.

    Raises:
        GpufleetError: C(invalid-url).
    """
    if url:
        endpoint = {"name": endpoint_name(url), "environment": environment}
        return [{**_target({}, endpoint, gpu_info), "url": url, "model": model}]
    return [
        {**_target(plan, replica, gpu_info), "url": _url_of(replica), "model": str(plan.get("model") or "")}
        for replica in plan.get("replicas") or []
    ]


def _target(plan: Mapping[str, Any], replica: Mapping[str, Any], gpu_info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what does not depend on where the server is."""
    config, indices = replica.get("config") or {}, list(replica.get("gpus") or [])
    length = str(config.get("max-model-len") or "")
    names = [gpu["name"] for gpu in gpu_info.get("gpus") or [] if gpu["index"] in indices]
    return {
        "name": replica["name"],
        "gpus": indices,
        "environment": dict(replica.get("environment") or {}),
        "concurrency": [_concurrency(plan, config)],
        "max_model_len": int(length) if re.match("[0-9]+$", length) else 0,
        "hardware": {"gpus": names, "driver": gpu_info.get("driver_version", "")},
        "plan": comparable(plan, replica if plan else {}),
    }


def _url_of(replica: Mapping[str, Any]) -> str:
    return f"http://{reachable(str(replica['host']))}:{replica['port']}"


def _concurrency(plan: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return how many requests a server takes at once: its limit, what its KV cache holds, or the recipe's number."""
    held = (plan.get("capacity") or {}).get("max_concurrent_requests")
    return int(config.get("max-num-seqs") or held or RECIPE_CONCURRENCY)


def comparable(plan: Mapping[str, Any], replica: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a plan by which figures are those of the same server; a stored benchmark is found by them."""
    config = replica.get("config") or {}
    return {
        "profile": plan.get("profile", ""),
        "precision": plan.get("precision", ""),
        "vllm_version": (plan.get("image") or {}).get("vllm_version", ""),
        "tensor_parallel_size": replica.get("tensor_parallel_size", 1),
        "config": {name: value for name, value in config.items() if name not in PLACE},
        "environment": dict(replica.get("environment") or {}),
    }


def endpoint_name(url: str) -> str:
    """Return the name of a server at an address. It names containers, as two of a host may be measured at a time.

    Raises:
        GpufleetError: C(invalid-url).
    """
    try:
        parts = urlsplit(url)
        place = [parts.hostname or "", str(parts.port or "")]
    except ValueError as error:
        raise GpufleetError(
            f"vllm_url is {url!r}, which is no address: {error}.",
            name="invalid-url",
            remedy="Write it as http://host:port.",
        ) from None
    return "endpoint-" + re.sub("[^A-Za-z0-9_.-]+", "-", "-".join(part for part in place if part))


def floors_of(floors: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return the lowest acceptable scores of a precision, by task and metric; those of C(any) count for each."""
    common, own = floors.get("any") or {}, floors.get(precision or "any") or {}
    return {task: {**(common.get(task) or {}), **(own.get(task) or {})} for task in {**common, **own}}


def authorities(url_ca: str, ca_bundle: str, host_info: Mapping[str, Any]) -> tuple[str, str]:
    """Return the files of authorities by which a server is checked, and those that containers get.

    Args:
        url_ca: vllm_url_ca, for both.
        ca_bundle: vllm_ca_bundle. V(auto) is the file that pip trusts on the host, which may be a mirror's authority
            alone. So it says nothing of servers.
        host_info: what the module of that name returned; may be empty.
    """
    found = str((host_info.get("ca_bundle") or {}).get("path") or "")
    return url_ca or ("" if ca_bundle == AUTO else ca_bundle), url_ca or (found if ca_bundle == AUTO else ca_bundle)
