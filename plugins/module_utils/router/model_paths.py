# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""C(/v1/models/<name>), which OpenAI's clients ask for and vLLM does not have: the router answers it.

The name may have slashes, which some clients encode. It is compared with the names that there are, decoded, and goes
to no replica.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import model_object
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny

LIST = "/v1/models"


def model_rules(models: Sequence[str], endpoints: Sequence[str]) -> list[str]:
    """Return the rules that answer for one model each, and for one that there is not.

    Args:
        models: the names by which the replicas are asked.
        endpoints: paths that pass; without the list of models nothing is told of one.
    """
    if LIST not in endpoints:
        return []
    answers = [
        f"http-request return status 200 content-type application/json string {quoted(json.dumps(model_object(name)))}"
        f" if METH_GET {{ path,url_dec -m str -- {quoted(f'{LIST}/{name}')} }}"
        for name in models
    ]
    there = f"There is no such model here; {LIST} has the names of those that there are."
    return [*answers, deny(404, there, f"METH_GET {{ path -m beg {LIST}/ }}")]


def quoted(text: str) -> str:
    """Return a text as one word of HAProxy's configuration."""
    return "'" + text.replace("'", "'\\''") + "'"
