# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For which keys the caches of a host are warm, and what of them came from another host.

Two files beside the caches, in the folder that no container sees:

======================= ===========================================================================================
warm.json               C(keys) with which servers became ready here, the last one last
received-<prefix>.json  C(host) that what is in the caches as C(names) came from, until servers of the deployment with
                        this prefix became ready with it
======================= ===========================================================================================

While there is a received-<prefix>.json, a start that fails is tried once more without what it names, whichever
deployment of the host it is of. So it is written before the first of these names is, and an interrupted run leaves it
for the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CACHES
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.cache_archive import additions, remove, unpack

MOST_KEYS = 20
STAGING = ".receiving"
RECEIVED = "received-"


class WarmCaches:
    """The caches of a host.

    Args:
        folder: of the host, with the caches.
        prefix: of the deployment's containers.
    """

    def __init__(self, folder: str, prefix: str) -> None:
        self.folder = folder
        self._warm = os.path.join(folder, "warm.json")
        self._received = os.path.join(folder, f"{RECEIVED}{prefix}.json")

    def is_warm(self, key: str) -> bool:
        """Return whether servers of this key have become ready with these caches."""
        return bool(key) and key in self._keys()

    def note_warm(self, key: str) -> None:
        """Keep that servers of this key are ready; a note that cannot be written costs others a fetch alone."""
        keys = [one for one in self._keys() if one != key] + [key]
        if key and not self.is_warm(key):
            with contextlib.suppress(GpufleetError):
                write_file(self._warm, json.dumps({"keys": keys[-MOST_KEYS:]}) + "\n", 0o644)

    def receive(self, archive: str, key: str, sha256: str, host: str) -> dict[str, Any]:
        """Add what another host packed to the caches, and nothing in the place of what is there.

        Args:
            archive: its file.
            key: of this host's servers.
            sha256: of the archive, as the host told it.
            host: for people.

        Returns:
            C(bytes) of the archive's files, and the C(names) that were added.

        Raises:
            GpufleetError: C(caches-refused); the caches are as they were.
        """
        staging = os.path.join(self.folder, STAGING)
        if self.received_from():
            # A run that was interrupted may have left a server that is starting with it.
            raise GpufleetError(
                f"What {self.received_from()} compiled is here already, and no server has become ready with it yet.",
                name="caches-refused",
            )
        shutil.rmtree(staging, ignore_errors=True)
        total = unpack(archive, staging, key, sha256)
        try:
            for cache in CACHES:
                os.makedirs(os.path.join(self.folder, cache), mode=0o755, exist_ok=True)
            names = additions(staging, self.folder)
            write_file(self._received, json.dumps({"host": host, "names": names}) + "\n", 0o644)
            for name in names:
                os.rename(os.path.join(staging, name), os.path.join(self.folder, name))
        except (GpufleetError, OSError) as error:
            self.forget_received()
            raise GpufleetError(f"What {host} compiled was thrown away: {error}", name="caches-refused") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return {"bytes": total, "names": names}

    def received_from(self) -> str:
        """Return the host of what was received and no server has become ready with; empty where there is nothing."""
        return str(self._read(self._received).get("host") or "")

    def forget_received(self) -> str:
        """Remove what came from other hosts and no server has become ready with; return these hosts, if any."""
        hosts = set()
        for entry in list_folder(self.folder):
            if entry.startswith(RECEIVED):
                path = os.path.join(self.folder, entry)
                received = self._read(path)
                for name in received.get("names") or []:
                    remove(self.folder, str(name))
                with contextlib.suppress(OSError):
                    os.unlink(path)
                hosts.add(str(received.get("host") or ""))
        return " and ".join(sorted(hosts - {""}))

    def keep_received(self) -> None:
        """What came from another host is this host's own from now on: a server is ready with it."""
        with contextlib.suppress(OSError):
            os.unlink(self._received)

    def _keys(self) -> list[str]:
        return [str(key) for key in self._read(self._warm).get("keys") or []]

    def _read(self, path: str) -> dict[str, Any]:
        try:
            content = json.loads(read_text(path) or "{}")
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}
