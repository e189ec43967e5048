# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes into a report: plain data, and texts without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def plain(value: Any) -> Any:
    """Return the value as plain data, without what Ansible attaches to it."""
    return json.loads(json.dumps(value, default=str))


def without(text: str, secrets: Iterable[str]) -> str:
    """Return the text without the secrets, should a server or program have repeated one."""
    for secret in secrets:
        text = text.replace(secret, "********")
    return text
