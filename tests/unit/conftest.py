# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures that every unit test may use."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Protocol
from unittest import mock

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args


class RunModule(Protocol):
    """Runs a module's C(main) with arguments and returns its result."""

    def __call__(
        self, main: Callable[[], None], args: dict[str, Any], *, check: bool = False, diff: bool = False
    ) -> dict[str, Any]: ...


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def write_below(root: Path, path: str, text: str) -> None:
    """Write a file of a small tree, such as one that stands for /proc."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of the loopback interface at which this process listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Run a module in this process as Ansible would and return the JSON that it prints."""

    def run(
        main: Callable[[], None], args: dict[str, Any], *, check: bool = False, diff: bool = False
    ) -> dict[str, Any]:
        capsys.readouterr()
        warned: list[str] = []

        def warn(_module: AnsibleModule, warning: str, **_further: Any) -> None:
            # Where Ansible's controller is loaded, too, ansible-core shows it instead of returning it.
            warned.append(warning)

        with (
            patch_module_args({**args, "_ansible_check_mode": check, "_ansible_diff": diff}),
            mock.patch.object(AnsibleModule, "warn", warn),
            pytest.raises(SystemExit),
        ):
            main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        result.setdefault("failed", False)
        return {**result, "warnings": warned} if warned else result

    return run
