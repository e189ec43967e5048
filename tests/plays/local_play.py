# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a play on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.tests.unit.plugins.conftest import _collections_root


def run_play(folder: Path, play: dict[str, Any], *arguments: str) -> tuple[int, str]:
    """Run a play on the host that it names, which is this machine; return the exit code and what was printed.

    Args:
        folder: for its files, from which it runs.
        play: it gathers no facts.
        arguments: further ones of ansible-playbook.
    """
    (folder / "play.json").write_text(json.dumps([{"gather_facts": False, **play}]), encoding="utf-8")
    return run_playbook(folder, "-i", f"{play['hosts']},", "-c", "local", "play.json", *arguments)


def run_playbook(folder: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Run ansible-playbook, untouched by the checkout's ansible.cfg; return the exit code and what was printed.

    Args:
        folder: for its files, from which it runs.
        words: its arguments.
        variables: further ones of its environment.
    """
    (folder / "ansible.cfg").write_text("", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", *words],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": _collections_root(),
            "ANSIBLE_NOCOLOR": "true",
            **variables,
        },
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout
