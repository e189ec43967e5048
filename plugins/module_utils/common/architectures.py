# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names that kernels, Docker and Debian have for the same processors."""

from __future__ import annotations

# As the kernel calls them, and as Docker and Debian do.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Docker's platforms for which there are vLLM images.
PLATFORMS = tuple(f"linux/{name}" for name in ARCHITECTURES.values())


def docker_name(architecture: str) -> str:
    """Return Docker's and Debian's name of an architecture, such as `arm64` for `aarch64`."""
    return ARCHITECTURES.get(architecture, architecture)


def platform_of(architecture: str) -> str:
    """Return the platform of a host's architecture, such as `linux/arm64`, as Docker names it."""
    return f"linux/{docker_name(architecture)}"
