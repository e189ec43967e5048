# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a container of ours finds what the host gives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CONFIG_PATH = "/etc/vllm/config.yaml"
HF_HOME = "/root/.cache/huggingface"
CA_BUNDLE_PATH = "/etc/gpufleet/ca-bundle.crt"
CA_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
# Folder under vllm_cache_dir -> where the container keeps that cache.
CACHES = {"vllm": "/root/.cache/vllm", "flashinfer": "/root/.cache/flashinfer", "triton": "/root/.triton"}


# Where a server finds what the host tells it (door.py, health_check.py), and under which names.
CONTROL_PATH = "/etc/vllm/control"
DOOR_MODULE = "gpufleet_door"
HEALTH_PROGRAM = "gpufleet_health.py"
CLOSED = "closed"


def joined_volumes(own: Iterable[str], theirs: Sequence[str]) -> list[str]:
    """Return mounts of ours and of the user's, whose mount replaces ours at the same target."""
    taken = {target_of(volume) for volume in theirs}
    return [volume for volume in own if target_of(volume) not in taken] + list(theirs)


def target_of(volume: str) -> str:
    parts = volume.split(":")
    return parts[1] if len(parts) > 1 else parts[0]
