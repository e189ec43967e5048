# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at the hub for a whole fleet: what it tells of a model that the catalogue does not have.

The controller asks. Ansible works on each host in a process of its own, so what was told is kept in a file, and a lock
has all others wait for the one who asks. That nothing was told is kept too, or a fleet would wait for a hub out of
reach once a host. The token and the passwords of proxies are in none of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import hub_model, reach
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.hub_model import HubQuestion
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import proxies_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import ModelInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import TRUE
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.site_variables import SiteVariables
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import catalogue
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes

# How long what was told counts; a run takes what it was told itself whatever the age.
FRESH_S, FAILED_S = 3600.0, 30.0
# All requests of one look together; a resolver that does not answer knows no timeout.
DEADLINE_S = 40.0
WAIT_S = 3 * DEADLINE_S
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Look:
    """What came of a look at the hub.

    Attributes:
        model: what it told; None where it told nothing.
        answered: whether the hub itself answered, so that no host would be told more.
        why: why it told nothing, for people.
    """

    model: ModelInfo | None
    answered: bool = True
    why: str = ""


def wanted(wished: Wishes) -> bool:
    """Return whether only the hub can tell the sizes of the model."""
    model = wished.model or ""
    asks_elsewhere = str(wished.environment.get("VLLM_USE_MODELSCOPE", "")).lower() in TRUE
    is_repository = bool(model) and not model.startswith("/") and wished.model_source in (None, "hub")
    return is_repository and not (
        wished.offline or asks_elsewhere or catalogue.find(model) or catalogue.misnamed(model)
    )


def questions(wished: Wishes, templar: Any, variables: Mapping[str, Any]) -> list[HubQuestion]:
    """Return how to ask the hub of the model: by the servers' way, and by the controller's own where it is another."""
    site = SiteVariables(templar, variables)
    given = {name.upper(): value for name, value in {**wished.environment, **site.servers()}.items()}
    files = [site.text("vllm_ca_bundle"), *(os.environ.get(name, "") for name in BUNDLES)]
    trusted = [path for path in files if path and os.path.isfile(path)]
    own = reach.Route(urllib.request.getproxies_environment(), trusted)
    servers = reach.Route(proxies_of(given.get("HTTPS_PROXY", ""), given.get("NO_PROXY", "")), trusted)
    question = HubQuestion(
        wished.model or "",
        str(wished.extra_config.get("revision") or "main"),
        given.get("HF_ENDPOINT") or hub_model.HUB,
        site.text("vllm_hf_token"),
    )
    routes = [servers, own] if servers.proxies else [own]
    return [replace(question, route=route) for route in routes]


def with_model(host: Mapping[str, Any], wished: Wishes, templar: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a host, with what the hub tells of its model where the host does not tell it whole.

    Args:
        host: see planner.plan.
        wished: what the user wants.
        templar: the task's.
        variables: the task's, untemplated.
    """
    own: ModelInfo = host.get("model") or ModelInfo()
    whole = own.get("config") and (own.get("complete") or own.get("index_total_bytes") or own.get("at_hub"))
    if whole or host.get("model_config") or not wanted(wished):
        return dict(host)
    told = look(questions(wished, templar, variables))
    return {**host, "model": told.model or own, "model_why": told.why}


def look(asked: list[HubQuestion]) -> Look:
    """Return what the hub tells, or has told this run already.

    Args:
        asked: the same question by one or several ways, which are tried in this order.
    """
    path = _kept_path(asked[0])
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with host_lock(f"{path}.lock", f"look at the hub for {asked[0].repository}", timeout=WAIT_S):
            kept = _kept(path)
            if kept is None:
                kept = _ask(asked)
                _keep(path, kept)
            return kept
    except (GpufleetError, OSError):
        # Without a folder of its own to keep it in it is asked for each host.
        return _ask(asked)


def _ask(asked: list[HubQuestion]) -> Look:
    found: list[Look] = []

    def work() -> None:
        for question in asked:
            try:
                found.append(Look(hub_model.read(question)))
            except reach.Unreachable as error:
                found.append(Look(None, error.status is not None and not error.cause, str(error)))
            except Exception as error:
                found.append(
                    Look(None, answered=False, why=f"{type(error).__name__}: {reach.without_user(str(error))}")
                )
            if found[-1].answered:
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    late = Look(None, answered=False, why="nothing answers in time")
    return next((one for one in found if one.answered), found[0] if found else late)


def _kept_path(question: HubQuestion) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parts = [question.endpoint, question.repository, question.revision, question.token]
    return Path(home, "gpufleet", "hub", hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32] + ".json")


def _kept(path: Path) -> Look | None:
    """Return what was told before, if it still counts."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        age, same_run = time.time() - kept["at"], kept["run"] == os.getppid()
        found = Look(kept["model"], kept["answered"], kept["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    counts = age <= (FRESH_S if found.model else FAILED_S)
    return found if age >= 0 and (counts or (same_run and age <= FRESH_S)) else None


def _keep(path: Path, told: Look) -> None:
    kept = {"at": time.time(), "run": os.getppid(), "model": told.model, "answered": told.answered, "why": told.why}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(kept), encoding="utf-8")
    temporary.replace(path)
