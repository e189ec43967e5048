# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures that every unit test may use."""

from __future__ import annotations

import json
from typing import Any, Callable, Protocol

import pytest
from ansible.module_utils.testing import patch_module_args


class RunModule(Protocol):
    """Runs a module's C(main) with arguments and returns its result."""

    def __call__(
        self, main: Callable[[], None], args: dict[str, Any], *, check: bool = False, diff: bool = False
    ) -> dict[str, Any]: ...


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Run a module in this process as Ansible would and return the JSON that it prints."""

    def run(
        main: Callable[[], None], args: dict[str, Any], *, check: bool = False, diff: bool = False
    ) -> dict[str, Any]:
        capsys.readouterr()
        with (
            patch_module_args({**args, "_ansible_check_mode": check, "_ansible_diff": diff}),
            pytest.raises(SystemExit),
        ):
            main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        result.setdefault("failed", False)
        return result

    return run
