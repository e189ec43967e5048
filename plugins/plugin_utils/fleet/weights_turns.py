# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of the fleet fetch weights from the hub, and which ones from other hosts.

Every host decides for itself, by what all of them said, so all of them decide the same in whatever order they do so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NONE, SOURCE, SEED, RECEIVER = "none", "source", "seed", "receiver"


@dataclass(frozen=True)
class Turn:
    """What a host does.

    Attributes:
        part: C(source) has the weights and gives them away, C(seed) fetches them from the hub first, C(receiver)
            fetches them from other hosts, C(none) has nothing to do with it.
        members: the hosts that take part with it, itself among them.
        public_keys: keys of those that fetch from others.
        text: the same for people.
    """

    part: str
    members: list[str]
    public_keys: list[str]
    text: str


def turn_of(host: str, hosts: Sequence[str], seen: Mapping[str, Mapping[str, Any]], seeds: int) -> Turn:
    """Return what a host does.

    Args:
        host: its name.
        hosts: all hosts of the play, in its order.
        seen: what vllm_weights_share said on each of them, with C(fetched) where the hub gave it the weights and
            C(failed) where the hub did not; those that said nothing are left out.
        seeds: how many hosts fetch from the hub where no host has the weights.
    """
    own = seen.get(host) or {}
    wanted = own.get("wanted")
    members = [name for name in hosts if wanted and (seen.get(name) or {}).get("wanted") == wanted]
    lacking = [name for name in members if not seen[name].get("complete")]
    sources = [name for name in members if _gives(seen[name])]
    able = [name for name in lacking if not seen[name].get("failed")]
    first = [] if sources else able[:seeds]
    receivers = [name for name in able if name not in first and name not in sources]
    keys = [str(seen[name]["public_key"]) for name in lacking if seen[name].get("public_key")]
    if not wanted or not lacking or (host not in sources and host not in able):
        return Turn(NONE, [], [], "")
    if host in sources:
        text = f"has the weights and gives them to {len(receivers)} other hosts"
        return Turn(SOURCE if receivers else NONE, members, keys, text)
    if host in first:
        return Turn(SEED, members, keys, "fetches the weights from the hub, and then gives them to other hosts")
    text = f"fetches the weights from other hosts: {', '.join(sources or first)}, and those that fetch with it"
    return Turn(RECEIVER, members, keys, text)


def _gives(said: Mapping[str, Any]) -> bool:
    """Return whether a host has all of it, with the hashes of the hub."""
    if said.get("fetched") and not said.get("failed"):
        return True
    return bool(said.get("complete")) and len(said.get("models") or []) == len(said.get("wanted") or [])
