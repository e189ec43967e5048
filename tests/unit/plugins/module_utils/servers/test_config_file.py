# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of configuration files: what is refused, and that the rest reads back as it was meant."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.config_file import (
    MARK,
    check_config,
    check_replicas,
    is_inline_template,
    render_config,
    render_plan,
    yaml_scalar,
)

RECIPE = {
    "kv-cache-dtype": "fp8",
    "compilation-config": '{"pass_config":{"fuse_allreduce_rms":true,"eliminate_noops":true}}',
    "async-scheduling": True,
    "no-enable-prefix-caching": True,
    "max-num-batched-tokens": 8192,
}


def arguments_of(text: str) -> list[str]:
    """Return the arguments that vLLM makes of a configuration file, by its documented rules."""
    arguments: list[str] = []
    for key, value in yaml.safe_load(text).items():
        assert value is not None and value is not False and not isinstance(value, dict), (key, value)
        arguments.append(f"--{key}")
        if isinstance(value, list):
            arguments += [str(item) for item in value]
        elif value is not True:
            arguments.append(str(value))
    return arguments


def test_recipe_gives_the_recipes_arguments() -> None:
    assert arguments_of(render_config(RECIPE)) == [
        "--kv-cache-dtype",
        "fp8",
        "--compilation-config",
        '{"pass_config":{"fuse_allreduce_rms":true,"eliminate_noops":true}}',
        "--async-scheduling",
        "--no-enable-prefix-caching",
        "--max-num-batched-tokens",
        "8192",
    ]


def test_header_says_whose_the_file_is_and_how_to_repeat() -> None:
    lines = render_config(RECIPE, replica="vllm-3", model="nvidia/x").splitlines()
    assert lines[0] == MARK
    assert "vllm-3" in lines[1]
    assert "ansible-playbook gpufleet.vllm.deploy" in lines[2]
    assert "vllm serve nvidia/x --config" in lines[3]


def test_empty_configuration_is_a_file_that_vllm_takes() -> None:
    text = render_config({})
    assert yaml.safe_load(text) == {}
    assert arguments_of(text) == []


def test_nested_mapping_becomes_json_text() -> None:
    nested = {"pass_config": {"eliminate_noops": True}, "level": None}
    value = yaml.safe_load(render_config({"compilation-config": nested}))["compilation-config"]
    assert isinstance(value, str)
    assert json.loads(value) == nested


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("enable-prefix-caching", False, "no-enable-prefix-caching: true"),
        ("no-enable-prefix-caching", False, "enable-prefix-caching: true"),
        ("max-num-seqs", None, "Leave the key out"),
        ("async-scheduling", "true", "async-scheduling: true"),
        ("async-scheduling", "False", "no-async-scheduling: true"),
        ("max_num_seqs", 8, "max-num-seqs"),
        ("--max-num-seqs", 8, "as max-num-seqs"),
        ("Max-Num-Seqs", 8, "max-num-seqs"),
        (8, 8, "Write the key"),
        ("middleware", [], "Leave the key out"),
        ("middleware", [{"a": 1}], "JSON text"),
        ("middleware", [True], "JSON text"),
        ("gpu-memory-utilization", float("nan"), "finite"),
        ("model", "x", "vllm_model"),
        ("config", "x.yaml", "vllm_extra_config"),
    ],
)
def test_what_vllm_drops_or_refuses_never_reaches_the_file(key: Any, value: Any, remedy: str) -> None:
    with pytest.raises(GpufleetError, match="vllm_extra_config") as caught:
        render_config({key: value})
    assert caught.value.name == "config-invalid"
    assert str(key) in caught.value.message
    assert remedy in caught.value.remedy


def test_switch_on_and_off_is_refused() -> None:
    with pytest.raises(GpufleetError, match="contradict"):
        check_config({"enable-prefix-caching": True, "no-enable-prefix-caching": True})


@pytest.mark.parametrize(("key", "variable"), [("api-key", "vllm_api_key"), ("hf-token", "vllm_hf_token")])
def test_secrets_are_refused_and_not_repeated(key: str, variable: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        render_config({key: "hunter2"})
    assert caught.value.name == "config-secret"
    assert variable in caught.value.remedy
    assert "hunter2" not in json.dumps(caught.value.as_result()) + caught.value.as_text()


def test_dotted_keys_are_options_too() -> None:
    assert yaml.safe_load(render_config({"compilation-config.pass_config.eliminate_noops": True}))


KEYS = st.from_regex(r"\A[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,5}){0,2}\Z").filter(
    lambda key: key not in ("model", "config", "api-key", "hf-token") and not key.startswith("no-")
)
TEXTS = st.text(max_size=200).filter(lambda text: text.strip().lower() not in ("true", "false"))
VALUES = st.one_of(
    st.just(True), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS, st.lists(TEXTS, min_size=1)
)


@settings(deadline=None)
@example({"on": True})
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_every_value_reads_back_as_itself(config: dict[str, Any]) -> None:
    found = yaml.safe_load(render_config(config))
    assert found == config
    assert list(found) == list(config)
    assert [type(value) for value in found.values()] == [type(value) for value in config.values()]


@settings(deadline=None)
@given(VALUES)
def test_a_value_takes_one_line(value: Any) -> None:
    assert len(yaml_scalar(value).splitlines()) <= 1


# Templates of users


def test_own_template_may_order_and_comment() -> None:
    template = "# ours\n{% for key in config | sort %}\n{{ key }}: {{ config[key] | yaml_scalar }}\n{% endfor %}"
    text = render_config(RECIPE, template=template)
    assert "# ours" in text and text.startswith(MARK)
    assert yaml.safe_load(text) == RECIPE


@pytest.mark.parametrize(
    ("template", "evidence"),
    [
        ("{% for %}", "line 1"),
        ("port: {{ nothing }}", "nothing"),
        ("port: {{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}: 1", "SecurityError"),
        ("port: 'open", "quoted"),
        ("- port", "list, not a mapping"),
        ("host: a", "port is missing"),
        ("port: 8000\nhost: a", "host is not part of the plan"),
        ("port: '8000'", "'8000' instead of 8000"),
        ("port: 8000.0", "8000.0 instead of 8000"),
    ],
)
def test_template_that_gives_something_else_is_refused(template: str, evidence: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        render_config({"port": 8000}, template=template, template_name="/srv/t.j2")
    assert caught.value.name == "template-invalid"
    assert "/srv/t.j2" in caught.value.message
    assert evidence in caught.value.evidence


@pytest.mark.parametrize(
    ("text", "inline"), [("/etc/x.j2", False), ("x.j2", False), ("{{ config }}", True), ("a: 1\n", True)]
)
def test_template_or_its_path(text: str, inline: bool) -> None:
    assert is_inline_template(text) is inline


# Plan and replicas


@pytest.mark.parametrize(
    ("plan", "where"),
    [
        ({"replicas": [{"environment": {"HF_TOKEN": "s"}}]}, "replicas[0].environment.HF_TOKEN"),
        ({"vllm_api_key": "s"}, "vllm_api_key"),
        ({"a": {"api-key": "s"}}, "a.api-key"),
        ({"config": {"kv-transfer-config": '{"extra":{"password":"p"}}'}}, "config.kv-transfer-config.extra.password"),
        ({"environment": {"VLLM_API_KEY": ""}, "tokens": "8"}, ""),
    ],
)
def test_secrets_in_a_plan_are_found(plan: Any, where: str) -> None:
    if where:
        with pytest.raises(GpufleetError) as caught:
            render_plan(plan)
        assert where in caught.value.message
        assert caught.value.name == "config-secret"
    else:
        assert json.loads(render_plan(plan)) == plan


@pytest.mark.parametrize(
    "replicas", [[{"name": "../x"}], [{"name": "a"}, {"name": "a"}], [{"name": ""}], [{}], [{"name": "a b"}]]
)
def test_names_that_are_no_file_names_are_refused(replicas: list[Any]) -> None:
    with pytest.raises(GpufleetError) as caught:
        check_replicas(replicas)
    assert caught.value.name == "replica-invalid"


def test_a_secret_within_an_option_is_refused_without_its_value() -> None:
    with pytest.raises(GpufleetError) as caught:
        render_config({"kv-transfer-config": '{"kv_connector_extra_config":{"api_key":"my-marker"}}'})
    assert caught.value.name == "config-secret"
    assert caught.value.details == {"key": "kv-transfer-config.kv_connector_extra_config.api_key"}
    assert "vllm_secret_environment" in caught.value.remedy
    assert "my-marker" not in str(caught.value.as_failure())
