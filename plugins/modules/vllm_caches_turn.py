# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say which host may give a host what its servers would compile; the action plugin of the same name does it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_caches_turn
short_description: Say from which host a host has what its servers would compile
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs on the controller, without asking a host. It reads what M(gpufleet.vllm.vllm_server) said on every host of the
    play, which the role C(vllm) keeps.
  - A host whose servers would be changed, and have never been ready with the caches that it has, takes those of a host
    with the same key that is ready. Where there is none yet, it waits for none.
options: {}
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
"""

EXAMPLES = r"""
- name: Say whose caches this host takes
  gpufleet.vllm.vllm_caches_turn:
"""

RETURN = r"""
host:
  description: Whose caches it takes; empty for none.
  returned: always
  type: str
  sample: gpu-01
folder:
  description: Folder of the caches there.
  returned: always
  type: str
key:
  description: Of what is compiled.
  returned: always
  type: str
"""
