# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gpu_info as a whole: the module in a process of its own, the real pynvml, the stub library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.modules import gpu_info

RunOnStub = Callable[..., "list[dict[str, Any]]"]
Seen = Callable[[str], "dict[str, Any]"]


@pytest.fixture(scope="session")
def answers(nvml_stub: Path, on_nvml_stub: RunOnStub) -> dict[str, dict[str, Any]]:
    """What gpu_info tells in every scenario that the stub has."""
    names = sorted(path.stem for path in (nvml_stub / "scenarios").glob("*.ini"))
    return dict(zip(names, on_nvml_stub(*names)))


@pytest.fixture(scope="session")
def seen(answers: dict[str, dict[str, Any]]) -> Seen:
    """Return what gpu_info tells in a scenario."""
    return answers.__getitem__


def test_an_h200_is_told_as_the_driver_tells_it(seen: Seen) -> None:
    result = seen("h200")
    assert result["state"] == "ok"
    assert (result["reason"], result["remedy"]) == ("", "")
    assert result["driver_version"] == "580.159.04"
    assert result["cuda_driver_version"] == "13.0"
    assert result["changed"] is False
    assert result["gpus"] == [
        {
            "index": 0,
            "uuid": "GPU-00000000-0000-4000-8000-000000000000",
            "pci_bus_id": "00000000:1b:00.0",
            "name": "NVIDIA H200",
            "compute_capability": "9.0",
            "architecture": "hopper",
            "memory_total_mib": 143771,
            "memory_used_mib": 0,
            "memory_free_mib": 143771 - 612,
            "memory_reserved_mib": 612,
            "mig_mode": False,
            "ecc": {
                "mode": True,
                "corrected_volatile": 0,
                "uncorrected_volatile": 0,
                "corrected_aggregate": 0,
                "uncorrected_aggregate": 0,
            },
            "remapped_rows": {"corrected": 0, "uncorrected": 0, "pending": False, "failure": False},
            "power_limit_watts": 700,
            "persistence_mode": True,
            "numa_node": 0,
            "nvlink": None,
            "fabric": None,
            "peers": [],
            "processes": [],
            "error": None,
        }
    ]


@pytest.mark.parametrize(
    ("scenario", "count", "name", "capability", "architecture", "memory"),
    [
        ("h200-x2", 2, "NVIDIA H200", "9.0", "hopper", 143771),
        ("h100-x8", 8, "NVIDIA H100 80GB HBM3", "9.0", "hopper", 81559),
        ("h100-nvl-x2", 2, "NVIDIA H100 NVL", "9.0", "hopper", 95830),
        ("b200-x8", 8, "NVIDIA B200", "10.0", "blackwell", 183359),
        ("gb200-x4", 4, "NVIDIA GB200", "10.0", "blackwell", 189471),
        ("b300-x8", 8, "NVIDIA B300 SXM6 AC", "10.3", "blackwell", 275040),
        ("rtx-pro-6000", 1, "NVIDIA RTX PRO 6000 Blackwell Server Edition", "12.0", "blackwell", 97887),
        ("a100-x8", 8, "NVIDIA A100-SXM4-80GB", "8.0", "ampere", 81920),
        ("l40s-x4", 4, "NVIDIA L40S", "8.9", "ada", 46068),
    ],
)
def test_every_generation_is_recognised(
    seen: Seen, scenario: str, count: int, name: str, capability: str, architecture: str, memory: int
) -> None:
    result = seen(scenario)
    assert result["state"] == "ok"
    assert [gpu["index"] for gpu in result["gpus"]] == list(range(count))
    assert len({gpu["uuid"] for gpu in result["gpus"]}) == count
    assert len({gpu["pci_bus_id"] for gpu in result["gpus"]}) == count
    facts = {
        (gpu["name"], gpu["compute_capability"], gpu["architecture"], gpu["memory_total_mib"]) for gpu in result["gpus"]
    }
    assert facts == {(name, capability, architecture, memory)}


@pytest.mark.parametrize(
    ("scenario", "state", "reason", "remedy"),
    [
        ("no-driver", "no-driver", "driver does not answer", "nvidia"),
        ("driver-mismatch", "driver-mismatch", "different versions", "reboot"),
        ("no-device", "no-device", "finds no GPU", "vllm_device: cpu"),
        ("no-permission", "insufficient-permissions", "cannot be opened", "become: true"),
        ("nvml-broken", "degraded", "Unknown Error", "dmesg"),
        ("b200-x8-lost-gpu", "degraded", "1 of 8 GPUs cannot be used (index 5)", "nvidia-smi --gpu-reset"),
        ("lost-in-use", "degraded", "1 of 1 GPUs cannot be used (index 0)", "dmesg"),
    ],
)
def test_every_absence_is_an_answer_with_its_remedy(
    seen: Seen, scenario: str, state: str, reason: str, remedy: str
) -> None:
    result = seen(scenario)
    assert result["failed"] is False
    assert result["state"] == state
    # A machine that has NVIDIA GPUs words the reason for no-device by them.
    assert reason in result["reason"] or (state == "no-device" and result["pci_devices"])
    assert remedy in result["remedy"] or (state == "no-device" and result["pci_devices"])


def test_without_the_library_the_answer_is_no_library(on_nvml_stub: RunOnStub, tmp_path: Path) -> None:
    # A file that is no library hides one that the machine may really have.
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    (result,) = on_nvml_stub("h200", library_folder=tmp_path)
    assert (result["failed"], result["state"], result["gpus"]) == (False, "no-library", [])
    assert "libnvidia-ml.so.1" in result["reason"]


def test_the_states_are_those_that_are_documented(seen: Seen) -> None:
    documented = yaml.safe_load(gpu_info.RETURN)["state"]["description"]
    for scenario in ("h200", "no-driver", "driver-mismatch", "no-device", "no-permission", "b200-x8-lost-gpu"):
        assert f"V({seen(scenario)['state']})" in " ".join(documented)


def test_required_fails_and_still_tells_what_was_found(on_nvml_stub: RunOnStub) -> None:
    result, whole = on_nvml_stub("b200-x8-lost-gpu", "h200", required=True)
    assert whole["failed"] is False
    assert result["failed"] is True
    assert result["error"]["name"] == "degraded"
    assert "index 5" in result["msg"]
    assert "Remedy:" in result["msg"]
    assert len(result["gpus"]) == 8


def test_a_lost_gpu_leaves_the_others_usable(seen: Seen) -> None:
    gpus = seen("b200-x8-lost-gpu")["gpus"]
    assert [gpu["index"] for gpu in gpus if gpu["error"]] == [5]
    assert "lost" in gpus[5]["error"]
    assert gpus[5]["memory_total_mib"] is None
    assert gpus[5]["peers"] == []
    assert set(gpus[5]) == set(gpus[0])
    assert gpus[0]["peers"] == [1, 2, 3, 4, 6, 7]
    assert all(gpu["memory_total_mib"] == 183359 for gpu in gpus if not gpu["error"])


def test_nvswitch_makes_every_gpu_a_neighbour(seen: Seen) -> None:
    gpus = seen("b200-x8")["gpus"]
    for gpu in gpus:
        assert gpu["peers"] == [other for other in range(8) if other != gpu["index"]]
        assert gpu["nvlink"] == {"active_links": 18, "inactive_links": 0, "switched": True, "remote_gpus": []}
        assert gpu["fabric"]["state"] == "completed"
        assert gpu["fabric"]["health"] == "healthy"
    assert [gpu["numa_node"] for gpu in gpus] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_bridges_make_neighbours_of_two(seen: Seen) -> None:
    first, second = seen("h100-nvl-x2")["gpus"]
    assert (first["peers"], second["peers"]) == ([1], [0])
    assert first["nvlink"]["active_links"] == 12
    assert first["nvlink"]["inactive_links"] == 6
    assert first["nvlink"]["switched"] is False
    assert first["nvlink"]["remote_gpus"] == [second["pci_bus_id"]]


def test_without_nvlink_there_are_no_neighbours(seen: Seen) -> None:
    for gpu in seen("l40s-x4")["gpus"]:
        assert (gpu["nvlink"], gpu["peers"], gpu["mig_mode"]) == (None, [], None)


def test_a_fabric_without_its_manager_is_seen(seen: Seen) -> None:
    result = seen("b200-x8-no-fabric-manager")
    assert {gpu["fabric"]["state"] for gpu in result["gpus"]} == {"not-started"}


def test_an_older_driver_tells_the_fabric_without_its_health(seen: Seen) -> None:
    result = seen("h200-driver-570")
    assert result["driver_version"] == "570.172.08"
    assert result["cuda_driver_version"] == "12.8"
    fabric = result["gpus"][0]["fabric"]
    assert (fabric["state"], fabric["status"], fabric["health"]) == ("completed", "success", None)


def test_a_rack_tells_its_cluster(seen: Seen) -> None:
    fabric = seen("gb200-x4")["gpus"][0]["fabric"]
    assert (fabric["cluster_uuid"], fabric["clique_id"]) == ("0" * 31 + "7", 32766)


def test_generations_before_fabric_state_have_none(seen: Seen) -> None:
    gpu = seen("a100-x8")["gpus"][0]
    assert gpu["fabric"] is None
    assert gpu["nvlink"]["switched"] is True
    assert gpu["peers"] == [1, 2, 3, 4, 5, 6, 7]


def test_mig_is_told(seen: Seen) -> None:
    assert seen("h200-mig")["gpus"][0]["mig_mode"] is True


def test_memory_errors_are_told(seen: Seen) -> None:
    gpu = seen("h100-x8-ecc-errors")["gpus"][2]
    assert gpu["ecc"] == {
        "mode": True,
        "corrected_volatile": 12,
        "uncorrected_volatile": 2,
        "corrected_aggregate": 40,
        "uncorrected_aggregate": 3,
    }
    assert gpu["remapped_rows"] == {"corrected": 1, "uncorrected": 2, "pending": True, "failure": False}


def test_who_holds_memory_is_told_without_arguments(seen: Seen) -> None:
    result = seen("h200-foreign-process")
    gpu = result["gpus"][0]
    holder = {"pid": 4190042, "name": "python3", "used_mib": 61440, "container": "", "replica": "", "supervised": False}
    assert gpu["processes"] == [holder]
    assert gpu["memory_used_mib"] == 61440
    assert gpu["memory_free_mib"] == 143771 - 612 - 61440
    assert "sk-not-for-your-eyes" not in json.dumps(result)


def test_what_a_card_does_not_support_is_null(seen: Seen) -> None:
    result = seen("bare-card")
    gpu = result["gpus"][0]
    assert result["state"] == "ok"
    assert gpu["compute_capability"] == "99.1"
    assert {name for name, value in gpu.items() if value is None} == set(gpu) - {
        "index",
        "uuid",
        "pci_bus_id",
        "name",
        "compute_capability",
        "peers",
        "processes",
    }


def test_documentation_names_every_key_of_the_result(seen: Seen) -> None:
    returned = yaml.safe_load(gpu_info.RETURN)
    result = seen("b200-x8")
    assert set(returned) == set(result) - {"changed", "failed", "invocation", "warnings"}
    assert set(returned["gpus"]["contains"]) == set(result["gpus"][0])
    for name, about in returned["gpus"]["contains"].items():
        sample, value = about.get("sample"), result["gpus"][0][name]
        if isinstance(sample, dict) and value is not None:
            assert set(sample) == set(value), name


def test_every_scenario_of_the_stub_is_answered(answers: dict[str, dict[str, Any]]) -> None:
    assert len(answers) > 20
    for name, result in answers.items():
        assert set(result) == set(answers["h200"]), name
        assert bool(result["reason"]) is bool(result["remedy"]) is (result["state"] != "ok"), name
