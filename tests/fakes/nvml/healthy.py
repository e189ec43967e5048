# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scenario of the stub of NVML on which nothing is wrong."""

from __future__ import annotations


def healthy_h200s(count: int) -> str:
    """Return a host with so many H200s on which nothing is wrong."""
    return f"""
[host]
driver_version = 580.159.04
cuda_driver_version = 13000
[gpu 0-{count - 1}]
name = NVIDIA H200
ecc_mode = 1
remapped_rows = 0, 0, 0, 0
persistence_mode = 1
clocks_reasons = 0x4
nvlink_links = 18
nvlink_remote = switch
fabric_state = 3
fabric_health = 1
field_230 = 0
field_59 = 2
"""
