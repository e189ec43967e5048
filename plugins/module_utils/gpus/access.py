# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way of giving GPUs to containers works on a host, tried in the image that will serve, and what a server sees.

Whether a way works depends on the driver, the container toolkit, the engine and the image together: CUDA in the image
may answer 803 where the toolkit's hook mounts one library, and start where CDI mounts another. So each way is tried in
a container that has the server's image, mounts, environment and GPUs and is removed at once. It calls cuInit and asks
CUDA and NVML for the GPUs' UUIDs, which takes no memory of a GPU and disturbs no server.

What was found is kept in a file of the host together with everything that it depends on, so that an unchanged host is
not asked again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Nothing, Plan, Replica, Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    ServerOptions,
    build_spec,
    gpu_arguments,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.access_record import Outcome
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.driver import (
    KernelModuleInfo,
    kernel_module,
    nvidia_minors,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.container_causes import (
    CONTAINER_CAUSES,
    GPU_CAUSES,
    prove,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import look_at_gpus

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

# In the order in which "auto" tries them: Docker's own option first, last the one that needs the driver in the image.
WAYS = ("gpus", "cdi", "runtime", "devices")
LABEL_PROBE = "io.gpufleet.gpu-probe"


TIMEOUT_S = 120.0
LONGEST_TEXT = 300


class UnknownError(Exception):
    """It could not be found out what a container sees, with the reason."""


# What a container sees


def program() -> str:
    """Return the text of the program that looks at the GPUs in a container."""
    return inspect.getsource(look_at_gpus)


def seen_in(client: DockerClient, spec: Spec, prefix: str) -> dict[str, Any]:
    """Return what CUDA and NVML say in a throw-away container with the image, mounts and GPUs of C(spec).

    Raises:
        GpufleetError: C(engine-error) when the engine refuses the container.
        UnknownError: it gave no answer.
    """
    try:
        answer = image_python.ask(
            client,
            spec["image_id"] or spec["image"],
            program(),
            [],
            name=f"{prefix}-gpu-probe-{os.getpid()}",
            label=(LABEL_PROBE, prefix),
            doing=f"looks for its GPUs (access {spec['gpu_access']})",
            timeout=TIMEOUT_S,
            options={
                "environment": spec["environment"],
                "volumes": image_python.mounts(spec["volumes"], dry=True),
                **gpu_arguments(spec),
            },
        )
    except image_python.NoAnswerError as error:
        raise UnknownError(str(error)) from error
    return _parsed(answer)


def seen_by(container: Container) -> dict[str, Any]:
    """Return what CUDA and NVML say in a container that runs.

    Raises:
        GpufleetError: C(engine-error).
        UnknownError: it gave no answer.
    """
    with engine_errors(f"asking {container.name} for its GPUs"):
        status, said = container.exec_run(["/bin/sh", "-c", image_python.LAUNCH, "vllm", program()])
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else ""  # a stream is not asked for
    try:
        return _parsed(image_python.answer_in(text, status))
    except image_python.NoAnswerError as error:
        raise UnknownError(str(error)) from error


def _parsed(answer: str) -> dict[str, Any]:
    found = json.loads(answer)
    if not isinstance(found, dict):
        raise UnknownError(f"not an answer: {answer[:LONGEST_TEXT]}")
    return found


def judge(seen: Mapping[str, Any], gpus: Sequence[str]) -> GpufleetError | None:
    """Compare what CUDA and NVML see with the GPUs that a container was given; None when it is exactly those.

    Args:
        seen: what seen_in or seen_by returned.
        gpus: by UUID; GPUs that are known by their index only are counted.
    """
    for part, title in (("cuda", "CUDA"), ("nvml", "NVML")):
        found = seen.get(part) or {"error": "no answer"}
        if "error" in found:
            evidence = str(found["error"])[:LONGEST_TEXT]
            return _told(f"{title} cannot be loaded in the container", evidence, "driver-libraries-missing")
        if found["code"]:
            # The words of the driver and of PyTorch, by which the causes are known.
            call = "cuInit" if part == "cuda" else "Failed to initialize NVML"
            number = f"Error {found['code']}: " if part == "cuda" else ""
            evidence = f"{call}: {number}{found['text']} ({found['library']})"
            return _told(f"{title} does not start in the container", evidence, "driver-not-usable")
        wrong = difference(found["gpus"], gpus)
        if wrong:
            return GpufleetError(
                f"{title} in the container {wrong}.",
                name="wrong-gpus",
                remedy="Look for CUDA_VISIBLE_DEVICES or NVIDIA_VISIBLE_DEVICES in vllm_environment, and for a default"
                " runtime nvidia in /etc/docker/daemon.json that adds GPUs of its own; or set another vllm_gpu_access.",
                details={"seen": found["gpus"], "given": list(gpus)},
            )
    return None


def difference(seen: Sequence[str], given: Sequence[str]) -> str:
    """Return, to follow "the container ...", how the GPUs it sees differ from those it was given; empty if not."""
    if not all(gpu.startswith("GPU-") for gpu in given):
        return f"sees {len(seen)} GPUs and was given {len(given)}" if len(seen) != len(given) else ""
    missing = [gpu for gpu in given if gpu not in seen]
    foreign = [gpu for gpu in seen if gpu not in given]
    parts = [f"does not see {', '.join(missing)}, which it was given"] if missing else []
    parts += [f"sees {', '.join(foreign)}, which it was not given"] if foreign else []
    return " and ".join(parts)


def _told(what: str, evidence: str, otherwise: str) -> GpufleetError:
    """Return the error with the cause that the evidence is known for, else under the name C(otherwise)."""
    found = prove(evidence, sorted((*GPU_CAUSES, *CONTAINER_CAUSES), key=lambda cause: cause.rank))
    if not found:
        return GpufleetError(
            f"{what}.",
            name=otherwise,
            remedy="Check that nvidia-smi works on the host, and that its driver is new enough for the image.",
            evidence=evidence,
        )
    cause, groups = found
    return GpufleetError(
        f"{what}. {cause.meaning.format(*groups)}",
        name=cause.name,
        remedy=cause.remedy.format(*groups),
        evidence=evidence,
    )


# Trying the ways


def probe_spec(plan: Plan, wishes: ServerOptions, way: str) -> Spec:
    """Return the spec of a server with all GPUs of the plan that would get them in this way."""
    replicas = plan["replicas"]
    whole: Replica = {
        **replicas[0],
        "gpus": [gpu for replica in replicas for gpu in replica.get("gpus") or []],
        "gpu_uuids": [gpu for replica in replicas for gpu in replica.get("gpu_uuids") or []],
    }
    return build_spec(whole, dataclasses.replace(wishes, gpu_access=way), (), os.path.exists, nvidia_minors())


def attempt(client: DockerClient, spec: Spec, prefix: str) -> Outcome:
    """Try one way."""
    way = spec["gpu_access"]
    try:
        error = judge(seen_in(client, spec, prefix), spec["gpus"])
    except UnknownError as reason:
        error = _told("The container that looks for its GPUs did not answer", str(reason)[:LONGEST_TEXT], "no-answer")
    except GpufleetError as refused:
        error = _told("Docker refuses the container", refused.evidence[:LONGEST_TEXT], refused.name)
    if error is None:
        return Outcome(way, True, f"CUDA and NVML see exactly the {len(spec['gpus'])} GPU(s) given")
    return Outcome(way, False, error.message, error.name, error.remedy, error.evidence)


def find(client: DockerClient, plan: Plan, wishes: ServerOptions, prefix: str) -> list[Outcome]:
    """Try the wished way, or with C(auto) one after another until one works; return what came of those tried."""
    outcomes: list[Outcome] = []
    for way in WAYS if wishes.gpu_access == "auto" else (wishes.gpu_access,):
        outcomes.append(attempt(client, probe_spec(plan, wishes, way), prefix))
        if outcomes[-1].works:
            break
    return outcomes


def nothing_works(outcomes: Sequence[Outcome], image: str, wish: str) -> GpufleetError:
    """Return the error for a host on which no way that may be used works; it tells each way's cause and remedy."""
    details = {"ways": [dataclasses.asdict(outcome) for outcome in outcomes]}
    if wish != "auto":
        only = outcomes[0]
        return GpufleetError(
            f"vllm_gpu_access: {wish} gives no working GPUs to a container of {image}. {only.said}",
            name="gpu-access-broken",
            remedy=f"{only.remedy} Or set vllm_gpu_access to auto, which looks for a way that works.",
            evidence=only.evidence,
            details=details,
        )
    lines = []
    for outcome in outcomes:
        lines.append(f"  {outcome.way}: {outcome.said}")
        lines += [f"    evidence: {outcome.evidence}"] if outcome.evidence else []
        lines += [f"    remedy: {outcome.remedy}"] if outcome.remedy else []
    return GpufleetError(
        "\n".join([f"No way of giving this host's GPUs to a container of {image} works:", *lines]),
        name="no-gpu-access",
        remedy="Fix one of the ways; gpus and cdi need the NVIDIA container toolkit (role"
        " gpufleet.vllm.nvidia_container_toolkit), devices the driver's libraries in vllm_volumes.",
        details=details,
    )


# What was found before


def circumstances(
    client: DockerClient, plan: Plan, wishes: ServerOptions, toolkit: str, root: str = "/"
) -> dict[str, Any]:
    """Return everything that the answer depends on, as data: if one of these changes, the ways are tried anew."""
    with engine_errors("telling what it is"):
        info, version = client.info(), client.version()
    own = json.dumps([wishes.volumes, plan["replicas"][0].get("environment") or {}], sort_keys=True)
    module: KernelModuleInfo | Nothing = kernel_module(root) or {}
    return {
        "wish": wishes.gpu_access,
        "image_id": wishes.image_id,
        "driver": module.get("version", ""),
        "gpus": [gpu for replica in plan["replicas"] for gpu in replica.get("gpu_uuids") or replica.get("gpus") or []],
        "toolkit": toolkit,
        "engine": version.get("Version", ""),
        "runtimes": sorted(info.get("Runtimes") or {}),
        "default_runtime": info.get("DefaultRuntime", ""),
        "cdi": _cdi_specs(info.get("CDISpecDirs") or [], root),
        # They may hold what not everybody should read.
        "mounts_and_environment": hashlib.sha256(own.encode()).hexdigest()[:16],
    }


def _cdi_specs(folders: Sequence[str], root: str) -> str:
    """Return a digest of the CDI specifications that the engine reads; empty when there are none."""
    digest = hashlib.sha256()
    empty = True
    for folder in folders:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(os.path.join(root, folder.lstrip("/")))):
                text = read_text(root, folder.lstrip("/"), name)
                digest.update(f"{name}\0{text}\0".encode())
                empty = False
    return "" if empty else digest.hexdigest()[:16]
