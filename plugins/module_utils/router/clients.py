# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients with a name: how `router_clients` is read, and the files and rules by which HAProxy tells them apart.

Their keys are kept as SHA-256 sums in a file that only root reads. What each may do is no secret: it is in another
file, which a difference shows. HAProxy compares the time with that file at each request, so that a key ends by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import key_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny, deny_with_values

VARIABLE = "router_clients"
CLIENT_KEYS = "clients.map"
CLIENT_LIMITS = "clients.limits"
TABLE = "clients"
FIELDS = ("name", "key", "models", "rate", "expires")
RATE_WINDOW_S = 10
# It stands in lines of the log and before a colon in a file. Not shorter than a key's sum, or one could be the other's.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}")
MODEL = re.compile(r"[^\s\x00-\x1f\x7f]{1,256}")
KEY = re.compile(r"[^\s\x00-\x1f\x7f]+")
# What a file of HAProxy's can have for a rate.
MOST_REQUESTS = 1_000_000_000
DATES = "a date such as 2027-01-31 (the key works through that day, UTC), or a time such as 2027-01-31T18:00:00+01:00"


@dataclass(frozen=True)
class Client:
    """One client of the router.

    Attributes:
        name: by which the log and the sums of usage call it.
        keys: its keys; more than one while it changes from one to the other.
        models: models it may use; empty for all.
        rate: requests in ten seconds, in the place of `router_rate_limit`; 0 for no limit, None for that limit.
        expires: second since 1970 from which its keys are refused; None for never.
    """

    name: str
    keys: tuple[str, ...]
    models: tuple[str, ...] = ()
    rate: int | None = None
    expires: int | None = None


# Reading


def read_clients(value: Any) -> tuple[tuple[Client, ...], list[str]]:
    """Return the clients in a value of `router_clients`, and what is wrong with it; keys are never told."""
    if value in (None, ""):
        return (), []
    if not isinstance(value, (list, tuple)):
        return (), [f"{VARIABLE}: it must be a list of clients, each with name and key"]
    problems: list[str] = []
    found = [_read_client(entry, f"{VARIABLE}[{place}]", problems) for place, entry in enumerate(value)]
    clients = tuple(client for client in found if client)
    problems += _twice(clients)
    return clients, problems


def _read_client(entry: Any, place: str, problems: list[str]) -> Client | None:
    """Return one client; None, with problems more, where it cannot be read."""
    if not isinstance(entry, Mapping):
        problems.append(f"{place}: it must be a dictionary with name and key")
        return None
    name = entry.get("name")
    if isinstance(name, str) and NAME.fullmatch(name):
        place = f"{VARIABLE}, {name}"
    else:
        problems.append(
            f"{place}: name {_shown(name)} must have 1 to 63 letters, digits and _ . @ - and begin with a letter"
            " or digit"
        )
    before = len(problems)
    unknown = sorted(str(field) for field in entry if field not in FIELDS)
    if unknown:
        problems.append(f"{place}: there is no field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}")
    client = Client(
        str(name),
        tuple(_keys(entry.get("key"), place, problems)),
        tuple(_models(entry.get("models"), place, problems)),
        _rate(entry.get("rate"), place, problems),
        _expiry(entry.get("expires"), place, problems),
    )
    return client if len(problems) == before else None


def _shown(value: Any) -> str:
    """Return a value for a message; a text that is as long as keys are is not told."""
    text = str(value)
    return "(not given)" if value in (None, "") else repr(text) if len(text) < 12 else "(hidden)"


def _keys(value: Any, place: str, problems: list[str]) -> Iterable[str]:
    keys = value if isinstance(value, (list, tuple)) else [value]
    if not keys or any(key in (None, "") for key in keys):
        problems.append(f"{place}: key is not given; it is one key, or a list while the client changes its key")
        return
    for key in keys:
        if not isinstance(key, str):
            problems.append(f"{place}: key must be a string; write it in quotes, or keep it in a vault")
        elif not KEY.fullmatch(key):
            problems.append(f"{place}: key has white space in it, which no header can carry")
        else:
            yield str(key)


def _models(value: Any, place: str, problems: list[str]) -> Iterable[str]:
    if value is None:
        return
    if not isinstance(value, (list, tuple)) or not value:
        problems.append(f"{place}: models must be a list of names; leave it out for all models")
        return
    for model in value:
        if isinstance(model, str) and MODEL.fullmatch(model):
            yield str(model)
        else:
            problems.append(f"{place}: models: {model!r} is no model's name, which has no white space")


def _rate(value: Any, place: str, problems: list[str]) -> int | None:
    if value is None or value == "":
        return None
    if not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,10}", str(value)) and int(value) <= MOST_REQUESTS:
        return int(value)
    problems.append(
        f"{place}: rate {_shown(value)} must be a whole number, the requests in {RATE_WINDOW_S} seconds; 0 is no limit"
    )
    return None


def _expiry(value: Any, place: str, problems: list[str]) -> int | None:
    if value is None or value == "":
        return None
    try:
        return expiry_of(value)
    except ValueError:
        shown = repr(str(value)) if re.fullmatch(r"[-0-9T:.+Z ]{1,40}", str(value)) else _shown(value)
        problems.append(f"{place}: expires {shown} must be {DATES}")
        return None


def expiry_of(value: Any) -> int:
    """Return the second since 1970 at which a date ends or a time comes; one without a zone is UTC.

    Raises:
        ValueError: it is neither.
    """
    moment = value
    if not isinstance(value, date):
        moment = _moment(str(value).strip())
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time()) + timedelta(days=1)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp())


def _moment(text: str) -> date:
    """Return a date, or a date with a time; Python before 3.11 reads fewer forms, so that only those are read."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)([T ]\d\d:\d\d(?::\d\d)?)?([Zz]|[+-]\d\d:\d\d)?", text)
    if not match or (match[3] and not match[2]):
        raise ValueError(text)
    day, clock, zone = match.groups()
    if not clock:
        return date.fromisoformat(day)
    return datetime.fromisoformat(day + clock + {None: "", "z": "+00:00", "Z": "+00:00"}.get(zone, zone))


def _twice(clients: Sequence[Client]) -> Iterable[str]:
    """Say which names and keys are given twice."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for client in clients:
        if client.name in names:
            yield f"{VARIABLE}: the name {client.name} is given twice; for two keys of one client give key a list"
        names.add(client.name)
        for key in client.keys:
            if key in owners:
                yield f"{VARIABLE}: {owners[key]} and {client.name} have the same key; give each its own"
            owners[key] = client.name


def as_options(clients: Iterable[Client]) -> list[dict[str, Any]]:
    """Return clients as the module's option has them, which `read_clients` reads again."""
    return [
        {
            "name": client.name,
            "key": list(client.keys),
            "models": list(client.models) or None,
            "rate": client.rate,
            "expires": None if client.expires is None else iso_time(client.expires),
        }
        for client in clients
    ]


def iso_time(second: int) -> str:
    """Return a second since 1970 as a time of UTC."""
    return datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def findings(clients: Iterable[Client], served: Iterable[str], now: float) -> list[str]:
    """Return what works and is probably not meant: keys that expired, and models that no replica serves.

    Args:
        clients: of the router.
        served: models of its replicas; none if that is not known.
        now: seconds since 1970.
    """
    known = set(served)
    found = []
    for client in clients:
        if client.expires is not None and client.expires <= now:
            found.append(
                f"{VARIABLE}: the key of {client.name} expired at {iso_time(client.expires)} and is refused; set"
                " expires anew, or take the client out"
            )
        absent = sorted(set(client.models) - known) if known else []
        if absent:
            found.append(
                f"{VARIABLE}: {client.name} may use {', '.join(absent)}, which no replica behind the router serves;"
                f" they serve {', '.join(sorted(known))}"
            )
    return found


# Files and rules


def client_files(clients: Sequence[Client]) -> dict[str, str]:
    """Return the files that the rules look into, name to text."""
    sums = sorted((key_sum(key), client.name) for client in clients for key in client.keys)
    limits: list[str] = []
    for client in sorted(clients, key=lambda client: client.name):
        if client.expires is not None:
            limits.append(f"expires:{client.name} {client.expires}")
        if client.rate is not None:
            limits.append(f"rate:{client.name} {client.rate}")
        if client.models:
            limits.append(f"models:{client.name} {len(client.models)}")
            limits += [f"model:{client.name}:{model} 1" for model in sorted(set(client.models))]
    return {
        CLIENT_KEYS: "".join(f"{digest} {name}\n" for digest, name in sums),
        CLIENT_LIMITS: "".join(f"{line}\n" for line in limits),
    }


def identity_rules(folder: str) -> list[str]:
    """Return the rules that know a client by its key: its name is in the variable txn.client then."""
    return [
        "http-request set-var(txn.key_sum) req.fhdr(authorization),sha2(256),hex,lower",
        f"http-request set-var(txn.client) var(txn.key_sum),map_str({folder}/{CLIENT_KEYS})",
        "acl named_client var(txn.client) -m found",
    ]


def expiry_rules(folder: str) -> list[str]:
    """Return the rules that refuse a key from the second on at which it expires."""
    return [
        f"http-request set-var(txn.expires) {_limit('expires', folder)} if named_client",
        deny_with_values(
            401,
            "This API key expired at %[var(txn.expires),utime(%Y-%m-%dT%H:%M:%SZ)]. Ask for another one.",
            "{ var(txn.expires) -m found } { date,sub(txn.expires) ge 0 }",
            " hdr WWW-Authenticate Bearer",
        ),
    ]


def rate_rules(folder: str) -> list[str]:
    """Return the rules that hold a client to a rate of its own; requests that are turned away do not count."""
    return [
        f"http-request set-var(txn.rate) {_limit('rate', folder)} if named_client",
        "acl own_rate var(txn.rate) -m found",
        f"http-request track-sc2 var(txn.client) table {TABLE} if own_rate",
        deny_with_values(
            429,
            f"More than %[var(txn.rate)] requests in {RATE_WINDOW_S} seconds, the rate of this client.",
            "{ var(txn.rate) -m int gt 0 } { sc2_gpc0_rate,sub(txn.rate) ge 0 }",
            f" hdr Retry-After {RATE_WINDOW_S}",
        ),
        "http-request sc-inc-gpc0(2) if own_rate",
    ]


def client_models(folder: str, *, unless_cut: str = "") -> list[str]:
    """Return the rules that keep a client to its models; they come after the variable txn.model is set.

    Args:
        folder: of the files.
        unless_cut: condition without which a request without a model is let through, as it may be further on.
    """
    refused = "METH_POST { var(txn.models) -m found } !{ var(txn.may) -m found }"
    return [
        f"http-request set-var(txn.models) {_limit('models', folder)} if named_client",
        "http-request set-var(txn.may) str(model:),concat(,txn.client,:),concat(,txn.model),"
        f"map_str_int({folder}/{CLIENT_LIMITS}) if {{ var(txn.models) -m found }}",
        deny(403, "This client may not use this model.", f"{refused} {{ var(txn.model) -m found }}"),
        deny(403, "This client may not use this model, or names none.", f"{refused} {unless_cut}".rstrip()),
    ]


def clients_table() -> list[str]:
    return [
        f"backend {TABLE}",
        f"stick-table type string len 64 size 10k expire 1m store gpc0_rate({RATE_WINDOW_S}s)",
    ]


def _limit(kind: str, folder: str) -> str:
    return f"str({kind}:),concat(,txn.client),map_str_int({folder}/{CLIENT_LIMITS})"
