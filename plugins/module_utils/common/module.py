# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one AnsibleModule subclass of the collection: library checks and failures in one place."""

from __future__ import annotations

import importlib
from typing import Any, Callable, NoReturn

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

# import name -> distribution on PyPI, for the message when it is missing
DISTRIBUTIONS = {
    "docker": "docker",
    "requests": "requests",
    "jinja2": "Jinja2",
    "pynvml": "nvidia-ml-py",
    "yaml": "PyYAML",
}

DOCKER_ARGUMENTS: dict[str, Any] = {
    "docker_host": {"type": "str", "default": "unix:///var/run/docker.sock"},
    "docker_timeout": {"type": "int", "default": 60},
}

PROGRESS_ARGUMENTS: dict[str, Any] = {
    "progress_file": {"type": "path"},
}


class GpufleetModule(AnsibleModule):  # type: ignore[misc]
    """An AnsibleModule that names missing libraries and turns GpufleetError into a failed task."""

    def fail_on(self, error: GpufleetError, **result: Any) -> NoReturn:
        """Fail the task with the error's text as C(msg) and its parts as C(error)."""
        self.fail_json(**{**result, **error.as_failure()})
        raise AssertionError("fail_json returned")

    def require(self, *imports: str) -> None:
        """Fail, naming the missing libraries, unless every one of C(imports) can be imported."""
        for name in imports:
            try:
                importlib.import_module(name)
            except ImportError as error:
                self.fail_json(
                    msg=missing_required_lib(DISTRIBUTIONS.get(name, name), reason="for this module")
                    + " The role gpufleet.vllm.vllm keeps these libraries in the virtual environment vllm_venv;"
                    " run the module with ansible_python_interpreter set to its python.",
                    exception=str(error),
                )

    def run(self, work: Callable[[], dict[str, Any]]) -> NoReturn:
        """Exit with what C(work) returns, or fail with the GpufleetError it raises; C(warnings) are told one by one."""
        try:
            result = work()
        except GpufleetError as error:
            self.fail_on(error)
        # ansible-core deprecates warnings in what exit_json is given.
        for warning in result.get("warnings", []):
            self.warn(warning)
        self.exit_json(**{name: value for name, value in result.items() if name != "warnings"})
        raise AssertionError("exit_json returned")
