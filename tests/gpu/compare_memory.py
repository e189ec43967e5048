# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares the applied plan's memory model with what vLLM says in the logs of the plan's replicas.

python3 tests/gpu/compare_memory.py /etc/gpufleet
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

REPORTED = {
    "weights_gib_per_gpu": r"Model loading took ([\d.]+) GiB",
    "kv_cache_gib_per_gpu": r"Available KV cache memory: ([\d.]+) GiB",
    "kv_cache_tokens": r"GPU KV cache size: ([\d,]+) tokens",
}


def main(folder: str) -> int:
    """Print each figure of each replica, planned and reported; return 1 where one is not told."""
    plan = json.loads(Path(folder, "plan.json").read_text(encoding="utf-8"))
    missing = 0
    for replica in plan["replicas"]:
        done = subprocess.run(["docker", "logs", replica["name"]], capture_output=True, text=True, check=False)
        for name, pattern in REPORTED.items():
            found = re.findall(pattern, done.stdout + done.stderr)
            planned = plan["capacity"][name]
            if not found or planned is None:
                print(f"   {replica['name']} {name}: planned {planned}, not told by vLLM")
                missing += 1
                continue
            real = float(found[-1].replace(",", ""))
            print(f"   {replica['name']} {name}: plan {planned}, vLLM {real:g}, {(planned / real - 1) * 100:+.1f} %")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
