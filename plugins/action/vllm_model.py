# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.vllm_model) in the background and show how far the weights have got, if any are to be fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import OWN, hub_cache, hub_folder
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction

# Options by which a server takes more than the model's safetensors, or others.
CHOOSING = frozenset(("tokenizer", "tokenizer-revision", "speculative-config", "hf-config-path", "load-format"))


class ActionModule(LongTaskAction):
    """See LongTaskAction; a model that the probe found complete costs no module run."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module unless O(probed) shows that it has nothing to do."""
        arguments = dict(self._task.args)
        probed = arguments.pop("probed", None) or []
        if complete(arguments, probed):
            return {"changed": False, "skipped": True, "skip_reason": "The probe found the weights complete."}
        self._task.args = arguments
        return super().run(tmp, task_vars)


def complete(arguments: Mapping[str, Any], probed: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the probe found all that the server takes from the hub.

    Args:
        arguments: of the task.
        probed: what host_info found in the folders of models, each with C(folder) and C(complete).
    """
    config = arguments.get("config") or {}
    cache = hub_cache(
        str(arguments.get("hf_home") or ""), arguments.get("environment") or {}, arguments.get("volumes") or []
    )
    if cache.variable != OWN or CHOOSING & config.keys():
        return False
    folder = hub_folder(cache.folder, str(arguments.get("model") or ""), str(config.get("revision") or ""))
    return any(entry["complete"] and entry["folder"] == folder for entry in probed)
