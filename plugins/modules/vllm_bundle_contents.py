# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin vllm_bundle_contents, which does the work on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle_contents
short_description: Tell what a bundle for hosts without internet has to hold
version_added: 0.2.0
author:
  - gpufleet contributors (@gpufleet)
description:
  - Plans every host by the inventory alone and returns which images, weights, packages and wheels they need, each once.
    No host is contacted. A fact that the inventory does not tell is an error that names the host and the variable.
  - Runs on the controller; use it with C(run_once).
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  hosts:
    description:
      - The hosts that serve.
    type: list
    elements: str
    required: true
  routers:
    description:
      - The hosts of the router.
    type: list
    elements: str
    default: []
  releases:
    description:
      - The text of C(/etc/os-release) of each distribution, by the C(folder) in RV(systems). Without it only
        RV(systems) is returned.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: See which distributions the hosts have
  gpufleet.vllm.vllm_bundle_contents:
    hosts: "{{ ansible_play_hosts }}"
  run_once: true
  register: found
"""

RETURN = r"""
systems:
  description: The distributions, each C(image), C(platform) and C(folder) of its packages in the bundle.
  returned: success
  type: list
  elements: dict
  sample: [{"image": "debian:12", "platform": "linux/amd64", "folder": "packages/debian-12-amd64"}]
images:
  description: The images, each C(reference), C(platform), C(digest), C(source) and C(archive).
  returned: when O(releases) is given
  type: list
  elements: dict
  sample: []
models:
  description: The models of the hub, with the server's C(config) and C(environment), and the C(image) that fetches.
  returned: when O(releases) is given
  type: list
  elements: dict
  sample: []
accuracy:
  description: What lm_eval needs, by image.
  returned: when O(releases) is given
  type: list
  elements: dict
  sample: []
packages:
  description: The packages, libraries and vendors' repositories of each distribution.
  returned: when O(releases) is given
  type: list
  elements: dict
  sample: []
hosts:
  description: Which parts of the bundle each host needs.
  returned: when O(releases) is given
  type: dict
  sample: {}
notes:
  description: What is not gathered, by host.
  returned: when O(releases) is given
  type: list
  elements: str
  sample: []
"""
