# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why the router sends nothing to a replica, by what HAProxy says of its last health check."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import NamedTuple

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import BACKEND

PASSED = ("L7OK", "L7OKC")
UNRESOLVED = "MAINT (resolution)"
# Before HAProxy has checked a server for the first time it takes it for one that is up.
NOT_YET = ("", "INI", "UNK")
REACH = "See that the router's host reaches the port (vllm_router_address, vllm_host, routes, firewalls)"


class CheckCause(NamedTuple):
    """Why a health check does not pass: the cause in a few words, and what to do about it."""

    text: str
    remedy: str


# By words of the operating system, in what HAProxy calls a problem of the connection.
CONNECTING = {
    "Connection refused": CheckCause(
        "connection refused",
        "See whether the server runs (playbook gpufleet.vllm.status), and whether it listens where the router asks"
        " (vllm_host, vllm_port, vllm_router_address). A firewall that rejects looks the same, such as that of"
        " vllm_restrict_ports where this router is new: run the playbook router with that host in --limit.",
    ),
    "No route to host": CheckCause("no route", f"{REACH}; firewalld of the replica's host is told so, too."),
    "Network is unreachable": CheckCause("no route", f"{REACH}."),
    "Permission denied": CheckCause(
        "the router's host forbids the connection",
        "See the firewall of the router's host, and SELinux there: setsebool -P haproxy_connect_any on.",
    ),
}
STATUSES = {
    "401": CheckCause(
        "it refuses the router's key (401)",
        "Have both take the same key: run the playbook gpufleet.vllm.router with this host in --limit, or, if that says"
        " so again, gpufleet.vllm.deploy.",
    ),
    "503": CheckCause(
        "it is not ready (503)",
        "It starts, or is about to stop. The playbook gpufleet.vllm.status says what it does.",
    ),
}
TIMEOUT = CheckCause("no answer to a connection", f"{REACH}, and that the host is up.")
SILENT = CheckCause(
    "it takes connections and does not answer /health", "The playbook gpufleet.vllm.status says what the server does."
)
UNKNOWN_NAME = CheckCause(
    "the router's host cannot resolve its name",
    "Set vllm_router_address to an address, or see the name resolution of the router's host. Run the playbook"
    " gpufleet.vllm.router afterwards.",
)
SELINUX_OFF = CheckCause(
    "SELinux forbids the router the connection (haproxy_connect_any is off)",
    "Run on the router's host: setsebool -P haproxy_connect_any on",
)


def check_causes(statistics: str, root: str = "/") -> dict[str, CheckCause]:
    """Return the replicas whose last health check did not pass, by their names, each with why.

    Args:
        statistics: the answer to C(show stat).
        root: where the files of the system are.
    """
    rows = csv.DictReader(io.StringIO(statistics[statistics.find("# pxname") + 2 :]))
    servers = (row for row in rows if row["pxname"] == BACKEND and row["svname"] not in ("BACKEND", "FRONTEND"))
    found = {row["svname"]: check_cause(row, root) for row in servers}
    return {name: cause for name, cause in found.items() if cause}


def check_cause(row: Mapping[str, str], root: str = "/") -> CheckCause | None:
    """Return why a server gets no requests; None where its last check passed.

    Args:
        row: of the server in the answer to C(show stat).
        root: where the files of the system are.
    """
    if row["status"] == UNRESOLVED:
        return UNKNOWN_NAME
    # It begins with a star while the next check is under way.
    check, said = row["check_status"].strip("* "), row["last_chk"]
    if check in PASSED:
        return None
    if check in NOT_YET:
        return CheckCause("it was not checked yet", "Wait for its health check.")
    for words, cause in CONNECTING.items():
        if words in said:
            return SELINUX_OFF if words == "Permission denied" and _selinux_forbids(root) else cause
    if check == "L7STS":
        other = CheckCause(f"it answers {row['check_code']} to /health", SILENT.remedy)
        return STATUSES.get(row["check_code"], other)
    if check in ("L4TOUT", "L7TOUT"):
        return TIMEOUT if check == "L4TOUT" else SILENT
    return CheckCause(f"{row['check_desc'] or check}{f' ({said})' if said else ''}", SILENT.remedy)


def _selinux_forbids(root: str) -> bool:
    enforces = read_text(root, "sys/fs/selinux/enforce").strip() == "1"
    return enforces and read_text(root, "sys/fs/selinux/booleans/haproxy_connect_any").startswith("0")
