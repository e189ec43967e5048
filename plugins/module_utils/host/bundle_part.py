# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gathers one part of a bundle on a machine with internet: an image, or what a program in a container leaves."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import without_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.container_pip import pip_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.jobs import Job, run_job
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.signing_key import ARMOUR, Expected, fetch_key
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.archive import read_archive
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import inspect_image

if TYPE_CHECKING:
    from docker import DockerClient

# In a part's folder: of what it was made.
RECIPE = ".recipe"


@dataclass(frozen=True)
class Program:
    """What gathers a part in a container.

    Attributes:
        image: in which it runs.
        platform: of the image.
        command: the program and its arguments. It leaves what it gathers in /out, to whom that folder belongs.
        recipe: of what the part is made; the same recipe is not gathered twice.
        inputs: files that it finds in /in, by name.
        vendors: repositories whose keys it finds there, each with C(name), C(key) and C(fingerprints).
        environment: variables.
        secrets: further ones, whose values are not shown.
        volumes: further mounts.
        ca_bundle: file of certificate authorities of this machine; empty for none.
    """

    image: str
    platform: str
    command: tuple[str, ...]
    recipe: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    vendors: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    volumes: Sequence[str] = ()
    ca_bundle: str = ""


def ensure_archive(client: DockerClient, image: str, path: str, *, check: bool, progress: Progress) -> bool:
    """Save an image of the engine as an archive, unless it is there; return whether it was not.

    Raises:
        GpufleetError: C(image-missing), C(write-failed) or C(engine-error).
    """
    found = inspect_image(client, image)
    if found is None and check:
        return True
    if found is None:
        raise GpufleetError(
            f"The Docker engine of this machine has no image {image}.",
            name="image-missing",
            remedy="Load or build it here first. The playbook gpufleet.vllm.deploy builds the CPU image on a machine"
            " with internet access.",
        )
    if os.path.isfile(path):
        # One that cannot be read is written again.
        with contextlib.suppress(GpufleetError):
            archive = read_archive(path)
            if archive is not None and archive.holds(found):
                return False
    if not check:
        _save(client, image, path, int(found.get("Size") or 0), progress)
    return True


def _save(client: DockerClient, image: str, path: str, size: int, progress: Progress) -> None:
    unfinished = f"{path}.unfinished"
    done = 0
    with engine_errors(f"saving {image}"):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(unfinished, "wb") as stream:
                for chunk in client.api.get_image(image):
                    stream.write(chunk)
                    done += len(chunk)
                    progress.phase(f"saving {image}", f"{format_bytes(done)} of about {format_bytes(size)}")
            os.replace(unfinished, path)
        except OSError as error:
            raise write_failed(path, error, "vllm_bundle_dir") from error


def ensure_gathered(client: DockerClient, program: Program, folder: str, *, check: bool, progress: Progress) -> bool:
    """Gather a part by a program, unless it is there by the same recipe; return whether it was not.

    Raises:
        GpufleetError: C(gathering-failed), C(write-failed), as fetch_key and as run_job.
    """
    if read_text(folder, RECIPE).strip() == program.recipe:
        return False
    if check:
        return True
    unfinished = f"{folder}.unfinished"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.makedirs(unfinished)
        with tempfile.TemporaryDirectory(prefix="gpufleet-bundle-") as inputs:
            _write_inputs(program, inputs)
            _run(client, program, inputs, unfinished, progress)
        write_file(os.path.join(unfinished, RECIPE), program.recipe + "\n", 0o644)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    except OSError as error:
        raise write_failed(folder, error, "vllm_bundle_dir") from error
    return True


def _write_inputs(program: Program, folder: str) -> None:
    os.chmod(folder, 0o755)
    for name, text in program.inputs.items():
        write_file(os.path.join(folder, name), text, 0o644)
    for vendor in program.vendors:
        variables = {"key": f"the key of {vendor['name']}", "fingerprints": f"the fingerprints of {vendor['name']}"}
        expected = Expected(vendor["key"], vendor["fingerprints"], program.secrets.get("https_proxy", ""), variables)
        data, _keys = fetch_key(expected)
        # apt tells the form of a key by the end of its name.
        write_file(os.path.join(folder, f"{vendor['name']}.{'asc' if ARMOUR in data else 'gpg'}"), data, 0o644)


def _run(client: DockerClient, program: Program, inputs: str, folder: str, progress: Progress) -> None:
    own, mounts = pip_settings("", program.ca_bundle)
    environment = {**own, **program.environment, **program.secrets}
    volumes = [f"{folder}:/out", f"{inputs}:/in:ro", *mounts, *program.volumes]
    name = re.sub(r"[^A-Za-z0-9]+", "-", os.path.basename(folder)).strip("-")
    job = Job(
        name=f"gpufleet-bundle-{os.getpid()}-{name}",
        image=program.image,
        command=program.command,
        environment=environment,
        volumes=tuple(dict.fromkeys(volumes)),
        options={"platform": program.platform},
    )
    subject = f"gathering {os.path.basename(folder).rpartition('.')[0]}"
    ended = run_job(
        client, job, timeout=24 * 3600, on_lines=lambda lines: progress.phase(subject, lines[-1][:120] if lines else "")
    )
    if ended.exit_code:
        said = without_secrets("\n".join(ended.lines[-15:]), program.secrets)
        raise GpufleetError(
            f"Gathering {folder} in a container of {program.image} ended with status {ended.exit_code}.",
            name="gathering-failed",
            remedy="See what the program says; proxies, mirrors and the package index are the site's variables.",
            evidence=said,
        )
