# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sum up a router's log of requests by day, client and model."""

from __future__ import annotations

DOCUMENTATION = r"""
module: router_usage
version_added: 0.2.0
short_description: Sum up a router's log of requests by day, client and model
author: gpufleet contributors (@gpufleet)
description:
  - Reads the log that M(gpufleet.vllm.router_server) has written, with its rotated files, on the router's host.
  - M(gpufleet.vllm.router_usage_summary) puts together what it found on several routers.
options:
  access_log:
    description:
      - The log. Its rotated files are beside it.
    type: path
    default: /var/log/gpufleet-router/access.log
  first_day:
    description:
      - First day (UTC) that counts, such as V(2027-01-01). Empty counts all that is kept.
    type: str
    default: ""
  last_day:
    description:
      - Last day (UTC) that counts. Empty counts to now.
    type: str
    default: ""
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
"""

EXAMPLES = r"""
- name: See who used what in January
  gpufleet.vllm.router_usage:
    first_day: "2027-01-01"
    last_day: "2027-01-31"
"""

RETURN = r"""
usage:
  description:
    - A row for each day (UTC), client and model, with C(requests), C(failures) (answered with 400 or more, not
      answered, or cut short), C(bytes_in), C(bytes_out), C(tokens_in), C(tokens_out), and C(with_tokens), the requests
      whose answers told their tokens.
    - C(client) is V(-) for requests without a key that has a name, C(model) is V(-) for those that name none, and
      V((unknown)) for names that no replica took.
  returned: success
  type: list
  elements: dict
  sample:
    - {"day": "2027-01-31", "client": "team-a", "model": "m", "requests": 2, "failures": 0, "bytes_in": 512,
       "bytes_out": 2048, "tokens_in": 20, "tokens_out": 100, "with_tokens": 1}
unreadable:
  description: Lines that are none of the log's.
  returned: success
  type: int
  sample: 0
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - The name is V(invalid-router), for a day that is none and where there is no log.
  returned: failure
  type: dict
"""

import math
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.usage import DAY_S, first_second, sum_up

ARGUMENTS: dict[str, Any] = {
    "access_log": {"type": "path", "default": "/var/log/gpufleet-router/access.log"},
    "first_day": {"type": "str", "default": ""},
    "last_day": {"type": "str", "default": ""},
}


def work(params: dict[str, Any]) -> dict[str, Any]:
    """Return the module's result.

    Raises:
        GpufleetError: C(invalid-router).
    """
    if not params["access_log"]:
        raise GpufleetError(
            "This router keeps no log of requests, so nothing can be summed up.",
            name="invalid-router",
            remedy="Set router_access_log to a file and run the playbook gpufleet.vllm.router.",
        )
    since = first_second(params["first_day"], "router_usage_first_day") if params["first_day"] else 0.0
    until = first_second(params["last_day"], "router_usage_last_day") + DAY_S if params["last_day"] else math.inf
    usage, unreadable = sum_up(params["access_log"], since, until)
    return {"changed": False, "usage": usage, "unreadable": unreadable}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module.params))


if __name__ == "__main__":
    main()
