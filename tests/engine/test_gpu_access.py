# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vllm_gpu_access and vllm_gpu_check on a real engine, which refuses what it has not, and stubs of the driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import spec as container_spec
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_gpu_access, vllm_gpu_check
from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import import_stand_in
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.conftest import nvml_stub

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["nvml_stub"]  # the fixture of the unit tests serves here, too

GPU, OTHER = "GPU-11d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7", "GPU-22d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7"
Access = Callable[..., "dict[str, Any]"]


@pytest.fixture(scope="session")
def stand_in(engine: DockerClient, run_name: str) -> str:
    """The name of the stand-in's image, which has a Python for C(vllm)."""
    name = f"{run_name}/stand-in:1"
    if not engine.images.list(name):
        import_stand_in(engine, name, debian_program("busybox-static", "bin/busybox"))
    return name


@pytest.fixture
def driver(nvml_stub: Path, tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """Return the mounts and variables by which a container has the driver's libraries, and sees these GPUs."""

    def mounted(*gpus: str, cuda: str = "") -> tuple[list[str], dict[str, str]]:
        (tmp_path / "gpus").write_text(cuda + "".join(f"{gpu}\n" for gpu in gpus))
        scenario = "".join(f"[gpu {index}]\nname = NVIDIA H200\nuuid = {gpu}\n" for index, gpu in enumerate(gpus))
        (tmp_path / "nvml.ini").write_text("[host]\ndriver_version = 580.159.04\n" + scenario)
        volumes = [
            f"{nvml_stub}:/driver",
            f"{tmp_path}/gpus:/etc/gpufleet-fake-gpus:ro",
            f"{tmp_path}/nvml.ini:/nvml.ini",
        ]
        return volumes, {"LD_LIBRARY_PATH": "/driver", "GPUFLEET_NVML_SCENARIO": "/nvml.ini"}

    return mounted


@pytest.fixture
def access(
    run_module: RunModule,
    docker_host: str,
    run_name: str,
    stand_in: str,
    driver: Callable[..., tuple[list[str], dict[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Access:
    """Run vllm_gpu_access for a plan of one GPU, whose device file is one that every machine has."""
    monkeypatch.setattr(
        container_spec,
        "_device_files",
        lambda _replica, way, _exists, _minors: ["/dev/zero"] if way == "devices" else [],
    )

    def run(wish: str, *seen: str, cuda: str = "") -> dict[str, Any]:
        volumes, environment = driver(*seen, cuda=cuda)
        replica = {"name": "vllm-0", "gpus": [0], "gpu_uuids": [GPU], "host": "127.0.0.1", "port": 8000, "config": {}}
        plan = {
            "device": "cuda",
            "gpu_access": wish,
            "image": {"tag": stand_in},
            "replicas": [{**replica, "environment": environment}],
            "decisions": [],
        }
        arguments = {
            "plan": plan,
            "volumes": volumes,
            "config_dir": str(tmp_path / "etc"),
            "container_prefix": run_name,
            "docker_host": docker_host,
        }
        return run_module(vllm_gpu_access.main, arguments)

    return run


def probes(engine: DockerClient, run_name: str) -> list[str]:
    """Return the names of the containers that looked for GPUs and are still there."""
    found = engine.containers.list(all=True, filters={"label": f"io.gpufleet.gpu-probe={run_name}"})
    return [str(container.name) for container in found]


def test_the_engines_refusals_are_told_and_what_works_is_kept(
    engine: DockerClient, access: Access, run_name: str
) -> None:
    runtimes = engine.info()["Runtimes"]
    if "nvidia" in runtimes:
        pytest.skip("this engine has the NVIDIA container toolkit")
    first = access("auto", GPU)
    assert (first["failed"], first["gpu_access"], first["changed"]) == (False, "devices", True), first
    assert [(way["way"], way["name"]) for way in first["ways"]] == [
        ("gpus", "container-toolkit-missing"),
        ("cdi", "cdi-device-missing"),
        ("runtime", "container-toolkit-missing"),
        ("devices", ""),
    ]
    again = access("auto", GPU)
    assert (again["changed"], again["tried"], again["gpu_access"]) == (False, False, "devices")
    assert again["plan"] == first["plan"]
    assert probes(engine, run_name) == []


def test_cuda_that_does_not_start_and_foreign_gpus_are_no_way_that_works(
    engine: DockerClient, access: Access, run_name: str
) -> None:
    mismatch = access("devices", GPU, cuda="init 803\n")
    assert (mismatch["failed"], mismatch["error"]["name"]) == (True, "gpu-access-broken")
    assert "cuInit: Error 803: system has unsupported display driver" in mismatch["error"]["evidence"]
    foreign = access("devices", GPU, OTHER)
    assert f"sees {OTHER}, which it was not given" in foreign["msg"]
    nothing = access("auto")
    assert nothing["error"]["name"] == "no-gpu-access"
    assert all(f"  {way}: " in nothing["msg"] for way in ("gpus", "cdi", "runtime", "devices"))
    assert access("devices", GPU)["gpu_access"] == "devices", "a failure is not kept"
    assert probes(engine, run_name) == []


def test_a_server_that_lost_its_gpu_is_named(
    engine: DockerClient,
    run_module: RunModule,
    docker_host: str,
    run_name: str,
    stand_in: str,
    driver: Callable[..., tuple[list[str], dict[str, str]]],
    tmp_path: Path,
) -> None:
    volumes, environment = driver(GPU)
    wishes = container_spec.ServerOptions(
        stand_in, "", {"argument": "/m"}, "cuda", "gpus", "host", str(tmp_path), str(tmp_path), str(tmp_path)
    )
    replica: Any = {
        "name": f"{run_name}-gpu",
        "gpus": [0],
        "gpu_uuids": [GPU],
        "host": "127.0.0.1",
        "port": 1,
        "config": {},
    }
    spec = container_spec.build_spec(replica, wishes, (), lambda _path: False)
    container = engine.containers.create(
        stand_in,
        name=f"{run_name}-gpu",
        entrypoint=["python3", "-c", "import time; time.sleep(300)"],
        environment=environment,
        volumes=volumes,
        labels=container_spec.labels(spec),
        network_mode="none",
        init=True,
    )
    try:
        arguments = {"name": container.name, "docker_host": docker_host}
        assert run_module(vllm_gpu_check.main, arguments)["error"]["name"] == "server-stopped"
        container.start()
        good = run_module(vllm_gpu_check.main, arguments)
        assert (good["failed"], good["seen"]["cuda"]["gpus"]) == (False, [GPU]), good
        driver(OTHER)
        lost = run_module(vllm_gpu_check.main, arguments)
        assert (lost["failed"], lost["error"]["name"]) == (True, "wrong-gpus")
        assert lost["error"]["details"] == {"seen": [OTHER], "given": [GPU]}
    finally:
        container.remove(force=True)
