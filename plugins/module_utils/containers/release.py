# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The version of this collection, for code on the hosts, where its galaxy.yml is not."""

from __future__ import annotations

VERSION = "0.1.0"
