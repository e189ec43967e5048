# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where on its host a server keeps what it takes from the Hugging Face hub.

By default that is C(hub) below vllm_hf_home, which is mounted at HF_HOME. A mount of the user's there leads elsewhere,
and so do the variables by which huggingface_hub finds its cache ("Environment variables" in its documentation).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CACHES, HF_HOME, joined_volumes

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")
OWN = "vllm_hf_home"
# The user of the serving image is root.
HOME = "/root"


@dataclass(frozen=True)
class HubCache:
    """A server's cache of the hub.

    Attributes:
        folder: the folder of the host that holds C(models--<owner>--<name>); empty when it is not a folder of the host.
        path: what people know it by, vllm_hf_home or the folder itself.
        variable: the variable that leads there.
        elsewhere: why it is not a folder of the host; empty when it is.
    """

    folder: str
    path: str
    variable: str
    elsewhere: str = ""

    def __str__(self) -> str:
        if self.variable == OWN:
            return f"{OWN} ({self.path})"
        return f"the Hugging Face cache ({self.path}, by {self.variable})"


def hub_cache(hf_home: str, environment: Mapping[str, str], volumes: Sequence[str]) -> HubCache:
    """Return where a server has its cache.

    Args:
        hf_home: vllm_hf_home.
        environment: variables of the server.
        volumes: its mounts beside ours, as C(docker run --volume) takes them.
    """
    by, path = _inside(environment)
    variable = "vllm_environment" if by else "vllm_volumes"
    what = f"{by} in vllm_environment ({environment[by]})" if by else "the Hugging Face cache"
    if not path.startswith("/"):
        return HubCache("", path, variable, f"{what} is no absolute path")
    ours = [f"{hf_home}:{HF_HOME}", *(f":{target}" for target in CACHES.values())]
    over = [mount for mount in map(_parts, joined_volumes(ours, volumes)) if _below(path, mount[1])]
    if not over:
        return HubCache("", path, variable, f"{what} is on no mount (vllm_volumes), so it is lost with the container")
    source, target = max(over, key=lambda mount: len(mount[1]))
    if not source.startswith("/"):
        kept = f"Docker's volume {source}" if source else f"a folder or volume of its own at {target}"
        return HubCache("", path, variable, f"{what} is in {kept}, and no folder of the host")
    folder = posixpath.normpath(posixpath.join(source, posixpath.relpath(path, target)))
    if folder == posixpath.normpath(posixpath.join(hf_home, "hub")):
        return HubCache(folder, hf_home, OWN)
    return HubCache(folder, folder, variable)


def hub_folder(hub: str, repository: str, revision: str = "") -> str:
    """Return the folder of a repository in a cache; with C(/refs/<revision>) for another than main.

    Args:
        hub: folder of the cache, see HubCache.
        repository: its name at the hub.
        revision: branch, tag or commit.
    """
    folder = posixpath.join(hub, "models--" + repository.replace("/", "--"))
    return posixpath.join(folder, "refs", revision) if revision not in ("", "main") else folder


def _inside(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that leads to the cache, or an empty text, and the cache's folder in the container."""
    by = next((name for name in VARIABLES if name in environment), "")
    path = str(environment[by]) if by else HF_HOME
    if path.startswith("~/"):
        path = HOME + path[1:]
    return by, posixpath.normpath(posixpath.join(path, "hub") if by in ("", "HF_HOME") else path)


def _parts(volume: str) -> tuple[str, str]:
    """Return source and target of a mount; one without a colon has no source."""
    parts = volume.split(":")
    source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    return source, posixpath.normpath(target) if target else ""


def _below(path: str, folder: str) -> bool:
    return bool(folder) and (path == folder or path.startswith(folder.rstrip("/") + "/"))
