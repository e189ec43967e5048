# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would keep a router from running, or its clients from trusting it, from what was seen on its host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ERROR, WARNING, Finding

DAY_S = 24 * 3600


def certificate_findings(seen: Mapping[str, Any], warn_days: int, *, given: bool, renews: bool) -> list[Finding]:
    """Return what is to be said of the router's certificates.

    Args:
        seen: what the module router_preflight returned.
        warn_days: router_certificate_warn_days.
        given: whether the site gives a certificate, in router_certificate.
        renews: whether the run makes one anew that ends soon, where none is given.
    """
    wanted, served = seen.get("wanted_certificate") or {}, seen.get("served_certificate") or {}
    found = [_ending(wanted, warn_days, "in router_certificate", "Put its successor there.")] if wanted else []
    # A run that puts another certificate in its place has nothing to say of the one that is served.
    if served and not renews:
        remedy = "Run the playbook gpufleet.vllm.router, which makes another one, and give that to the clients."
        if given:
            remedy = "Put its successor into router_certificate, and run the playbook gpufleet.vllm.router."
        found.append(_ending(served, warn_days, "that the router serves", remedy))
    return [finding for finding in found if finding]


def _ending(end: Mapping[str, Any], warn_days: int, which: str, remedy: str) -> Finding | None:
    """Return the finding for a certificate that is over or soon will be."""
    left, day = int(end["seconds_left"]), str(end["not_after"])[:10]
    needed = f"a certificate that is valid for {warn_days} days (router_certificate_warn_days)"
    if left <= 0:
        over = f"The certificate {which} ended on {day}: clients refuse it."
        return Finding("certificate-over", ERROR, over, needed, remedy, item=which)
    if left >= warn_days * DAY_S:
        return None
    soon = f"The certificate {which} ends on {day}, in {left // DAY_S} days."
    return Finding("certificate-ends-soon", WARNING, soon, needed, remedy, item=which)
