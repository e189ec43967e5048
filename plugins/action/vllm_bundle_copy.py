# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send a host's part of a bundle over Ansible's own connection; the module verifies it and moves it into place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible.utils.display import Display

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_files import damaged
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB, format_bytes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_bundle import HostBundle
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.site_variables import SiteVariables

# What is sent before it is verified and moved: so much is sent again after an interruption, beside one larger file.
BATCH_BYTES, BATCH_FILES = 4096 * MIB, 200

Files = Sequence[Mapping[str, Any]]


class ActionModule(LongTaskAction):
    """See the module's documentation; its steps that read many bytes show how far they are."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Bring what is missing, and return the task's result."""
        variables = task_vars or {}
        self._host = str(variables.get("inventory_hostname", "host"))
        self._base = {name: self._task.args[name] for name in ("base", "hf_home")}
        try:
            bundle = SiteVariables(self._templar, variables).bundle()
            if bundle is None:
                return {"changed": False, "skipped": True, "skip_reason": "vllm_bundle_dir is empty."}
            files = bundle.files(str(self._task.args["hf_home"]))
            looked = self._step(tmp, variables, state="look", files=files)
            if looked.get("failed") or self._task.check_mode or not looked.get("missing"):
                return looked
            missing = set(looked["missing"])
            wanted = [one for one in files if one["path"] in missing]
            return self._bring(tmp, variables, bundle, wanted) or looked
        except GpufleetError as error:
            return error.as_failure()

    def _step(self, tmp: str | None, variables: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        """Run the module for one step, and return its result."""
        self._task.args = {**self._base, **arguments}
        return super().run(tmp, variables)

    def _login_id(self) -> int:
        """Return the id of the user who logs in and writes files; ssh may choose it, and tasks may become another."""
        words = self._low_level_execute_command("id -u", sudoable=False)["stdout"].split()
        return int(words[-1]) if words and words[-1].isdigit() else -1

    def _bring(self, tmp: str | None, variables: dict[str, Any], bundle: HostBundle, wanted: Files) -> dict[str, Any]:
        """Send the files, and return the result of a step that failed; empty when all are in place."""
        sizes = {one["path"]: _size(bundle, one["source"]) for one in wanted if "source" in one}
        owner = self._login_id()
        # Its own folder again for each batch, as the one before is gone with what was in it.
        sent, total = 0, sum(sizes.values())
        for batch in batches(wanted, sizes):
            needed = {path: sizes[path] for path in (one["path"] for one in batch) if path in sizes}
            opened = self._step(tmp, variables, state="open", owner=owner, needed={**needed, **_later(sizes, sent)})
            if opened.get("failed"):
                return opened
            placed: list[dict[str, Any]] = []
            for number, one in enumerate(batch):
                if "source" not in one:
                    placed.append(dict(one))
                    continue
                incoming = os.path.join(opened["incoming"], str(number))
                self._connection.put_file(os.path.join(bundle.folder, one["source"]), incoming)
                sent += sizes[one["path"]]
                placed.append({**one, "incoming": incoming})
            Display().display(f"[{self._host}] {format_bytes(sent)} of {format_bytes(total)} of the bundle sent")
            done = self._step(tmp, variables, state="place", files=placed)
            closed = self._step(tmp, variables, state="close")
            if done.get("failed") or closed.get("failed"):
                return done if done.get("failed") else closed
        return {}


def batches(files: Files, sizes: Mapping[str, int]) -> Iterator[Files]:
    """Yield the files in groups of limited size; one that is larger is alone."""
    group: list[Mapping[str, Any]] = []
    room = BATCH_BYTES
    for one in files:
        size = sizes.get(one["path"], 0)
        if group and (size > room or len(group) >= BATCH_FILES):
            yield group
            group, room = [], BATCH_BYTES
        group.append(one)
        room -= size
    if group:
        yield group


def _later(sizes: Mapping[str, int], sent: int) -> Mapping[str, int]:
    """Return what has to fit at the first batch: all of it, so that a full disk is known before anything is sent."""
    return sizes if sent == 0 else {}


def _size(bundle: HostBundle, name: str) -> int:
    """Return the bytes of a file of the bundle.

    Raises:
        GpufleetError: C(bundle-damaged) when it is not there.
    """
    path = os.path.join(bundle.folder, name)
    if not os.path.isfile(path):
        raise damaged(bundle.folder, name, "is missing, a file")
    return os.path.getsize(path)
