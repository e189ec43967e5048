# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys that the servers of a host take. They change without a server being replaced or restarted, see door.py.

A router asks all servers with one key. So for another one each server takes both, then the router moves over, then each
server lets go of the old one: three steps, of which any may be interrupted and done again.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import KEY_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import variables_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import belongs_to
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import KEYS, key_sum, parse_keys

UNTIL_TOLD = -1


@dataclasses.dataclass(frozen=True)
class Keys:
    """What servers are to take.

    Attributes:
        key: with which they are asked; empty for servers that want none, which are left as they are.
        accepted: further ones.
        others_for: seconds for which they go on with others that they take now; UNTIL_TOLD until told otherwise.
    """

    key: str
    accepted: tuple[str, ...] = ()
    others_for: int = 0

    def text(self, before: str, first: str, now: float) -> str:
        """Return the new text of a server's file of keys; what it was if it may stay.

        Args:
            before: its text; empty where there is none yet.
            first: the key that the server takes where there is none.
            now: seconds since the epoch.
        """
        try:
            known = {name: until for name, until in parse_keys(before).items() if until > now}
        except ValueError:
            known = {}
        if not before and first:
            known = {key_sum(first.encode()): math.inf}
        limit = math.inf if self.others_for == UNTIL_TOLD else now + self.others_for
        taken = {name: min(until, limit) for name, until in known.items() if limit > now}
        taken.update({key_sum(key.encode()): math.inf for key in (self.key, *self.accepted)})
        if not self.key or (before and taken == known):
            return before
        ends = {name: "" if until == math.inf else f" {int(until)}" for name, until in taken.items()}
        return "".join(f"{name}{end}\n" for name, end in sorted(ends.items()))


def difference_of(replica: str) -> dict[str, str]:
    """Return the difference that other keys make, as Ansible shows it."""
    return {
        "before_header": f"keys of {replica}",
        "after_header": f"keys of {replica}",
        "before": "(hidden)\n",
        "after": "(hidden, and changed)\n",
    }


def replicas_in(config_dir: str, prefix: str) -> list[str]:
    """Return the replicas of a deployment that have a folder for what the host tells them."""
    return [name for name in list_folder(config_dir, "control") if belongs_to(prefix, name)]


def update(config_dir: str, replica: str, keys: Keys, *, check: bool) -> bool:
    """Make a replica's server take these keys, from its next request on; return whether it takes others by that.

    Args:
        config_dir: host folder of the configurations.
        replica: its name.
        keys: what it is to take.
        check: only tell.

    Raises:
        GpufleetError: `write-failed`.
    """
    path = os.path.join(config_dir, "control", replica, KEYS)
    secrets_path = os.path.join(config_dir, f"{replica}.env")
    before, secrets = read_text(path), read_text(secrets_path).splitlines()
    first = variables_of(secrets).get(KEY_VARIABLE, "")
    after = keys.text(before, first, time.time())
    if after == before or check:
        return after != before
    # What asks this server from now on finds a key there that it takes, also if this is interrupted.
    if first:
        lines = [f"{KEY_VARIABLE}={keys.key}" if line.startswith(f"{KEY_VARIABLE}=") else line for line in secrets]
        write_file(secrets_path, "".join(f"{line}\n" for line in lines), 0o600, variable="vllm_config_dir")
    # The image's user need not be root. These are sums, and the folder keeps others on the host out.
    return write_file(path, after, 0o644, variable="vllm_config_dir")
