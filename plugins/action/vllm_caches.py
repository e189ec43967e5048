# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.vllm_caches) on the host, and carry the archive to the controller or from there.

The archive is a file in the folder that Ansible has for this run on the controller, which it removes at the end, so a
host packs it once however many others want it. It travels as any file does, not inside a result, which would hold all
of it in memory. What does not work is a result with C(why), and no failure: a host that has no caches of another one
starts as it always did.
"""

from __future__ import annotations

import os
from typing import Any

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import file_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock

NAME = "caches.tar.gz"
# One host after the other packs or fetches the same archive. Whoever waits longer compiles instead.
LONGEST_WAIT_S = 300.0


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.vllm_caches."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, and return its result."""
        variables = task_vars or {}
        super().run(tmp, variables)
        if self._task.check_mode:
            return {"changed": False, "why": "check mode", "msg": ""}
        key = os.path.basename(str(self._task.args.get("key") or ""))
        archive = os.path.join(constants.DEFAULT_LOCAL_TMP, f"gpufleet-{key}.tar.gz")
        work = self._pack if self._task.args.get("state") == "packed" else self._add
        try:
            result = work(archive, variables)
        except (AnsibleError, GpufleetError, OSError) as error:
            result = {"changed": False, "why": str(error), "msg": ""}
        if result["why"]:
            host = self._task.args.get("host") or "another host"
            result["msg"] = f"starts without the caches of {host}: {result['why']}"
        if result["msg"]:
            Display().display(f"[{variables.get('inventory_hostname', '')}] {result['msg']}")
        return result

    def _pack(self, archive: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Have the host pack its caches, unless that was done in this run, or did not work."""
        with host_lock(f"{archive}.lock", "packing", timeout=LONGEST_WAIT_S):
            if os.path.exists(archive):
                size = os.path.getsize(archive)
                return {"changed": False, "why": "", "msg": "", "sha256": file_sum(archive), "size": size}
            if os.path.exists(f"{archive}.why"):
                with open(f"{archive}.why", encoding="utf-8") as stream:
                    return {"changed": False, "why": stream.read(), "msg": "", "sha256": ""}
            try:
                result = self._fetch(archive, variables)
            except (AnsibleError, OSError) as error:
                result = {"changed": False, "why": str(error), "msg": "", "sha256": ""}
            if result["why"]:
                # A host that is lost is waited for once, and not by all others one after another.
                with open(f"{archive}.why", "w", encoding="utf-8") as stream:
                    stream.write(result["why"])
            return result

    def _fetch(self, archive: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Have the host pack its caches, and bring the archive here."""
        folder = self._make_tmp_path()
        remote = self._connection._shell.join_path(folder, NAME)
        try:
            result = self._run_module(remote, variables)
            if not result["why"]:
                self._connection.fetch_file(remote, f"{archive}.part")
                if file_sum(f"{archive}.part") != result["sha256"]:
                    raise AnsibleError("what came from the host is not what it packed")
                os.replace(f"{archive}.part", archive)
        finally:
            self._remove_tmp_path(folder)
        return result

    def _add(self, archive: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Bring the archive to the host, and have it added to its caches."""
        folder = self._make_tmp_path()
        try:
            remote = self._transfer_file(archive, self._connection._shell.join_path(folder, NAME))
            return self._run_module(remote, variables)
        finally:
            self._remove_tmp_path(folder)

    def _run_module(self, archive: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Run the module with the archive on the host; a failure of it is a result with C(why)."""
        arguments = {**self._task.args, "archive": archive}
        result: dict[str, Any] = self._execute_module(module_args=arguments, task_vars=variables)
        if result.get("failed"):
            raise AnsibleError(str(result.get("msg") or "the module failed"))
        return result
