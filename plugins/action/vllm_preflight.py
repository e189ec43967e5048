# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge on the controller, without a trip to the host, what would fail on it later."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.hub_model import HUB
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import CONFIG, MISTRAL_CONFIG
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions import hub_look
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.controller_action import ControllerAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.task_variables import planner_host, read_wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.text_config import is_mistral
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import case, findings, source_checks
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import judge as preflight_judge

FOLDERS = ("config_dir", "state_dir", "hf_home", "cache_dir")
ARGUMENTS: dict[str, Any] = {
    "stage": {"type": "str", "choices": ["ask", "judge", "enforce"], "default": "judge"},
    "host_info": {"type": "dict", "default": {}},
    "gpu_info": {"type": "dict", "default": {}},
    "docker_host": {"type": "str", "default": case.DEFAULT_ENGINE[0]},
    "manage_engine": {"type": "bool", "default": True},
    **{name: {"type": "str", "default": ""} for name in FOLDERS},
    "findings": {"type": "list", "elements": "dict", "default": []},
}


class ActionModule(ControllerAction):
    """The action plugin behind gpufleet.vllm.vllm_preflight."""

    options = ARGUMENTS

    def work(self, arguments: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """Return what to ask the host, or the findings about it, or fail on them."""
        if arguments["stage"] == "enforce":
            return _enforced(arguments["findings"])
        try:
            wished = read_wishes(self._templar, variables, {}, KNOWN_VARIABLES)
        except GpufleetError as error:
            if arguments["stage"] == "ask":
                return {"questions": self._questions(Wishes(device="cpu", offline=True), "", {})}
            return _told(preflight_judge.without_wishes(arguments["host_info"], error))
        if arguments["stage"] == "ask":
            return {"questions": self._questions(wished, arguments["hf_home"], variables)}
        host_info = arguments["host_info"]
        # A task that was skipped registers something too.
        gpu_info = arguments["gpu_info"] if "state" in arguments["gpu_info"] else {}
        host = planner_host(gpu_info, host_info, variables, wished.container_prefix)
        verdict = preflight_judge.judge(
            hub_look.with_model(host, wished, self._templar, variables),
            host_info,
            gpu_info,
            wished,
            {name: arguments[name] for name in FOLDERS},
            docker_host=arguments["docker_host"],
            manage_engine=arguments["manage_engine"],
        )
        return _told(verdict)

    def _questions(self, wished: Wishes, hf_home: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return what to ask the host: the hub of the model too, where the controller gets no answer from it."""
        asked = source_checks.questions(wished, hf_home)
        if not hub_look.wanted(wished):
            return {**asked, "hub_model": "", "hub_revision": "main", "hub_endpoint": HUB}
        questions = hub_look.questions(wished, self._templar, variables)
        told = hub_look.look(questions)
        if told.model and is_mistral(told.model.get("config") or {}):
            # It has no config.json, which is no sign that there is no such model.
            asked["hub"] = asked["hub"].replace(f"/{CONFIG}", f"/{MISTRAL_CONFIG}")
        return {
            **asked,
            "hub_model": "" if told.answered else questions[0].repository,
            "hub_revision": questions[0].revision,
            "hub_endpoint": wished.environment.get("HF_ENDPOINT", HUB),
        }


def _told(verdict: preflight_judge.Verdict) -> dict[str, Any]:
    found = [finding.as_result() for finding in verdict.findings]
    errors = sum(finding["severity"] == findings.ERROR for finding in found)
    return {"findings": found, "errors": errors, "orphans": verdict.orphans}


def _enforced(found: list[findings.FindingResult]) -> dict[str, Any]:
    error = findings.refusal(found)
    if error is None:
        return {}
    # The text has every finding in full; the data names them, for programs.
    return {**error.as_failure(), "error": {**error.as_result(), "evidence": ""}}
