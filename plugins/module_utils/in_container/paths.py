# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a container of ours finds things."""

from __future__ import annotations

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
