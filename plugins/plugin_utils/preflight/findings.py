# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that preflight found on a host, and how findings are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)


class FindingResult(TypedDict):
    """A finding as plain data, as the module vllm_preflight returns it."""

    name: str
    severity: str
    found: str
    needed: str
    remedy: str
    item: str


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        name: what kind it is, in kebab case, such as C(port-in-use).
        severity: C(error) (the deployment would fail), C(warning) (it would work, but badly or by luck) or C(info).
        found: what was found, a sentence with its values.
        needed: what is needed instead, as the end of the sentence "Needed: ..."; empty when nothing is.
        remedy: the command or variable that fixes it; empty when nothing needs fixing.
        item: which of several of that kind on one host, such as C(port 8000); empty where there can be one only.
    """

    name: str
    severity: str
    found: str
    needed: str = ""
    remedy: str = ""
    item: str = ""

    def as_result(self) -> FindingResult:
        """Return it as plain data."""
        return {
            "name": self.name,
            "severity": self.severity,
            "found": self.found,
            "needed": self.needed,
            "remedy": self.remedy,
            "item": self.item,
        }


def from_error(error: GpufleetError, needed: str) -> Finding:
    """Return the finding of severity C(error) for what some other part of the collection refuses."""
    return Finding(error.name, ERROR, error.message, needed, error.remedy)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with the errors first; otherwise in their order, each once."""
    return sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity))


def sentence(finding: FindingResult) -> str:
    """Return found, needed and remedy of a finding (as plain data) on one line."""
    parts = [str(finding["found"])]
    if finding.get("needed"):
        parts.append(f"Needed: {finding['needed']}.")
    if finding.get("remedy"):
        parts.append(str(finding["remedy"]))
    return " ".join(" ".join(parts).split())


def counted(findings: Sequence[FindingResult]) -> str:
    """Return how many errors and warnings there are, such as C(2 errors and 1 warning)."""
    texts = []
    for severity in (ERROR, WARNING):
        number = sum(finding["severity"] == severity for finding in findings)
        if number:
            texts.append(f"{number} {severity}" + ("s" if number > 1 else ""))
    return " and ".join(texts)


def refusal(findings: Sequence[FindingResult]) -> GpufleetError | None:
    """Return the error that ends a host's play before anything changes, or None where no finding is an error."""
    errors = [finding for finding in findings if finding["severity"] == ERROR]
    if not errors:
        return None
    told = [finding for finding in findings if finding["severity"] != INFO]
    return GpufleetError(
        f"Preflight found {counted(findings)} on this host; nothing was changed.",
        name="preflight-failed",
        remedy="Fix each error as said with it, and run again. The playbook gpufleet.vllm.preflight only looks.",
        evidence="".join(f"\n  {finding['severity']} {finding['name']}: {sentence(finding)}" for finding in told),
        details={"findings": [{key: finding.get(key) for key in ("name", "severity", "item")} for finding in findings]},
    )
