# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users write into vllm_* variables, right and wrong."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import variable_names, wishes

KNOWN = {"vllm_profile", "vllm_port", "vllm_max_num_seqs", "vllm_api_key", "nvidia_container_toolkit_version"}


def problems(variables: dict[str, Any], known: set[str] | None = None) -> list[str]:
    with pytest.raises(GpufleetError) as caught:
        wishes.read(variables, known or ())
    assert caught.value.name == "invalid-wishes"
    found: list[str] = caught.value.details["problems"]
    assert all(problem in caught.value.message for problem in found)
    return found


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("vllm_profile", "balanced", "profile", "balanced"),
        ("vllm_accept_license", "yes", "accept_license", True),
        ("vllm_accept_license", "false", "accept_license", False),
        ("vllm_tensor_parallel_size", "auto", "tensor_parallel_size", None),
        ("vllm_tensor_parallel_size", "4", "tensor_parallel_size", 4),
        ("vllm_tensor_parallel_size", "", "tensor_parallel_size", None),
        ("vllm_max_model_len", "32K", "max_model_len", 32768),
        ("vllm_max_model_len", "32k", "max_model_len", 32000),
        ("vllm_gpu_memory_utilization", "0.8", "gpu_memory_utilization", 0.8),
        ("vllm_version", "v0.20.2", "version", (0, 20, 2)),
        ("vllm_host", "localhost", "host", "127.0.0.1"),
        ("vllm_host", "::1", "host", "::1"),
        ("vllm_host", "[0::1]", "host", "::1"),
        ("vllm_platform", "linux/aarch64", "platform", "linux/arm64"),
        ("vllm_model", "/srv/model/", "model", "/srv/model"),
        ("vllm_api_key", "secret", "has_api_key", True),
        ("vllm_hf_token", "", "has_hf_token", False),
        ("vllm_secret_environment", {}, "has_secret_environment", False),
        ("vllm_secret_environment", {"MY_TOKEN": "abcd", "UNSET": ""}, "has_secret_environment", True),
        ("vllm_gpu_selection", [0, "GPU-1"], "gpu_selection", (0, "GPU-1")),
        ("vllm_environment", {"A": 1, "B": True}, "environment", {"A": "1", "B": "1"}),
        ("vllm_extra_config", {"max_logprobs": 5}, "extra_config", {"max-logprobs": 5}),
        ("vllm_extra_config", {"enable-x": False}, "extra_config", {"no-enable-x": True}),
        ("vllm_extra_config", {"no-enable-x": "false"}, "extra_config", {"enable-x": True}),
        ("vllm_extra_config", {"x": {"a": True}}, "extra_config", {"x": '{"a":true}'}),
    ],
)
def test_right(variable: str, value: Any, field: str, expected: Any) -> None:
    assert getattr(wishes.read({variable: value}), field) == expected


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("vllm_profile", "max_troughput", "did you mean max_throughput?"),
        ("vllm_profile", "fast", "recipe, max_throughput, balanced, min_latency"),
        ("vllm_accept_license", "maybe", "true or false"),
        ("vllm_tensor_parallel_size", 0, "at least 1"),
        ("vllm_tensor_parallel_size", 2.5, "whole number"),
        ("vllm_tensor_parallel_size", True, "whole number"),
        ("vllm_port", 70000, "at most 65535"),
        ("vllm_port", "http", "whole number"),
        ("vllm_caches_from", "fleets", "host, fleet; did you mean fleet"),
        ("vllm_platform", "arm64", "linux/amd64 or linux/arm64"),
        ("vllm_max_model_len", "32M", "32768 or 32K"),
        ("vllm_max_model_len", 0, "number of tokens"),
        ("vllm_gpu_memory_utilization", 90, "above 0 and at most 1"),
        ("vllm_gpu_memory_utilization", "much", "above 0 and at most 1"),
        ("vllm_version", "latest", "0.12.0"),
        ("vllm_host", "my-host", "IP address"),
        ("vllm_platform", "windows/amd64", "linux/amd64 or linux/arm64"),
        ("vllm_model", "models/a/b", "organisation/name"),
        ("vllm_model", "./here", "absolute path"),
        ("vllm_image", "vllm/vllm-openai:v0.12.0", "vllm_image_tag"),
        ("vllm_image", "vllm/vllm-openai@sha256:00", "vllm_image_digest"),
        ("vllm_image", "https://registry.example.com/vllm/vllm-openai", "without ://"),
        ("vllm_image", "registry.example.com/VLLM/vllm-openai", "in lower case"),
        ("vllm_ca_bundle", "ca.pem", "absolute path of a file on the host"),
        ("vllm_api_key", "sesame\n", "the end of a line"),
        ("vllm_hf_token", "hf_sesame\n", "the end of a line"),
        ("vllm_api_key", " sesame", "begins or ends with white space"),
        ("vllm_no_proxy", ["*.example.com"], "such as .example.com"),
        ("vllm_registries", [{"host": "r.example.com", "username": "fleet"}], "r.example.com has no password"),
        ("vllm_registries", [{"host": "r.example.com", "password": "sesame"}], "r.example.com has no username"),
        (
            "vllm_registries",
            [{"host": "r.example.com", "ca": "/nowhere/ca.pem"}],
            "no file /nowhere/ca.pem on the contr",
        ),
        ("vllm_driver_version", "R580", "such as 580.159.04"),
        ("vllm_image_archive", "vllm.tar", "absolute path"),
        ("vllm_image_digest", "sha256:12", "64 hexadecimal digits"),
        ("vllm_container_prefix", "-x", "name that Docker accepts"),
        ("vllm_gpu_selection", "0,1", "[0, 1]"),
        ("vllm_gpu_selection", [], "the list is empty"),
        ("vllm_gpu_selection", [1, "1"], "named twice"),
        ("vllm_environment", ["A=1"], "dictionary"),
        ("vllm_secret_environment", ["A=1"], "dictionary"),
        ("vllm_secret_environment", {"A_FLAG": 1}, "the value of A_FLAG would be hidden wherever it occurs"),
        ("vllm_secret_environment", {"A_FLAG": True}, "belongs into vllm_environment"),
        ("vllm_secret_environment", {"VLLM_API_KEY": "sesame"}, "VLLM_API_KEY has its own variable: set vllm_api_key"),
        ("vllm_secret_environment", {"HF_TOKEN": "sesame"}, "HF_TOKEN has its own variable: set vllm_hf_token"),
        ("vllm_secret_environment", {"HUGGING_FACE_HUB_TOKEN": "sesame"}, "set vllm_hf_token instead"),
        ("vllm_environment", {"HF_TOKEN": "x"}, "vllm_hf_token"),
        ("vllm_environment", {"VLLM_API_KEY": "x"}, "vllm_api_key"),
        ("vllm_environment", {"A-B": "x"}, "A-B is not a name"),
        ("vllm_environment", {"A": None}, "A must be a string"),
        ("vllm_extra_config", {"max_model_len": 5}, "vllm_max_model_len"),
        ("vllm_extra_config", {"--api-key": "x"}, "vllm_api_key"),
        ("vllm_extra_config", {"data-parallel-size": 2}, "vllm_replicas"),
        ("vllm_extra_config", {"pipeline-parallel-size": 2}, "vllm_tensor_parallel_size"),
        ("vllm_extra_config", {"x": None}, "x has no value"),
        ("vllm_extra_config", {"x": []}, "x is an empty list"),
        ("vllm_extra_config", {"x": [True]}, "an entry of x is true"),
        ("vllm_gpus", {"name": "H200"}, "it must be a list"),
        ("vllm_gpus", [{"count": 8}], "it must be a list"),
        ("vllm_gpus", [{"name": "H200", "memory": 1}], "memory is not a key"),
        ("vllm_gpus", [{"name": "H200", "count": 0}], "count of H200: it must be a whole number, at least 1"),
        ("vllm_gpus", [{"name": "H200", "memory_mib": "141 GB"}], "memory_mib of H200: it must be a whole number"),
        ("vllm_gpus", [{"name": "H200", "compute_capability": "sm90"}], '"9.0"'),
    ],
)
def test_wrong(variable: str, value: Any, text: str) -> None:
    (problem,) = problems({variable: value})
    assert problem.startswith(f"{variable}: ")
    assert text in problem and "sesame" not in problem


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"vllm_host": "0.0.0.0"}, "vllm_allow_unauthenticated: true"),
        ({"vllm_host": "::"}, "no vllm_api_key is set"),
        ({"vllm_api_keys_accepted": ["k"]}, "beside vllm_api_key, which is not set"),
        ({"vllm_image_source": "archive"}, "vllm_image_archive"),
        ({"vllm_image_source": "pull", "vllm_image_archive": "/a.tar"}, "contradicts vllm_image_archive"),
        ({"vllm_model_source": "path", "vllm_model": "a/b"}, "absolute path"),
        ({"vllm_model_source": "hub", "vllm_model": "/a"}, "hub cannot serve the folder /a"),
        ({"vllm_max_num_seqs": 512, "vllm_max_num_batched_tokens": 256}, "512 is more than"),
        ({"vllm_port": 65535, "vllm_replicas": 2}, "pass port 65535"),
        ({"vllm_version": "0.12.0", "vllm_image_tag": "v0.26.0"}, "contradicts vllm_image_tag"),
        (
            {"vllm_version": "0.12.0", "vllm_image": "mirror/vllm", "vllm_image_tag": "v0.26.0"},
            "contradicts vllm_image_tag",
        ),
        ({"vllm_device": "cpu", "vllm_precision": "fp8"}, "needs a GPU"),
        ({"vllm_device": "cpu", "vllm_tensor_parallel_size": 2}, "auto or 1"),
        ({"vllm_device": "cpu", "vllm_gpus": [{"name": "NVIDIA H200"}]}, "contradicts vllm_device: cpu"),
    ],
)
def test_contradictions(variables: dict[str, Any], text: str) -> None:
    (problem,) = problems(variables)
    assert text in problem


@pytest.mark.parametrize("tag", ["26.03-py3", "1.4.2", "0.3.1"])
def test_a_version_wins_over_a_tag_that_numbers_the_image_itself(tag: str) -> None:
    found = wishes.read({"vllm_image": "nvcr.io/nvidia/vllm", "vllm_image_tag": tag, "vllm_version": "0.16.0"})
    assert found.version == (0, 16, 0)


@pytest.mark.parametrize(
    "more", [{"vllm_api_key": "k"}, {"vllm_api_key": "two words"}, {"vllm_allow_unauthenticated": True}]
)
def test_an_open_port_may_be_wished_for(more: dict[str, Any]) -> None:
    assert wishes.read({"vllm_host": "0.0.0.0", **more}).host == "0.0.0.0"


def test_every_problem_is_told_at_once() -> None:
    found = problems({"vllm_port": 0, "vllm_profile": "x", "vllm_max_seqs": 1, "vllm_host": "0.0.0.0"}, KNOWN)
    assert {problem.split(":")[0] for problem in found} == {"vllm_host", "vllm_max_seqs", "vllm_profile", "vllm_port"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vllm_max_seqs", "did you mean vllm_max_num_seqs?"),
        ("vllm_Port", "did you mean vllm_port?"),
        ("vllm_profil", "did you mean vllm_profile?"),
        ("nvidia_container_toolkit_vers", "did you mean nvidia_container_toolkit_version?"),
        ("vllm_xyzzy_qwertz", "the collection has no such variable"),
        ("vllm_rollout_allow_outage", "it is vllm_allow_outage now"),
        ("vllm_allow_key_change", "leave it out"),
    ],
)
def test_misspelt_names(name: str, hint: str) -> None:
    (problem,) = variable_names.misspelt([name], KNOWN)
    assert problem.startswith(f"{name}: unknown; ")
    assert hint in problem


@pytest.mark.parametrize("name", ["vllm_plan", "__vllm_anything", "ansible_user", "my_vllm_port", "vllm_port"])
def test_names_that_are_nobodys_business(name: str) -> None:
    assert variable_names.misspelt([name], KNOWN) == []


SHARED = {
    "docker_manage",
    "docker_packages",
    "docker_daemon_config",
    "router_port",
    "router_tls",
    "cpu_image_torch_version",
}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("router_prot", "router_port"),
        ("docker_mange", "docker_manage"),
        ("docker_deamon_config", "docker_daemon_config"),
        ("cpu_image_torch_versoin", "cpu_image_torch_version"),
        ("router_port", ""),
        ("docker_package", ""),
        ("docker_users", ""),
        ("docker_daemon_options", ""),
        ("docker_service_manage", ""),
        ("router_id", ""),
        ("my_router_prot", ""),
    ],
)
def test_a_near_miss_under_a_prefix_that_others_use_is_a_warning(name: str, meant: str) -> None:
    found = variable_names.near_misses([name], SHARED)
    assert found == ([f"{name} is no variable of this collection; did you mean {meant}?"] if meant else [])
    assert variable_names.misspelt([name], SHARED) == []


@pytest.mark.parametrize("name", sorted(variable_names.CONTROLLER_PATHS))
def test_a_relative_path_on_the_controller_is_refused(name: str) -> None:
    (problem,) = variable_names.relative_paths({name: "certificates/llm.pem"})
    assert problem.startswith(f"{name}: 'certificates/llm.pem' is not valid")
    assert '"{{ inventory_dir }}/../files/llm.pem"' in problem
    for good in ("", "/etc/llm.pem", "~/llm.pem", None):
        assert variable_names.relative_paths({name: good}) == []


def test_a_secret_is_never_shown() -> None:
    (problem,) = problems({"vllm_api_key": ["sesame"]})
    assert "sesame" not in problem
    assert "(hidden)" in problem
    (problem,) = problems({"vllm_api_key": "k", "vllm_api_keys_accepted": ["open sesame"]})
    assert "sesame" not in problem
    assert "white space" in problem


def test_a_value_of_the_secret_environment_is_never_shown() -> None:
    (problem,) = problems({"vllm_secret_environment": {"LONG": "sesame", "SHORT": "xyz"}})
    assert "SHORT" in problem
    assert "sesame" not in problem
    assert "xyz" not in problem


@pytest.mark.parametrize("name", ["HF_HUB_DISABLE_IMPLICIT_TOKEN", "TOKENIZERS_PARALLELISM"])
def test_a_switch_whose_name_only_looks_like_a_secret_is_taken(name: str) -> None:
    assert wishes.read({"vllm_environment": {name: 1}}).environment == {name: "1"}


def test_the_defaults_are_valid() -> None:
    assert wishes.read({}) == wishes.Wishes()


@pytest.mark.parametrize(
    "environment",
    [{"AWS_SECRET_ACCESS_KEY": "abc123"}, {"HF_TOKEN": "abc123"}, {"HTTPS_PROXY": "http://me:abc123@proxy:3128"}],
)
def test_a_secret_in_the_environment_is_refused_and_not_shown(environment: dict[str, str]) -> None:
    """Plans are printed and kept, so a secret must not get into one, nor into the error that says so."""
    with pytest.raises(GpufleetError) as raised:
        wishes.read({"vllm_environment": environment})
    text = raised.value.as_text() + str(raised.value.as_result())
    assert next(iter(environment)) in text
    assert "abc123" not in text


@pytest.mark.parametrize("variable", ["vllm_version", "vllm_image_tag", "vllm_driver_version"])
def test_a_version_that_yaml_took_for_a_number_is_refused(variable: str) -> None:
    (problem,) = problems({variable: 0.30})
    assert problem.startswith(f"{variable}: 0.3 is not valid: it is a number in YAML, where 0.30 is 0.3; write it in")


@pytest.mark.parametrize("name", sorted(variable_names.VERSIONS))
def test_a_version_of_what_the_roles_install_is_refused_as_a_number(name: str) -> None:
    (problem,) = variable_names.rounded_versions({name: 1.20})
    assert problem.startswith(f"{name}: 1.2 is not valid: it is a number in YAML")
    assert variable_names.rounded_versions({name: "1.20.0"}) == []
