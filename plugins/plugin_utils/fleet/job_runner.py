# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWX says of the job in which a playbook runs, and what a rollout cannot have there.

AWX gives each job variables (C(awx_job_id), C(awx_job_template_name) and others, and the same as C(tower_*)). The
slices of a sliced job are jobs of a workflow that AWX makes of the job template, and that has the name of the template.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

PREFIXES = ("awx", "tower")


def refuse_in_job(variables: Mapping[str, Any], state_dir: str) -> None:
    """Refuse a rollout in a job of AWX that sees a part of the fleet only, or whose state ends with its container.

    Args:
        variables: of the task.
        state_dir: where the rollout's state is kept.

    Raises:
        GpufleetError: C(sliced-job), C(state-not-kept).
    """
    if not _told(variables, "job_id"):
        return
    template = _told(variables, "job_template_name")
    if template and _told(variables, "workflow_job_name") == template:
        raise GpufleetError(
            f"This is a slice of the job template {template!r}: it sees a part of the hosts only, so several slices"
            " would take out more of them at a time than vllm_rollout_batches and vllm_max_unavailable allow.",
            name="sliced-job",
            remedy="Set Job Slicing of the job template to 1. Or, if this is a workflow of your own that only has the"
            " template's name, give it another name.",
        )
    if not os.path.isabs(os.path.expanduser(state_dir)):
        raise GpufleetError(
            f"AWX removes the folder in which this job runs when it ends, and the state of the rollout would be there"
            f" (vllm_rollout_state_dir: {state_dir}).",
            name="state-not-kept",
            remedy="Set vllm_state_url to an absolute folder that is mounted into the execution environment, such as"
            " file:///srv/gpufleet, so that an interrupted rollout goes on and can be rolled back.",
        )


def _told(variables: Mapping[str, Any], name: str) -> str:
    """Return what AWX said, under either of the two names."""
    return next((str(variables[f"{prefix}_{name}"]) for prefix in PREFIXES if variables.get(f"{prefix}_{name}")), "")
