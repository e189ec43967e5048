# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image whose C(vllm), program and package, is tests/fakes/vllm_stand_in.py, and a deployment of it for one test.

The image is made of this machine's own Python, its standard library and the libraries they load, so that it needs no
registry and no base image.
"""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

if TYPE_CHECKING:
    from docker import DockerClient

STAND_IN = Path(__file__).parents[1] / "fakes" / "vllm_stand_in.py"
PACKAGES = "usr/local/lib/stand-in"
# The modules of vLLM that the check of a configuration imports.
MODULES = {
    "vllm/__init__.py": "",
    "vllm/platforms/__init__.py": "from vllm.stand_in import NoPlatform\ncurrent_platform = NoPlatform()\n",
    "vllm/platforms/cuda.py": "raise ImportError('libcuda.so.1: cannot open shared object file')\n",
    "vllm/platforms/cpu.py": "from vllm.stand_in import NoPlatform as CpuPlatform\n",
    "vllm/utils/argparse_utils.py": "from vllm.stand_in import FlexibleArgumentParser\n",
    "vllm/entrypoints/cli/serve.py": "from vllm.stand_in import cmd_init\n",
}
LEFT_OUT = re.compile(r"/(?:site-packages|dist-packages|test|idlelib|tkinter|ensurepip|lib2to3|config-[^/]+)$")


def libraries(program: Path) -> set[str]:
    """Return the shared libraries that a program or library loads, its loader among them."""
    said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(?:=> |^\s+)(/\S+)", said, re.MULTILINE))


@functools.cache
def python_tarball(busybox: Path) -> bytes:
    """Return a root file system with Python, a shell and the stand-in as C(vllm)."""
    python = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    standard_library = Path(sysconfig.get_path("stdlib"))
    needed = libraries(python)
    for module in (standard_library / "lib-dynload").glob("*.so"):
        needed |= libraries(module)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        tar.add(python, arcname=str(python).lstrip("/"))
        tar.add(busybox, arcname="bin/sh")
        tar.add(
            standard_library,
            arcname=str(standard_library).lstrip("/"),
            filter=lambda member: None if LEFT_OUT.search(member.name) else member,
        )
        for path in sorted(needed):
            tar.add(os.path.realpath(path), arcname=path.lstrip("/"))
        add_file(tar, "usr/local/bin/vllm", f"#!{python}\n{STAND_IN.read_text(encoding='utf-8')}".encode())
        add_file(tar, "usr/local/bin/python3", f'#!/bin/sh\nexec {python} "$@"\n'.encode())
        add_file(tar, f"{PACKAGES}/vllm/stand_in.py", STAND_IN.read_bytes())
        for path_in_package, text in MODULES.items():
            add_file(tar, f"{PACKAGES}/{path_in_package}", text.encode())
        add_file(tar, "tmp/.keep", b"")
    return buffer.getvalue()


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add an executable file."""
    member = tarfile.TarInfo(name)
    member.mode, member.size = 0o755, len(data)
    tar.addfile(member, io.BytesIO(data))


def import_stand_in(engine: DockerClient, name: str, busybox: Path) -> None:
    """Make the image of the stand-in under C(name)."""
    repository, _colon, tag = name.rpartition(":")
    engine.api.import_image_from_data(
        python_tarball(busybox),
        repository=repository,
        tag=tag,
        changes=[
            f"ENV PATH=/usr/local/bin:/usr/bin:/bin PYTHONPATH=/{PACKAGES} PYTHONDONTWRITEBYTECODE=1",
            'ENTRYPOINT ["vllm", "serve"]',
        ],
    )


class Fleet:
    """A deployment for one test: its own prefix, folders and ports.

    Args:
        engine: client of the engine.
        docker_host: its address.
        run_module: runs a module in this process.
        prefix: of the containers' names.
        image: the stand-in's.
        folder: of the test, for configurations and caches.
        ports: free ports, one for each replica that the test may want.
    """

    def __init__(
        self,
        engine: DockerClient,
        docker_host: str,
        run_module: RunModule,
        prefix: str,
        image: str,
        folder: Path,
        ports: list[int],
    ) -> None:
        self.engine = engine
        self.prefix = prefix
        self.image = image
        self.folder = folder
        self.ports = ports
        self.config_dir = folder / "etc"
        self.model = folder / "model"
        self._docker_host = docker_host
        self._run_module = run_module
        self.config_dir.mkdir()
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")

    def beside(self, suffix: str, port: int) -> Fleet:
        """Return another deployment on this host, with a longer prefix and the port of that number alone."""
        folder = self.folder / suffix
        folder.mkdir()
        ports = [self.ports[port]]
        return Fleet(
            self.engine, self._docker_host, self._run_module, f"{self.prefix}-{suffix}", self.image, folder, ports
        )

    def replica(self, number: int = 0, environment: dict[str, str] | None = None, **config: Any) -> dict[str, Any]:
        """Return a replica of the plan, and write its configuration as vllm_config would."""
        name = f"{self.prefix}-{number}"
        entries = {"host": "0.0.0.0", "port": 8000, "served-model-name": "stand-in", **config}
        entries = {key.replace("_", "-"): value for key, value in entries.items()}
        text = "# Managed\n" + "".join(f"{key}: {value}\n" for key, value in entries.items())
        (self.config_dir / f"{name}.yaml").write_text(text)
        return {
            "name": name,
            "host": "127.0.0.1",
            "port": self.ports[number],
            "config": entries,
            "environment": environment or {},
        }

    def run(self, *replicas: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        """Run vllm_server for these replicas and return its result."""
        from ansible_collections.gpufleet.vllm.plugins.modules import vllm_server

        source = {"kind": "path", "location": str(self.model), "mount": str(self.model), "argument": "/models/stand-in"}
        arguments: dict[str, Any] = {
            "replicas": list(replicas),
            "image": self.image,
            "model_source": source,
            "device": "cpu",
            "config_dir": str(self.config_dir),
            "hf_home": str(self.folder / "huggingface"),
            "cache_dir": str(self.folder / "cache"),
            "container_prefix": self.prefix,
            "docker_host": self._docker_host,
            "ready_timeout": 60,
            "drain_timeout": 5,
            "progress_file": str(self.folder / "progress"),
            **options,
        }
        return self._run_module(vllm_server.main, arguments, check=check, diff=True)

    def info(self, **options: Any) -> dict[str, Any]:
        """Run vllm_server_info and return its result."""
        from ansible_collections.gpufleet.vllm.plugins.modules import vllm_server_info

        arguments = {
            "container_prefix": self.prefix,
            "docker_host": self._docker_host,
            "config_dir": str(self.config_dir),
            **options,
        }
        return self._run_module(vllm_server_info.main, arguments)

    def info_beside(self) -> dict[str, Any]:
        """Return what vllm_server_info tells, without running it as a module: another one may run at the same time."""
        from ansible_collections.gpufleet.vllm.plugins.modules import vllm_server_info

        params = {"container_prefix": self.prefix, "docker_host": self._docker_host, "docker_timeout": 60}
        return vllm_server_info.work({**params, "config_dir": str(self.config_dir), "log_lines": 100, "starts": False})

    def names(self) -> list[str]:
        """Return the names of all containers of this deployment, running or not."""
        found = self.engine.containers.list(all=True, ignore_removed=True)
        return sorted(box.name for box in found if box.name and box.name.startswith(self.prefix + "-"))

    def clean(self) -> None:
        """Remove what the test left."""
        for box in self.engine.containers.list(all=True, ignore_removed=True):
            if box.name and box.name.startswith(self.prefix):
                box.remove(force=True)
