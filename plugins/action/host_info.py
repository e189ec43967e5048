# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.host_info), the first module on every host, and say what to do where sudo wants a password."""

from __future__ import annotations

import re
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

# What Ansible says, and what sudo and su say themselves.
WANTS_PASSWORD = re.compile(
    r"Missing (\w+) password|(sudo): a password is required|a password is required to run (sudo)"
    r"|become password prompt|(sudo): a terminal is required"
)
REMEDY = (
    "Remedy: {program} on this host asks for a password, and none was given. Run ansible-playbook with"
    " --ask-become-pass (-K), or set ansible_become_password in a file of ansible-vault; in AWX, enter the Privilege"
    " Escalation Password of the credential."
)


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action plugin behind gpufleet.vllm.host_info."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module."""
        super().run(tmp, task_vars)
        try:
            result: dict[str, Any] = self._execute_module(task_vars=task_vars or {}, wrap_async=self._task.async_val)
        except AnsibleError as error:
            remedy = remedy_for(str(error))
            if not remedy:
                raise
            if isinstance(error, AnsibleConnectionFailure):
                raise AnsibleConnectionFailure(f"{error}\n{remedy}") from error
            return {"failed": True, "msg": f"{error}\n{remedy}"}
        said = f"{result.get('msg')} {result.get('module_stderr')} {result.get('module_stdout')}"
        remedy = remedy_for(said) if result.get("failed") and "error" not in result else ""
        return {**result, "msg": f"{result['msg']}\n{remedy}"} if remedy else result


def remedy_for(text: str) -> str:
    """Return what to do where a text says that a password for another user is missing; else nothing."""
    found = WANTS_PASSWORD.search(text)
    program = next((group for group in found.groups() if group), "sudo") if found else ""
    return REMEDY.format(program=program) if found else ""
