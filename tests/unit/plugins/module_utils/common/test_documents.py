# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The types of the documents agree with the documentation that users read, and with what really comes.

The documentation says the keys of a part in its `contains` or `suboptions`, or else in its sample.
"""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import documents
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Plan, Replica, Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import engine, names
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions, build_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import driver
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import nvidia, ports, probe, python, reach, system
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import HostInfo
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import folder
from ansible_collections.gpufleet.vllm.plugins.modules import host_info, vllm_plan, vllm_preflight, vllm_server
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import planner, wishes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import Finding, FindingResult

Disagreements = Iterator[str]
NAMES = {str: "str", int: "int", float: "float", bool: "bool", dict: "dict", list: "list", Any: "raw"}


def without_none(kind: Any) -> Any:
    """Return a type without the None of an optional one."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    (left,) = [entry for entry in get_args(kind) if entry is not type(None)]
    return left


def named(kind: Any) -> str:
    """Return what documentation calls a type."""
    return NAMES[dict if is_typeddict(kind) else get_origin(kind) or kind]


def keys(kind: Any, found: Any, where: str) -> Disagreements:
    """Yield how the keys of a mapping differ from those of a type."""
    wanted, there = set(kind.__annotations__), set(found)
    yield from (f"{where}.{key}: not in the documentation" for key in sorted(wanted - there))
    yield from (f"{where}.{key}: not in the type" for key in sorted(there - wanted))


def in_documentation(kind: Any, documented: dict[str, Any], where: str) -> Disagreements:
    """Yield how the documentation of a document's keys differs from its type."""
    yield from keys(kind, documented, where)
    for key, hint in get_type_hints(kind).items():
        if key in documented:
            yield from in_entry(without_none(hint), documented[key], f"{where}.{key}")


def in_entry(kind: Any, entry: dict[str, Any], where: str) -> Disagreements:
    """Yield how one entry of a documentation differs from its type."""
    if entry["type"] != named(kind):
        yield f"{where}: the documentation says {entry['type']}, the type {named(kind)}"
    inner = without_none(get_args(kind)[0]) if get_origin(kind) is list else kind
    if get_origin(kind) is list and entry.get("elements") != named(inner):
        yield f"{where}: the documentation says elements of {entry.get('elements')}, the type {named(inner)}"
    contains = entry.get("contains") or entry.get("suboptions")
    if is_typeddict(inner) and contains:
        yield from in_documentation(inner, contains, where)
    elif "sample" in entry:
        yield from in_value(kind, entry["sample"], where)
    elif is_typeddict(inner):
        yield f"{where}: the documentation says nothing of what is in it"


def in_value(kind: Any, value: Any, where: str) -> Disagreements:
    """Yield how a document, or a sample of one, differs from its type."""
    kind = without_none(kind)
    if value is None or kind is Any:
        return
    if is_typeddict(kind):
        yield from keys(kind, value, where)
        for key, hint in get_type_hints(kind).items():
            if key in value:
                yield from in_value(hint, value[key], f"{where}.{key}")
    elif get_origin(kind) is list:
        for entry in value:
            yield from in_value(get_args(kind)[0], entry, f"{where}[]")
    elif get_origin(kind) is dict:
        for entry in value.values():
            yield from in_value(get_args(kind)[1], entry, f"{where}{{}}")
    elif not isinstance(value, (int, float) if kind is float else kind):
        yield f"{where}: {value!r} is no {kind.__name__}"


def returned(module: Any) -> Any:
    """Return what a module's documentation says of its result."""
    return yaml.safe_load(module.RETURN)


DOCUMENTED = {
    "plan": (Plan, returned(vllm_plan)["plan"]["contains"]),
    "replica": (Replica, yaml.safe_load(vllm_server.DOCUMENTATION)["options"]["replicas"]["suboptions"]),
    "host_info": (HostInfo, returned(host_info)),
    "finding": (FindingResult, returned(vllm_preflight)["findings"]["contains"]),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documentation_and_the_types_agree(name: str) -> None:
    kind, documented = DOCUMENTED[name]
    assert list(in_documentation(kind, documented, name)) == []


def types_of(kind: Any) -> set[Any]:
    """Return the types of documents that a type is made of, itself among them."""
    own = {kind} if is_typeddict(kind) else set()
    inner = get_type_hints(kind).values() if own else get_args(kind)
    return own.union(*(types_of(entry) for entry in inner))


def test_every_type_is_a_part_of_what_is_compared() -> None:
    """A type that nothing documented is made of would be compared with nothing."""
    makers = (documents, names, engine, driver, nvidia, system, python, ports, reach, folder, probe)
    defined = {entry for module in makers for entry in vars(module).values() if is_typeddict(entry)}
    bases = {documents.ReplicaConfig, documents.NetworkOfSpec, documents._SpecOfAnyVersion}
    assert defined - bases == {found for kind in (Plan, HostInfo, Spec) for found in types_of(kind)}


def test_the_option_takes_a_replica_of_the_plan() -> None:
    """The documentation and the arguments are two texts in the module."""
    options = vllm_server.ARGUMENTS["replicas"]["options"]
    assert set(options) == set(Replica.__annotations__)
    assert options["name"] == {"type": "str", "required": True}


@pytest.mark.parametrize("name", DOCUMENTED)
@pytest.mark.parametrize("change", ["more", "less"])
def test_a_key_that_one_side_alone_has_is_told(name: str, change: str) -> None:
    """At the top, and in every part that is told with its own keys."""
    kind, documented = DOCUMENTED[name]
    places = list(parts(documented))
    assert len(places) == len(types_of(kind))
    for number in range(len(places)):
        changed = copy.deepcopy(documented)
        place = list(parts(changed))[number]
        if change == "less":
            place.pop(next(iter(place)))
        else:
            place["never_heard_of"] = {"type": "str", "description": "", "sample": ""}
        assert list(in_documentation(kind, changed, name)) != [], places[number]


# Parts of which the keys are not fixed.
OPEN = {
    "config",
    "content",
    "distributions",
    "environment",
    "errors",
    "files",
    "image_alternatives",
    "programs",
    "quantization",
    "units",
}


def parts(documented: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a documentation whose keys are fixed."""
    yield documented
    for key, entry in documented.items():
        contains = entry.get("contains") or entry.get("suboptions")
        if contains:
            yield from parts(contains)
        elif key in ("disks", "reach"):
            yield from entry["sample"].values()
        else:
            yield from sample_parts(key, entry.get("sample"))


def sample_parts(key: str, sample: Any) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a sample whose keys are fixed."""
    if isinstance(sample, list) and sample:
        yield from sample_parts(key, sample[0])
    if isinstance(sample, dict) and key not in OPEN:
        yield sample
        for inner, value in sample.items():
            yield from sample_parts(inner, value)


# What really comes


def test_a_finding_is_what_its_type_says() -> None:
    fields = {field.name for field in dataclasses.fields(Finding)}
    assert set(Finding("a", "info", "b").as_result()) == fields == set(FindingResult.__annotations__)


@pytest.mark.parametrize(
    "variables", [{"vllm_device": "cpu"}, {"vllm_gpus": [{"name": "NVIDIA H200", "count": 2}]}], ids=["cpu", "cuda"]
)
def test_a_plan_is_what_its_type_says(variables: dict[str, Any]) -> None:
    plan = planner.plan({}, wishes.read({"vllm_accept_license": True, **variables}))
    assert list(in_value(Plan, plan, "plan")) == []


def test_a_host_is_what_its_type_says(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    found = probe.probe(
        probe.Questions(
            docker_host="unix:///nowhere/docker.sock",
            venv=str(tmp_path),
            paths=[str(tmp_path)],
            ports=[1],
            programs=["sh"],
            model_path=str(tmp_path),
            weights_paths=[str(tmp_path)],
            hub="nowhere",
            asked_at=1.0,
        )
    )
    assert list(in_value(HostInfo, found, "host_info")) == []
    assert set(engine.UNKNOWN) == set(engine.EngineInfo.__annotations__)


def test_a_spec_is_what_its_type_says() -> None:
    replica = planner.plan({}, wishes.read({"vllm_device": "cpu"}))["replicas"][0]
    common = ServerOptions("i", "sha256:1", {"argument": "m"}, "cpu", "none", "bridge", "/hub", "/cache", "/etc")
    spec = build_spec(replica, common, ["HF_TOKEN"], lambda _path: False)
    assert list(in_value(Spec, spec, "spec")) == []
    # An early version of the collection knew no secrets, nor other keys than the first one.
    assert set(spec) - Spec.__required_keys__ == {"secrets", "takes_keys"}
