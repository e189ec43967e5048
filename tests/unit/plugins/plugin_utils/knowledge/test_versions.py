# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The version tables against the parsers and environments of the released wheels (tools/extract_parsers.py)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import profiles, versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes

DATA = Path(__file__).resolve().parents[3] / "data" / "vllm_parsers"
PARSERS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in sorted(DATA.glob("*.json"))}
EXPECTED = {"0.12.0", "0.17.1", "0.20.2", "0.26.0", "0.33.0"}


def options_of(version: str, *, negative: bool = True) -> dict[str, dict[str, Any]]:
    """Return every spelling of an option with its entry, without the leading dashes.

    C(negative) includes those that turn an option off: C(no-enable-prefix-caching), and C(disable-log-requests) in
    0.33, where that is no option of its own any more.
    """
    found = {}
    for name, entry in PARSERS[version]["arguments"].items():
        for spelling in (name, *entry["aliases"], *(entry["negative"] if negative else ())):
            found[spelling.lstrip("-")] = entry
    return found


def test_the_data_is_there() -> None:
    assert set(PARSERS) >= EXPECTED


@pytest.mark.parametrize("version", sorted(PARSERS))
def test_a_version_has_exactly_the_options_of_the_tables(version: str) -> None:
    number = versions.parse(version)
    assert number
    own, all_spellings = options_of(version, negative=False), options_of(version)
    for option, span in versions.OPTIONS.items():
        assert (option in all_spellings) == span.holds(number), option
    for option, span in versions.GONE_OPTIONS.items():
        assert (option in own) == span.holds(number), option


@pytest.mark.parametrize("version", sorted(PARSERS))
def test_a_version_reads_exactly_the_variables_of_the_table(version: str) -> None:
    number = versions.parse(version)
    assert number
    for name, span in versions.READ_UNTIL.items():
        assert (name in PARSERS[version]["environment"]) == span.holds(number), name


@pytest.mark.parametrize("version", sorted(PARSERS))
def test_the_defaults_are_those_of_the_parser(version: str) -> None:
    number = versions.parse(version)
    assert number
    arguments = PARSERS[version]["arguments"]
    assert arguments["--gpu-memory-utilization"]["default"] == versions.default_gpu_memory_utilization(number)
    assert (arguments["--async-scheduling"]["default"] is not False) == versions.ASYNC_SCHEDULING_BY_DEFAULT.holds(
        number
    )


CARDS = ("NVIDIA H200", "NVIDIA B200", "NVIDIA B300", "NVIDIA RTX PRO 6000")
PRECISIONS = ("auto", "fp8")
# What brings every lever in.
EVERYTHING = {"vllm_max_model_len": 8192, "vllm_max_num_seqs": 800, "vllm_text_only": True}


@pytest.mark.parametrize("version", sorted(PARSERS))
@pytest.mark.parametrize("profile", profiles.PROFILES)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("more", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_nothing_unknown_or_deprecated_is_sent(version: str, profile: str, device: str, more: dict[str, Any]) -> None:
    known = options_of(version)
    for card, precision in itertools.product(CARDS, PRECISIONS) if device == "cuda" else [("", "auto")]:
        variables = {
            "vllm_accept_license": True,
            "vllm_device": device,
            "vllm_profile": profile,
            "vllm_precision": precision,
            "vllm_image_tag": f"v{version}-cu130",
            "vllm_served_model_name": "scout",
            **(more if device == "cuda" else {}),
            **({"vllm_gpus": [{"name": card, "count": 8}]} if card else {}),
        }
        document = planner.plan({"memory_mib": 64000}, wishes.read(variables))
        for replica in document["replicas"]:
            for option, value in replica["config"].items():
                assert option in known
                assert not known[option]["deprecated"], option
                choices = known[option]["choices"]
                assert choices is None or value in choices
            own = {name for name in replica["environment"] if name.startswith("VLLM_")}
            assert own <= set(PARSERS[version]["environment"])
            assert set(replica["config"]) <= set(versions.OPTIONS)
            assert own <= set(versions.ENVIRONMENT)


@pytest.mark.parametrize("version", sorted(PARSERS))
@pytest.mark.parametrize("dtype", ["fp8", "fp8_e4m3", "fp8_e5m2", "bfloat16"])
def test_every_kv_dtype_that_may_be_wished_is_known(version: str, dtype: str) -> None:
    entry = PARSERS[version]["arguments"]["--kv-cache-dtype"]
    assert dtype in (entry["choices"] or entry["suggestions"])


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v0.12.0", (0, 12, 0)),
        ("0.33", (0, 33, 0)),
        ("v0.20.2-aarch64", (0, 20, 2)),
        ("0.32.0+cpu", (0, 32, 0)),
        ("latest", None),
        ("nightly-0.12", None),
        ("", None),
    ],
)
def test_versions_in_tags(text: str, version: versions.Version | None) -> None:
    assert versions.parse(text) == version


@pytest.mark.parametrize(
    ("tag", "image", "version"),
    [
        ("v0.26.0", None, (0, 26, 0)),
        ("v0.26.0", "vllm/vllm-openai", (0, 26, 0)),
        ("v0.9.1", "vllm/vllm-openai", (0, 9, 1)),
        ("v1.2.0", "registry.example.org:5000/vllm/vllm-openai", (1, 2, 0)),
        ("0.20.2-team3", "registry.example.org:5000/team/vllm", (0, 20, 2)),
        ("26.03-py3", "nvcr.io/nvidia/vllm", None),
        ("1.4.2", "registry.example.org:5000/team/vllm", None),
        ("0.3.1", "registry.example.org:5000/team/vllm", None),
    ],
)
def test_whose_versions_the_tags_of_an_image_are(tag: str, image: str | None, version: versions.Version | None) -> None:
    assert versions.of_tag(tag, image) == version


@pytest.mark.parametrize(
    ("tag", "cuda", "driver"),
    [
        ("v0.12.0", "12.9", 575),
        ("v0.20.0", "13.0", 580),
        ("v0.19.1-cu130", "13.0", 580),
        ("v0.26.0-cu129", "12.9", 575),
        ("v0.26.0-aarch64-cu129-ubuntu2404", "12.9", 575),
    ],
)
def test_cuda_in_images(tag: str, cuda: str, driver: int) -> None:
    version = versions.parse(tag)
    assert version
    assert versions.cuda_of(version, tag) == cuda
    assert versions.oldest_driver(cuda) == driver
