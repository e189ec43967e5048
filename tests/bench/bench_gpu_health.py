# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the program that looks after a host's GPUs costs the host.

Run as C(python tests/bench/bench_gpu_health.py [GPUs [Python]]) with the folder above ansible_collections on
PYTHONPATH; Python is the host's, C(/usr/bin/python3) where nothing is said. The program runs as systemd starts it, on
the stub of NVML. Prints its processor time, user and system, beside that of a Python that does nothing, so that the
ratio means something on any machine, and the share of a processor at the usual interval. What a real driver takes to
answer is not in it. Ends with 1 when that share is more than the budget.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import health_service
from ansible_collections.gpufleet.vllm.tests.fakes.nvml.build import build
from ansible_collections.gpufleet.vllm.tests.fakes.nvml.healthy import healthy_h200s

INTERVAL_S = 30
BUDGET = 0.001
RUNS = 40
# What a kernel's full buffer holds, with an event of an application in it.
LOG_LINE = "<6>[{at:12.6f}] docker0: port 1(veth0) entered forwarding state, as it does again and again\n"
XID = "<4>[{at:12.6f}] NVRM: Xid (PCI:0000:2b:00): 31, pid=4711, name=python3, MMU Fault\n"
LOG_LINES = 3000


def host(folder: Path, gpus: int) -> dict[str, str]:
    """Make a host with one server for each GPU; return the variables that the program runs with."""
    plan = {
        "replicas": [
            {"name": f"vllm-{index}", "gpus": [index], "gpu_uuids": [f"GPU-00000000-0000-4000-8000-{index:012d}"]}
            for index in range(gpus)
        ]
    }
    for replica in plan["replicas"]:
        (folder / "etc/control" / str(replica["name"])).mkdir(parents=True)
    (folder / "etc/plan.json").write_text(json.dumps(plan))
    settings = health_service.settings_of(
        [health_service.Deployment("vllm", str(folder / "etc"), "drain")],
        INTERVAL_S,
        str(folder / "textfile"),
    )
    for path, text in health_service.program_files(settings).items():
        target = folder / "program" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / "scenario.ini").write_text(healthy_h200s(gpus))
    log = [LOG_LINE.format(at=at) for at in range(LOG_LINES)]
    (folder / "kernel.log").write_text("".join([*log, XID.format(at=float(LOG_LINES))]))
    stub = build(folder / "nvml").parent
    return {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(stub),
        "LD_PRELOAD": str(stub / "libgpufleet-kernel-log.so"),
        "GPUFLEET_NVML_SCENARIO": str(folder / "scenario.ini"),
        "GPUFLEET_KERNEL_LOG": str(folder / "kernel.log"),
    }


def cost(command: list[str], environment: dict[str, str]) -> float:
    """Return the processor time of a program that is run once, in seconds."""
    process = os.posix_spawn(command[0], command, environment)
    _process, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{command} ended with {status}")
    return usage.ru_utime + usage.ru_stime


def main(gpus: int, python: str) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = host(folder, gpus)
        look = [python, *health_service.command(str(folder / "program"), str(folder / "run"))[1:]]
        cost(look, environment)  # compiles, and asks the journal
        # By turns, so that what else the machine does weighs on both.
        pairs = [
            (cost(look, environment), cost([python, "-I", "-S", "-c", "pass"], environment)) for _run in range(RUNS)
        ]
        report = json.loads((folder / "run/report.json").read_text())
    if len(report["gpus"]) != gpus or report["unread"]:
        raise SystemExit(f"The look did not see all: {report}")
    looks, nothing = (statistics.median(values) for values in zip(*pairs))
    share = looks / INTERVAL_S
    print(
        f"a look at {gpus} GPUs         {looks * 1000:6.1f} ms (median of {RUNS}), {min(pairs)[0] * 1000:.1f} at best"
    )
    print(f"Python that does nothing  {nothing * 1000:6.1f} ms, so a look takes {looks / nothing:.1f} times that")
    print(f"every {INTERVAL_S} s              {share:8.3%} of a processor; the budget is {BUDGET:.1%}")
    return int(share > BUDGET)


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(int(words[0]) if words else 8, words[1] if len(words) > 1 else "/usr/bin/python3"))
