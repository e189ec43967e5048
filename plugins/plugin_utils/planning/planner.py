# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What should run on a host: a pure function of what the host has and what the user wishes.

The result is the plan document (schema_version 1). Every later step reads it and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import authority, is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import (
    Capacity,
    ImageOfPlan,
    MoeTables,
    Plan,
    Replica,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import gpus, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import levers
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.answer_options import answer_options
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.cpu_options import cpu_capacity, cpu_options
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.gpu_options import (
    cuda_options,
    finish_options,
    listen,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.image_choice import (
    CPU_IMAGE,
    CUDA_IMAGE,
    choose_image,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_choice import Chosen, choose
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.model_support import check_support
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.size_refusals import too_few_gpus
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.sizing import capacity, size_replica
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

SCHEMA_VERSION = 1
NO_DEVICE = "Install the driver, 580 or newer, and check `nvidia-smi -L`."
ON_PROCESSORS = " On a host without a GPU set vllm_device: cpu."


def plan(host: Mapping[str, Any], wishes: Wishes) -> Plan:
    """Return the plan of one host.

    Args:
        host: what the host has. C(gpus) (as gpu_info returns them), C(architecture) (x86_64 or aarch64), C(cpus),
            C(memory_mib), C(memory_available_mib), C(cpu_flags), C(driver_version), C(gpu_state), C(gpu_reason)
            (gpu_info's C(state), C(reason) and, as C(gpu_remedy), C(remedy)), C(own_containers) (ids of the containers
            that earlier plans made here), C(model) (what host_info found in the model's folder, or the hub told) or
            C(model_config) (its config.json alone), C(model_why) (why the hub told nothing), and C(moe_tables) (names
            and texts of the files in vllm_moe_tables_dir). All are optional.
        wishes: what the user wants.

    Returns:
        The plan document.

    Raises:
        GpufleetError: the wish cannot be met on this host; the message has the numbers.
    """
    draft = Draft()
    return _plan_cpu(draft, host, wishes) if wishes.device == "cpu" else _plan_cuda(draft, host, wishes)


def _plan_cuda(draft: Draft, host: Mapping[str, Any], wishes: Wishes) -> Plan:
    selection = _select_gpus(host, wishes)
    cards = selection.gpus
    draft.decide("device", "cuda", "vllm_device")
    draft.decide("gpus", [gpu.index for gpu in cards], selection.reason)
    draft.warnings += selection.warnings
    image, version = choose_image(draft, host, wishes, CUDA_IMAGE, cards)
    cuda = versions.cuda_of(version, image["reference"].rsplit(":", 1)[-1])
    _check_driver(draft, host, wishes, cuda, needs_cuda_13=cards[0].compute_capability == (10, 3))
    chosen = choose(draft, host, wishes, cards)
    check_support(draft, host, wishes, chosen, version)
    _check_kernels(draft, chosen, cards, version, image["reference"])
    sizing = size_replica(draft, wishes, levers.text_only(draft, wishes, chosen, version), cards, version)
    groups = _replicate(draft, wishes, cards, sizing.load.tensor_parallel_size)
    config, environment = cuda_options(draft, wishes, chosen, cards, sizing, image["reference"])
    files = host.get("moe_tables") or {}
    tables = levers.tuned_tables(draft, wishes, chosen, cards, sizing.load, (config, environment), files)
    replicas: list[Replica] = [
        {
            "name": f"{wishes.container_prefix}-{number}",
            "gpus": [gpu.index for gpu in group],
            "gpu_uuids": [gpu.uuid for gpu in group if gpu.uuid],
            "host": wishes.host,
            "port": wishes.port + number,
            "tensor_parallel_size": sizing.load.tensor_parallel_size,
            "config": {**config, **listen(wishes, number)},
            "environment": dict(environment),
        }
        for number, group in enumerate(groups)
    ]
    hardware = gpus.describe(cards)
    return _document(draft, wishes, chosen, image, hardware, replicas, capacity(wishes, sizing), tables)


def _select_gpus(host: Mapping[str, Any], wishes: Wishes) -> gpus.Selection:
    if wishes.gpus:
        found = gpus.from_inventory(wishes.gpus)
    else:
        memory_mib = int(host.get("memory_mib") or 0)
        found = gpus.from_probe(host.get("gpus") or [], host.get("own_containers") or [], memory_mib)
    if not found:
        remedy = str(host.get("gpu_remedy") or NO_DEVICE)
        why = host.get("gpu_reason") or "NVML has not been asked, or found no device."
        raise GpufleetError(
            f"No NVIDIA GPU on this host: {why}",
            name="no-gpu",
            remedy=remedy
            + ("" if "vllm_device: cpu" in remedy else ON_PROCESSORS)
            + " To plan for hardware that is not there yet, set vllm_gpus.",
            details={"state": host.get("gpu_state") or ""},
        )
    return gpus.select(found, wishes.gpu_selection)


def _check_driver(draft: Draft, host: Mapping[str, Any], wishes: Wishes, cuda: str, needs_cuda_13: bool) -> None:
    probed = "" if wishes.gpus else str(host.get("driver_version") or "")
    found = wishes.driver_version or probed
    if not found:
        return
    oldest = versions.oldest_driver(cuda, wishes.min_driver)
    major = versions.parse(found if "." in found else f"{found}.0")
    if major is not None and major[0] < oldest:
        raise GpufleetError(
            f"The driver {found} is older than {oldest}, which the image with CUDA {cuda} needs.",
            name="driver-too-old",
            remedy=f"Install driver {oldest} or newer"
            + ("." if needs_cuda_13 else ", or set vllm_image_tag to a vLLM with an older CUDA."),
            details={"found": found, "needed": oldest, "cuda": cuda},
        )
    draft.decide("driver", found, f"the image with CUDA {cuda} needs {oldest} or newer")


def _check_kernels(
    draft: Draft, chosen: Chosen, cards: Sequence[Gpu], version: versions.Version, reference: str
) -> None:
    """Judge an image that the user chose for cards of 10.3, as reported in NVIDIA Model-Optimizer #2042."""
    name, _colon, tag = reference.rpartition(":")
    cuda = versions.cuda_of(version, tag)
    old = cuda.startswith("12")
    if cards[0].compute_capability != (10, 3) or chosen.precision not in ("fp4", "fp8"):
        return
    if not old and versions.KERNELS_FOR_10_3.holds(version):
        return
    since = versions.as_text(versions.KERNELS_FOR_10_3.since)
    remedy = (
        f"Set vllm_image_tag to auto, to v{versions.as_text(versions.CUDA_13.since)} or newer, or to a tag from"
        f" v{since} on that ends in -cu130."
    )
    found = f"{reference} has CUDA {cuda}" if old else f"{reference} is older than {since}"
    # Only of the published images is the CUDA known for certain.
    if chosen.precision == "fp4" and old and versions.is_published(name):
        raise GpufleetError(
            f"{cards[0].name}: {found}, and FP4 kernels for compute capability 10.3 come with CUDA 13: the server would"
            " die with `no kernel image is available`.",
            name="precision-not-supported",
            remedy=f"{remedy} vllm_precision: fp8 may run.",
        )
    draft.warn(
        f"{cards[0].name}: {found}, and {chosen.precision.upper()} kernels for compute capability 10.3 come with CUDA"
        f" 13 and vLLM {since}: the server may die with `no kernel image is available`. {remedy}"
    )


def _replicate(draft: Draft, wishes: Wishes, cards: Sequence[Gpu], size: int) -> list[list[Gpu]]:
    possible = len(cards) // size
    count = wishes.replicas or possible
    if count > possible:
        raise too_few_gpus(f"vllm_replicas: {count} at tensor parallelism {size}", count * size, cards)
    reason = "vllm_replicas" if wishes.replicas else f"{len(cards)} GPU(s) at tensor parallelism {size} fill the host"
    draft.decide("replicas", count, reason)
    groups = gpus.groups(cards, size, count)
    used = {gpu.index for group in groups for gpu in group}
    idle = [str(gpu.index) for gpu in cards if gpu.index not in used]
    if idle and not wishes.replicas:
        draft.warn(f"GPU {', '.join(idle)} stays idle: {len(cards)} GPUs are no multiple of TP {size}.")
    apart = [group for group in groups if gpus.linked(group) is False]
    if size > 1 and apart:
        listed = "; ".join(", ".join(str(gpu.index) for gpu in group) for group in apart)
        draft.warn(f"No NVLink between all GPUs of a replica ({listed}): tensor parallelism over PCIe is slow.")
    return groups


def _plan_cpu(draft: Draft, host: Mapping[str, Any], wishes: Wishes) -> Plan:
    draft.decide("device", "cpu", "vllm_device: cpu")
    image, version = choose_image(draft, host, wishes, CPU_IMAGE, ())
    chosen = choose(draft, host, wishes, ())
    check_support(draft, host, wishes, chosen, version)
    chosen = replace(chosen, precision="bf16" if wishes.precision == "bf16" else "fp32")
    config = cpu_options(draft, host, wishes, chosen, version)
    levers.text_only_options(wishes, chosen, version, config)
    answer_options(draft, wishes, chosen, image["reference"], config)
    config, environment = finish_options(draft, wishes, chosen, version, config, {})
    count = wishes.replicas or 1
    draft.decide("replicas", count, "vllm_replicas" if wishes.replicas else "one server shares all cores")
    replicas: list[Replica] = [
        {
            "name": f"{wishes.container_prefix}-{number}",
            "gpus": [],
            "gpu_uuids": [],
            "host": wishes.host,
            "port": wishes.port + number,
            "tensor_parallel_size": 1,
            "config": {**config, **listen(wishes, number)},
            "environment": dict(environment),
        }
        for number in range(count)
    ]
    capacity = cpu_capacity(host, wishes, chosen, config)
    hardware = f"{host['cpus']} processors" if host.get("cpus") else "processors"
    return _document(draft, wishes, chosen, image, hardware, replicas, capacity)


def _document(
    draft: Draft,
    wishes: Wishes,
    chosen: Chosen,
    image: ImageOfPlan,
    hardware: str,
    replicas: list[Replica],
    capacity: Capacity,
    moe_tables: MoeTables | None = None,
) -> Plan:
    _check_ports(replicas)
    if wishes.has_api_key and not is_loopback(wishes.host):
        draft.warn("The API key guards /v1 only: /metrics, /tokenize and others stay open to whoever reaches the port.")
    return {
        "schema_version": SCHEMA_VERSION,
        "device": wishes.device,
        "hardware": hardware,
        "model": chosen.name,
        "model_source": chosen.source,
        "precision": chosen.precision,
        "profile": wishes.profile,
        "image": image,
        "gpu_access": wishes.gpu_access if wishes.device == "cuda" else "none",
        "network_mode": wishes.network_mode,
        "replicas": replicas,
        "moe_tables": moe_tables,
        "capacity": capacity,
        "decisions": draft.decisions,
        "warnings": draft.warnings,
    }


def _check_ports(replicas: Sequence[Replica]) -> None:
    last = max(int(replica["port"]) for replica in replicas)
    if last > 65535:
        raise GpufleetError(
            f"vllm_port: {replicas[0]['port']} and {len(replicas)} replicas would need the port {last}.",
            name="invalid-wishes",
            remedy=f"Set vllm_port to at most {65536 - len(replicas)}.",
        )


def summary(plan_document: Plan) -> list[str]:
    """Return the plan in a few lines for a person: what runs where, what it holds, and the warnings."""
    replicas, capacity, image = plan_document["replicas"], plan_document["capacity"], plan_document["image"]
    first = replicas[0]
    where = f"TP {first['tensor_parallel_size']} on GPU" if plan_document["device"] == "cuda" else "on processors"
    lines = [
        f"{plan_document['model']} ({plan_document['precision']}, profile {plan_document['profile']})"
        f" on {image['reference']} for {image['platform']}"
    ]
    for replica in replicas:
        cards = " " + ",".join(str(index) for index in replica["gpus"]) if replica["gpus"] else ""
        lines.append(f"{replica['name']}: {where}{cards}, http://{authority(replica['host'], replica['port'])}")
    if capacity["kv_cache_tokens"] is not None:
        lines.append(
            f"per replica: {capacity['kv_cache_tokens']} tokens of KV cache, {capacity['max_concurrent_requests']}"
            " concurrent requests"
        )
    return lines + [f"warning: {warning}" for warning in plan_document["warnings"]]
