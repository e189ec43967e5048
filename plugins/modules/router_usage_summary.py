# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin router_usage_summary."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_usage_summary
version_added: 0.2.0
short_description: Show what clients used of the models, over all routers
author: gpufleet contributors (@gpufleet)
description:
  - Adds up what M(gpufleet.vllm.router_usage) found at each router, prints it as a table by day, client and model, and
    writes it as CSV.
  - Runs on the controller; use it with C(run_once).
options:
  routers:
    description:
      - Hosts of routers to what M(gpufleet.vllm.router_usage) returned there. One without C(usage) is told as missing,
        with its C(msg).
    type: dict
    required: true
  file:
    description:
      - File on the controller that gets the rows as CSV, made anew each time. Empty writes none. It is left as it is
        where no router could be asked.
    type: str
    default: ""
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Show who used what
  gpufleet.vllm.router_usage_summary:
    routers: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'usage_of_router'))) }}"
    file: reports/usage.csv
  run_once: true
"""

RETURN = r"""
usage:
  description: The rows, as M(gpufleet.vllm.router_usage) has them, over all routers.
  returned: success
  type: list
  elements: dict
  sample:
    - {"day": "2027-01-31", "client": "team-a", "model": "m", "requests": 2, "failures": 0, "bytes_in": 512,
       "bytes_out": 2048, "tokens_in": 20, "tokens_out": 100, "with_tokens": 1}
lines:
  description: What was printed.
  returned: success
  type: list
  elements: str
  sample: ["2 requests at 1 router"]
missing:
  description: Routers whose logs are not in it, and why.
  returned: success
  type: dict
  sample: {}
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - The name is V(usage-not-written), where the file cannot be written.
  returned: failure
  type: dict
"""
