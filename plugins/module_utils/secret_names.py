# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a secret among environment variables, wherever they come from."""

from __future__ import annotations

import re

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
SECRET_VALUE = re.compile(r"://[^/@\s:]*:[^/@\s]+@")


def is_secret(name: str, value: str) -> bool:
    """Return whether an environment variable looks like a secret, by its name or a password in an address."""
    return bool(SECRET_NAME.search(name) or SECRET_VALUE.search(value))
