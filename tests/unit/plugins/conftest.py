# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the plugins' tests."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

COLLECTION = Path(__file__).resolve().parents[3]
# Runs a module once in each scenario; the stub reads its scenario whenever NVML starts.
RUN_MODULE = """
import importlib, json, os, sys
from ansible.module_utils.testing import patch_module_args
module = importlib.import_module("ansible_collections.gpufleet.vllm.plugins.modules." + sys.argv[1])
for scenario in sys.argv[3:]:
    os.environ["GPUFLEET_NVML_SCENARIO"] = scenario
    with patch_module_args(json.loads(sys.argv[2])):
        try:
            module.main()
        except SystemExit:
            print()
"""

RunOnStub = Callable[..., "list[dict[str, Any]]"]


def _collections_root() -> str:
    """Return the folder that holds ansible_collections, from which this process imports the collection."""
    from ansible_collections.gpufleet.vllm.plugins.module_utils.common import errors

    return str(Path(errors.__file__).absolute().parents[6])


@pytest.fixture(scope="session")
def nvml_stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the stand-in for libnvidia-ml.so.1 and return its folder. Without a C compiler this fails and says so."""
    source = COLLECTION / "tests/fakes/nvml/build.py"
    spec = importlib.util.spec_from_file_location("nvml_stub_build", source)
    assert spec and spec.loader
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    folder: Path = builder.build(tmp_path_factory.mktemp("nvml")).parent
    return folder


@pytest.fixture(scope="session")
def on_nvml_stub(nvml_stub: Path) -> RunOnStub:
    """Run a module in a process of its own, where the real pynvml loads the stub, and return a result per scenario."""

    def run(
        *scenarios: str, module: str = "gpu_info", library_folder: Path = nvml_stub, **arguments: Any
    ) -> list[dict[str, Any]]:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library_folder),
            "PYTHONPATH": os.pathsep.join([_collections_root(), *sys.path]),
        }
        done = subprocess.run(
            [sys.executable, "-c", RUN_MODULE, module, json.dumps(arguments), *scenarios],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        lines = [line for line in done.stdout.split("\n") if line]
        results: list[dict[str, Any]] = [{"failed": False, **json.loads(line)} for line in lines]
        assert len(results) == len(scenarios), f"{module} answered {len(results)} of {scenarios}: {done.stderr}"
        return results

    return run
