# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs ansible-test's sanity and unit tests on every supported ansible-core for which this machine has a Python.

    tools/matrix.py [VERSION...]      such as 2.20; without any, all of them

Each has a virtual environment of its own in .cache/matrix, in which tools/check.py runs its stages sanity and
ansible-units. Then the playbooks that only look are run with it, which fails where a deprecation warning is printed.
`make test` covers ansible-core 2.19 alone, so that it does not take three times as long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MATRIX = ROOT / ".cache" / "matrix"
REQUIREMENTS = ROOT / "tests"
# The link that tools/setup.sh makes, so that this checkout is found as gpufleet.vllm.
COLLECTIONS = ROOT / ".cache" / "collections"
PACKAGE = COLLECTIONS / "ansible_collections" / "gpufleet" / "vllm"
LOOKING = "test_plays_that_look.py"

# ansible-core: the release to run, and the Pythons that its controller runs on, the one to prefer first.
RELEASES = {
    "2.19": ("2.19.14", ("3.13", "3.12", "3.11")),
    "2.20": ("2.20.10", ("3.12", "3.13", "3.14")),
    "2.21": ("2.21.5", ("3.13", "3.12", "3.14")),
}
# What the unit tests import and run by, besides ansible-core.
NEEDED = (
    *("docker", "hypothesis", "matplotlib", "nvidia-ml-py", "PyYAML", "requests"),
    *("pytest", "pytest-forked", "pytest-mock", "pytest-xdist"),
)


def find_python(version: str) -> str | None:
    """Return an interpreter of a version such as 3.12: from PATH, or where pyenv keeps its own."""
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    for candidate in candidates:
        # A pyenv shim is there for every version, and fails for those that are not switched on.
        if (
            candidate
            and subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0
        ):
            return candidate
    return None


def pins() -> Iterator[str]:
    """Return every pinned requirement of the tests but ansible-core's own."""
    for path in sorted(REQUIREMENTS.glob("requirements*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"[\w.-]+==", line) and not line.startswith("ansible-core=="):
                yield line


def environment(core: str, python: str) -> Path:
    """Return the bin folder of a virtual environment with that release of ansible-core, made if it is not there."""
    folder = MATRIX / core
    wanted = "\n".join([python, core, *NEEDED, *pins()])
    stamp = folder / "requirements"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pins()) + "\n", encoding="utf-8")
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), f"ansible-core=={core}", *NEEDED], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return folder / "bin"


def run(name: str) -> str:
    """Run the checks on one release of ansible-core and return what became of it, in words."""
    core, pythons = RELEASES[name]
    found = [(version, path) for version in pythons if (path := find_python(version))]
    if not found:
        return f"not run: none of Python {', '.join(pythons)} is here"
    version, python = found[0]
    print(f"\n=== ansible-core {core} on Python {version}", flush=True)
    started = time.monotonic()
    bin_folder = environment(core, python)
    command = [str(bin_folder / "python"), "tools/check.py", "sanity", "ansible-units"]
    path = f"{bin_folder}:{os.environ.get('PATH', '')}"
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, check=False).returncode
    plays = [str(bin_folder / "python"), "-m", "pytest", "-q", str(PACKAGE / "tests" / "plays" / LOOKING)]
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(COLLECTIONS)}
    status = subprocess.run(plays, cwd=COLLECTIONS, env=variables, check=False).returncode or status
    verdict = "passed" if status == 0 else "FAILED"
    return f"{verdict} on Python {version} in {time.monotonic() - started:.0f} s"


def main(names: list[str]) -> int:
    """Run the named releases, or all, and tell of each."""
    unknown = [name for name in names if name not in RELEASES]
    if unknown:
        print(f"matrix.py knows no ansible-core {', '.join(unknown)}; it knows {', '.join(RELEASES)}", file=sys.stderr)
        return 2
    told = {name: run(name) for name in names or RELEASES}
    print("\n=== matrix")
    for name, words in told.items():
        print(f"ansible-core {name}: {words}")
    return int(any(words.startswith("FAILED") for words in told.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
