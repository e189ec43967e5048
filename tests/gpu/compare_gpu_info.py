# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares gpu_info with nvidia-smi, field by field, on a host with GPUs; exits 1 where they differ.

ansible gpu-host -i tests/gpu/inventory -m gpufleet.vllm.gpu_info -o > answer.txt
python3 tests/gpu/compare_gpu_info.py answer.txt
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

# nvidia-smi's name of a field -> the same from gpu_info, as nvidia-smi writes it
FIELDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "index": lambda gpu: gpu["index"],
    "uuid": lambda gpu: gpu["uuid"],
    "pci.bus_id": lambda gpu: gpu["pci_bus_id"].upper(),
    "name": lambda gpu: gpu["name"],
    "compute_cap": lambda gpu: gpu["compute_capability"],
    "memory.total": lambda gpu: gpu["memory_total_mib"],
    "memory.used": lambda gpu: gpu["memory_used_mib"],
    "memory.free": lambda gpu: gpu["memory_free_mib"],
    "memory.reserved": lambda gpu: gpu["memory_reserved_mib"],
    "mig.mode.current": lambda gpu: "Enabled" if gpu["mig_mode"] else "Disabled",
    "ecc.mode.current": lambda gpu: "Enabled" if gpu["ecc"]["mode"] else "Disabled",
    "ecc.errors.corrected.volatile.total": lambda gpu: gpu["ecc"]["corrected_volatile"],
    "ecc.errors.uncorrected.volatile.total": lambda gpu: gpu["ecc"]["uncorrected_volatile"],
    "power.limit": lambda gpu: f"{gpu['power_limit_watts']:.2f}",
    "persistence_mode": lambda gpu: "Enabled" if gpu["persistence_mode"] else "Disabled",
}


def main(path: str) -> int:
    """Print each field of each GPU and return the exit status."""
    text = Path(path).read_text(encoding="utf-8")
    answer = json.loads(text[text.index("{") :])
    query = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(FIELDS)},driver_version", "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
    )
    different = 0
    for line, gpu in zip(query.stdout.strip().splitlines(), answer["gpus"], strict=True):
        *values, driver = [value.strip() for value in line.split(",")]
        ours = [str(read(gpu)) for read in FIELDS.values()]
        for name, theirs, own in zip([*FIELDS, "driver_version"], [*values, driver], [*ours, answer["driver_version"]]):
            same = theirs == own
            different += not same
            print(f"{'same' if same else 'DIFFERENT':9}  {name:40}  nvidia-smi {theirs}  gpu_info {own}")
        print("        ", {key: gpu[key] for key in ("architecture", "numa_node", "nvlink", "fabric", "peers")})
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
