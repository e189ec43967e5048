# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gathers what lm_eval needs on a host without internet, in a container of the serving image; imports nothing of ours.

The arguments are requirements of pip, C(--), and names of tasks. Wheels of what the image lacks go to C(/out). The data
of the tasks goes into the cache that C(HF_HOME) names, as lm_eval itself fetches it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

OUT = "/out"
LOAD = "import sys; from lm_eval.tasks import TaskManager, get_task_dict; get_task_dict(sys.argv[1:], TaskManager())"


def main(arguments: list[str]) -> int:
    """Gather it, and return the exit status."""
    at = arguments.index("--")
    requirements, tasks = arguments[:at], arguments[at + 1 :]
    pip = [sys.executable, "-m", "pip"]
    resolve = [*pip, "install", "--no-input", "--quiet", "--dry-run", "--report=-", *requirements]
    report = json.loads(subprocess.run(resolve, check=True, stdout=subprocess.PIPE).stdout)
    missing = [f"{one['metadata']['name']}=={one['metadata']['version']}" for one in report["install"]]
    if missing:
        subprocess.run(
            [*pip, "wheel", "--no-input", "--progress-bar=off", "--no-deps", "--wheel-dir", OUT, *missing], check=True
        )
    if not tasks:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        install = [
            *pip,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--find-links",
            OUT,
            "--target",
            folder,
            *missing,
        ]
        if missing:
            subprocess.run(install, check=True)
        program = f"import sys; sys.path.insert(0, {folder!r}); {LOAD}"
        return subprocess.run([sys.executable, "-c", program, *tasks], check=False).returncode


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    finally:
        # Whoever began this has to be able to remove it.
        subprocess.run(["chown", "-R", f"--reference={OUT}", OUT], check=True)
    raise SystemExit(status)
