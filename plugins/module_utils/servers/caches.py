# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cache folders may be removed with all they hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import file_systems, is_below

NETWORK_FILESYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "ceph",
    "gpfs",
    "glusterfs",
    "beegfs",
    "wekafs",
    "afs",
    "ocfs2",
    "gfs2",
    "panfs",
    "fuse.ceph",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.juicefs",
    "fuse.mount-s3",
    "fuse.s3fs",
    "fuse.sshfs",
)


def check_removable(path: str, others: Mapping[str, Iterable[str]] | None = None, root: str = "/") -> str:
    """Return a cache folder that may be removed with all it holds.

    Args:
        path: the folder.
        others: names of other deployments' containers to the host's folders that they mount.
        root: the folder below which proc is mounted.

    Raises:
        GpufleetError: C(cache-not-removable) for the root and folders just below it, for file systems of their own or
            of the network, and for what others mount.
    """
    real = os.path.realpath(path)
    why = ""
    if len([part for part in real.split("/") if part]) < 2 or real == os.path.expanduser("~"):
        why = "it is too high in the file system to be only a cache"
    mounts = {point: kind for point, (kind, _device) in file_systems(root).items()}
    inside = sorted(point for point in mounts if is_below(point, real))
    nearest = max((point for point in mounts if is_below(real, point)), key=len, default="")
    if inside:
        why = why or f"{inside[0]} is a file system of its own ({mounts[inside[0]]})"
    elif mounts.get(nearest, "").startswith(NETWORK_FILESYSTEMS):
        why = why or f"{nearest} is {mounts[nearest]}, which other hosts may share"
    for name, folders in sorted((others or {}).items()):
        shared = [
            folder for folder in map(os.path.realpath, folders) if is_below(folder, real) or is_below(real, folder)
        ]
        why = why or (f"{name} of another deployment mounts {shared[0]}" if shared else "")
    if not why:
        return path
    raise GpufleetError(
        f"The cache folder {path} is not removed: {why}.",
        name="cache-not-removable",
        remedy="Remove by hand what you mean, without vllm_purge_caches. To purge all the rest, name folders of this"
        " deployment alone in vllm_hf_home and vllm_cache_dir for this run.",
    )
