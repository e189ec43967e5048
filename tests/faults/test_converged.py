# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deployment costs that finds everything in place, so that it cannot grow unnoticed."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.gpufleet.vllm.tests.bench import bench_deploy
from ansible_collections.gpufleet.vllm.tests.faults.world import Site

# A host with GPUs costs one more, gpu_info.
MOST_MODULE_RUNS = bench_deploy.MOST_MODULE_RUNS - 1
MOST_TO_PREPARE = 4
DEPLOYING = {"vllm_image", "vllm_config", "vllm_server"}


def test_a_converged_deployment_makes_few_module_runs(serving: Site, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    play = serving.play(
        wishes={"ansible_connection": "counting"},
        environment={
            "ANSIBLE_CONNECTION_PLUGINS": str(Path(bench_deploy.__file__).parent / "connection"),
            "GPUFLEET_COUNT_FILE": str(counts),
        },
    )
    assert (play.status, play.changed) == (0, 0), play.text
    (counted,) = bench_deploy.read_counts(counts.read_text()).values()
    assert set(counted) >= DEPLOYING
    assert bench_deploy.module_runs(counted) <= MOST_MODULE_RUNS, counted
    before = {module: runs for module, runs in counted.items() if module and module not in DEPLOYING}
    assert sum(before.values()) <= MOST_TO_PREPARE, before
