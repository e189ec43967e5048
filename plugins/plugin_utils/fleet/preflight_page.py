# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The findings of a whole fleet on one page, each once with its hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import natural, shortened, who
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import count_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import (
    ERROR,
    SEVERITIES,
    FindingResult,
    sentence,
)


def findings_page(hosts: Mapping[str, Sequence[FindingResult] | None]) -> dict[str, list[str]]:
    """Return the lines that a person reads of what preflight found on many hosts.

    Args:
        hosts: host names to the findings there as plain data; None for a host that was not reached.

    Returns:
        C(lines) (a headline, then a line for each kind of finding with its hosts, errors first and the most frequent
        first) and C(details) (each host's findings in full).
    """
    judged = {host: findings for host, findings in hosts.items() if findings is not None}
    missing = [host for host in hosts if host not in judged]
    groups: dict[tuple[str, str, str], dict[str, FindingResult]] = {}
    for host in sorted(judged, key=natural):
        for finding in judged[host]:
            key = (finding["severity"], finding["name"], finding.get("item") or "")
            groups.setdefault(key, {}).setdefault(host, finding)
    ordered = sorted(groups.items(), key=lambda group: (SEVERITIES.index(group[0][0]), -len(group[1]), group[0][1:]))
    lines = [_preflight_headline(judged, len(missing))]
    lines += [f"  {severity:<8}{name}  {_finding_line(found)}" for (severity, name, _item), found in ordered]
    if missing:
        lines.append(f"  {ERROR:<8}not-judged  {shortened(missing)}: the host was not reached, or failed before.")
    details = [
        f"{host} {finding['severity']} {finding['name']}: {sentence(finding)}"
        for host in sorted(judged, key=natural)
        for finding in judged[host]
    ]
    return {"lines": lines, "details": details}


def _preflight_headline(judged: Mapping[str, Sequence[FindingResult]], missing: int) -> str:
    worst = [
        min((SEVERITIES.index(finding["severity"]) for finding in findings), default=len(SEVERITIES))
        for findings in judged.values()
    ]
    errors, warnings = worst.count(0), worst.count(1)
    parts = [f"{errors} with errors"] if errors else []
    parts += [f"{warnings} with warnings only"] if warnings else []
    fit = len(judged) - errors - warnings
    parts += [f"{fit} fit"] if fit else []
    parts += [f"{missing} not judged"] if missing else []
    return f"Preflight of {count_of(len(judged) + missing, 'host')}: {', '.join(parts)}"


def _finding_line(found: Mapping[str, FindingResult]) -> str:
    """Return a finding after its hosts; where they differ in their values, those of the first."""
    hosts = list(found)
    texts = {sentence(finding) for finding in found.values()}
    first = f" (on {hosts[0]}; others differ)" if len(texts) > 1 else ""
    return f"{who(hosts, 0)}{first}: {sentence(found[hosts[0]])}"
