# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of how router_clients is read, and of the files made of it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import clients
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import Client
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import key_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import clients_in

KEY = "sk-marker-of-a-secret"
NEW_YEAR_2027 = 1798761600


def client(**fields: Any) -> dict[str, Any]:
    """Return a client as a user writes it."""
    return {"name": "team-a", "key": KEY, **fields}


def test_all_fields_are_read_and_only_name_and_key_are_needed() -> None:
    full = client(key=[KEY, "other"], models=["m/1"], rate="5", expires="2026-12-31")
    assert clients_in([full, {"name": "b", "key": "k"}]) == (
        Client("team-a", (KEY, "other"), ("m/1",), 5, NEW_YEAR_2027),
        Client("b", ("k",)),
    )
    assert clients_in([]) == ()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (client(modles=["m"]), "there is no field modles; the fields are name, key, models, rate, expires"),
        (client(name="a b"), "name 'a b' must have"),
        (client(name="-"), "name '-' must have"),
        (client(name=""), "name (not given)"),
        (client(name=KEY + " "), "name (hidden)"),
        ({"name": "team-a"}, "key is not given"),
        (client(key=[]), "key is not given"),
        (client(key=[KEY, ""]), "key is not given"),
        (client(key=12345678), "key must be a string"),
        (client(key=KEY + " "), "key has white space"),
        (client(key=KEY + "\n"), "key has white space"),
        (client(models="m"), "models must be a list"),
        (client(models=[]), "models must be a list"),
        (client(models=["a b"]), "models: 'a b'"),
        (client(models=[7]), "models: 7"),
        (client(rate="fast"), "rate 'fast' must be a whole number"),
        (client(rate=True), "rate 'True' must be"),
        (client(rate=1.5), "rate '1.5' must be"),
        (client(rate=-1), "rate '-1' must be"),
        (client(expires="31.12.2026"), "expires '31.12.2026' must be a date"),
        (client(expires="2026-02-30"), "expires '2026-02-30' must be a date"),
        (client(expires="2026-12-31T25:00+01:00"), "expires '2026-12-31T25:00+01:00' must be a date"),
        (client(expires=KEY), "expires (hidden) must be a date"),
        (client(expires=20261231), "expires '20261231' must be a date"),
        ("team-a", "must be a dictionary"),
    ],
)
def test_what_is_wrong_is_told_by_its_place_and_without_the_key(given: Any, named: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        clients_in([given])
    problems = caught.value.details["problems"]
    assert caught.value.name == "invalid-router"
    assert len(problems) == 1 and problems[0].startswith("router_clients") and named in problems[0]
    assert "marker" not in caught.value.as_text() and "12345678" not in caught.value.as_text()


def test_names_and_keys_that_are_given_twice_are_told_and_so_is_all_else() -> None:
    given = [client(), client(key="other"), {"name": "b", "key": KEY}, {"name": "c", "key": "k", "rate": "x"}, 5]
    _found, problems = clients.read_clients(given)
    assert len(problems) == 4
    told = "\n".join(problems)
    assert "the name team-a is given twice" in told and "team-a and b have the same key" in told
    assert "router_clients, c: rate" in told and "router_clients[4]" in told
    assert clients.read_clients({"name": "a"})[1] == [
        "router_clients: it must be a list of clients, each with name and key"
    ]


@pytest.mark.parametrize(
    "value",
    [
        "2026-12-31",
        datetime.date(2026, 12, 31),
        "2027-01-01T00:00:00Z",
        "2027-01-01T00:00",
        "2027-01-01 01:00:00+01:00",
        datetime.datetime(2027, 1, 1),
        datetime.datetime(2026, 12, 31, 19, tzinfo=datetime.timezone(datetime.timedelta(hours=-5))),
    ],
)
def test_a_date_counts_to_its_end_and_a_time_as_it_is(value: Any) -> None:
    assert clients.expiry_of(value) == NEW_YEAR_2027


def test_what_the_action_plugin_sends_is_read_as_it_was() -> None:
    given = clients_in([client(models=["m"], rate=0, expires="2026-12-31"), {"name": "b", "key": "k"}])
    assert clients_in(clients.as_options(given)) == given


def test_only_sums_of_keys_are_written_and_limits_apart_from_them() -> None:
    given = clients_in(
        [client(key=[KEY, "new"], models=["m/1"], rate=0, expires="2026-12-31"), {"name": "b", "key": "k"}]
    )
    files = clients.client_files(given)
    assert KEY not in str(files)
    assert sorted(files["clients.map"].splitlines()) == sorted(
        f"{key_sum(key)} {name}" for key, name in ((KEY, "team-a"), ("new", "team-a"), ("k", "b"))
    )
    assert files["clients.limits"].splitlines() == [
        f"expires:team-a {NEW_YEAR_2027}",
        "rate:team-a 0",
        "models:team-a 1",
        "model:team-a:m/1 1",
    ]


def test_a_key_that_expired_and_a_model_that_nothing_serves_are_found() -> None:
    given = clients_in([client(models=["m", "gone"], expires="2026-12-31")])
    assert clients.findings(given, ["m", "n"], NEW_YEAR_2027 - 1) == [
        "router_clients: team-a may use gone, which no replica behind the router serves; they serve m, n"
    ]
    (expired,) = clients.findings(given, [], NEW_YEAR_2027)
    assert expired.startswith("router_clients: the key of team-a expired at 2027-01-01T00:00:00Z and is refused")
