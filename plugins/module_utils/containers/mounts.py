# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a container finds what the host gives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def joined_volumes(own: Iterable[str], theirs: Sequence[str]) -> list[str]:
    """Return mounts of ours and of the user's, whose mount replaces ours at the same target."""
    taken = {target_of(volume) for volume in theirs}
    return [volume for volume in own if target_of(volume) not in taken] + list(theirs)


def target_of(volume: str) -> str:
    parts = volume.split(":")
    return parts[1] if len(parts) > 1 else parts[0]
