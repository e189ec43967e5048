# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which vLLM has which known hole: published advisories, as far as they concern a server of this collection.

Read on 2026-11-30 in the CVE records, PyPA's advisory database and OSV. Left out is what this collection never runs
(the Rust and gRPC front ends, LMCache, scoring) and what concerns single models that are not in the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.versions import Span, Version, as_text

READ_ON = "2026-11-30"
# From this score on, CVSS calls a hole high or critical.
SERIOUS = 7.0


@dataclass(frozen=True)
class Advisory:
    """One published hole.

    Attributes:
        name: of the CVE record.
        span: the versions that have it; C(until) is the first that is fixed.
        score: CVSS, from 0 to 10; None where it was not read.
        what: who can do what, as the end of a sentence.
        option: the option of C(vllm serve) without which the hole is not open; empty for every server.
        with_key: whether only those can use it who have the API key, where there is one (by the record, or by the paths
            that the release's wheel guards).
    """

    name: str
    span: Span
    score: float | None
    what: str
    option: str = ""
    with_key: bool = False

    def is_open(self, version: Version, config: Mapping[str, Any]) -> bool:
        """Return whether a server of that version with those options has the hole."""
        return self.span.holds(version) and (not self.option or bool(config.get(self.option)))

    def as_text(self) -> str:
        """Return it in a few words, with the release that fixes it."""
        fixed = f"fixed in {as_text(self.span.until)}" if self.span.until else "not fixed yet"
        score = "" if self.score is None else f"{self.score}: "
        return f"{self.name} ({score}{self.what}; {fixed})"


ADVISORIES = (
    Advisory(
        "CVE-2026-22778",
        Span((0, 8, 3), (0, 14, 1)),
        9.8,
        "a broken image makes the server tell an address of its memory, a step towards running code in it",
    ),
    Advisory(
        "CVE-2026-48746",
        Span(until=(0, 22, 0)),
        9.1,
        "requests get past the API key",
    ),
    Advisory(
        "CVE-2026-22807",
        Span(until=(0, 14, 0)),
        8.8,
        "a model's repository runs code at start-up, also without trust-remote-code",
    ),
    Advisory(
        "CVE-2026-56340",
        Span(until=(0, 13, 0)),
        7.5,
        "malformed embeddings of prompts write beyond their memory",
        option="enable-prompt-embeds",
    ),
    Advisory(
        "CVE-2026-114053",
        Span(until=(0, 31, 0)),
        None,
        "a request chooses which revision of the model's code runs in the server",
        option="trust-remote-code",
    ),
    Advisory(
        "CVE-2026-114051",
        Span(until=(0, 22, 0)),
        None,
        "one request to /inference/v1/generate, which no key guards, hangs the engine",
    ),
    Advisory(
        "CVE-2026-114051",
        Span((0, 22, 0), (0, 31, 0)),
        None,
        "one request to /inference/v1/generate hangs the engine",
        with_key=True,
    ),
    Advisory(
        "CVE-2026-34756",
        Span(until=(0, 19, 0)),
        6.5,
        "one request for very many answers ends the server",
        with_key=True,
    ),
    Advisory(
        "CVE-2026-105757",
        Span(until=(0, 30, 0)),
        6.5,
        "a request for structured output ends the engine",
        with_key=True,
    ),
    Advisory(
        "CVE-2026-115911",
        Span((0, 19, 0), (0, 32, 0)),
        6.5,
        "a request's own chat template blocks the server",
        with_key=True,
    ),
)


def open_holes(version: Version, config: Mapping[str, Any]) -> list[Advisory]:
    """Return the advisories that concern a server.

    Args:
        version: the vLLM in its image.
        config: its options.
    """
    return [advisory for advisory in ADVISORIES if advisory.is_open(version, config)]


def serious(version: Version, config: Mapping[str, Any]) -> list[Advisory]:
    """Return those that need no key and have a high or critical score, or one that was not read."""
    return [
        hole
        for hole in open_holes(version, config)
        if not hole.with_key and (hole.score is None or hole.score >= SERIOUS)
    ]


def remedy(holes: Sequence[Advisory]) -> str:
    """Return which releases are free of the holes, as a sentence without its full stop."""
    fixed = [hole.span.until for hole in holes if hole.span.until]
    return f"Set vllm_image_tag to v{as_text(max(fixed))} or newer" if fixed else "No release is free of it yet"
