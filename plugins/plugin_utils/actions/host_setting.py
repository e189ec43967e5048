# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A variable of another host, as a task of this one sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError


def setting_of(hostvars: Mapping[str, Any], host: str, variable: str) -> Any:
    """Return what a host has in a variable; None where its inventory does not say.

    Args:
        hostvars: the variables of every host; the defaults of roles are not among them.
        host: its name in the inventory.
        variable: its name.

    Raises:
        GpufleetError: C(setting-unreadable).
    """
    try:
        return hostvars[host].get(variable)
    except AnsibleError as error:
        raise GpufleetError(
            f"{variable} of {host} cannot be read: {error}",
            name="setting-unreadable",
            remedy="Give it a value that other hosts can template, or the password if it is in a vault.",
        ) from None
