# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is, read from small trees of files, and what it does, from real sockets and processes."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import linux
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import nvidia, probe, system
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.ports import _address, address_available, ports_in_use
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import Questions
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import LARGEST_CONFIG
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port, write_below

NO_ENGINE = "unix:///nowhere/docker.sock"


# ---- system ----

OS_RELEASE = {
    "debian": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n',
    "ubuntu": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
    "rocky": 'PRETTY_NAME=\'Rocky Linux 9.6\'\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n',
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "debian",
            {
                "id": "debian",
                "version_id": "13",
                "codename": "trixie",
                "like": [],
                "name": "Debian GNU/Linux 13 (trixie)",
            },
        ),
        (
            "ubuntu",
            {"id": "ubuntu", "version_id": "24.04", "codename": "", "like": ["debian"], "name": "Ubuntu 24.04.3 LTS"},
        ),
        (
            "rocky",
            {
                "id": "rocky",
                "version_id": "9.6",
                "codename": "",
                "like": ["rhel", "centos", "fedora"],
                "name": "Rocky Linux 9.6",
            },
        ),
    ],
)
def test_distribution(tmp_path: Path, name: str, expected: dict[str, Any]) -> None:
    write_below(tmp_path, "etc/os-release", OS_RELEASE[name])
    assert system.system(str(tmp_path))["distribution"] == expected


def test_init_system(tmp_path: Path) -> None:
    write_below(tmp_path, "proc/1/comm", "tini\n")
    assert system.system(str(tmp_path))["init"] == "tini"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert system.system(str(tmp_path))["init"] == "systemd"


@pytest.mark.parametrize(
    ("machine", "expected"), [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("riscv64", "linux/riscv64")]
)
def test_platform_is_named_as_docker_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, expected: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert system.system(str(tmp_path))["platform"] == expected


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (
            "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx avx2 avx512f amx_tile amx_bf16 sse\n\n"
            "processor\t: 1\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu\n",
            "Intel(R) Xeon(R)",
            ["avx", "avx2", "avx512f", "amx_tile", "amx_bf16"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n", "", ["asimd", "bf16", "i8mm", "sve"]),
        ("", "", []),
    ],
)
def test_cpu(tmp_path: Path, text: str, model: str, flags: list[str]) -> None:
    write_below(tmp_path, "proc/cpuinfo", text)
    found = system.cpu(str(tmp_path))
    assert (found["model"], found["flags"]) == (model, flags)
    assert found["count"] >= 1


def test_memory(tmp_path: Path) -> None:
    write_below(
        tmp_path, "proc/meminfo", "MemTotal:       2113471488 kB\nMemFree: 1 kB\nMemAvailable:   2059493376 kB\n"
    )
    assert system.memory(str(tmp_path)) == {"total_mib": 2063937, "available_mib": 2011224}


def test_clock_trusts_timesyncd(tmp_path: Path) -> None:
    write_below(tmp_path, "run/systemd/timesync/synchronized", "")
    assert system.clock(str(tmp_path))["synchronised"] is True


def test_the_clock_is_compared_with_the_askers() -> None:
    clock: Any = system.clock
    assert -0.5 < clock(asked_at=time.time())["ahead_seconds"] < 5
    assert 599 < clock(asked_at=time.time() - 600)["ahead_seconds"] < 605
    assert system.clock()["ahead_seconds"] is None


def test_proxies_are_named_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in system.PROXY_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@proxy")
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("http_proxy", "")
    assert system.proxies() == ["HTTPS_PROXY", "no_proxy"]


# ---- NVIDIA's tools ----


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is all of the search path."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    monkeypatch.setattr(linux, "SYSTEM_PATH", str(folder))
    return folder


def program(path: Path, output: str) -> None:
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
    path.chmod(0o755)


def test_nvidia_tools_and_devices(tmp_path: Path, tools: Path) -> None:
    program(tools / "nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.18.0-rc.2\ncommit: 0b2a")
    program(tools / "nv-fabricmanager", "Fabric Manager version is : 580.159.04")
    write_below(tmp_path, "proc/77/comm", "nv-fabricmanage\n")
    write_below(tmp_path, "proc/78/comm", "nvidia-persiste\n")
    write_below(tmp_path, "dev/nvidia0", "")
    write_below(tmp_path, "dev/nvidiactl", "")
    write_below(tmp_path, "dev/null", "")
    write_below(tmp_path, "etc/cdi/nvidia.yaml", "")
    write_below(tmp_path, "etc/cdi/notes.txt", "")
    found = nvidia.nvidia(str(tmp_path))
    assert found["container_toolkit"] == {"path": str(tools / "nvidia-ctk"), "version": "1.18.0-rc.2"}
    assert found["fabric_manager"] == {
        "path": str(tools / "nv-fabricmanager"),
        "version": "580.159.04",
        "running": True,
    }
    assert found["persistence_daemon"] == {"running": True}
    assert found["device_files"] == ["nvidia0", "nvidiactl"]
    assert found["cdi_specs"] == ["/etc/cdi/nvidia.yaml"]


def test_the_kernel_names_the_cards(tmp_path: Path) -> None:
    for bus, model in (("0000:1b:00.0", "NVIDIA H200"), ("0000:43:00.0", "NVIDIA H200")):
        write_below(
            tmp_path,
            f"proc/driver/nvidia/gpus/{bus}/information",
            f"Model: \t\t {model}\nIRQ:   \t\t 4\nGPU UUID: \t GPU-{bus[5:7]}\nBus Location: \t {bus}\n",
        )
    assert nvidia.nvidia_cards(str(tmp_path)) == [
        {"pci_bus_id": "0000:1b:00.0", "name": "NVIDIA H200", "uuid": "GPU-1b"},
        {"pci_bus_id": "0000:43:00.0", "name": "NVIDIA H200", "uuid": "GPU-43"},
    ]


def test_a_host_without_nvidia(tmp_path: Path, tools: Path) -> None:
    assert tools.is_dir()
    assert nvidia.nvidia(str(tmp_path)) == {
        "pci_devices": [],
        "nvswitches": 0,
        "kernel_module": None,
        "cards": [],
        "device_files": [],
        "device_files_unlinked": [],
        "docker_predates_toolkit": False,
        "cdi_specs": [],
        "container_toolkit": {"path": None, "version": None},
        "fabric_manager": {"path": None, "version": None, "running": False},
        "persistence_daemon": {"running": False},
    }


def test_a_tool_that_cannot_run_has_no_version(tmp_path: Path, tools: Path) -> None:
    (tools / "nvidia-ctk").write_bytes(b"\x7fELF broken")
    (tools / "nvidia-ctk").chmod(0o755)
    assert nvidia.nvidia(str(tmp_path))["container_toolkit"]["version"] is None


# ---- disks ----

MOUNTINFO = """\
22 1 252:1 / / rw,relatime - ext4 /dev/vda1 rw
30 22 0:25 / /run rw - tmpfs tmpfs rw
41 22 259:2 / /srv/big\\040disk rw - xfs /dev/nvme0n1p2 rw
42 22 259:3 / /srv/big rw shared:7 - ext4 /dev/nvme1n1 rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/etc", ("/", "/dev/vda1", "ext4")),
        ("/run/docker.sock", ("/run", "tmpfs", "tmpfs")),
        ("/runner", ("/", "/dev/vda1", "ext4")),
        ("/srv/big disk/models", ("/srv/big disk", "/dev/nvme0n1p2", "xfs")),
        ("/srv/big/models", ("/srv/big", "/dev/nvme1n1", "ext4")),
    ],
)
def test_the_mount_of_a_path(tmp_path: Path, path: str, expected: tuple[str, str, str]) -> None:
    write_below(tmp_path, "proc/self/mountinfo", MOUNTINFO)
    assert system._mount(path, str(tmp_path)) == expected


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    found = system.disk(str(tmp_path / "not" / "yet"))
    assert found["existing"] == str(tmp_path)
    assert found["writable"] is True
    assert 0 < found["free_bytes"] <= found["total_bytes"]
    assert found["device_number"] == tmp_path.stat().st_dev
    assert str(tmp_path).startswith(found["mount"])


# ---- ports ----


def container(name: str, ours: bool, ports: list[dict[str, Any]], identifier: str = "c" * 64) -> Any:
    return {"id": identifier, "name": name, "ours": ours, "ports": ports}


def test_a_port_in_use_is_told_with_its_holder(taken_port: int) -> None:
    (found,) = ports_in_use([taken_port], "127.0.0.1", [])
    assert (found["port"], found["free"], found["ours"], found["container"]) == (taken_port, False, False, "")
    assert found["pid"] == os.getpid()
    assert found["process"] == Path("/proc/self/comm").read_text().strip().split()[0]


def test_a_free_port_is_free() -> None:
    port = free_port()
    assert ports_in_use([port], "127.0.0.1", []) == [
        {"port": port, "free": True, "ours": False, "container": "", "pid": None, "process": ""}
    ]


def test_ports_are_told_in_the_order_asked(taken_port: int) -> None:
    port = free_port()
    found = ports_in_use([port, taken_port], "127.0.0.1", [])
    assert [(entry["port"], entry["free"]) for entry in found] == [(port, True), (taken_port, False)]


@pytest.mark.parametrize(
    ("published", "wanted", "free"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("::", "127.0.0.1", False),
        ("127.0.0.2", "127.0.0.1", True),
        ("::1", "127.0.0.1", True),
        ("::1", "0.0.0.0", True),
        ("::1", "::", False),
    ],
)
def test_a_published_port_is_held_by_its_container(published: str, wanted: str, free: bool) -> None:
    port = free_port()
    containers = [container("vllm-0", True, [{"host": published, "port": port}])]
    (found,) = ports_in_use([port], wanted, containers)
    assert found["free"] is free
    assert (found["ours"], found["container"]) == ((False, "") if free else (True, "vllm-0"))


def test_a_port_of_somebody_elses_container_is_not_ours() -> None:
    port = free_port()
    containers = [container("database", False, [{"host": "0.0.0.0", "port": port}])]
    (found,) = ports_in_use([port], "127.0.0.1", containers)
    assert (found["free"], found["ours"], found["container"]) == (False, False, "database")


def test_a_container_on_the_hosts_network_is_known_by_its_process(tmp_path: Path) -> None:
    # Columns as in /proc/net/tcp: 127.0.0.1:8000 listens, inode 4711.
    write_below(
        tmp_path,
        "proc/net/tcp",
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"
        "   1: 0100007F:1F41 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n",
    )
    write_below(tmp_path, "proc/31/comm", "vllm\n")
    write_below(tmp_path, "proc/31/cgroup", f"0::/docker/{'c' * 64}\n")
    (tmp_path / "proc/31/fd").mkdir()
    (tmp_path / "proc/31/fd/3").symlink_to("socket:[4711]")
    found = ports_in_use([8000, 8001], "127.0.0.1", [container("vllm-0", True, [])], str(tmp_path))
    assert found[0] == {
        "port": 8000,
        "free": False,
        "ours": True,
        "container": "vllm-0",
        "pid": 31,
        "process": "vllm",
    }
    assert found[1]["free"] is True


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000000000000", "::"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the kernel prints these in its own byte order")
def test_addresses_of_proc_net(text: str, address: str) -> None:
    assert _address(text) == address


@pytest.mark.parametrize(("address", "available"), [("127.0.0.1", True), ("0.0.0.0", True), ("192.0.2.1", False)])
def test_address_available(address: str, available: bool) -> None:
    assert address_available(address) is available


# ---- models ----


def model_folder(path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        target = path / name
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def weights(length: int, cut: int = 0) -> bytes:
    """Return a safetensors file with one tensor of so many bytes, the last of them cut off."""
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "I8", "shape": [length], "data_offsets": [0, length]}})
    whole = struct.pack("<Q", len(header)) + header.encode() + bytes(length)
    return whole[: len(whole) - cut]


CONFIG = {"architectures": ["Llama4ForConditionalGeneration"]}
INDEX = {"metadata": {"total_size": 20}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}


def test_a_whole_model(tmp_path: Path) -> None:
    model_folder(
        tmp_path,
        {
            "config.json": CONFIG,
            "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}},
            "tokenizer.json": "{}",
            "model.safetensors.index.json": INDEX,
            "one.safetensors": weights(10),
            "two.safetensors": weights(10),
        },
    )
    size = len(weights(10))
    assert folder.look_at_model(str(tmp_path)) == {
        "path": str(tmp_path),
        "exists": True,
        "config": CONFIG,
        "config_error": "",
        "quantization": {"quantization": {"quant_algo": "FP8"}},
        "tokenizer": True,
        "safetensors": [{"name": "one.safetensors", "size": size}, {"name": "two.safetensors", "size": size}],
        "total_bytes": 2 * size,
        "index_total_bytes": 20,
        "missing_files": [],
        "cut_files": [],
        "pointers": [],
        "sentence_length": None,
        "at_hub": "",
        "complete": True,
    }


def test_a_model_of_one_file_needs_no_index(tmp_path: Path) -> None:
    found = folder.look_at_model(str(model_folder(tmp_path, {"config.json": CONFIG, "model.safetensors": weights(10)})))
    assert (found["complete"], found["index_total_bytes"]) == (True, None)


@pytest.mark.parametrize(
    ("files", "missing", "cut"),
    [
        (
            {"config.json": CONFIG, "model.safetensors.index.json": INDEX, "one.safetensors": weights(90)},
            ["two.safetensors"],
            [],
        ),
        ({"config.json": CONFIG, "model.safetensors": weights(10, cut=1)}, [], ["model.safetensors"]),
        ({"config.json": CONFIG, "model.safetensors": b""}, [], ["model.safetensors"]),
        ({"config.json": CONFIG, "model.safetensors": b"version https://git-lfs"}, [], ["model.safetensors"]),
        ({"config.json": CONFIG, "model.safetensors": struct.pack("<Q", 2) + b"[]"}, [], ["model.safetensors"]),
        ({"model.safetensors": weights(10)}, [], []),
        ({"config.json": CONFIG}, [], []),
    ],
)
def test_a_model_that_is_not_whole(tmp_path: Path, files: dict[str, Any], missing: list[str], cut: list[str]) -> None:
    found = folder.look_at_model(str(model_folder(tmp_path, files)))
    assert found["complete"] is False
    assert (found["missing_files"], found["cut_files"]) == (missing, cut)


def test_a_link_into_a_cache_that_leads_nowhere_is_missing(tmp_path: Path) -> None:
    model_folder(
        tmp_path,
        {"config.json": CONFIG, "model.safetensors.index.json": INDEX, "one.safetensors": weights(90)},
    )
    (tmp_path / "two.safetensors").symlink_to(tmp_path / "blobs/gone")
    assert folder.look_at_model(str(tmp_path))["missing_files"] == ["two.safetensors"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "config.json is not JSON"),
        ("[1]", "config.json is not a JSON object."),
        (" " * (LARGEST_CONFIG + 1), "config.json is larger than"),
        (None, "There is no config.json."),
    ],
)
def test_a_configuration_that_cannot_be_read_says_why(tmp_path: Path, text: str | None, error: str) -> None:
    if text is not None:
        write_below(tmp_path, "config.json", text)
    found = folder.look_at_model(str(tmp_path))
    assert found["config"] is None
    assert found["config_error"].startswith(error)


@pytest.mark.parametrize(
    "index",
    [{"weight_map": ["a"]}, {"weight_map": "a", "metadata": []}, {"weight_map": None, "metadata": {"total_size": "9"}}],
)
def test_an_index_of_another_form_tells_nothing(tmp_path: Path, index: dict[str, Any]) -> None:
    files = {"config.json": CONFIG, "model.safetensors": weights(10), "model.safetensors.index.json": index}
    found = folder.look_at_model(str(model_folder(tmp_path, files)))
    assert (found["complete"], found["missing_files"], found["index_total_bytes"]) == (True, [], None)


def test_no_model_folder(tmp_path: Path) -> None:
    found = folder.look_at_model(str(tmp_path / "nothing"))
    assert (found["exists"], found["complete"], found["safetensors"]) == (False, False, [])


# ---- the whole ----


def test_a_part_that_breaks_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_root: str) -> None:
        raise ValueError("a file nobody expected")

    monkeypatch.setattr(probe, "nvidia", broken)
    found: Any = probe.probe(Questions(docker_host=NO_ENGINE, paths=[str(tmp_path)]))
    assert found["nvidia"] is None
    assert found["errors"] == {"nvidia": "ValueError: a file nobody expected"}
    assert found["system"]["euid"] == os.geteuid()
    assert found["disks"][str(tmp_path)]["writable"] is True


def test_an_empty_root_is_no_reason_to_fail(tmp_path: Path) -> None:
    found: Any = probe.probe(Questions(docker_host=NO_ENGINE, ports=[8000]), str(tmp_path))
    assert set(found["errors"]) <= {"memory", "shm"}
    assert found["memory"] is None
    assert found["ports"][0]["free"] is True


def test_a_name_that_does_not_resolve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: Any, **_named: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = probe.probe(Questions(docker_host=NO_ENGINE, host="no.such.host", ports=[8000]))
    assert (found["ports"], found["address_available"]) == (None, None)
    assert "Name or service not known" in found["errors"]["ports"]


def test_only_the_standard_library_is_imported() -> None:
    """The modules must run before anything is installed: under a Python without its site-packages."""
    root = Path(probe.__file__).absolute().parents[6]
    code = (
        "import sys; sys.path.append(sys.argv[1]);"
        "from ansible_collections.gpufleet.vllm.plugins.module_utils.host import probe;"
        "print(sorted(probe.probe(probe.Questions('unix:///nowhere'))['errors']))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(root)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"ensurepip", "packaging"}, True),
        ({"ensurepip", "setuptools"}, True),
        ({"ensurepip"}, False),
        ({"packaging", "setuptools"}, False),
    ],
)
def test_makes_environments(found: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's Python without python3-venv has no ensurepip; Ansible's pip module needs packaging or setuptools."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in found else None)
    assert system.makes_environments() is expected


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that only root's search path has is found; a missing one is None."""
    tool = tmp_path / "gpufleet-tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setattr(linux, "SYSTEM_PATH", str(tmp_path))
    asked = Questions(docker_host="unix:///nowhere", programs=["gpufleet-tool", "no-such-program"])
    assert probe.probe(asked)["programs"] == {"gpufleet-tool": str(tool), "no-such-program": None}
