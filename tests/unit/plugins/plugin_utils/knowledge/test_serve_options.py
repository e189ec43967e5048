# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""There is one decision on every option, and every environment variable, of every release of vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.option_names import OPTIONS_WITH_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import serve_options
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.extra_options import VARIABLES_WITH_SECRETS
from ansible_collections.gpufleet.vllm.tests.unit.test_parser_data import DATA, RELEASES

LOOKED_AT = Path(DATA) / "vllm_environment_allowed.txt"
ALLOWED = frozenset(line for line in LOOKED_AT.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
# The model is no option of `vllm serve` but its argument, and help is an option of every parser.
OF_NO_RELEASE = {"model", "help"}


def options_of(version: str) -> set[str]:
    return {name[2:] for name in RELEASES[version]["arguments"]}


EVER = set().union(*map(options_of, RELEASES))


@pytest.mark.parametrize("version", RELEASES)
def test_every_option_is_decided_on(version: str) -> None:
    decided = serve_options.BY_OPTION.keys() | OPTIONS_WITH_VARIABLE.keys()
    assert sorted(options_of(version) - decided) == [], "decide on them in knowledge/serve_options.py"


@pytest.mark.parametrize("version", RELEASES)
def test_every_environment_variable_is_decided_on(version: str) -> None:
    decided = serve_options.BY_VARIABLE.keys() | VARIABLES_WITH_SECRETS.keys() | ALLOWED
    undecided = sorted(set(RELEASES[version]["environment"]) - decided)
    assert undecided == [], f"decide on them in knowledge/serve_options.py, or allow them in {LOOKED_AT.name}"


def test_nothing_is_decided_twice() -> None:
    options = [name for decision in serve_options.OPTIONS for name in decision.names.split()]
    variables = [name for decision in serve_options.ENVIRONMENT for name in decision.names.split()]
    for names in ([*options, *OPTIONS_WITH_VARIABLE], [*variables, *VARIABLES_WITH_SECRETS, *ALLOWED]):
        assert sorted({name for name in names if names.count(name) > 1}) == []


def test_nothing_is_decided_that_no_release_has() -> None:
    decided = serve_options.BY_OPTION.keys() | OPTIONS_WITH_VARIABLE.keys()
    fields = {
        f"{option[2:]}.{field}"
        for data in RELEASES.values()
        for option in data["fields"]
        for field in data["fields"][option]
    }
    assert sorted(decided - EVER - OF_NO_RELEASE - fields) == []
    environment = {name for data in RELEASES.values() for name in data["environment"]}
    assert sorted(serve_options.BY_VARIABLE.keys() - environment) == ["NVIDIA_VISIBLE_DEVICES"]
    assert sorted(ALLOWED - environment) == []


@pytest.mark.parametrize(
    "decision", [*serve_options.OPTIONS, *serve_options.ENVIRONMENT], ids=lambda found: found.names[:30]
)
def test_a_decision_says_why_and_what_instead(decision: serve_options.Decision) -> None:
    assert decision.kind in (serve_options.ALLOW, serve_options.WARN, serve_options.REFUSE)
    assert decision.reason
    assert bool(decision.instead) == (decision.kind != serve_options.ALLOW)
    assert set(decision.beside) <= EVER


def test_variables_that_own_an_option_exist() -> None:
    assert sorted(set(OPTIONS_WITH_VARIABLE.values()) - KNOWN_VARIABLES) == []


def test_short_names_are_those_of_the_parsers() -> None:
    aliases = {
        alias.lstrip("-"): name[2:]
        for data in RELEASES.values()
        for name, argument in data["arguments"].items()
        for alias in argument["aliases"]
    }
    assert aliases == serve_options.ALIASES


def test_switches_that_cannot_be_turned_off_are_those_of_the_parsers() -> None:
    found = {
        name[2:]
        for data in RELEASES.values()
        for name, argument in data["arguments"].items()
        if argument["boolean"] and not argument["negative"]
    }
    assert found == serve_options.WITHOUT_NEGATIVE
