# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a plan's servers compute their experts by the Triton kernels that can be tuned."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions

PRECISIONS = ("fp8", "bf16")
VARIABLES = {"fp8": "VLLM_USE_FLASHINFER_MOE_FP8", "bf16": "VLLM_USE_FLASHINFER_MOE_FP16"}
# From here on vLLM takes FlashInfer's kernels first, and from there on the option says otherwise.
FLASHINFER_FIRST = (0, 15, 0)
OPTION_SINCE = versions.OPTIONS["moe-backend"].since


def why_not(plan: Plan) -> str:
    """Return why there are no kernels to tune; empty where there may be. The model's experts are looked at later."""
    if plan["device"] != "cuda":
        return "its servers run on processors"
    precision = plan["precision"]
    if precision not in PRECISIONS:
        return f"vLLM has no tables for experts in {precision}"
    version = versions.parse(plan["image"]["vllm_version"]) or versions.NEWEST
    replica = plan["replicas"][0]
    backend = replica["config"].get("moe-backend")
    said = str(replica["environment"].get(VARIABLES[precision], "")).strip()
    if version >= OPTION_SINCE:
        if backend == "triton":
            return ""
        asked = f"moe-backend: {backend}" if backend else "no moe-backend, so that vLLM chooses"
        return f"its servers have {asked}; with vllm_extra_config: {{moe-backend: triton}} they use Triton's kernels"
    if said == "0" or (not said and version < FLASHINFER_FIRST):
        return ""
    return f"its servers may use FlashInfer's kernels; with {VARIABLES[precision]}: 0 in vllm_environment they do not"
