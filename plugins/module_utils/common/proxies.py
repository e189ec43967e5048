# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables of the environment that name proxies, and who is reached without one whatever they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

EXEMPT = ("NO_PROXY", "no_proxy")
LOCAL = ("localhost", "127.0.0.1", "::1")


def exempting(environment: Mapping[str, str], hosts: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables with which this machine and some hosts are reached without a proxy.

    Programs differ in which of the two names they read first, so both have what either had.

    Args:
        environment: of the program, which may name other exceptions.
        hosts: names and addresses of servers, without ports.
    """
    before = [entry.strip() for name in EXEMPT for entry in environment.get(name, "").split(",")]
    entries = ",".join(dict.fromkeys(filter(None, (*before, *LOCAL, *hosts))))
    return dict.fromkeys(EXEMPT, entries)
