# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say whether a host fetches weights from the hub or from other hosts; the action plugin of the same name does it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_weights_turn
short_description: Say whether a host fetches weights from the hub or from other hosts
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs on the controller, without asking a host. It reads what M(gpufleet.vllm.vllm_weights_share) said on every host
    of the play, which the role C(vllm) keeps.
  - Hosts that serve the same model take part together. If one of them has the weights, the others fetch them from it.
    Otherwise the first O(seeds) of them fetch them from the hub, and the others then from those.
options:
  step:
    description:
      - V(probed) says whether O(probed) shows that the host lacks something. V(turn) says what the host does.
    type: str
    choices: [probed, turn]
    default: turn
  model:
    description:
      - Name of the model at the hub.
    type: str
    default: ""
  hf_home:
    description:
      - Folder on the host with the Hugging Face cache.
    type: str
    default: ""
  probed:
    description:
      - What M(gpufleet.vllm.host_info) found in the folders of models.
    type: list
    elements: dict
    default: []
  seeds:
    description:
      - How many hosts fetch from the hub where no host has the weights.
    type: int
    default: 1
extends_documentation_fragment:
  - gpufleet.vllm.common.model_cache
  - gpufleet.vllm.common.reads
"""

EXAMPLES = r"""
- name: Say what this host does
  gpufleet.vllm.vllm_weights_turn:
    seeds: 2
"""

RETURN = r"""
lacks:
  description: Whether the host may lack something of the model.
  returned: with O(step=probed)
  type: bool
looks:
  description: Whether some host of the play may lack something.
  returned: with O(step=turn)
  type: bool
part:
  description: V(seed), V(source), V(receiver) or V(none).
  returned: with O(step=turn)
  type: str
members:
  description: The hosts that take part with this one.
  returned: with O(step=turn)
  type: list
  elements: str
public_keys:
  description: Public keys of those that fetch from others.
  returned: with O(step=turn)
  type: list
  elements: str
text:
  description: The same for people.
  returned: with O(step=turn)
  type: str
  sample: "fetches the weights from other hosts: gpu-01, and those that fetch with it"
"""
