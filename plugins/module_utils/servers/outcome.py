# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells of each replica, see the RETURN of the module vllm_server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import base_url, diff_text, read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.replica_files import ReplicaFiles
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Step, required
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.stopping import Stopping

if TYPE_CHECKING:
    from docker.models.containers import Container


def replica_outcome(step: Step, stopping: Stopping, files: ReplicaFiles, *, check: bool) -> dict[str, Any]:
    """Return what was done about a replica, and what it is now."""
    spec = required(step.spec)
    container = step.new or step.old
    phases = step.start.watch.durations(time.time()) if step.start else []
    return {
        "name": step.name,
        "action": step.action,
        "why": step.why,
        "changes": [change.as_result() for change in step.changes],
        "container_id": container.id if container and not check else "",
        "url": base_url(spec),
        "image": spec["image"],
        "image_id": spec["image_id"],
        "phases": phases,
        "ready_s": round(sum(phase["seconds"] for phase in phases), 1),
        "drain": stopping.drains.get(step.name, {}),
        "docker_run": files.run_line(step),
    }


def difference_of(name: str, old: Container | None, spec: Spec | None) -> dict[str, str]:
    """Return the difference that a step makes, as Ansible shows it."""
    before = diff_text(read_spec(old.labels)) if old else ""
    return {"before_header": name, "after_header": name, "before": before, "after": diff_text(spec)}


def differences_of(acted: Sequence[Step]) -> list[dict[str, str]]:
    """Return the differences that steps make, as Ansible shows them."""
    return [
        difference_of(step.name, step.old, step.spec)
        for step in acted
        if step.changes or step.action in ("created", "removed")
    ]
