# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module vllm_gpu_access, its script on stubs of the driver's libraries; the engine's containers are processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError, ImageNotFound

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import access, access_record
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_gpu_access
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

ONE, TWO = "GPU-11d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7", "GPU-22d1dd45-5c29-1a5a-6f0c-1cba9c47b4b7"
NO_TOOLKIT = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
Sees = Callable[["list[str]", str], "dict[str, str]"]


@pytest.fixture
def sees(nvml_stub: Path, tmp_path: Path) -> Sees:
    """Return the variables under which a process sees these GPUs, with further lines for the CUDA stub."""

    def variables(gpus: list[str], cuda: str = "") -> dict[str, str]:
        folder = tmp_path / f"sees-{len(os.listdir(tmp_path))}"
        folder.mkdir()
        (folder / "cuda").write_text(cuda + "".join(f"{gpu}\n" for gpu in gpus))
        scenario = "[host]\ndriver_version = 580.159.04\n"
        scenario += "".join(f"[gpu {index}]\nname = NVIDIA H200\nuuid = {gpu}\n" for index, gpu in enumerate(gpus))
        (folder / "nvml.ini").write_text(scenario)
        return {
            "LD_LIBRARY_PATH": str(nvml_stub),
            "GPUFLEET_CUDA_STUB": str(folder / "cuda"),
            "GPUFLEET_NVML_SCENARIO": str(folder / "nvml.ini"),
        }

    return variables


class Engine:
    """An engine whose containers are processes of this machine: what a way of access gives is in C(ways)."""

    def __init__(self) -> None:
        self.ways: dict[str, Any] = {}
        self.created: list[dict[str, Any]] = []
        self.removed = 0
        self.images_here = {"image:deploy": "sha256:1"}
        self.engine_info: dict[str, Any] = {"Runtimes": {"runc": {}}, "DefaultRuntime": "runc", "CDISpecDirs": []}
        self.containers = self
        self.images = self

    def get(self, name: str) -> Any:
        if name not in self.images_here:
            raise ImageNotFound(name)
        return SimpleNamespace(id=self.images_here[name], attrs={"Config": {"Env": ["PYTHONPATH=/opt/vllm"]}})

    def info(self) -> dict[str, Any]:
        return self.engine_info

    def version(self) -> dict[str, Any]:
        return {"Version": "28.0.1"}

    def list(self, **_filters: Any) -> list[Any]:
        return []

    def create(self, image: str, **options: Any) -> Container:
        self.created.append({"image": image, **options})
        return Container(self, options)


def way_of(options: Mapping[str, Any]) -> str:
    """Return the way by which a container gets its GPUs."""
    if options.get("device_requests"):
        return {"nvidia": "gpus", "cdi": "cdi"}[options["device_requests"][0]["Driver"]]
    return "runtime" if options.get("runtime") == "nvidia" else "devices"


class Container:
    """A container that runs its script here."""

    def __init__(self, engine: Engine, options: dict[str, Any]) -> None:
        self._engine, self._options, self._said = engine, options, b""

    def start(self) -> None:
        given = self._engine.ways.get(way_of(self._options), NO_TOOLKIT)
        if isinstance(given, str):
            raise APIError("500", explanation=given)
        done = subprocess.run(
            [sys.executable, "-c", *self._options["command"]],
            env={**os.environ, **given},
            capture_output=True,
            check=False,
        )
        self._said = done.stdout + done.stderr

    def wait(self, timeout: float) -> dict[str, int]:
        assert timeout > 0
        return {"StatusCode": 0}

    def logs(self, **_which: Any) -> bytes:
        return self._said

    def remove(self, **_how: Any) -> None:
        self._engine.removed += 1


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine on which no way works."""
    found = Engine()
    monkeypatch.setattr(vllm_gpu_access, "connect", lambda _host, _timeout: found)
    monkeypatch.setattr(vllm_gpu_access, "tool", lambda _name: {"path": None, "version": None})
    return found


def plan_of(wish: str = "auto", gpus: tuple[str, ...] = (ONE, TWO)) -> dict[str, Any]:
    """Return a plan of one replica for each GPU."""
    replicas = [
        {
            "name": f"vllm-{number}",
            "gpus": [number],
            "gpu_uuids": [gpu],
            "host": "127.0.0.1",
            "port": 8000 + number,
            "config": {},
            "environment": {"LD_LIBRARY_PATH": "/driver"},
        }
        for number, gpu in enumerate(gpus)
    ]
    decisions = [{"field": "device", "value": "cuda", "reason": "vllm_device"}]
    image = {"tag": "image:deploy"}
    return {"device": "cuda", "gpu_access": wish, "image": image, "replicas": replicas, "decisions": decisions}


@pytest.fixture
def run(run_module: RunModule, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the module for a plan."""

    def call(plan: dict[str, Any], *, check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {"plan": plan, "config_dir": str(tmp_path / "etc"), **options}
        return run_module(vllm_gpu_access.main, arguments, check=check)

    return call


def test_cuda_803_under_one_way_and_success_under_the_next(engine: Engine, run: Any, sees: Sees) -> None:
    engine.ways = {"gpus": sees([ONE, TWO], "init 803\n"), "cdi": sees([ONE, TWO], "")}
    result = run(plan_of(), volumes=[f"{os.getcwd()}:/srv/site"])
    assert (result["failed"], result["gpu_access"], result["changed"], result["tried"]) == (False, "cdi", True, True)
    assert [(way["way"], way["works"], way["name"]) for way in result["ways"]] == [
        ("gpus", False, "driver-mismatch"),
        ("cdi", True, ""),
    ]
    assert "Error 803: system has unsupported display driver" in result["ways"][0]["evidence"]
    assert "libcuda.so.1" in result["ways"][0]["evidence"]
    decision = result["plan"]["decisions"][-1]
    assert (decision["field"], decision["value"]) == ("gpu_access", "cdi")
    assert "cdi: CUDA and NVML see exactly the 2 GPU(s) given" in decision["reason"]
    assert result["plan"]["gpu_access"] == "cdi"
    probe = engine.created[0]
    assert (probe["image"], probe["network_mode"]) == ("sha256:1", "none")
    assert probe["environment"]["LD_LIBRARY_PATH"] == "/driver" and f"{os.getcwd()}:/srv/site:ro" in probe["volumes"]
    assert probe["device_requests"][0]["DeviceIDs"] == [ONE, TWO]
    assert engine.removed == len(engine.created) == 2


def test_an_unchanged_host_is_not_asked_again_and_a_changed_one_is(engine: Engine, run: Any, sees: Sees) -> None:
    engine.ways = {"devices": sees([ONE, TWO], "")}
    first = run(plan_of())
    assert (first["gpu_access"], len(engine.created)) == ("devices", 4)
    again = run(plan_of())
    assert (again["changed"], again["tried"], len(engine.created)) == (False, False, 4)
    assert again["plan"] == first["plan"]
    assert run(plan_of(), check=True)["plan"] == first["plan"]
    # The toolkit has been installed since.
    engine.engine_info["Runtimes"]["nvidia"] = {}
    engine.ways["gpus"] = sees([ONE, TWO], "")
    foretold = run(plan_of(), check=True)
    assert (foretold["changed"], foretold["gpu_access"], len(engine.created)) == (False, "devices", 4)
    better = run(plan_of())
    assert (better["changed"], better["gpu_access"], len(engine.created)) == (True, "gpus", 5)


def test_a_dry_run_of_the_first_deployment_leaves_the_wish_as_it_is(engine: Engine, run: Any, tmp_path: Path) -> None:
    engine.images_here.clear()
    result = run(plan_of(), check=True)
    assert (result["failed"], result["changed"], result["gpu_access"]) == (False, False, "auto")
    assert (engine.created, (tmp_path / "etc").exists()) == ([], False)


def test_no_way_that_works_is_one_error_with_each_cause_and_remedy(engine: Engine, run: Any, sees: Sees) -> None:
    engine.ways = {
        "gpus": sees([ONE, TWO], "init 802\n"),
        "cdi": 'could not select device driver "cdi" with capabilities: []',
        "runtime": "unknown or invalid runtime name: nvidia",
        "devices": {**sees([ONE, TWO], ""), "LD_LIBRARY_PATH": "/nowhere"},
    }
    result = run(plan_of())
    assert (result["failed"], result["error"]["name"]) == (True, "no-gpu-access")
    causes = {way["way"]: way["name"] for way in result["error"]["details"]["ways"]}
    assert causes == {
        "gpus": "fabric-manager-not-running",
        "cdi": "cdi-device-missing",
        "runtime": "container-toolkit-missing",
        "devices": "driver-libraries-missing",
    }
    for words in ("nvidia-fabricmanager", "nvidia-ctk cdi generate", "nvidia-ctk runtime configure", "vllm_volumes"):
        assert words in result["msg"]
    assert run(plan_of())["failed"], "a failure is not kept"


def test_only_the_wished_way_is_tried(engine: Engine, run: Any, sees: Sees) -> None:
    engine.ways = {"cdi": sees([ONE, TWO], "")}
    failed = run(plan_of("gpus"))
    assert (failed["error"]["name"], len(engine.created)) == ("gpu-access-broken", 1)
    assert "vllm_gpu_access: gpus gives no working GPUs to a container of image:deploy" in failed["msg"]
    assert "Or set vllm_gpu_access to auto" in failed["error"]["remedy"]
    assert run(plan_of("cdi"))["gpu_access"] == "cdi"


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"gpu_access": "none"}])
def test_a_plan_without_gpus_is_returned_as_it_is(engine: Engine, run: Any, change: dict[str, str]) -> None:
    plan = {**plan_of(), **change}
    result = run(plan)
    assert (result["changed"], result["plan"], engine.created) == (False, plan, [])


@pytest.mark.parametrize(
    ("seen", "given", "said"),
    [
        ([ONE], [ONE, TWO], f"does not see {TWO}, which it was given"),
        ([ONE, TWO], [ONE], f"sees {TWO}, which it was not given"),
        ([TWO], [ONE], f"does not see {ONE}, which it was given and sees {TWO}, which it was not given"),
        ([TWO, ONE], [ONE, TWO], ""),
        ([ONE], ["0"], ""),
        ([ONE, TWO], ["0"], "sees 2 GPUs and was given 1"),
    ],
)
def test_a_container_sees_exactly_its_gpus_or_the_difference_is_named(
    engine: Engine, run: Any, sees: Sees, seen: list[str], given: list[str], said: str
) -> None:
    assert access.difference(seen, given) == said
    plan = plan_of("gpus", tuple(given))
    if not given[0].startswith("GPU-"):
        plan["replicas"][0]["gpu_uuids"] = []
    engine.ways = {"gpus": sees(seen, "")}
    result = run(plan)
    assert result["failed"] == bool(said)
    if said:
        assert said in result["msg"] and result["error"]["details"]["ways"][0]["name"] == "wrong-gpus"


def test_a_container_without_an_answer_is_no_way_that_works(engine: Engine, run: Any, monkeypatch: Any) -> None:
    engine.ways = {"gpus": {}}
    monkeypatch.setattr(access, "program", lambda: "print('nothing that is an answer')")
    result = run(plan_of("gpus"))
    assert result["error"]["details"]["ways"][0]["name"] == "no-answer"
    assert "nothing that is an answer" in result["error"]["evidence"]


def test_a_spoilt_memory_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "gpu-access.json"
    for text in ("", "{", "[]", '{"schema": 1}', json.dumps({"schema": 0, "circumstances": {}, "ways": []})):
        path.write_text(text)
        assert access_record.remembered(str(path), {"wish": "auto"}) == []
    with pytest.raises(GpufleetError) as caught:
        access_record.remember(str(path / "below" / "a-file"), {}, [])
    assert (caught.value.name, "vllm_config_dir" in caught.value.remedy) == ("write-failed", True)
