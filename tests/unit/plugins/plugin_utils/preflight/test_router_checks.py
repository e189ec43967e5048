# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what preflight says of a router."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight import router_checks

DAY_S = 24 * 3600


def end(days: float) -> dict[str, Any]:
    """Return what is seen of a certificate that is valid for so many days."""
    return {"not_after": "2027-12-24T16:00:00Z", "seconds_left": int(days * DAY_S)}


@pytest.mark.parametrize(("days", "name"), [(31, None), (29.5, "certificate-ends-soon"), (-1, "certificate-over")])
@pytest.mark.parametrize("which", ["served_certificate", "wanted_certificate"])
def test_a_certificate_is_found_before_and_after_its_end(days: float, name: str | None, which: str) -> None:
    found = router_checks.certificate_findings({which: end(days)}, 30, given=which[0] == "w", renews=False)
    assert [finding.name for finding in found] == ([name] if name else [])
    for finding in found:
        assert finding.severity == ("error" if days < 0 else "warning")
        assert "2027-12-24" in finding.found and "router_certificate_warn_days" in finding.needed


def test_a_run_that_makes_a_new_one_says_nothing_of_the_one_of_before() -> None:
    seen = {"served_certificate": end(-1), "wanted_certificate": end(2)}
    found = router_checks.certificate_findings(seen, 30, given=True, renews=True)
    assert [(finding.severity, finding.item) for finding in found] == [("warning", "in router_certificate")]


def test_nothing_is_said_without_a_certificate() -> None:
    assert router_checks.certificate_findings({}, 30, given=False, renews=False) == []
