# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the playbook plan takes for a fleet that the inventory describes: 500 hosts of five kinds, with five forks.

Run as C(python tests/bench/bench_fleet_plan.py [hosts]) in a checkout in which C(make setup) has run. Prints wall and
CPU seconds; the exit status is 1 where the play failed or took longer than 20 s.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "h200": ("NVIDIA H200", 8),
    "b200": ("NVIDIA B200", 8),
    "h100": ("NVIDIA H100 80GB HBM3", 8),
    "b300": ("NVIDIA B300 SXM6 AC", 8),
    "rtx": ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 4),
}
BUDGET_S = 20.0
FORKS = 5


def write_inventory(folder: Path, hosts: int) -> None:
    """Write an inventory of so many hosts, the kinds in equal parts."""
    lines = ["all:", "  vars: {vllm_accept_license: true, vllm_max_model_len: 8192}", "  children:"]
    for kind in KINDS:
        lines.append(f"    {kind}: {{hosts: {{'{kind}-[001:{hosts // len(KINDS):03d}]': }}}}")
    (folder / "hosts.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "group_vars").mkdir()
    for kind, (name, count) in KINDS.items():
        text = f"vllm_gpus:\n  - {{name: {name}, count: {count}}}\n"
        (folder / "group_vars" / f"{kind}.yml").write_text(text, encoding="utf-8")


def main(hosts: int) -> int:
    """Print the figures for a fleet of so many hosts."""
    with tempfile.TemporaryDirectory() as folder:
        write_inventory(Path(folder), hosts)
        command = ["ansible-playbook", "playbooks/plan.yml", "--inventory", folder, "--forks", str(FORKS)]
        environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
        before = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        wall = time.monotonic() - before
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    headline = f"{hosts} hosts: {len(KINDS)} kinds of plan"
    told = done.returncode == 0 and headline in done.stdout
    print(headline if told else done.stdout[-2000:] + done.stderr[-2000:])
    print(f"{wall:.1f} s of wall time, of {BUDGET_S:.0f} s; {cpu:.1f} s CPU")
    return 0 if told and wall <= BUDGET_S else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
