# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tools/extract_parsers.py read from the released wheels is complete and consistent, and what is known holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
Release = dict[str, Any]


def key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def load() -> dict[str, Release]:
    files = sorted((DATA / "vllm_parsers").glob("*.json"), key=lambda path: key(path.stem))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


RELEASES = load()
MESSAGES = json.loads((DATA / "vllm_messages.json").read_text(encoding="utf-8"))


def accepted(release: Release) -> set[str]:
    """Every option string the release's parser accepts."""
    return {
        option
        for name, argument in release["arguments"].items()
        for option in [name, *argument["aliases"], *argument["negative"]]
    }


def has(version: str, since: str | None, until: str | None) -> bool:
    return (since is None or key(version) >= key(since)) and (until is None or key(version) < key(until))


def test_the_releases_the_version_table_is_checked_against_are_there() -> None:
    assert {"0.12.0", "0.14.1", "0.17.1", "0.18.0", "0.20.2", "0.22.0", "0.24.0", "0.26.0", "0.33.0"} <= set(RELEASES)


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_has_the_schema(version: str) -> None:
    release = RELEASES[version]
    assert set(release) == {
        "schema_version",
        "version",
        "method",
        "wheel",
        "sha256",
        "stand_ins",
        "arguments",
        "fields",
        "environment",
        "environment_deprecated",
    }
    assert release["schema_version"] == 1
    assert release["version"] == version
    assert release["method"] == "executed"
    assert release["wheel"].startswith(f"vllm-{version}-")
    assert re.fullmatch(r"[0-9a-f]{64}", release["sha256"])
    assert len(release["arguments"]) > 150
    assert len(release["environment"]) > 150
    assert release["environment"] == sorted(set(release["environment"]))
    assert set(release["environment_deprecated"]) <= set(release["environment"])
    assert set(release["fields"]) <= set(release["arguments"])


@pytest.mark.parametrize("version", RELEASES)
def test_every_argument_has_the_schema(version: str) -> None:
    wanted = {"aliases", "boolean", "choices", "default", "deprecated", "negative", "type"}
    types = {"bool", "int", "float", "str", "json", "json-or-str", "int-suffix", "int-suffix-or-auto"}
    for name, argument in RELEASES[version]["arguments"].items():
        assert re.fullmatch(r"--[a-z0-9][a-z0-9-]*", name)
        assert wanted <= set(argument) <= wanted | {"nargs", "suggestions", "deprecation"}, name
        assert argument["type"] in types, name
        assert argument["boolean"] == (argument["type"] == "bool"), name
        assert argument["boolean"] or not argument["negative"], name
        assert argument["choices"] is None or len(argument["choices"]) > 1, name


@pytest.mark.parametrize("version", RELEASES)
def test_an_option_string_belongs_to_one_argument(version: str) -> None:
    strings = [
        option
        for name, argument in RELEASES[version]["arguments"].items()
        for option in [name, *argument["aliases"], *argument["negative"]]
    ]
    assert len(strings) == len(set(strings))


@pytest.mark.parametrize("version", RELEASES)
def test_nothing_of_the_machine_that_extracted_it_is_in_a_release(version: str) -> None:
    text = json.dumps(RELEASES[version])
    assert not re.search(r"/(tmp|root|home|work|var)/", text)
    assert " at 0x" not in text


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize(
    "option",
    [
        "--async-scheduling",
        "--compilation-config",
        "--config",
        "--gpu-memory-utilization",
        "--host",
        "--kv-cache-dtype",
        "--max-model-len",
        "--max-num-batched-tokens",
        "--max-num-seqs",
        "--no-enable-prefix-caching",
        "--port",
        "--served-model-name",
        "--tensor-parallel-size",
    ],
)
def test_what_every_plan_sends_is_accepted_everywhere(version: str, option: str) -> None:
    assert option in accepted(RELEASES[version])


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize(
    ("option", "since", "until"),
    [
        ("--cuda-graph-sizes", None, "0.13.0"),
        ("--swap-space", None, "0.18.0"),
        ("--calculate-kv-scales", None, "0.28.0"),
        ("--moe-backend", "0.17.0", None),
        ("--shutdown-timeout", "0.18.0", None),
    ],
)
def test_options_come_and_go(version: str, option: str, since: str | None, until: str | None) -> None:
    assert (option in accepted(RELEASES[version])) == has(version, since, until)


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("name", ["VLLM_USE_FLASHINFER_MOE_FP8", "VLLM_USE_FLASHINFER_MOE_FP4"])
def test_the_moe_variables_are_deprecated_then_gone(version: str, name: str) -> None:
    release = RELEASES[version]
    assert (name in release["environment"]) == has(version, None, "0.24.0")
    assert (name in release["environment_deprecated"]) == has(version, "0.22.0", "0.24.0")


@pytest.mark.parametrize("version", RELEASES)
def test_the_default_share_of_memory_rose(version: str) -> None:
    wanted = 0.9 if key(version) < key("0.20.0") else 0.92
    assert RELEASES[version]["arguments"]["--gpu-memory-utilization"]["default"] == wanted


@pytest.mark.parametrize("version", RELEASES)
def test_async_scheduling_is_off_at_first_and_then_decided_by_vllm(version: str) -> None:
    wanted = False if key(version) < key("0.14.0") else None
    assert RELEASES[version]["arguments"]["--async-scheduling"]["default"] is wanted


@pytest.mark.parametrize("version", RELEASES)
def test_the_context_length_takes_auto_later(version: str) -> None:
    wanted = "int-suffix" if key(version) < key("0.14.0") else "int-suffix-or-auto"
    assert RELEASES[version]["arguments"]["--max-model-len"]["type"] == wanted


@pytest.mark.parametrize("version", RELEASES)
def test_the_kv_cache_can_be_fp8(version: str) -> None:
    argument = RELEASES[version]["arguments"]["--kv-cache-dtype"]
    assert "fp8" in (argument["choices"] or argument["suggestions"])


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("field", ["pass_config.fuse_allreduce_rms", "pass_config.eliminate_noops"])
def test_the_recipes_compilation_passes_exist(version: str, field: str) -> None:
    assert field in RELEASES[version]["fields"]["--compilation-config"]


def test_the_negative_of_a_boolean_has_more_than_one_form_in_the_newest_release() -> None:
    argument = RELEASES["0.33.0"]["arguments"]["--enable-prefix-caching"]
    assert argument["negative"] == ["--disable-prefix-caching", "--no-enable-prefix-caching"]


def test_a_removed_flag_came_back_as_the_negative_of_another() -> None:
    assert "--disable-log-requests" not in accepted(RELEASES["0.17.1"])
    assert "--disable-log-requests" in RELEASES["0.33.0"]["arguments"]["--enable-log-requests"]["negative"]


def test_messages_were_looked_for_in_released_sources() -> None:
    assert {"0.12.0", "0.17.1", "0.20.2", "0.26.0", "0.33.0"} <= set(MESSAGES["versions"])
    assert set(MESSAGES["versions"]) <= set(RELEASES)


@pytest.mark.parametrize("message", MESSAGES["messages"], ids=lambda message: message["pattern"][:40])
def test_a_message_is_where_the_data_says(message: dict[str, Any]) -> None:
    assert set(message) == {"pattern", "said_by", "meaning", "found"}
    assert message["meaning"]
    assert list(message["found"]) == sorted(message["found"])
    assert set(message["found"]) == set(MESSAGES["versions"])
    places = [place for found in message["found"].values() for place in found]
    assert places or message["said_by"] != "vllm", "vLLM says this nowhere"
    for place in places:
        assert re.fullmatch(r"vllm/[\w/]+\.py:\d+", place["at"])
        assert re.search(message["pattern"], place["text"])


def test_the_newest_release_says_most_of_what_vllm_says() -> None:
    own = [message for message in MESSAGES["messages"] if message["said_by"] == "vllm"]
    newest = [message for message in own if message["found"]["0.33.0"]]
    assert len(newest) > 0.8 * len(own)
