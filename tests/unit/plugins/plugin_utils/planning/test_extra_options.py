# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options and environment variables with which no server becomes ready are refused, however they are written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.option_names import OPTIONS_WITH_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.serve_options import (
    ALIASES,
    ALLOW,
    BY_OPTION,
    BY_VARIABLE,
    JSON_LISTS,
    REFUSE,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import extra_options, planner, wishes
from ansible_collections.gpufleet.vllm.tests.unit.test_parser_data import RELEASES, accepted

REFUSED = [name for name, decision in BY_OPTION.items() if decision.kind == REFUSE]
SWITCHES = {
    name[2:] for data in RELEASES.values() for name, argument in data["arguments"].items() if argument["boolean"]
}
# What only some values of make a server that cannot become ready.
BAD = {"api-server-count": 0, "distributed-executor-backend": "external_launcher", "node-rank": 1}


def read(config: Any) -> dict[str, Any]:
    return wishes.read({"vllm_extra_config": config}).extra_config


def refusal(variable: str, value: Any) -> str:
    with pytest.raises(GpufleetError) as caught:
        wishes.read({variable: value})
    (problem,) = caught.value.details["problems"]
    assert problem.startswith(f"{variable}: ")
    return str(problem)


def bad_value(option: str) -> Any:
    return BAD.get(option, True if option in SWITCHES else 2)


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("spell", [str, lambda name: "--" + name.replace("-", "_"), str.upper])
def test_a_refused_option_is_refused_in_every_spelling(option: str, spell: Any) -> None:
    problem = refusal("vllm_extra_config", {spell(option): bad_value(option)})
    decision = BY_OPTION[option]
    assert f"{option}: {str(bad_value(option)).lower()} {decision.reason}; {decision.instead}" in problem


@pytest.mark.parametrize("option", [option for option in REFUSED if option in SWITCHES])
@pytest.mark.parametrize("off", [False, "false", "False"])
def test_a_refused_switch_may_be_off(option: str, off: Any) -> None:
    (written,) = read({option: off}) or {f"no-{option}": True}
    assert written == f"no-{option}"


@pytest.mark.parametrize("data", RELEASES.values(), ids=RELEASES)
def test_every_option_string_of_a_release_is_allowed_owned_or_refused(data: dict[str, Any]) -> None:
    """Aliases and negative forms, too, with a value that is nobody's default."""
    for string in accepted(data):
        name = string.lstrip("-")
        meant, on = extra_options._meant(ALIASES.get(name, name))
        if meant in OPTIONS_WITH_VARIABLE:
            assert OPTIONS_WITH_VARIABLE[meant] in refusal("vllm_extra_config", {string: "x"})
        elif on and BY_OPTION[meant].kind == REFUSE:
            assert BY_OPTION[meant].instead in refusal("vllm_extra_config", {string: bad_value(meant)})
        else:
            read({string: True if meant in SWITCHES else "x"})


@pytest.mark.parametrize("option", [name for name, decision in BY_OPTION.items() if decision.kind == ALLOW])
def test_an_allowed_option_reaches_the_file(option: str) -> None:
    value = True if option in SWITCHES else 3
    assert read({option.replace("-", "_"): value}) == {option: value}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("api-server-count", 1),
        ("api-server-count", "4"),
        ("nnodes", 1),
        ("node-rank", 0),
        ("pipeline-parallel-size", 1),
        ("distributed-executor-backend", "mp"),
        ("distributed-executor-backend", "ray"),
        ("kv-transfer-config", '{"kv_connector":"OffloadingConnector","kv_role":"kv_both"}'),
        ("middleware", "site.Header"),
        ("disable-uvicorn-access-log", True),
    ],
)
def test_values_that_change_nothing_are_allowed(option: str, value: Any) -> None:
    assert read({option: value}) == {option: value}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"api_server_count": "0"}, "set 1 or more"),
        ({"-asc": -1}, "api-server-count: -1"),
        ({"-pp": 2}, "pipeline-parallel-size: 2"),
        ({"tp": 2}, "tensor-parallel-size has its own variable, vllm_tensor_parallel_size"),
        ({"device_memory_utilization": 0.5}, "vllm_gpu_memory_utilization"),
        ({"device-ids": "0,1"}, "vllm_gpu_selection"),
        ({"no-kv-cache-dtype": True}, "vllm_kv_cache_dtype"),
        ({"head": True}, "head is the beginning of headless; write the whole name"),
        ({"ssl": "x"}, "ssl is the beginning of ssl-ca-certs, ssl-cert-reqs"),
        ({"--max-model": 5}, "max-model is the beginning of max-model-len"),
        ({"skip_tokenizer_init": True}, "beside runner, convert or io-processor-plugin"),
        ({"speculative-config": {"a": 1}, "speculative_config.b": 2}, "write all its fields in one place"),
        ({"compilation-config.level": 1, "compilation-config.level.x": 2}, "write all its fields in one place"),
        ('{"headless": true}', "headless: true"),
        ("headless", "(hidden) is not valid: it must be a dictionary"),
    ],
)
def test_other_ways_to_say_it(config: Any, text: str) -> None:
    assert text in refusal("vllm_extra_config", config)


def test_every_option_is_told_at_once() -> None:
    problem = refusal("vllm_extra_config", {"ssl-keyfile": "/k", "uds": "/s", "load-format": "dummy"})
    assert "ssl-keyfile: /k" in problem
    assert "uds: /s" in problem
    assert "load-format:" not in problem.partition("is not valid")[2]


@pytest.mark.parametrize(
    "config",
    [
        {"skip-tokenizer-init": True, "runner": "pooling"},
        {"mm-encoder-only": True, "ec-transfer-config": '{"ec_role":"ec_producer"}'},
    ],
)
def test_what_some_servers_cannot_do_without_is_allowed_beside_what_tells_them(config: dict[str, Any]) -> None:
    assert read(config) == config


def test_a_beginning_of_allowed_options_is_left_to_vllm() -> None:
    assert read({"load-form": "dummy"}) == {"load-form": "dummy"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"q": "fp8"}, {"quantization": "fp8"}),
        ({"disable-log-stats": False}, {}),
        ({"aggregate_engine_logging": "false"}, {}),
        ({"trust-remote-code": False}, {"no-trust-remote-code": True}),
        ('{"enforce-eager":true}', {"enforce-eager": True}),
        ({"cc.pass_config.fuse_norm_quant": True}, {"compilation-config": '{"pass_config":{"fuse_norm_quant":true}}'}),
        (
            {"speculative_config.method": "ngram", "speculative-config.num_speculative_tokens": "2"},
            {"speculative-config": '{"method":"ngram","num_speculative_tokens":2}'},
        ),
        ({"compilation-config.custom_ops+": "none"}, {"compilation-config.custom_ops+": "none"}),
        ({"cudagraph_capture_sizes": [1, 2, 4]}, {"cudagraph-capture-sizes": [1, 2, 4]}),
        (
            {"lora-modules": ["a=/lora/a", {"name": "b", "path": "/lora/b"}]},
            {"lora-modules": ["a=/lora/a", '{"name":"b","path":"/lora/b"}']},
        ),
        ({"allowed-origins": ["https://a.example"]}, {"allowed-origins": '["https://a.example"]'}),
        ({"reasoning-config": {"stop": ["</think>"]}}, {"reasoning-config": '{"stop":["</think>"]}'}),
    ],
)
def test_options_are_written_as_vllm_takes_them(config: Any, expected: dict[str, Any]) -> None:
    assert read(config) == expected


@pytest.mark.parametrize("data", RELEASES.values(), ids=RELEASES)
def test_lists_of_a_release_have_the_form_that_it_takes(data: dict[str, Any]) -> None:
    for string, argument in data["arguments"].items():
        option = string[2:]
        if argument["type"] == "json" and isinstance(argument["default"], list):
            assert option in JSON_LISTS
        if argument.get("nargs") == "+" and option not in OPTIONS_WITH_VARIABLE:
            assert read({option: ["a", 2]}) == {option: ["a", 2]}


@pytest.mark.parametrize(
    ("config", "path", "home"),
    [
        (
            {"kv-transfer-config": {"kv_connector_extra_config": {"hosts": [{"password": "my-marker"}]}}},
            "kv-transfer-config.kv_connector_extra_config.hosts[0].password",
            "vllm_secret_environment",
        ),
        (
            {"kv-transfer-config": '{"kv_connector_extra_config":{"url":"redis://a:my-marker@cache"}}'},
            "kv-transfer-config.kv_connector_extra_config.url",
            "vllm_secret_environment",
        ),
        ({"additional_config.apiKey": "my-marker"}, "additional-config.apiKey", "vllm_secret_environment"),
        ({"model-loader-extra-config": {"a": "hf_mymarkermymarker"}}, "model-loader-extra-config.a", "vllm_hf_token"),
        ({"lora-modules": ["a=https://u:my-marker@x"]}, "lora-modules[0]", "vllm_secret_environment"),
        ({"uds": "sk-my-markermy-marker"}, "uds", "vllm_secret_environment"),
        ({"api-key": "my-marker"}, "api-key", "vllm_api_key"),
    ],
)
def test_a_secret_is_refused_with_the_variable_that_is_its_home(config: Any, path: str, home: str) -> None:
    problem = refusal("vllm_extra_config", config)
    assert f"{path} " in problem
    assert home in problem
    assert "marker" not in problem.replace("vllm", "")


@pytest.mark.parametrize("name", [name for name, decision in BY_VARIABLE.items() if decision.kind == REFUSE])
@pytest.mark.parametrize("variable", ["vllm_environment", "vllm_secret_environment"])
def test_a_refused_environment_variable(name: str, variable: str) -> None:
    problem = refusal(variable, {name: "20.0.0.3"})
    if variable == "vllm_environment":
        assert f"{name}: 20.0.0.3 {BY_VARIABLE[name].reason}; {BY_VARIABLE[name].instead}" in problem
    else:
        assert f"{name} is no secret" in problem
        assert "20.0" not in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_HOST_IP", "127.0.0.1"),
        ("VLLM_HOST_IP", "::1"),
        ("VLLM_DP_SIZE", 1),
        ("VLLM_DP_RANK", "0"),
        ("VLLM_USE_RUST_FRONTEND", False),
        ("VLLM_LOGGING_LEVEL", "DEBUG"),
    ],
)
def test_environment_variables_that_change_nothing(name: str, value: Any) -> None:
    environment = wishes.read({"vllm_environment": {name: value}}).environment
    assert list(environment) == [name]
    assert list(extra_options.warnings({}, environment)) == []


@pytest.mark.parametrize(
    "given", ['{"HTTPS_PROXY": "http://me:abc123@proxy"}', '{"KEY": abc123}', "A_TOKEN=abc123", ["abc123"]]
)
def test_an_environment_given_as_text_is_never_shown(given: Any) -> None:
    assert "abc123" not in refusal("vllm_environment", given)


def test_an_environment_given_as_json() -> None:
    assert wishes.read({"vllm_environment": '{"A": 1}'}).environment == {"A": "1"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"vllm_environment": {"VLLM_LOGGING_LEVEL": "warning"}},
            "vllm_environment: VLLM_LOGGING_LEVEL: warning hides",
        ),
        ({"vllm_environment": {"VLLM_CONFIGURE_LOGGING": 0}}, "vllm_phase_timeouts"),
        ({"vllm_environment": {"VLLM_SERVER_DEV_MODE": 1}}, "opens paths without a key"),
        ({"vllm_extra_config": {"disable_log_stats": True}}, "disable-log-stats: true takes the engine's counters"),
        ({"vllm_extra_config": {"log-level": "ERROR"}}, "log-level: ERROR hides"),
        ({"vllm_extra_config": {"logging_config": {"log_level": "ERROR"}}}, "logging-config.log_level: ERROR hides"),
        ({"vllm_extra_config": {"logging-config.configure_logging": False}}, "logging-config.configure_logging: false"),
        (
            {"vllm_extra_config": {"kv-transfer-config": json.dumps({"kv_role": "kv_producer"})}},
            "kv-transfer-config.kv_role: kv_producer is one half of a pair",
        ),
    ],
)
def test_what_serves_but_is_seen_less_of_is_a_warning_of_the_plan(given: dict[str, Any], text: str) -> None:
    plan = planner.plan({"memory_mib": 64000}, wishes.read({"vllm_device": "cpu", **given}))
    (warning,) = [warning for warning in plan["warnings"] if text in warning]
    assert warning.endswith(".")
