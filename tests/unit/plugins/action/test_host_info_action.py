# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said where sudo wants a password: on a host whose sudo says so, and of what Ansible says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.action.host_info import remedy_for
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet import rollout

COLLECTIONS = Path(rollout.__file__).parents[5]


@pytest.mark.parametrize("pipelining", ["true", "false"])
def test_a_missing_password_is_told_with_the_option_that_asks_for_it(tmp_path: Path, pipelining: str) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    variables = {
        "ansible_connection": "local",
        "ansible_become": True,
        "ansible_become_exe": str(sudo),
        "ansible_python_interpreter": sys.executable,
        "ansible_remote_tmp": str(tmp_path / "remote"),
    }
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": {"gpu-01": variables}}}))
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "adhoc", "-i", "hosts.json", "all", "-m", "gpufleet.vllm.host_info"],
        cwd=tmp_path,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_PIPELINING": pipelining,
            "ANSIBLE_BECOME_ALLOW_SAME_USER": "true",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "--ask-become-pass" in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "Missing sudo password",
        "sudo: a password is required",
        "Timed out waiting for become success or become password prompt.",
        "sudo: a terminal is required to read the password; either use the -S option",
    ],
)
def test_what_sudo_and_ansible_say_is_known(text: str) -> None:
    assert "sudo on this host asks for a password" in remedy_for(text)


@pytest.mark.parametrize("text", ["Incorrect sudo password", "Permission denied (publickey,password).", ""])
def test_nothing_else_is_taken_for_it(text: str) -> None:
    assert remedy_for(text) == ""
