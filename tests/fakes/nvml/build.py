# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the stubs of the driver's libraries: python build.py FOLDER [SCENARIO]

Puts libnvidia-ml.so.1, its scenarios, libcuda.so.1 and a stub of the kernel's log into FOLDER; SCENARIO is the one to
play where no variable names another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE / "scenarios"
VARIABLE = "GPUFLEET_NVML_SCENARIO"
# For LD_PRELOAD: a kernel's log from the file that GPUFLEET_KERNEL_LOG names.
KERNEL_LOG = "libgpufleet-kernel-log.so"


def build(folder: Path, default: str = "") -> Path:
    """Compile the stubs into a folder, with the scenarios beside them, and return the path of NVML's.

    Args:
        folder: where to; it can be copied or mounted elsewhere afterwards.
        default: the scenario to play for processes without the variable, none if empty.

    Raises:
        RuntimeError: there is no C compiler, or it refuses the source; the text says which.
    """
    compiler = os.environ.get("CC") or "cc"
    if shutil.which(compiler) is None:
        raise RuntimeError(f"The stubs need a C compiler ({compiler}): apt-get install gcc libc6-dev")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    for name, source in (
        (library.name, "nvml_stub.c"),
        ("libcuda.so.1", "cuda_stub.c"),
        (KERNEL_LOG, "kernel_log_stub.c"),
    ):
        command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        command += [f"-Wl,-soname,{name}", "-o", str(folder / name), str(HERE / source), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"The C compiler refuses {source}:\n{done.stderr}")
    shutil.copytree(SCENARIOS, folder / "scenarios", dirs_exist_ok=True)
    if default:
        shutil.copy(SCENARIOS / f"{default}.ini", folder / "scenarios" / "default.ini")
    return library


def environment(folder: Path, scenario: str) -> dict[str, str]:
    """Return the variables under which a process sees the scenario's GPUs: a name or a file's path."""
    return {"LD_LIBRARY_PATH": str(folder), VARIABLE: scenario}


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        print(build(Path(sys.argv[1]), *sys.argv[2:]))
    except RuntimeError as failure:
        sys.exit(str(failure))
