# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of systemd as ansible.builtin.systemd_service asks for: it runs the programs of units, found in the PATH.

C(install) makes a systemctl that runs this with its folder and its own words. The folder has the units' process numbers
and messages, who is to start with the host, and what systemctl was told. A process belongs to who runs this, whatever
the unit's User says.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.gpufleet.vllm.tests.monitoring import programs

STOP_S = 30.0
UNITS = "units"


def install(folder: Path) -> dict[str, str]:
    """Make a folder for it, with C(units) for the units, and return the variables by which its systemctl is found."""
    (folder / "bin").mkdir(parents=True)
    (folder / UNITS).mkdir()
    collections = Path(__file__).absolute().parents[5]
    words = [sys.executable, "-m", f"{programs.__name__.rpartition('.')[0]}.stand_in_systemd", str(folder)]
    script = folder / "bin/systemctl"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={collections} exec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


@contextlib.contextmanager
def everything_ended(folder: Path) -> Iterator[None]:
    """Stop all that still runs, after the block."""
    try:
        yield
    finally:
        for path in folder.glob("*.pid"):
            stop(folder, path.stem)


def process_of(folder: Path, unit: str) -> int:
    """Return the number of a unit's process; 0 where it does not run."""
    path = folder / f"{unit}.pid"
    try:
        number = int(path.read_text())
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return 0
    return 0 if state == "Z" else number


def start(folder: Path, unit: str) -> None:
    """Start a unit that does not run."""
    if process_of(folder, unit):
        return
    text = (folder / UNITS / f"{unit}.service").read_text()
    found = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert found, text
    path, *words = shlex.split(found[1])
    name = Path(path).name
    with (folder / f"{unit}.log").open("ab") as log:
        process = subprocess.Popen(
            programs.command(name, *words),
            env=programs.environment(name),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (folder / f"{unit}.pid").write_text(str(process.pid))


def stop(folder: Path, unit: str) -> None:
    """Stop a unit and wait until it has ended."""
    number = process_of(folder, unit)
    if number:
        os.kill(number, signal.SIGTERM)
    began = time.monotonic()
    while process_of(folder, unit):
        assert time.monotonic() - began < STOP_S, f"{unit} does not end"
        time.sleep(0.05)
    (folder / f"{unit}.pid").unlink(missing_ok=True)


def main(folder: Path, command: str, units: list[str]) -> int:
    """Do what systemctl is told."""
    with (folder / "told").open("a") as told:
        told.write(f"{' '.join([command, *units])}\n")
    if command == "daemon-reload":
        return 0
    (unit,) = (name.removesuffix(".service") for name in units)
    there = (folder / UNITS / f"{unit}.service").exists()
    enabled = folder / f"{unit}.enabled"
    running = process_of(folder, unit)
    if command == "show":
        state = "active" if running else "inactive"
        print(f"Id={unit}.service\nLoadState={'loaded' if there else 'not-found'}\nActiveState={state}")
    elif command == "is-active":
        return 0 if running else 3
    elif command == "is-enabled":
        print("enabled" if enabled.exists() else "disabled")
        return 0 if enabled.exists() else 1
    elif not there:
        print(f"Unit {unit}.service not found.", file=sys.stderr)
        return 5
    elif command == "enable":
        enabled.touch()
    elif command == "disable":
        enabled.unlink()
    elif command == "reload":
        os.kill(running, signal.SIGHUP)
    else:
        if command in ("stop", "restart"):
            stop(folder, unit)
        if command in ("start", "restart"):
            start(folder, unit)
    return 0


if __name__ == "__main__":
    place, what, *rest = (word for word in sys.argv[1:] if not word.startswith("-"))
    sys.exit(main(Path(place), what, rest))
