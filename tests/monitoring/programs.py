# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of monitoring, of this machine, or else of Debian's packages, fetched and unpacked for the tests."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

from ansible_collections.gpufleet.vllm.tools import unpacked

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "prometheus-node-exporter": "prometheus-node-exporter",
    "haproxy": "haproxy",
}


@functools.cache
def environment(program: str) -> dict[str, str]:
    """Return the variables with which a program runs."""
    return {**os.environ, **unpacked.environment(PACKAGES[program], program)}


def path_of(program: str) -> str:
    """Return where a program is."""
    path = shutil.which(program, path=f"{environment(program)['PATH']}:/usr/sbin:/sbin")
    assert path, f"{program} is neither here nor in Debian's package {PACKAGES[program]}"
    return path


def command(program: str, *words: str) -> list[str]:
    """Return the command line that runs a program.

    Debian's Alertmanager reads its texts in /usr/share; an unpacked one sees there what its package has.
    """
    path = path_of(program)
    share = Path(path).parents[1] / "share"
    if program != "prometheus-alertmanager" or share == Path("/usr/share"):
        return [path, *words]
    script = 'mount --bind "$0" /usr/share && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(share), path, *words]


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it said."""
    return subprocess.run(
        [path_of(program), *words], env=environment(program), capture_output=True, text=True, check=False, timeout=300
    )
