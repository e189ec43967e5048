# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a Hugging Face cache: one run at a time writes to it, also where hosts share the folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import hub_download
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import Want


@contextlib.contextmanager
def cache_lock(want: Want, around: Surroundings, progress: Progress) -> Iterator[None]:
    """Keep other runs from fetching into the cache inside the block; it begins when earlier runs are done."""
    folder = os.path.join(around.hf_home, "gpufleet")
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    except OSError as error:
        raise write_failed(folder, error, "vllm_hf_home") from error
    blobs = hub_download.blobs_folder(around.cache.folder, want.repository)

    def wait(holder: str) -> None:
        there = format_bytes(hub_download.used(blobs))
        progress.phase(f"weights of {want.repository}", f"waiting for another run ({holder}); {there} are there")

    with host_lock(
        os.path.join(folder, ".lock"),
        f"download of {want.repository}",
        timeout=around.lock_timeout,
        on_wait=wait,
        variable="vllm_hf_home",
    ):
        yield
