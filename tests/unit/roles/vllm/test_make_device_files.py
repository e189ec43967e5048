# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that makes the GPUs' device files at boot, with stand-ins for the driver's programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tests.unit.conftest import write_below

PROGRAM = Path(__file__).resolve().parents[4] / "roles" / "vllm" / "files" / "gpufleet-make-device-files"
INFORMATION = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 345\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
ASKED = 'echo "${0##*/} $*" >>"$ROOT/asked"\n'
MAKE = 'for name in {names}; do mknod "$ROOT/dev/$name" c 1 3; done\n'

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host whose GPUs have the minor numbers 0 and 2, and on which nothing made their files."""
    for number, minor in enumerate((0, 2)):
        path = f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information"
        write_below(tmp_path, path, INFORMATION.format(minor=minor))
    (tmp_path / "dev").mkdir()
    have(tmp_path, "modprobe", "")
    return tmp_path


def have(host: Path, name: str, does: str) -> None:
    """Install a program that notes how it was called, and does this."""
    write_below(host, f"bin/{name}", f"#!/bin/sh\n{ASKED}{does}")
    (host / "bin" / name).chmod(0o755)


def run(host: Path) -> tuple[int, list[str], str]:
    """Run the program with nothing but the stand-ins; return its status, what it called, and its complaints."""
    for name in ("sed", "mknod"):
        (host / "bin" / name).unlink(missing_ok=True)
        (host / "bin" / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(host / "bin"), "ROOT": str(host)}
    done = subprocess.run(
        ["/bin/sh", str(PROGRAM), str(host)], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, (host / "asked").read_text(encoding="utf-8").splitlines(), done.stderr


def test_nvidia_modprobe_makes_them(host: Path) -> None:
    have(host, "nvidia-modprobe", MAKE.format(names="nvidiactl nvidia-uvm nvidia0 nvidia2") + "exit 0\n")
    status, asked, said = run(host)
    assert status == 0, said
    assert asked == [
        "modprobe nvidia",
        "modprobe nvidia-uvm",
        "nvidia-modprobe -c=255 -c=0 -c=2",
        "nvidia-modprobe -u -c=0 -c=1",
        "nvidia-modprobe -m",
    ]


def test_without_it_nvidia_smi_and_the_toolkit_do(host: Path) -> None:
    have(host, "nvidia-smi", MAKE.format(names="nvidiactl nvidia0 nvidia2"))
    have(host, "nvidia-ctk", MAKE.format(names="nvidia-uvm"))
    status, asked, said = run(host)
    assert (status, said) == (0, "")
    assert asked[2:] == ["nvidia-smi --list-gpus", "nvidia-ctk system create-device-nodes --control-devices"]


def test_what_could_not_be_made_is_told(host: Path) -> None:
    have(host, "nvidia-modprobe", "test -e $ROOT/dev/nvidia0 || " + MAKE.format(names="nvidiactl nvidia0"))
    status, _asked, said = run(host)
    assert status == 1
    assert said == "".join(
        f"There is no /dev/{name}, and it could not be made.\n" for name in ("nvidia-uvm", "nvidia2")
    )
