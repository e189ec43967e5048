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
RUN_MODULE = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
module = importlib.import_module("ansible_collections.gpufleet.vllm.plugins.modules." + sys.argv[1])
with patch_module_args(json.loads(sys.argv[2])):
    module.main()
"""

RunOnStub = Callable[..., "dict[str, Any]"]


def _collections_root() -> str:
    """Return the folder that holds ansible_collections, from which this process imports the collection."""
    from ansible_collections.gpufleet.vllm.plugins.module_utils import errors

    return str(Path(errors.__file__).absolute().parents[5])


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
    """Run a module in a process of its own, where the real pynvml loads the stub in a scenario."""

    def run(
        scenario: str, module: str = "gpu_info", library_folder: Path = nvml_stub, **arguments: Any
    ) -> dict[str, Any]:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library_folder),
            "GPUFLEET_NVML_SCENARIO": scenario,
            "PYTHONPATH": os.pathsep.join([_collections_root(), *sys.path]),
        }
        done = subprocess.run(
            [sys.executable, "-c", RUN_MODULE, module, json.dumps(arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert done.stdout, f"{module} printed nothing: {done.stderr}"
        result: dict[str, Any] = json.loads(done.stdout)
        result.setdefault("failed", False)
        return result

    return run
